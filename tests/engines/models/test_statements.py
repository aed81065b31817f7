"""A folder's own statement is the truth, whoever made it; and weights that are not there are not invented."""

import json
import shutil
from pathlib import Path

import pytest

from engines.engine import ModelError
from engines.models.graphs import check_onnxruntime_genai
from engines.models.model_names import DEMO_FOLDER
from engines.models.statements import read_statement
from engines.protocol import Failed, Finished, GenerationRequest, Message, PreparedModel, Target
from tests.engines.models.conftest import ONNX, OPENVINO, PLAIN, Watcher
from tests.helpers.worlds import OneFolder

HELLO = (Message("user", "Hello! Who are you?"),)


def prepare(library, target, spec):
    watcher = Watcher()
    return library.prepare(target, spec, watcher, watcher.cancelled)


@pytest.fixture(scope="module")
def built(library, tmp_path_factory) -> Path:
    """What ONNX Runtime's model builder writes: no config.json, no generation_config.json, no manifest of ours."""
    made = Path(prepare(library, Target("onnxruntime-genai", "CPU", "int4"), ONNX).path)
    folder = tmp_path_factory.mktemp("built") / "demo"
    ours = ("config.json", "generation_config.json", "special_tokens_map.json", "backend-arena.json")
    return Path(shutil.copytree(made, folder, ignore=shutil.ignore_patterns(*ours)))


@pytest.fixture
def copy(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def change(folder: Path, **model: object) -> None:
    path = folder / "genai_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["model"].update(model)
    path.write_text(json.dumps(settings), encoding="utf-8")


def generate(manager, target: Target, tokens: int = 24):
    ids: list[int] = []
    with manager.lease(target) as lease:
        outcome = lease.generate(
            "run",
            GenerationRequest(HELLO, max_new_tokens=tokens),
            lambda event: ids.append(event.token_id) if hasattr(event, "token_id") else None,
        )
    manager.unload(target)
    return outcome, ids


def test_what_the_model_builder_writes_is_imported_and_runs(built, fresh, manager):
    entry = fresh.import_folder(built)
    assert (entry.format, entry.precision, entry.device) == ("onnxruntime-genai", "int4", "CPU")
    target = Target("onnxruntime-genai", "CPU", "int4", entry.model)
    assert fresh.plan(target, ONNX).ready
    assert prepare(fresh, target, ONNX).precision == "int4"
    ours, ids = generate(manager, Target("onnxruntime-genai", "CPU", "int4"))
    theirs, same_ids = generate(manager, target)
    assert isinstance(theirs, Finished), theirs
    assert (same_ids, theirs.finish_reason) == (ids, ours.finish_reason)
    assert theirs.metrics.prompt_sha256 == ours.metrics.prompt_sha256


def test_an_end_id_of_zero_is_an_id(copy, manager):
    outcome, ids = generate(manager, Target("onnxruntime-genai", "CPU", "int4", str(copy)))
    assert len(ids) > 2
    for stop in (0, [0]):
        change(copy, eos_token_id=stop)
        check_onnxruntime_genai(copy)
    change(copy, eos_token_id=None)
    with pytest.raises(ModelError, match=r"no model\.eos_token_id"):
        check_onnxruntime_genai(copy)
    change(copy, eos_token_id=ids[2])  # stops come from the folder's own statement
    outcome, cut = generate(manager, Target("onnxruntime-genai", "CPU", "int4", str(copy)))
    assert (cut, outcome.finish_reason) == (ids[: ids.index(ids[2])], "stop")


def test_the_context_is_the_folders_own(copy, manager):
    change(copy, context_length=40)
    target = Target("onnxruntime-genai", "CPU", "int4", str(copy))
    outcome, ids = generate(manager, target, tokens=500)
    assert outcome.metrics.prompt_tokens + len(ids) <= 40
    long = (Message("user", "word " * 60),)
    with manager.lease(target) as lease:
        refused = lease.generate("run", GenerationRequest(long), lambda event: None)
    manager.unload(target)
    assert isinstance(refused, Failed)
    assert "context holds 40" in refused.message


@pytest.mark.parametrize(
    ("target", "sentence", "remedy"),
    [
        (("CPU", "fp32"), "are int4, not fp32", "onnxruntime-genai/CPU/int4"),
        (("DML", "int4"), "was built for cpu", "onnxruntime-genai/CPU/int4"),
    ],
)
def test_a_folder_is_not_filed_under_what_it_is_not(built, fresh, target, sentence, remedy):
    plan = fresh.plan(Target("onnxruntime-genai", *target, str(built)), ONNX)
    assert sentence in plan.refusal
    assert remedy in plan.remedy
    assert not plan.can_override


@pytest.mark.parametrize(("provider", "device"), [("dml", "DML"), ("CUDA", "CUDA"), ("QNN", "qnn")])
def test_the_provider_comes_from_the_folder(copy, fresh, provider, device):
    path = copy / "genai_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["model"]["decoder"]["session_options"]["provider_options"] = [{provider: {}}]
    path.write_text(json.dumps(settings), encoding="utf-8")
    assert read_statement(copy, "onnxruntime-genai").device == device
    plan = fresh.plan(Target("onnxruntime-genai", "CPU", "int4", str(copy)), ONNX)
    assert f"was built for {provider.lower()}" in plan.refusal
    assert (device in plan.remedy) == (device != "qnn")


def test_other_file_names_are_taken_from_the_statement(copy, fresh):
    """The graph's name, and that of its weights, which the graph itself gives."""
    (copy / "model.onnx").rename(copy / "phi.onnx")
    decoder = json.loads((copy / "genai_config.json").read_text())["model"]["decoder"]
    change(copy, decoder={**decoder, "filename": "phi.onnx"})
    assert fresh.import_folder(copy).problem is None
    (copy / "model.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx\.data is missing or empty"):
        fresh.import_folder(copy)


def test_openvino_folders_of_others_state_their_precision(library, fresh, manager, tmp_path):
    made = Path(prepare(library, Target("openvino-genai", "CPU", "int4"), OPENVINO).path)
    theirs = ("backend-arena.json", "openvino_tokenizer.*", "openvino_detokenizer.*", "openvino_config.json")
    folder = Path(shutil.copytree(made, tmp_path / "theirs", ignore=shutil.ignore_patterns(*theirs)))
    assert fresh.import_folder(folder).precision == "int4"
    assert (
        "are int4, not int8"
        in fresh.plan(Target("openvino-genai", "CPU", "int8", str(folder)), OPENVINO).refusal
    )
    for engine in ("openvino-genai", "optimum-intel"):
        outcome, ids = generate(manager, Target(engine, "CPU", "int4", str(folder)), 4)
        assert isinstance(outcome, Finished), outcome
        assert ids


# --- weights that are not there ----------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return Path(shutil.copytree(DEMO_FOLDER, tmp_path / "checkpoint"))


def lose(folder: Path, part: str, count: int = 1) -> list[str]:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    lost = [name for name in weights if part in name][:count]
    for name in lost:
        del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return lost


@pytest.mark.parametrize(("part", "count"), [("down_proj", 1), ("layernorm", 3), ("embed_tokens", 2)])
def test_a_checkpoint_that_lacks_tensors_is_refused_by_transformers(checkpoint, part, count, tmp_path):
    from engines.environments.environments import Environments
    from engines.runtime.manager import EngineManager

    lost = lose(checkpoint, part, count)  # of the embedding there is one, and the head is tied to it
    manager = EngineManager(
        tmp_path / "data", OneFolder(checkpoint), Environments(tmp_path / "data"), specs=(PLAIN,)
    )
    try:
        with (
            pytest.raises(Exception, match=f"lacks {count} tensor") as caught,
            manager.lease(Target("transformers", "CPU", "fp32")),
        ):
            pass
        assert any(name in str(caught.value) for name in [*lost, "lm_head.weight"])
    finally:
        manager.shutdown()


@pytest.mark.parametrize(
    ("name", "size", "tensor"),
    [("vocab_size", 2000, "embed_tokens"), ("intermediate_size", 200, "down_proj")],
)
def test_a_configuration_of_another_size_is_named(checkpoint, name, size, tensor):
    from engines.transformers_engine import TransformersEngine

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    (checkpoint / "config.json").write_text(json.dumps(config | {name: size}))
    model = PreparedModel(str(checkpoint), "m", "fp32", "safetensors")
    target = Target("transformers", "CPU", "fp32", "m")
    with pytest.raises(ModelError, match=rf"{tensor}.*256.* there and .*{size}"):
        TransformersEngine().load(target, model, str(checkpoint), lambda progress: None)


def test_tied_weights_are_not_missing(checkpoint, manager):
    """The bundled model ties its head to its embedding, and computes its rotary buffers anew."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"]
    outcome, ids = generate(manager, Target("transformers", "CPU", "fp32", str(checkpoint)), 4)
    assert isinstance(outcome, Finished), outcome
    assert ids
