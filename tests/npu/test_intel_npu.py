"""The Intel NPU library for real: its environment, and Phi-3 through it at every precision.

The engine contract is the one every engine passes: tests/engines/test_contract.py runs it at the default
precision, int8, and this module the parts that precision could change at the other two.
"""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from engines.environments.environments import Environments
from engines.protocol import Failed, GenerationRequest, Message, Target, Token
from engines.runtime.manager import EngineFailure, EngineManager
from tests.engines.test_contract import (  # noqa: F401 - the contract's tests run here, too
    OneFolder,
    generate,
    test_a_prompt_longer_than_the_context_is_refused,
    test_greedy_replies_repeat,
    test_it_says_where_it_runs,
    test_it_streams_and_stops_at_the_end_of_the_reply,
    test_measuring_runs_past_the_end_of_the_reply,
    test_sampling_limits_are_obeyed,
    test_stop_is_obeyed_within_a_token,
    test_the_limit_ends_the_reply,
)
from tests.helpers.worlds import DEMO_WEIGHTS

ROOT = Path(__file__).resolve().parents[2]
PRECISIONS = ("fp16", "int4")
REFERENCE = Target("transformers", "CPU", "fp32")
QUESTIONS = ("What is an NPU?", "Hello!", "What is OpenVINO GenAI?", "Tell me a story.")


@pytest.fixture(scope="module", autouse=True)
def ready(environments) -> None:
    status = environments.status("intel-npu")
    if status.state == "impossible":
        pytest.skip(f"{status.reason} {status.remedy}")
    log = status.log_path.read_text()[-3000:] if status.log_path else "no log"
    assert status.ready, f"{status.reason}\n{log}"


@pytest.fixture(scope="module", params=PRECISIONS)
def target(request) -> Target:
    return Target("intel-npu", "CPU", request.param)


def ids_of(manager, target, messages, max_new_tokens=48) -> list[int]:
    """Greedy token ids on a target, computed from nothing kept."""
    request = GenerationRequest(messages, max_new_tokens=max_new_tokens, reuse_kv_cache=False)
    events = []
    with manager.lease(target) as lease:
        outcome = lease.generate(f"{target}-{len(messages)}", request, events.append)
    assert not isinstance(outcome, Failed), outcome
    return [event.token_id for event in events if isinstance(event, Token)]


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


# --- the environment -----------------------------------------------------------------------------------------


def test_the_set_up_is_complete_and_quick(environments, record_property):
    status = environments.status("intel-npu")
    assert status.versions["intel-npu-acceleration-library"] == "1.4.0"
    assert status.versions["neural-compressor"] == "3.7.1"
    assert status.versions["transformers"] == "4.57.6"
    record_property("set_up_s", status.set_up_s)
    record_property("size_bytes", status.size_bytes)
    assert status.set_up_s < 240 or os.getloadavg()[0] > 2 * os.cpu_count()
    assert not (status.interpreter.parents[1] / "tmp").exists()


def test_the_command_line_verifies_what_is_there(data_dir, environments):
    command = [sys.executable, "app.py", "setup", "intel-npu", "--json", "--data-dir", str(data_dir)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["state"], document["error"]) == ("ready", None)
    assert document["interpreter"] == str(environments.interpreter("intel-npu"))


# --- what it computes ----------------------------------------------------------------------------------------


def test_fp16_says_what_transformers_says(manager, record_property):
    npu = Target("intel-npu", "CPU", "fp16")
    first_divergent = {}
    for question in QUESTIONS:
        ours, reference = (ids_of(manager, target, user(question)) for target in (npu, REFERENCE))
        pairs = enumerate(zip(ours, reference, strict=False))
        first_divergent[question] = next((i for i, (a, b) in pairs if a != b), None)
    record_property("first_divergent_token", first_divergent)
    # float16 activations may break a near tie; never at the start, and rarely at all.
    assert sum(index is not None for index in first_divergent.values()) <= 1, first_divergent
    assert all(index is None or index > 8 for index in first_divergent.values()), first_divergent


PADDING = """
import json, sys, torch
from transformers import AutoModelForCausalLM
from engines.intel_npu_engine import ENGINE, _bare_torch
from engines.protocol import PreparedModel, Target
weights, cache = sys.argv[1:]
engine = ENGINE()
target = Target("intel-npu", "CPU", "fp16")
engine.load(target, PreparedModel(weights, "demo", "fp16", "safetensors"), cache, lambda progress: None)
reference = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
for length in (1, 63, 64, 65, 255, 256, 257, 330, 600):
    ids = [5 + (31 * i) % 1500 for i in range(length)]
    with _bare_torch():
        engine._reset()
        padded = engine._advance(ids, 0)[0].float()
        kept = engine._cache.get_seq_length()
        engine._reset()
        whole = engine._forward(ids, length)[0].float()
        exact = reference(torch.tensor([ids])).logits[0, -1]
    apart = [float((padded - other).abs().max() / exact.std()) for other in (whole, exact)]
    print("CHECKED " + json.dumps([length, kept, *apart]))
"""


def test_padding_to_fixed_sizes_changes_nothing(environments, tmp_path):
    """Logits at, below and above the prefill sizes: as in one pass, and as the reference has them."""
    command = [environments.interpreter("intel-npu"), "-c", PADDING, str(DEMO_WEIGHTS), str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    checked = [json.loads(line[8:]) for line in result.stdout.splitlines() if line.startswith("CHECKED ")]
    assert len(checked) == 9, result.stderr[-3000:]
    for length, kept, against_whole, against_exact in checked:
        assert kept == length
        assert against_whole < 0.1, checked  # in standard deviations of the logits: rounding of float16
        assert against_exact < 0.1, checked


def test_int8_agrees_with_fp16_on_a_model_with_shared_embeddings(manager):
    """The library alone destroys the embedding here: nothing but garbage came out."""
    full, small = (
        ids_of(manager, Target("intel-npu", "CPU", p), user(QUESTIONS[0]), 24) for p in ("fp16", "int8")
    )
    same = sum(a == b for a, b in zip(full, small, strict=False))
    assert same >= len(full) // 2


# --- where it runs -------------------------------------------------------------------------------------------


def test_nothing_says_npu_when_the_work_ran_on_the_cpu(manager):
    status = {status.device: status for status in manager.availability()["intel-npu"].device_status}
    if status["NPU"].ok:
        pytest.skip("there is an NPU here")
    assert "NPU driver" in status["NPU"].remedy
    target = Target("intel-npu", "CPU", "int8")
    with manager.lease(target) as lease:
        assert lease.loaded.device == "CPU"
        assert lease.loaded.details["runs_on"].startswith("CPU")
        assert "for the NPU" not in manager.state(target).log_path.read_text(errors="replace")
    assert status["NPU"].reason == "The library finds no Intel NPU here."


def test_an_old_driver_is_named_with_the_remedy(tmp_path):
    """The engine against a stand-in for the library on a machine with an NPU and a driver of 2023."""
    backend = tmp_path / "intel_npu_acceleration_library" / "backend"
    backend.mkdir(parents=True)
    (backend.parent / "__init__.py").write_text("")
    (backend / "__init__.py").write_text("npu_available = lambda: True\nget_driver_version = lambda: 2016\n")
    (backend / "utils.py").write_text(
        "get_driver_installation_url = lambda: 'Driver Update URL: https://intel.com/x'"
    )
    script = (
        "from engines.intel_npu_engine import ENGINE; a = ENGINE().probe(); s = a.device_status[0]\n"
        "print(a.devices, s.reason, s.remedy, sep='|')"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    command = [sys.executable, "-c", script]
    answer = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    devices, reason, remedy = answer.strip().split("|")
    assert devices == "('CPU',)"
    assert reason == "The NPU driver is too old: version 2016, at least 2408 is needed."
    assert "https://intel.com/x" in remedy


# --- what goes wrong -----------------------------------------------------------------------------------------


def read_weights(path: Path) -> tuple[dict, bytearray]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])


def write_weights(path: Path, header: dict, data: bytes, size: int | None = None) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    if size is not None:
        with path.open("r+b") as stream:
            stream.truncate(8 + len(text) + size)  # a sparse file: no disk is used


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the bundled model without its weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in DEMO_WEIGHTS.iterdir():
        if path.suffix in (".json", ".jinja"):
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def failure_of(data_dir, folder) -> Failed:
    """How loading the folder, or the first prompt after it, fails."""
    manager = EngineManager(data_dir, OneFolder(folder), Environments(data_dir))
    request = GenerationRequest(user("Hello!"), max_new_tokens=8)
    try:
        with manager.lease(Target("intel-npu", "CPU", "fp16")) as lease:
            return lease.generate("bad", request, lambda event: None)
    except EngineFailure as error:
        return error.failed
    finally:
        manager.shutdown()


def test_weights_that_compute_nonsense_are_a_clear_failure(data_dir, folder):
    header, data = read_weights(DEMO_WEIGHTS / "model.safetensors")
    norm = next(name for name in header if name.endswith("model.norm.weight"))
    start, end = header[norm]["data_offsets"]
    data[start:end] = b"\xc0\x7f" * ((end - start) // 2)  # bfloat16 NaN
    write_weights(folder / "model.safetensors", header, bytes(data))
    failed = failure_of(data_dir, folder)
    assert failed.kind == "output"
    assert "not a number" in failed.message
    assert "OpenVINO GenAI" in failed.remedy


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(data_dir, folder):
    tensor = {"dtype": "BF16", "shape": [400_000, 1_000_000], "data_offsets": [0, 800_000_000_000]}
    write_weights(folder / "model.safetensors", {"model.big": tensor}, b"", 800_000_000_000)
    failed = failure_of(data_dir, folder)
    assert failed.kind == "memory"
    assert "GB" in failed.message
    assert failed.remedy
