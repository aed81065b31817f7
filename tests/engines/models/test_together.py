"""One model for all backends: one plan whose sums count nothing twice, one piece of work, resumable."""

import json
import shutil
import threading
from pathlib import Path

import pytest

from engines import ENGINES
from engines.models.library import ModelLibrary
from engines.models.model_names import DEMO_FOLDER
from engines.models.overview import row_for
from engines.models.plan import DISK_MARGIN_BYTES
from engines.models.together import LEFT_OUT, READY, STOPPED, GetTogether, as_stated, backends, plan_together
from engines.protocol import Availability, DeviceStatus, Target
from tests.engines.models.conftest import ONNX, PLAIN, REPOSITORY, Watcher
from tests.engines.models.hub_server import Fault
from tests.engines.models.test_library import run_cli

HERE = {
    "openvino-genai": Availability(
        True,
        (DeviceStatus("CPU", True), DeviceStatus("NPU", False, reason="none"), DeviceStatus("AUTO", True)),
    ),
    "optimum-intel": Availability(True, (DeviceStatus("CPU", True),)),
    "onnxruntime-genai": Availability(True, (DeviceStatus("CPU", True, precisions=("int4", "fp32")),)),
    "intel-npu": Availability(False, reason="not set up"),
    "transformers": Availability(True, (DeviceStatus("CPU", True, precisions=("fp32", "bf16")),)),
}


@pytest.fixture
def wanted():
    return backends(REPOSITORY, ENGINES, HERE)


def test_every_engine_that_can_run_here_is_wanted_on_each_device_it_has(wanted):
    assert [backend.target.spelling for backend in wanted] == [
        "openvino-genai/CPU/int4",
        "optimum-intel/CPU/int4",
        "onnxruntime-genai/CPU/int4",
        "transformers/CPU/fp32",
    ]


def test_what_engines_share_is_counted_once(hub, fresh, wanted):
    together = plan_together(fresh, wanted)
    one = {plan.target.engine: plan for plan in together.plans}
    assert together.download_bytes == one["transformers"].download_bytes
    assert sum(plan.download_bytes for plan in together.plans) == 4 * together.download_bytes
    converted = {
        "openvino-genai",
        "onnxruntime-genai",
    }  # the second OpenVINO engine reads the first one's folder
    outputs = sum(step.disk_bytes for name in converted for step in one[name].steps if step.kind == "convert")
    assert together.disk_bytes == together.download_bytes + outputs
    assert together.peak_bytes == max(plan.peak_bytes for plan in together.plans)
    assert together.refusal is None
    assert not together.ready
    assert len([r for r in hub.requests if r.path.startswith("/api/")]) == 3  # once for each format


def test_what_fits_nowhere_together_is_said(hub, tmp_path, wanted, monkeypatch):
    library = ModelLibrary(tmp_path / "data")
    most = max(plan.disk_bytes for plan in plan_together(library, wanted).plans)
    usage = shutil._ntuple_diskusage(10**9, 0, DISK_MARGIN_BYTES + most + 1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    together = plan_together(library, wanted)
    assert all(plan.refusal is None for plan in together.plans)
    assert "of disk space" in together.refusal


def test_stopping_keeps_what_is_done_and_the_next_try_carries_on(hub, fresh, wanted):
    hub.faults["model.safetensors"] = Fault(bytes_per_s=8_000_000)
    cancelled = threading.Event()

    def stop_in_the_middle(part):
        if part.progress and part.progress.stage == "download" and (part.progress.fraction or 0) > 0.4:
            cancelled.set()

    parts = GetTogether(fresh, wanted, stop_in_the_middle).run(cancelled)
    assert {part.state for part in parts} == {STOPPED}
    del hub.faults["model.safetensors"]
    plain = [backend for backend in wanted if backend.spec is PLAIN]
    before = plan_together(fresh, plain).download_bytes
    assert before == plan_together(fresh, plain).download_bytes
    assert {part.state for part in GetTogether(fresh, plain, lambda part: None).run(threading.Event())} == {
        READY
    }
    resumed = [r.range for r in hub.gets("model.safetensors")]
    assert resumed[0] is None
    assert resumed[-1] is not None


def test_what_does_not_fit_is_left_out_and_stops_nobody_else(hub, tmp_path, wanted):
    library = ModelLibrary(
        tmp_path / "data", memory=lambda: 560_000_000
    )  # enough to load it, not to convert it
    done = GetTogether(library, wanted, lambda part: None).run(threading.Event())
    parts = {part.target.engine: part for part in done}
    assert parts["transformers"].state == READY
    assert parts["openvino-genai"].state == parts["onnxruntime-genai"].state == LEFT_OUT
    assert "needs about" in parts["openvino-genai"].problem


def test_a_download_runs_beside_a_conversion(hub, fresh, tmp_path):
    """One engine converts what is here while another's model is still on its way."""
    folder = Path(shutil.copytree(DEMO_FOLDER, tmp_path / "here"))
    hub.faults["model.safetensors"] = Fault(bytes_per_s=1_500_000)
    seen: dict[str, set[str]] = {"convert": set(), "download": set()}
    both = threading.Event()
    watcher = Watcher()

    def note(progress):
        seen.setdefault(progress.stage, set()).add(progress.text)
        if seen["convert"] and seen["download"]:
            both.set()

    local, remote = str(folder), REPOSITORY
    targets = (
        (Target("onnxruntime-genai", "CPU", "int4", local), ONNX),
        (Target("transformers", "CPU", "fp32", remote), PLAIN),
    )
    threads = [
        threading.Thread(target=fresh.prepare, args=(*pair, note, watcher.cancelled)) for pair in targets
    ]
    for thread in threads:
        thread.start()
    assert both.wait(60)
    for thread in threads:
        thread.join()


def test_the_command_line_gets_a_model_for_all_backends_and_then_there_is_nothing_to_do(
    hub, fresh, wanted, capsys, tmp_path
):
    status, out, err = run_cli(capsys, tmp_path / "data", "get", REPOSITORY, "--for", "all", "--json")
    assert status == 0, err
    parts = {part["target"].split("/")[0]: part for part in json.loads(out)["parts"]}
    assert {part["state"] for part in parts.values()} == {"ready"}
    assert parts["openvino-genai"]["prepared"]["path"] == parts["optimum-intel"]["prepared"]["path"]
    assert len(hub.gets("model.safetensors")) == 1
    asked = len(hub.requests)
    together = plan_together(fresh, wanted)
    assert together.ready
    assert (together.download_bytes, together.disk_bytes, together.seconds) == (0, 0, 0)
    assert {part.state for part in GetTogether(fresh, wanted, lambda part: None).run(threading.Event())} == {
        READY
    }
    assert len(hub.requests) == asked
    with pytest.raises(SystemExit):
        run_cli(capsys, tmp_path, "get", REPOSITORY)


def test_a_plan_without_targets_is_a_table_over_all_engines(hub, tmp_path, capsys):
    status, out, _ = run_cli(capsys, tmp_path, "plan", REPOSITORY)
    assert status == 0
    rows = [line.split() for line in out.splitlines() if "/CPU/" in line]
    assert {row[0].split("/")[0] for row in rows} >= {"openvino-genai", "onnxruntime-genai", "transformers"}
    assert "Together: download 8 MB" in out
    status, out, _ = run_cli(capsys, tmp_path, "plan", REPOSITORY, "--on", "transformers/CPU/fp32", "--json")
    document = json.loads(out)
    assert document["download_bytes"] == document["plans"][0]["download_bytes"] > 7_000_000


def test_a_model_that_no_backend_can_have_is_refused_once(hub, tmp_path, capsys):
    folder = Path(shutil.copytree(DEMO_FOLDER, tmp_path / "awq"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "awq"}})
    )
    hub.add("arena/awq", folder)
    status, out, _ = run_cli(capsys, tmp_path / "data", "get", "arena/awq", "--for", "all", "--json")
    assert status == 1
    assert {part["state"] for part in json.loads(out)["parts"]} == {"left out"}
    status, out, _ = run_cli(capsys, tmp_path / "data", "plan", "arena/awq", "--json")
    assert (status, "AWQ checkpoint" in json.loads(out)["refusal"]) == (1, True)


@pytest.fixture
def int8_folder(tmp_path) -> Path:
    """An OpenVINO folder as its makers publish it, by what its graph says."""
    folder = Path(
        shutil.copytree(DEMO_FOLDER, tmp_path / "int8-ov", ignore=shutil.ignore_patterns("*.safetensors"))
    )
    (folder / "openvino_model.xml").write_text(
        "<net><layer type='ReadValue'/><port names='logits'/><data element_type='i8' offset='0' size='8192'/></net>"
    )
    (folder / "openvino_model.bin").write_bytes(b"0" * 8192)
    return folder


def test_a_ready_folder_is_got_in_its_own_precision_whatever_the_default_is(hub, fresh, int8_folder):
    hub.add("arena/int8-ov", int8_folder)
    asked = backends("arena/int8-ov", ENGINES, HERE)
    assert as_stated(fresh, asked) == asked  # nobody knows yet
    parts = GetTogether(fresh, asked, lambda part: None).run(threading.Event())
    assert [(part.target.spelling, part.state) for part in parts] == [
        ("openvino-genai/CPU/int8", READY),
        ("optimum-intel/CPU/int8", READY),
        ("onnxruntime-genai/CPU/int4", LEFT_OUT),
        ("transformers/CPU/fp32", LEFT_OUT),
    ]
    assert len(hub.gets("openvino_model.bin")) == 1
    for model in ("arena/int8-ov", str(int8_folder)):
        plans = plan_together(fresh, as_stated(fresh, backends(model, ENGINES, HERE))).plans
        assert [plan.target.spelling for plan in plans if plan.ready] == [
            "openvino-genai/CPU/int8",
            "optimum-intel/CPU/int8",
        ]
        row = row_for(fresh, model, backends("demo", ENGINES, HERE))
        assert [cell.state for cell in row.cells] == ["here", "here", "unfit", "unfit"]
