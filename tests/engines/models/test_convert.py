"""Conversions of the bundled model and of broken ones: what comes out, what is kept, what is never left behind."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from engines.engine import ModelError, OutOfMemoryError
from engines.models.conversion import recipes as convert_recipes
from engines.models.conversion import worker as conversion_worker
from engines.models.conversion.worker import read_stage
from engines.models.folders import MANIFEST, PROMPT_FILES, read_facts, take_prompt_files
from engines.models.graphs import check_onnxruntime_genai, check_openvino
from engines.models.library import ModelLibrary
from engines.models.model_names import DEMO_FOLDER
from engines.processes.jobs import CancelledError
from engines.protocol import Message, Target
from engines.worker.prompt import PromptEncoder
from tests.engines.models.conftest import ONNX, OPENVINO, PLAIN, Watcher

DEMO_OPENVINO = Target("openvino-genai", "CPU", "int4")
DEMO_ONNX = Target("onnxruntime-genai", "CPU", "int4")


def prepare(library, target, spec, watcher=None, **options):
    watcher = watcher or Watcher()
    return library.prepare(target, spec, watcher, watcher.cancelled, **options)


def leftovers(data_dir: Path) -> list[Path]:
    return [p for p in (data_dir / "models").glob("*/.*") if p.is_dir()]


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the bundled model that a test may break."""
    return Path(shutil.copytree(DEMO_FOLDER, tmp_path / "copy"))


def local(folder: Path, engine: str = "openvino-genai", precision: str = "int4") -> Target:
    return Target(engine, "CPU", precision, str(folder))


# --- results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "spec"), [(DEMO_OPENVINO, OPENVINO), (DEMO_ONNX, ONNX)])
def test_a_converted_folder_is_complete_and_makes_the_sources_prompts(library, target, spec):
    prepared = prepare(library, target, spec)
    folder = Path(prepared.path)
    for name in PROMPT_FILES:
        source, ours = DEMO_FOLDER / name, folder / name
        assert ours.is_file() == source.is_file(), name
        if source.is_file():
            assert json_or_text(ours) == json_or_text(source), name
    assert prepared.format == spec.model_format
    assert prepared.weight_bytes > 1_000_000
    assert prepared.estimated_peak_bytes > prepared.weight_bytes
    assert prepared.recipe["versions"]["transformers"]
    assert len(prepared.recipe_sha256) == 64
    assert library.is_ready(target, spec)


TURN = "{{ messages[0].content }}"
NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": f"named {TURN}"}]


@pytest.mark.parametrize("where", ["named in the configuration", "processor's file", "folder of templates"])
@pytest.mark.parametrize("model_format", ["openvino", "onnxruntime-genai"])
def test_the_sources_template_outweighs_the_files_a_converter_writes(copy, tmp_path, where, model_format):
    (copy / "chat_template.jinja").unlink()
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config["chat_template"] = NAMED if where == "named in the configuration" else None
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    if where == "processor's file":
        (copy / "chat_template.json").write_text(json.dumps({"chat_template": f"processor {TURN}"}))
    elif where == "folder of templates":
        (copy / "additional_chat_templates").mkdir()
        for named in NAMED:
            path = copy / "additional_chat_templates" / f"{named['name']}.jinja"
            path.write_text(named["template"])
    # As transformers' save_pretrained leaves them, which both converters call.
    made = tmp_path / "made"
    (made / "additional_chat_templates").mkdir(parents=True)
    (made / "chat_template.jinja").write_text("the converter's")
    (made / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    take_prompt_files(copy, made, model_format)
    asked = [Message("user", "Hello")]
    assert PromptEncoder(made).render(asked) == PromptEncoder(copy).render(asked)
    assert PromptEncoder(made).render(asked).endswith(" Hello")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("chat_template.jinja", b"{% do x %}", "chat template cannot be read: Encountered unknown tag 'do'"),
        ("chat_template.jinja", "\u00e9".encode("latin-1"), "chat_template.jinja in .* cannot be read"),
        ("tokenizer.json", None, "tokenizer.json in .* cannot be read"),
    ],
)
def test_what_no_prompt_can_be_made_with_is_not_converted(fresh, copy, name, content, why):
    if content is None:
        content = json.dumps(json.loads((copy / name).read_text()) | {"model": {"type": "BPE"}}).encode()
    (copy / name).write_bytes(content)
    watcher = Watcher()
    with pytest.raises(ModelError, match=why) as refused:
        prepare(fresh, local(copy, "onnxruntime-genai"), ONNX, watcher)
    assert "original model" in refused.value.remedy
    assert "Reading layer" not in fresh.latest_log()  # the converter was not even started


def json_or_text(path: Path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else text


def test_the_second_time_is_instant(library):
    first = prepare(library, DEMO_OPENVINO, OPENVINO)
    watcher = Watcher()
    began = time.monotonic()
    assert prepare(library, DEMO_OPENVINO, OPENVINO, watcher) == first
    assert time.monotonic() - began < 0.5
    assert watcher.seen == []


def test_a_directml_build_is_made_and_checked_anywhere(library):
    prepared = prepare(library, Target("onnxruntime-genai", "DML", "int4"), ONNX)
    config = json.loads((Path(prepared.path) / "genai_config.json").read_text())
    assert [list(o) for o in config["model"]["decoder"]["session_options"]["provider_options"]] == [["dml"]]
    import onnx

    graph = onnx.load(Path(prepared.path) / "model.onnx", load_external_data=False).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    assert types["logits"] == onnx.TensorProto.FLOAT16
    assert any(node.op_type == "MatMulNBits" for node in graph.node)
    assert any(node.op_type == "GroupQueryAttention" for node in graph.node)


def test_the_npu_gets_symmetric_int4_throughout():
    facts = read_facts(DEMO_FOLDER)
    small = convert_recipes.recipe_for(Target("openvino-genai", "NPU", "int4"), OPENVINO, facts)
    assert (small.options["sym"], small.options["group_size"], small.options["ratio"]) == (True, 128, 1.0)
    from dataclasses import replace

    large = convert_recipes.recipe_for(
        Target("openvino-genai", "NPU", "int4", "x"), OPENVINO, replace(facts, parameters=3_800_000_000)
    )
    assert large.options["group_size"] == -1
    assert small.sha256 != convert_recipes.recipe_for(DEMO_OPENVINO, OPENVINO, facts).sha256


def test_a_changed_source_is_converted_again(library, copy):
    target = local(copy, "onnxruntime-genai")
    first = prepare(library, target, ONNX)
    assert first.recipe["options"]["int4_block_size"] == 32
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + "\n{# changed #}")
    assert not library.is_ready(target, ONNX)
    entry = next(e for e in library.installed() if e.path == first.path)
    assert "made from other weights" in entry.problem
    shutil.copyfile(DEMO_FOLDER / "chat_template.jinja", template)
    assert prepare(library, target, ONNX) == first
    library.remove(str(copy))


def test_a_lost_or_cut_file_is_noticed_and_made_again(library, copy):
    target = local(copy, "onnxruntime-genai", "fp32")
    folder = Path(prepare(library, target, ONNX).path)
    weights = folder / "model.onnx.data"
    size = weights.stat().st_size
    with weights.open("r+b") as stream:
        stream.truncate(size // 2)
    assert not library.is_ready(target, ONNX)
    entry = next(e for e in library.installed() if e.path == str(folder))
    assert "model.onnx.data has" in entry.problem
    assert Path(prepare(library, target, ONNX).path) == folder
    assert weights.stat().st_size == size
    library.remove(entry.id)
    assert not folder.exists()


# --- failures ----------------------------------------------------------------------------------------------


def test_an_unknown_architecture_is_named(fresh, copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    config |= {"architectures": ["MartianForCausalLM"], "model_type": "martian"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="martian"):
        prepare(fresh, local(copy), OPENVINO)
    assert not fresh.is_ready(local(copy), OPENVINO)


def test_a_conversion_that_fails_says_why_and_names_its_log(fresh, copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"hidden_act": "martian"}))
    with pytest.raises(ModelError, match="martian") as caught:
        prepare(fresh, local(copy), OPENVINO)
    log = Path(caught.value.remedy.split(" in ")[-1])
    assert "Traceback" in log.read_text()
    assert leftovers(tmp_path / "data") == []
    assert not fresh.is_ready(local(copy), OPENVINO)


def test_a_checkpoint_that_lacks_tensors_is_not_filled_with_noise(fresh, copy, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    lost = next(name for name in weights if "down_proj" in name)
    del weights[lost]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 tensor") as caught:
        prepare(fresh, local(copy, "onnxruntime-genai"), ONNX)
    assert lost in str(caught.value)
    assert leftovers(tmp_path / "data") == []


def test_a_cut_checkpoint_is_said_at_once(fresh, copy):
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.truncate(1_000_000)
    for spec, engine in ((OPENVINO, "openvino-genai"), (PLAIN, "transformers")):
        with pytest.raises(ModelError, match="is damaged: 1,000,000 bytes"):
            prepare(fresh, local(copy, engine), spec)


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda folder: shutil.rmtree(folder), "There is no folder"),
        (lambda folder: (folder / "model.safetensors").unlink(), "not a model this app knows"),
        (lambda folder: (folder / "model.safetensors").write_text("hello"), "not a safetensors file"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
    ],
)
def test_no_model_is_one_clear_sentence(fresh, copy, break_it, sentence):
    break_it(copy)
    with pytest.raises(ModelError, match=sentence) as caught:
        prepare(fresh, local(copy), OPENVINO)
    assert caught.value.remedy
    assert fresh.plan(local(copy), OPENVINO).refusal == str(caught.value)


def test_a_vocabulary_as_wide_as_a_layer_is_refused_for_onnx(fresh, tmp_path):
    folder = tmp_path / "wide"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["X"], "vocab_size": 64, "hidden_size": 32})
    )
    (folder / "tokenizer.json").write_text("{}")
    import torch
    from safetensors.torch import save_file

    tensors = {
        "model.embed_tokens.weight": torch.zeros(64, 32),
        "model.layers.0.mlp.up_proj.weight": torch.zeros(64, 32),
    }
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"up_proj.* as many outputs as the vocabulary has tokens \(64\)"):
        prepare(fresh, local(folder, "onnxruntime-genai"), ONNX)


def test_an_architecture_that_the_model_builder_does_not_know_is_refused_before_it_is_tried(fresh, copy):
    config = json.loads((copy / "config.json").read_text())
    for name, known in (("Olmo2ForCausalLM", False), ("Qwen3ForCausalLM", True), (None, True)):
        config["architectures"] = [name] if name else None
        (copy / "config.json").write_text(json.dumps(config))
        refusal = fresh.plan(local(copy, "onnxruntime-genai"), ONNX).refusal
        assert (refusal is None) == known
        assert known or "does not know the architecture Olmo2ForCausalLM" in refusal
        assert fresh.plan(local(copy), OPENVINO).refusal is None


def test_too_little_memory_is_refused_with_the_numbers_and_may_be_overridden(copy, tmp_path):
    library = ModelLibrary(tmp_path / "data", memory=lambda: 100_000_000)
    target = local(copy, "onnxruntime-genai")
    with pytest.raises(OutOfMemoryError, match=r"needs about .* of memory at its peak; 100 MB are available"):
        prepare(library, target, ONNX)
    plan = library.plan(target, ONNX)
    assert "100 MB" in plan.refusal
    assert plan.can_override
    starts = Watcher(lambda progress: progress.stage == "convert")
    with pytest.raises(CancelledError):
        prepare(library, target, ONNX, starts, override=True)


def test_code_that_comes_with_a_model_needs_consent(fresh, copy):
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoModelForCausalLM": "modeling_homemade.Homemade"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "modeling_homemade.py").write_text("raise SystemExit('ran')")
    assert fresh.plan(local(copy), OPENVINO).needs_remote_code
    with pytest.raises(ModelError, match="brings Python code of its own"):
        prepare(fresh, local(copy), OPENVINO)


def test_a_full_disk_is_named_whatever_the_library_calls_it(tmp_path, monkeypatch):
    job = {"model": "org/name", "recipe": {"format": "openvino"}, "models_dir": str(tmp_path)}
    assert conversion_worker._disk_full(RuntimeError("another trouble"), job) is None
    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("basic_ios::clear: iostream error"),
    ):
        said, remedy = conversion_worker._disk_full(error, job)
        assert "its files could not be written, with" in said
        assert "--data-dir" in remedy
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4096))
    assert "4 kB free" in conversion_worker._disk_full(RuntimeError("another trouble"), job)[0]


def test_a_key_that_a_converter_misses_is_said_to_be_one():
    job = {"model": "org/name", "recipe": {"format": "onnxruntime-genai"}}
    assert conversion_worker._explain(KeyError("position_ids"), job).endswith(": KeyError: 'position_ids'")
    assert conversion_worker._explain(ValueError("no"), job).endswith("onnxruntime-genai: no")


# --- stopping ----------------------------------------------------------------------------------------------


def conversion_process() -> psutil.Process:
    for child in psutil.Process().children(recursive=True):
        if "engines.models.conversion.worker" in " ".join(child.cmdline()):
            return child
    raise AssertionError("no conversion is running")


def test_cancelling_stops_at_once_and_leaves_nothing(fresh, copy, tmp_path):
    watcher = Watcher(lambda progress: progress.stage == "convert")
    began = time.monotonic()
    with pytest.raises(CancelledError):
        prepare(fresh, local(copy), OPENVINO, watcher)
    assert time.monotonic() - began < 15
    assert leftovers(tmp_path / "data") == []
    with pytest.raises(AssertionError):
        conversion_process()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_killed_conversion_leaves_nothing_that_looks_finished(fresh, copy, tmp_path):
    def kill(progress):
        if progress.stage == "convert" and not killed:
            killed.append(conversion_process())
            os.kill(killed[0].pid, signal.SIGKILL)
        return False

    killed = []
    with pytest.raises(OutOfMemoryError, match=r"killed \(exit code -9\)"):
        prepare(fresh, local(copy, "onnxruntime-genai"), ONNX, Watcher(kill))
    assert leftovers(tmp_path / "data") == []
    assert not list((tmp_path / "data").rglob(MANIFEST))
    assert not fresh.is_ready(local(copy, "onnxruntime-genai"), ONNX)


_PARENT = """
import sys, threading
from pathlib import Path
from engines.models.library import ModelLibrary
from engines.protocol import Target
from tests.engines.models.conftest import OPENVINO
library = ModelLibrary(Path(sys.argv[1]))
target = Target("openvino-genai", "CPU", "int8", sys.argv[2])
library.prepare(target, OPENVINO, lambda progress: print(progress.text, flush=True), threading.Event())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_dead_parent_takes_its_conversion_along(copy, tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path / "data"), str(copy)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline()
    children = psutil.Process(parent.pid).children(recursive=True)
    assert children
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=15)
    assert alive == []
    assert leftovers(tmp_path / "data") == []


def test_two_conversions_wait_for_each_other_and_two_askers_share_one(fresh, copy):
    watchers = [Watcher(), Watcher(), Watcher()]
    targets = [
        local(copy, "onnxruntime-genai"),
        local(copy, "onnxruntime-genai"),
        local(copy, "onnxruntime-genai", "fp32"),
    ]
    paths: dict[int, str] = {}

    def work(index):
        paths[index] = prepare(fresh, targets[index], ONNX, watchers[index]).path

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    workers = [
        c
        for c in psutil.Process().children(recursive=True)
        if "engines.models.conversion.worker" in " ".join(c.cmdline())
    ]
    for thread in threads:
        thread.join()
    assert len(workers) == 1  # one at work; who waits or shares has no process of its own
    assert paths[0] == paths[1] != paths[2]
    stages = [watcher.stages for watcher in watchers]
    assert "queue" in stages[2] or "queue" in stages[0]


# --- checks and progress -----------------------------------------------------------------------------------


def test_the_structure_check_finds_what_is_wrong(library, tmp_path):
    good = Path(prepare(library, DEMO_OPENVINO, OPENVINO).path)
    check_openvino(good)
    bad = Path(shutil.copytree(good, tmp_path / "ir"))
    with (bad / "openvino_model.bin").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(ModelError, match=r"openvino_model\.bin is damaged: 1,000 bytes"):
        check_openvino(bad)
    (bad / "openvino_model.xml").write_text("<net><oops")
    with pytest.raises(ModelError, match=r"openvino_model\.xml is damaged"):
        check_openvino(bad)

    good = Path(prepare(library, DEMO_ONNX, ONNX).path)
    check_onnxruntime_genai(good)
    bad = Path(shutil.copytree(good, tmp_path / "onnx"))
    (bad / "model.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx\.data is missing"):
        check_onnxruntime_genai(bad)
    (bad / "genai_config.json").write_text('{"model": {"type": "phi3"}}')
    with pytest.raises(ModelError, match=r"no model\.vocab_size"):
        check_onnxruntime_genai(bad)


def test_progress_is_read_from_the_libraries_own_words():
    assert read_stage("nothing yet", 4) is None
    loading = read_stage("Loading weights:  50%|█████", 4)
    compressing = read_stage(
        "Loading weights: 100%\nApplying Weight Compression ━━━━━ 40% • 0:00:10 • 0:00:20", 4
    )
    assert loading == ("Reading the weights", 0.125)
    assert compressing == ("Compressing the weights", 0.63)
    assert read_stage("complete quantization of /model/layers.2/mlp/down_proj", 4)[1] == 0.55
