"""Resolving, planning, ready-made models, importing, removing, and the command line on top of them."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engines import ENGINES, spec_by_name
from engines.engine import ModelError
from engines.models import catalogue
from engines.models.catalogue import CatalogueModel, Prebuilt
from engines.models.download.hub_cache import cache_dir
from engines.models.folders import MANIFEST, write_json
from engines.models.library import ModelLibrary
from engines.models.model_names import DEMO_FOLDER, resolve
from engines.models.overview import best_for, overview
from engines.models.plan import Plan
from engines.models.together import Backend
from engines.protocol import Target
from tests.engines.models.conftest import ONNX, OPENVINO, PLAIN, REPOSITORY, Watcher
from ui.cli import models as models_cli

TINYLLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
PHI = "microsoft/Phi-3.5-mini-instruct"
CPU_FOLDER = "cpu_and_mobile/cpu-int4-awq-block-128-acc-level-4"


def prepare(library, target, spec, **options):
    watcher = Watcher()
    return library.prepare(target, spec, watcher, watcher.cancelled, **options)


def used_bytes(*folders: Path) -> int:
    """Disk space, every file once."""
    files = [p for folder in folders for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    return sum({(s.st_dev, s.st_ino): s.st_size for s in (p.stat() for p in files)}.values())


# --- names and the catalogue -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "one", "a/b/c", "a b/c", "org/..", "örg/name", "org/na$me"])
def test_names_that_mean_nothing_are_refused(name, fresh):
    with pytest.raises(ModelError, match="neither a folder nor a Hugging Face id"):
        resolve(name)
    target = Target("openvino-genai", "CPU", "int4", name)
    assert not fresh.is_ready(target, OPENVINO)
    assert fresh.plan(target, OPENVINO).refusal


@pytest.mark.parametrize("name", ["/models/x", "./x", "~/x", "C:\\models\\x", "C:/models/x", "..\\x"])
def test_paths_are_told_from_ids(name):
    assert resolve(name).folder is not None


def test_the_catalogue_is_consistent():
    models = catalogue.load()
    engines = {spec.name for spec in ENGINES}
    assert all(model.limits.keys() <= engines for model in models)
    assert len({model.id for model in models}) == len(models) >= 8
    for model in models:
        assert model.parameters > 1e8
        assert model.licence
        for prebuilt in model.prebuilt:
            assert prebuilt.format in ("openvino", "onnxruntime-genai")
            assert (prebuilt.device is None) <= (prebuilt.format == "openvino")
            assert resolve(prebuilt.repository).folder is None
    phi = catalogue.find("microsoft/phi-3-mini-4k-instruct")
    assert (
        phi.ready_made(Target("openvino-genai", "GPU.1", "int4"), OPENVINO).repository
        == "OpenVINO/Phi-3-mini-4k-instruct-int4-ov"
    )
    openvino = {
        device: phi.ready_made(Target("openvino-genai", device, "int4"), OPENVINO)
        for device in ("GPU.1", "NPU")
    }
    assert openvino["GPU.1"].repository == "OpenVINO/Phi-3-mini-4k-instruct-int4-ov"
    assert openvino["NPU"].repository.endswith("-int4-cw-ov")
    directml = phi.ready_made(Target("onnxruntime-genai", "DML", "int4"), ONNX)
    assert directml.subfolder == "directml/directml-int4-awq-block-128"
    assert phi.ready_made(Target("onnxruntime-genai", "CPU", "fp16"), ONNX) is None
    npu = Target("openvino-genai", "NPU", "int4")
    assert catalogue.find(TINYLLAMA).ready_made(npu, OPENVINO) is None  # made for the CPU


def test_importing_the_library_stays_free():
    code = (
        "import sys, engines.models.library, ui.cli.models;"
        "heavy = {'torch', 'transformers', 'openvino', 'huggingface_hub', 'onnxruntime_genai', 'optimum', 'gradio'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- plans -------------------------------------------------------------------------------------------------


def test_the_plan_says_what_is_downloaded_and_converted_and_the_numbers_hold(hub, fresh):
    target = Target("onnxruntime-genai", "CPU", "int4", REPOSITORY)
    plan = fresh.plan(target, ONNX)
    assert [step.kind for step in plan.steps] == ["download", "convert"]
    repository = sum(path.stat().st_size for path in DEMO_FOLDER.iterdir())
    assert plan.download_bytes == repository
    assert plan.disk_bytes > repository
    assert plan.peak_bytes > 0
    assert plan.refusal is None
    assert any("Download 8 MB" in line for line in plan.lines())
    assert not fresh.is_ready(target, ONNX)

    prepare(fresh, Target("transformers", "CPU", "fp32", REPOSITORY), PLAIN)
    plan = fresh.plan(target, ONNX)
    assert [step.kind for step in plan.steps] == ["convert"]
    assert plan.download_bytes == 0
    plan = fresh.plan(Target("transformers", "CPU", "fp32", REPOSITORY), PLAIN)
    assert plan.ready


def test_phi3_mini_on_a_16_gb_pc_is_refused_for_onnx_and_allowed_for_openvino(tmp_path):
    folder = tmp_path / "phi3-mini"
    make_hollow_phi3(folder)
    library = ModelLibrary(tmp_path / "data", memory=lambda: 13_500_000_000)  # what a 16 GB PC has to spare
    onnx = library.plan(Target("onnxruntime-genai", "CPU", "int4", str(folder)), ONNX)
    assert "of memory at its peak" in onnx.refusal
    assert onnx.can_override
    assert onnx.peak_bytes == pytest.approx(22e9, rel=0.25)
    openvino = library.plan(Target("openvino-genai", "CPU", "int4", str(folder)), OPENVINO)
    assert openvino.refusal is None
    assert openvino.peak_bytes == pytest.approx(11e9, rel=0.25)


def make_hollow_phi3(folder: Path) -> None:
    """Phi-3-mini by its headers; the weights are a hole in the file and take no space."""
    from tests.engines.models.shapes import phi3_shapes, write_hollow

    folder.mkdir()
    config = json.loads((DEMO_FOLDER / "config.json").read_text())
    config |= {"hidden_size": 3072, "num_hidden_layers": 32, "vocab_size": 32064, "intermediate_size": 8192}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(DEMO_FOLDER / "tokenizer.json", folder)
    write_hollow(
        folder / "model.safetensors", phi3_shapes(hidden=3072, layers=32, vocab=32064, intermediate=8192)
    )


def test_a_plan_for_nothing_reachable_says_so(cache, fresh, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    plan = fresh.plan(Target("openvino-genai", "CPU", "int4", "arena/none"), OPENVINO)
    assert isinstance(plan, Plan)
    assert "cannot be reached" in plan.refusal
    assert not plan.can_override


# --- ready-made models -------------------------------------------------------------------------------------


@pytest.fixture
def published(hub, library, tmp_path):
    """What makers publish: an OpenVINO repository, and an ONNX repository with a folder per device."""
    openvino = Path(prepare(library, Target("openvino-genai", "CPU", "int4"), OPENVINO).path)
    onnx = Path(prepare(library, Target("onnxruntime-genai", "CPU", "int4"), ONNX).path)
    source = Path(shutil.copytree(DEMO_FOLDER, tmp_path / "source"))
    (source / "model.safetensors").write_bytes(b"never to be downloaded" * 10_000)
    (source / "chat_template.jinja").write_text("{{ messages[0]['content'] }} the original's own")
    ignored = shutil.ignore_patterns("backend-arena.json")
    repository = tmp_path / "onnx-repository"
    shutil.copytree(onnx, repository / CPU_FOLDER, ignore=ignored)
    shutil.copytree(onnx, repository / "gpu" / "gpu-int4-awq-block-128", ignore=ignored)
    shutil.copytree(openvino, tmp_path / "openvino-repository", ignore=ignored)
    hub.add(TINYLLAMA, source)
    hub.add("OpenVINO/TinyLlama-1.1B-Chat-v1.0-int4-ov", tmp_path / "openvino-repository")
    hub.add(PHI, source)
    hub.add("microsoft/Phi-3.5-mini-instruct-onnx", repository)
    return hub


@pytest.mark.parametrize(
    ("target", "spec"),
    [
        (Target("openvino-genai", "CPU", "int4", TINYLLAMA), OPENVINO),
        (Target("onnxruntime-genai", "CPU", "int4", PHI), ONNX),
    ],
)
def test_a_ready_made_model_is_preferred_and_gets_the_originals_prompts(
    published, fresh, tmp_path, target, spec
):
    plan = fresh.plan(target, spec)
    assert [step.kind for step in plan.steps] == ["download"]
    assert not plan.ready
    prepared = prepare(fresh, target, spec)
    folder = Path(prepared.path)
    assert (folder / "chat_template.jinja").read_text().endswith("the original's own")
    assert prepared.recipe["converter"] == "prebuilt"
    assert not published.gets("model.safetensors")
    assert not [r for r in published.requests if "/gpu/" in r.path]
    assert fresh.is_ready(target, spec)
    assert fresh.plan(target, spec).ready

    asked = len(published.requests)
    assert prepare(fresh, target, spec) == prepared
    assert len(published.requests) == asked

    entry = next(e for e in fresh.installed() if e.kind == "ready-made")
    before = used_bytes(tmp_path / "data", cache_dir())
    freed = fresh.remove(entry.id)
    assert freed == before - used_bytes(tmp_path / "data", cache_dir())
    assert freed == pytest.approx(entry.freed_bytes, rel=0.25)
    assert not fresh.is_ready(target, spec)


def test_a_gated_original_does_not_stop_a_ready_made_model(published, fresh):
    del published.repositories[TINYLLAMA]
    target = Target("openvino-genai", "CPU", "int4", TINYLLAMA)
    folder = Path(prepare(fresh, target, OPENVINO).path)
    assert (folder / "tokenizer.json").is_file()


def test_a_folder_that_no_page_confirms_is_tried_and_converted_if_it_is_not_there(hub, fresh, monkeypatch):
    unsure = Prebuilt("onnxruntime-genai", "int4", "arena/demo-onnx", device="CPU", confirmed=False)
    entry = CatalogueModel(REPOSITORY, "Demo", 4_000_000, 1024, "MIT", prebuilt=(unsure,))
    monkeypatch.setattr(catalogue, "find", lambda model: entry if model == REPOSITORY else None)
    target = Target("onnxruntime-genai", "CPU", "int4", REPOSITORY)
    assert [step.kind for step in fresh.plan(target, ONNX).steps] == ["download", "convert"]
    assert prepare(fresh, target, ONNX).recipe["converter"] != "prebuilt"


def test_what_an_engine_cannot_do_with_a_model_is_said(cache, fresh):
    gemma = fresh.estimate(Target("openvino-genai", "CPU", "int4", "google/gemma-3-1b-it"), OPENVINO)
    assert "transformers up to 5.0 only" in gemma.refusal
    assert gemma.can_override
    smollm = fresh.estimate(Target("onnxruntime-genai", "CPU", "int4", "HuggingFaceTB/SmolLM3-3B"), ONNX)
    assert "without rotary positions" in smollm.refusal


def test_the_overview_says_how_each_backend_gets_each_model(cache, tmp_path):
    library = ModelLibrary(tmp_path / "data", memory=lambda: 13_500_000_000)  # what a 16 GB PC has to spare
    here = [Backend(Target(s.name, "CPU", s.precisions[0]), s) for s in (OPENVINO, ONNX, PLAIN)]
    rows = {row.model: row for row in overview(library, here)}
    assert [cell.state for cell in rows["demo"].cells] == ["convert", "convert", "here"]
    phi = rows["microsoft/Phi-3-mini-4k-instruct"]
    assert [cell.state for cell in phi.cells] == ["ready-made", "ready-made", "download"]
    assert "on 3 of 3 backends" in phi.summary
    assert [cell.state for cell in rows["Qwen/Qwen2.5-7B-Instruct"].cells] == ["ready-made", "unfit", "unfit"]
    best = best_for(library, here)
    assert best.parameters > 3_500_000_000
    assert not best.gated
    small = ModelLibrary(tmp_path / "data", memory=lambda: 3_000_000_000)
    assert best_for(small, here).parameters < 1_800_000_000
    assert best_for(ModelLibrary(tmp_path / "data", memory=lambda: 400_000_000), here) is None


# --- importing, listing, removing --------------------------------------------------------------------------


def test_a_folder_is_recognised_imported_and_forgotten(library, fresh, tmp_path):
    made = Path(prepare(library, Target("openvino-genai", "CPU", "int4"), OPENVINO).path)
    folder = Path(shutil.copytree(made, tmp_path / "mine"))
    entry = fresh.import_folder(folder)
    assert (entry.kind, entry.format) == ("imported", "openvino")
    target = Target("openvino-genai", "CPU", "int4", entry.model)
    assert fresh.is_ready(target, OPENVINO)
    assert prepare(fresh, target, OPENVINO).path == str(folder)
    assert entry.model in {choice.name for choice in fresh.models()}
    with pytest.raises(ModelError, match="can only be made from the original weights"):
        prepare(fresh, Target("onnxruntime-genai", "CPU", "int4", entry.model), ONNX)
    assert fresh.remove(entry.id) == 0
    assert folder.is_dir()
    assert entry.id not in {e.id for e in fresh.installed()}


def test_folders_of_one_name_are_told_apart(cache, fresh, tmp_path):
    for name in ("qwen/int4", "llama/int4", "a/gemma"):
        fresh.import_folder(Path(shutil.copytree(DEMO_FOLDER, tmp_path / name)))
    shutil.rmtree(tmp_path / "llama")
    titles = {Path(choice.name).parent.name: choice.title for choice in fresh.models() if choice.is_here}
    assert titles.items() >= {"qwen": "qwen/int4", "llama": "llama/int4", "a": "gemma"}.items()
    problem = next(entry.problem for entry in fresh.installed() if "llama" in entry.model)
    assert problem.startswith("There is no folder")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: None, "There is no folder"),
        (lambda folder: folder.mkdir(), "not a model this app knows"),
        (lambda folder: _only_graph(folder), "lacks openvino_model"),
    ],
)
def test_what_is_no_model_is_not_imported(fresh, tmp_path, make, sentence):
    make(tmp_path / "odd")
    with pytest.raises(ModelError, match=sentence):
        fresh.import_folder(tmp_path / "odd")


def _only_graph(folder: Path) -> None:
    folder.mkdir()
    (folder / "openvino_model.xml").write_text("<net/>")


def test_downloaded_weights_are_listed_and_removed(hub, fresh, tmp_path):
    prepare(fresh, Target("transformers", "CPU", "fp32", REPOSITORY), PLAIN)
    entry = next(e for e in fresh.installed() if e.kind == "downloaded")
    assert entry.model == REPOSITORY
    assert REPOSITORY in {choice.name for choice in fresh.models() if choice.is_here}
    before = used_bytes(cache_dir())
    freed = fresh.remove(REPOSITORY)
    assert freed == before - used_bytes(cache_dir())
    assert freed > 7_000_000
    assert not list(cache_dir().glob("models--*"))
    with pytest.raises(ModelError, match="nothing of"):
        fresh.remove(REPOSITORY)


# --- command line ------------------------------------------------------------------------------------------


def run_cli(capsys, data_dir: Path, *arguments: str) -> tuple[int, str, str]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, default=data_dir)
    models_cli.register(parser.add_subparsers())
    parsed = parser.parse_args(["models", *arguments])
    status = parsed.run(parsed)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_line_does_it_all(library, data_dir, capsys, hub, tmp_path):
    if spec_by_name("onnxruntime-genai") is None:
        pytest.skip("the ONNX Runtime GenAI engine is not in this build")
    on = ["--on", "onnxruntime-genai/CPU/int4"]
    status, out, _ = run_cli(capsys, data_dir, "get", "demo", *on, "--json")
    assert status == 0
    assert json.loads(out)["prepared"][0]["format"] == "onnxruntime-genai"
    status, out, _ = run_cli(capsys, tmp_path, "list", "--json", "--data-dir", str(data_dir), "--offline")
    assert {"demo"} <= {model["model"] for model in json.loads(out)["models"]}
    status, out, _ = run_cli(capsys, data_dir, "plan", "demo", *on)
    assert (status, "ready" in out) == (0, True)
    status, out, _ = run_cli(capsys, data_dir, "plan", REPOSITORY, *on, "--json")
    assert json.loads(out)["plans"][0]["download_bytes"] > 7_000_000
    status, out, _ = run_cli(capsys, data_dir, "import", str(DEMO_FOLDER), "--json")
    assert json.loads(out)["imported"]["format"] == "safetensors"
    status, out, _ = run_cli(capsys, data_dir, "remove", str(DEMO_FOLDER), "--json")
    assert json.loads(out)["freed_bytes"] == 0
    assert DEMO_FOLDER.is_dir()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("get", "demo", "--on", "nonsense"), "is not a target"),
        (("get", "demo", "--on", "martian/CPU/int4"), "There is no engine"),
        (("remove", "nothing/here"), "nothing of"),
        (("import", "/nowhere"), "There is no folder"),
    ],
)
def test_the_command_line_says_what_is_wrong(capsys, tmp_path, cache, arguments, sentence):
    status, out, err = run_cli(capsys, tmp_path, *arguments)
    assert status == 1
    assert out == ""
    assert sentence in err
    status, out, _ = run_cli(capsys, tmp_path, *arguments, "--json")
    assert status == 1
    assert sentence in json.loads(out)["error"]


def test_a_panel_is_told_briefly_what_its_first_prompt_will_do(cache, library, fresh, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # none of this asks the Hub
    demo = Target("onnxruntime-genai", "CPU", "int4")
    prepare(library, demo, ONNX)
    assert library.brief(demo, ONNX) is None
    assert fresh.brief(demo, ONNX).startswith("Not converted yet: the first prompt does it")
    openvino = Target("openvino-genai", "CPU", "int4", PHI)
    assert "downloads OpenVINO/Phi-3.5-mini-instruct-int4-ov" in fresh.brief(openvino, OPENVINO)
    large = Target("onnxruntime-genai", "CPU", "fp32", "Qwen/Qwen3-1.7B")
    assert "downloads and converts it (about 3.4 GB)" in fresh.brief(large, ONNX)
    assert "neither a folder nor" in fresh.brief(Target("openvino-genai", "CPU", "int4", "what"), OPENVINO)


def test_how_long_a_conversion_takes_is_learnt_from_those_before_it(fresh, library, tmp_path):
    openvino, onnx = Target("openvino-genai", "CPU", "int4"), Target("onnxruntime-genai", "CPU", "int4")
    expected = fresh.plan(openvino, OPENVINO).seconds
    made = Path(prepare(library, openvino, OPENVINO).path)
    manifest = json.loads((made / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["expected_s"] == expected
    earlier = tmp_path / "data" / "models" / "earlier" / made.name
    earlier.mkdir(parents=True)
    write_json(earlier / MANIFEST, manifest | {"seconds": 3 * expected})
    assert fresh.plan(openvino, OPENVINO).seconds == 3 * expected
    assert fresh.plan(onnx, ONNX).seconds < 2 * expected  # another format goes at a pace of its own
    manifest.pop("expected_s")  # as folders were made before
    write_json(earlier / MANIFEST, manifest)
    assert fresh.plan(openvino, OPENVINO).seconds == expected
