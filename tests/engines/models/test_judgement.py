"""What a folder or a repository is: found before it is planned, imported, downloaded or converted, and said."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from engines import ENGINES
from engines.engine import ModelError
from engines.models import architectures
from engines.models.judgement import judge_folder
from engines.models.model_names import DEMO_FOLDER
from engines.models.overview import overview
from engines.models.together import Backend
from engines.protocol import Target
from tests.engines.models.conftest import ONNX, OPENVINO, PLAIN, Watcher
from tests.engines.models.hub_server import Fault

CONFIG = json.loads((DEMO_FOLDER / "config.json").read_text(encoding="utf-8"))


def write(folder: Path, name: str, value: object = None) -> None:
    text = value if isinstance(value, str) else json.dumps(value or {})
    (folder / name).write_text(text, encoding="utf-8")


def tensors(folder: Path, *names: str, kind: str = "F32", file: str = "model.safetensors") -> None:
    """A safetensors file whose tensors are called so."""
    header = {
        name: {"dtype": kind, "shape": [1], "data_offsets": [4 * i, 4 * i + 4]}
        for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4 * len(names))


def configured(**changes: object) -> Callable[[Path], None]:
    """The bundled model with another config.json."""
    return lambda folder: write(folder, "config.json", {**CONFIG, **changes})


def architecture(name: str, **more: object) -> Callable[[Path], None]:
    return configured(architectures=[name], **more)


def without(*names: str, **files: object) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()
        for name, value in files.items():
            write(folder, name.replace("__", "."), value)

    return break_it


def only(*names: str) -> Callable[[Path], None]:
    """An otherwise empty folder with these files."""

    def break_it(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"{}")

    return break_it


def quantised(method: str, **more: object) -> Callable[[Path], None]:
    return configured(quantization_config={"quant_method": method, **more})


def renamed_tensors(*names: str, kind: str = "I32") -> Callable[[Path], None]:
    return lambda folder: tensors(folder, *names, kind=kind)


def shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00003.safetensors")
    write(
        folder,
        "model.safetensors.index.json",
        {"weight_map": {c: f"model-0000{c}-of-00003.safetensors" for c in "123"}},
    )


def shards_without_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")


def pointer(name: str) -> Callable[[Path], None]:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
    return lambda folder: write(folder, name, text)


KINDS = {
    "awq": (quantised("awq", bits=4), "an AWQ checkpoint", "original weights"),
    "gptq": (quantised("gptq", bits=4, group_size=128), "a GPTQ checkpoint", "original weights"),
    "gptq, old": (
        without(quantize_config__json={"bits": 4, "group_size": 128}),
        "a GPTQ checkpoint",
        "original",
    ),
    "awq, old": (
        without(quant_config__json={"w_bit": 4, "zero_point": True}),
        "an AWQ checkpoint",
        "original",
    ),
    "gptq by its tensors": (renamed_tensors("a.qweight", "a.g_idx"), "a GPTQ checkpoint", "original"),
    "awq by its tensors": (renamed_tensors("a.qweight", "a.qzeros"), "an AWQ checkpoint", "original"),
    "bitsandbytes": (
        configured(quantization_config={"load_in_4bit": True}),
        "a bitsandbytes checkpoint",
        "original",
    ),
    "bitsandbytes by its tensors": (
        renamed_tensors("a.weight", "a.absmax"),
        "a bitsandbytes checkpoint",
        "original",
    ),
    "fp8": (quantised("fp8"), "an FP8 checkpoint", "original weights"),
    "fp8 by its tensors": (
        renamed_tensors("a.weight", kind="F8_E4M3"),
        "an FP8 checkpoint",
        "original weights",
    ),
    "compressed-tensors": (
        quantised("compressed-tensors"),
        "a compressed-tensors checkpoint",
        "original weights",
    ),
    "modelopt": (
        without(hf_quant_config__json={"quantization": {"quant_algo": "NVFP4"}}),
        "nvfp4",
        "original",
    ),
    "exl2": (renamed_tensors("a.q_weight", "a.q_groups"), "an EXL2 checkpoint", "original weights"),
    "mlx": (configured(quantization={"bits": 4, "group_size": 64}), "an MLX checkpoint", "original weights"),
    "mlx by its tensors": (
        renamed_tensors("a.scales", "a.biases", kind="U32"),
        "an MLX checkpoint",
        "original",
    ),
    "hqq": (quantised("hqq"), "an HQQ checkpoint", "original weights"),
    "an unknown way": (quantised("magic"), "quantised with magic", "original weights"),
    "lora": (
        without(
            "config.json",
            "model.safetensors",
            adapter_config__json={"base_model_name_or_path": "org/base", "peft_type": "LORA"},
        ),
        "a LORA adapter .* only the changes to org/base",
        "merge_and_unload",
    ),
    "lora beside a whole model": (
        without(adapter_config__json={"peft_type": "LORA"}),
        "beside a whole model",
        "Merge",
    ),
    "adapter weights alone": (only("adapter_model.bin"), "a PEFT adapter", "Merge it"),
    "encoder": (architecture("BertForMaskedLM"), "an encoder: it fills gaps", "ForCausalLM"),
    "bare encoder": (architecture("Qwen3Model"), "an encoder or embedding model", "ForCausalLM"),
    "sentence transformer": (without(modules__json=[]), "an embedding model", "ForCausalLM"),
    "classifier": (
        architecture("LlamaForSequenceClassification"),
        "a classifier or reward model",
        "ForCausalLM",
    ),
    "encoder-decoder": (
        architecture("T5ForConditionalGeneration", is_encoder_decoder=True),
        "encoder-decoder",
        "Causal",
    ),
    "speech": (architecture("WhisperForSpeechSeq2Seq"), "a speech model", "ForCausalLM"),
    "vision": (architecture("ViTForImageClassification"), "a classifier", "ForCausalLM"),
    "vision and text": (
        architecture("CLIPModel", vision_config={}, text_config={}),
        "a vision model",
        "ForCausalLM",
    ),
    "missing shards": (shards, r"2 of 3 weight files are missing \(model-00002-of-00003", "again"),
    "missing shards, no index": (shards_without_index, "1 of 2 weight files are missing", "again"),
    "lfs weights": (pointer("model.safetensors"), "only a pointer to the real file", "git lfs pull"),
    "lfs tokenizer": (pointer("tokenizer.json"), "tokenizer.json is only a pointer", "git lfs pull"),
    "sentencepiece only": (
        without("tokenizer.json", tokenizer__model="x"),
        "only a SentencePiece model",
        "AutoTokenizer",
    ),
    "old bpe only": (
        without("tokenizer.json", vocab__json={}, merges__txt=""),
        "an older BPE vocabulary",
        "AutoTokenizer",
    ),
    "tiktoken only": (without("tokenizer.json", qwen__tiktoken="x"), "only a tiktoken file", "AutoTokenizer"),
    "no tokenizer": (
        without("tokenizer.json"),
        "has no tokenizer.json.* no tokenizer at all",
        "tokenizer.json",
    ),
    "empty tokenizer": (without(tokenizer__json=""), None, None),
    "pickles": (
        without("model.safetensors", pytorch_model__bin="x"),
        "only as pytorch_model.bin: Python pickles",
        "save_pretrained",
    ),
    "gguf": (only("model-Q4_K_M.gguf", "config.json"), "a GGUF model", "original model"),
    "onnx": (
        only("model.onnx", "config.json", "tokenizer.json"),
        "an ONNX graph without genai_config.json",
        "model builder",
    ),
    "onnx in a folder": (
        only("onnx/model.onnx", "config.json"),
        "an ONNX graph without genai_config.json",
        "model builder",
    ),
    "diffusers": (
        only("model_index.json", "unet/model.safetensors"),
        "a diffusers pipeline",
        "language model",
    ),
    "tensorflow": (only("tf_model.h5", "config.json"), "TensorFlow weights", "original model"),
    "mediapipe": (only("gemma.task"), "a MediaPipe model", "original model"),
    "ctranslate2": (
        only("model.bin", "config.json", "vocabulary.json"),
        "a CTranslate2 model",
        "original model",
    ),
    "mistral's own layout": (
        only("consolidated.safetensors", "params.json"),
        "no config.json; params.json",
        "layout of",
    ),
    "one folder too high": (
        only("snapshots/abc/model.safetensors"),
        r"its folders do \(snapshots/abc\)",
        "snapshots/abc",
    ),
    "openvino without weights": (
        only("openvino_model.xml", "config.json"),
        "lacks openvino_model.bin",
        "again",
    ),
    "openvino without tokenizer": (
        only("openvino_model.xml", "openvino_model.bin", "config.json", "openvino_tokenizer.xml"),
        "no tokenizer.json.* OpenVINO's tokenizer graph",
        "Copy tokenizer.json",
    ),
    "openvino without config": (
        only("openvino_model.xml", "openvino_model.bin"),
        "has no config.json",
        "Copy config.json",
    ),
    "openvino in parts": (only("openvino_language_model.xml", "config.json"), "multimodal", "text model"),
    "genai without graph": (
        lambda folder: (
            only("tokenizer.json")(folder),
            write(folder, "genai_config.json", {"model": {"decoder": {"filename": "m.onnx"}}}),
        ),
        "names m.onnx, which is missing",
        "again",
    ),
    "genai with pictures": (
        lambda folder: (
            only("tokenizer.json")(folder),
            write(folder, "genai_config.json", {"model": {"vision": {"filename": "v.onnx"}}}),
        ),
        "vision input",
        "text model",
    ),
    "nothing": (
        only("README.md"),
        "not a model this app knows.* It holds README.md",
        "folder that directly holds",
    ),
    "empty": (only(), "not a model this app knows.* It is empty", "folder that directly holds"),
}


def genai(graph: bytes = b"", weights: bytes = b"", **settings: object) -> Callable[[Path], None]:
    """A folder for ONNX Runtime GenAI whose configuration is complete but for `settings`."""
    decoder = {"filename": "m.onnx", "num_hidden_layers": 1, "num_key_value_heads": 1, "head_size": 8}
    model = {"type": "phi3", "vocab_size": 9, "context_length": 9, "eos_token_id": 0, "decoder": decoder}

    def break_it(folder: Path) -> None:
        only("tokenizer.json")(folder)
        write(folder, "genai_config.json", {"model": model} | settings)
        (folder / "m.onnx").write_bytes(graph)
        (folder / "m.data").write_bytes(weights)

    return break_it


def external(name: str, offset: int, length: int) -> bytes:
    """What an ONNX graph says about a tensor whose weights are elsewhere."""
    pairs = (("location", name), ("offset", str(offset)), ("length", str(length)))
    return b"".join(
        b"\n" + bytes([len(k)]) + k.encode() + b"\x12" + bytes([len(v)]) + v.encode() for k, v in pairs
    )


def openvino(graph: str, weights: bytes) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        only("tokenizer.json", "config.json")(folder)
        (folder / "openvino_model.xml").write_text(graph)
        (folder / "openvino_model.bin").write_bytes(weights)

    return break_it


def cut(name: str, length: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


def moved(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


NET = '<net><data element_type="f32" offset="64" size="100"/></net>'
GPTQ = {"bits": 4, "group_size": 128, "sym": True, "desc_act": False}
KINDS |= {
    "tokenizer, cut": (cut("tokenizer.json", 1000), "tokenizer.json .* damaged", "again"),
    "tokenizer, an error page": (without(tokenizer__json="<html>"), "tokenizer.json .* damaged", "again"),
    "tokenizer's settings, cut": (cut("tokenizer_config.json", 20), "tokenizer_config.json cannot", "again"),
    "openvino, weights cut": (openvino(NET, b"0" * 163), "163 bytes where .* needs 164", "again"),
    "openvino, stateless": (
        openvino(NET.replace("/></net>", "/><port names='logits'/></net>"), b"0" * 164),
        r"without a KV cache of its own \(stateless\)",
        "text-generation-with-past",
    ),
    "openvino, of another task": (
        openvino(NET.replace("/></net>", "/><port names='last_hidden_state'/></net>"), b"0" * 164),
        "no output called logits",
        "writes text",
    ),
    "openvino, graph cut": (openvino(NET[:-3], b"0" * 164), "openvino_model.xml is damaged", "again"),
    "genai, weights gone": (genai(external("n.data", 0, 9)), "n.data is missing", "again"),
    "genai, weights cut": (
        genai(external("m.data", 0, 64) + external("m.data", 64, 100), b"0" * 163),
        "163 bytes where m.onnx needs 164",
        "again",
    ),
    "genai, another form": (genai(model="phi3"), "not in the form it should have", "again"),
    "index of another form": (
        lambda folder: (
            moved("a.safetensors")(folder),
            write(folder, "model.safetensors.index.json", {"weight_map": None}),
        ),
        "not in the form it should have",
        "again",
    ),
    "index without names": (
        lambda folder: (moved("a.safetensors")(folder), write(folder, "model.safetensors.index.json", {})),
        "that its index should name",
        "again",
    ),
    "weights under another name": (
        moved("consolidated.safetensors"),
        "no model.safetensors: its weights are in consolidated.safetensors",
        "layout of transformers",
    ),
    "quantised, in the text part": (
        configured(text_config={"quantization_config": {"quant_method": "awq"}}),
        "an AWQ checkpoint",
        "original weights",
    ),
    "gptq without its name": (configured(quantization_config=GPTQ), "a GPTQ checkpoint", "original weights"),
    "quantised without a name": (
        configured(quantization_config={"w": 2}),
        "an unnamed method",
        "original weights",
    ),
}
KINDS |= {
    "newer than the library": (
        configured(model_type="qwen9", architectures=["Qwen9ForCausalLM"]),
        r"an architecture \(qwen9\) that the installed transformers .* does not know",
        "Update the app",
    ),
    "multimodal, its text part does not run by itself": (
        architecture(
            "Mistral3ForConditionalGeneration",
            model_type="mistral3",
            vision_config={"x": 1},
            text_config=CONFIG,
        ),
        r"a multimodal model \(Mistral3ForConditionalGeneration\) whose text part",
        "text-only model",
    ),
}
KINDS["empty tokenizer"] = (
    lambda folder: (folder / "tokenizer.json").write_bytes(b""),
    "an empty tokenizer.json",
    "",
)


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(DEMO_FOLDER, tmp_path / "copy"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_judged_before_anything_is_done_with_it(kind, copy, fresh):
    break_it, found, remedy = KINDS[kind]
    break_it(copy)
    with pytest.raises(ModelError, match=found) as imported:
        fresh.import_folder(copy)
    assert remedy in imported.value.remedy
    for spec in (spec for spec in ENGINES if not spec.model_elsewhere):
        target = Target(spec.name, "CPU", spec.precisions[0], str(copy))
        plan = fresh.plan(target, spec)
        assert plan.refusal == str(imported.value)
        assert plan.remedy == imported.value.remedy
        assert not plan.can_override
        assert plan.steps == ()
        watcher = Watcher()
        with pytest.raises(ModelError, match=found):
            fresh.prepare(target, spec, watcher, watcher.cancelled)
    assert not (copy.parent / "data" / "models" / "logs").exists()  # no child process was started


REMOTE = (
    "awq",
    "gptq, old",
    "fp8",
    "mlx",
    "lora",
    "encoder",
    "pickles",
    "gguf",
    "diffusers",
    "missing shards",
    "newer than the library",
    "multimodal, its text part does not run by itself",
)


@pytest.mark.parametrize("kind", REMOTE)
def test_a_repository_is_judged_before_a_byte_of_its_weights_is_fetched(kind, copy, hub, fresh):
    break_it, found, remedy = KINDS[kind]
    break_it(copy)
    hub.add("arena/odd", copy)
    spec = (PLAIN, OPENVINO, ONNX)[REMOTE.index(kind) % 3]
    target, watcher = Target(spec.name, "CPU", spec.precisions[0], "arena/odd"), Watcher()
    with pytest.raises(ModelError, match=found) as caught:
        fresh.prepare(target, spec, watcher, watcher.cancelled)
    assert remedy in caught.value.remedy
    assert not [r for r in hub.requests if "/resolve/" in r.path and not r.path.endswith(".json")]
    assert len([r for r in hub.requests if r.path.startswith("/api/")]) == 1


def test_code_of_its_own_is_refused_where_none_is_run_before_the_weights_are_fetched(copy, hub, fresh):
    configured(model_type="homemade", auto_map={"AutoModelForCausalLM": "modeling_homemade.Homemade"})(copy)
    hub.add("arena/homemade", copy)
    for model in ("arena/homemade", str(copy)):
        target, watcher = Target("transformers", "CPU", "fp32", model), Watcher()
        with pytest.raises(ModelError, match="brings Python code of its own") as caught:
            fresh.prepare(target, PLAIN, watcher, watcher.cancelled)
        assert fresh.plan(target, PLAIN).refusal == str(caught.value)
        assert "converted" in caught.value.remedy
        assert fresh.plan(Target("openvino-genai", "CPU", "int4", model), OPENVINO).needs_remote_code
    assert hub.gets("model.safetensors") == []


def test_the_tables_of_the_library_are_read_without_importing_it():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert architectures.version()
    assert all(map(architectures.is_known, CONFIG_MAPPING_NAMES))
    assert all(map(architectures.writes, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    assert not architectures.writes("qwen2_vl")
    assert not architectures.is_known("qwen9")


@pytest.mark.parametrize(
    ("fault", "refusal"),
    [
        (Fault(status=503, headers={"Retry-After": "0"}, times=2), "is an AWQ checkpoint"),
        (Fault(status=429, headers={"Retry-After": "0"}, times=2), "is an AWQ checkpoint"),
        (Fault(status=403, headers={"X-Error-Code": "GatedRepo"}), "arena/odd is gated"),
    ],
)
def test_a_plan_is_not_made_without_what_the_hub_refused_to_show(fault, refusal, copy, hub, fresh):
    quantised("awq", bits=4)(copy)
    hub.add("arena/odd", copy)
    hub.faults["config.json"] = fault
    plan = fresh.plan(Target("transformers", "CPU", "fp32", "arena/odd"), PLAIN)
    assert refusal in plan.refusal
    assert plan.steps == ()


def test_a_repository_without_a_tokenizer_is_asked_for_once(hub, fresh, copy):
    (copy / "tokenizer.json").unlink()
    hub.add("arena/speechless", copy)
    target = Target("openvino-genai", "CPU", "int4", "arena/speechless")
    watcher = Watcher()
    with pytest.raises(ModelError, match=r"arena/speechless has no tokenizer\.json"):
        fresh.prepare(target, OPENVINO, watcher, watcher.cancelled)
    assert len([r for r in hub.requests if r.path.startswith("/api/")]) == 1
    assert hub.gets("model.safetensors") == []


def test_what_vanishes_after_the_download_is_named_and_not_fetched_again(hub, fresh, copy):
    """Whatever is missing in the end: a way is walked once. Here the repository delivers a pointer as tokenizer."""
    pointer("tokenizer.json")(copy)
    hub.add("arena/pointer", copy)
    target = Target("transformers", "CPU", "fp32", "arena/pointer")
    watcher = Watcher()
    with pytest.raises(ModelError, match=r"tokenizer\.json is only a pointer"):
        fresh.prepare(target, PLAIN, watcher, watcher.cancelled)
    assert len(hub.gets("model.safetensors")) == 1


@pytest.mark.parametrize(
    "name",
    [
        "GPT2LMHeadModel",
        "Qwen2ForCausalLM",
        "Phi3ForCausalLM",
        "FalconForCausalLM",
        "SomethingNew",
        "RWForCausalLM",
    ],
)
def test_models_that_write_text_are_let_through(name, copy):
    architecture(name)(copy)
    assert judge_folder(copy).usable


def test_a_model_that_also_reads_pictures_runs_where_a_library_has_its_text_part(copy, fresh):
    architecture("Gemma3ForConditionalGeneration", vision_config={"x": 1}, text_config=CONFIG)(copy)
    assert judge_folder(copy).reads_images
    assert fresh.plan(Target("transformers", "CPU", "fp32", str(copy)), PLAIN).ready
    refused = fresh.plan(Target("openvino-genai", "CPU", "int4", str(copy)), OPENVINO)
    assert "is a multimodal model" in refused.refusal


def test_a_file_is_not_a_folder(tmp_path, fresh):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="a GGUF model"):
        fresh.import_folder(tmp_path / "model.gguf")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match="is a file"):
        fresh.import_folder(tmp_path / "notes.txt")


def test_one_whole_file_outweighs_the_index_of_an_older_save(copy, fresh):
    write(copy, "model.safetensors.index.json", {"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    assert fresh.import_folder(copy).problem is None
    target = Target("transformers", "CPU", "fp32", str(copy))
    assert fresh.plan(target, PLAIN).ready


def test_a_link_whose_file_is_gone_is_named(copy):
    (copy / "tokenizer.json").unlink()
    try:
        (copy / "tokenizer.json").symlink_to(copy / "gone.json")
    except OSError:
        pytest.skip("links need a right that this account has not (Windows without developer mode)")
    assert "tokenizer.json is only a pointer" in judge_folder(copy).problem


def test_what_the_disk_refuses_is_one_sentence_and_stops_no_list(copy, fresh):
    refusing = Path("/proc/self/mem")
    if not refusing.exists():
        pytest.skip("needs a file whose reading fails (Linux)")
    fresh.import_folder(copy)
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to(refusing)
    target, watcher = Target("openvino-genai", "CPU", "int4", str(copy)), Watcher()
    with pytest.raises(ModelError, match="cannot be read: Input/output error") as caught:
        fresh.prepare(target, OPENVINO, watcher, watcher.cancelled)
    assert "the disk" in caught.value.remedy
    assert fresh.plan(target, OPENVINO).refusal == str(caught.value)
    with pytest.raises(ModelError, match="cannot be read"):
        fresh.import_folder(copy)
    entry = next(e for e in fresh.installed() if e.kind == "imported")
    assert entry.problem == str(caught.value)
    rows = overview(fresh, (Backend(Target("openvino-genai", "CPU", "int4"), OPENVINO),))
    assert next(row for row in rows if row.model == str(copy)).cells[0].plan.refusal == str(caught.value)


def test_what_was_exported_into_the_folder_of_its_original_hides_nothing(copy, fresh):
    graph = NET.replace("/></net>", "/><port names='logits'/></net>").replace(
        "<net>", "<net><layer type='ReadValue'/>"
    )
    (copy / "openvino_model.xml").write_text(graph)
    (copy / "openvino_model.bin").write_bytes(b"0" * 164)

    def plan(engine: str, precision: str, spec):
        return fresh.plan(Target(engine, "CPU", precision, str(copy)), spec)

    assert [step.text for step in plan("openvino-genai", "int4", OPENVINO).steps] == [f"Use {copy}"]
    assert plan("transformers", "fp32", PLAIN).ready
    assert [step.kind for step in plan("onnxruntime-genai", "int4", ONNX).steps] == ["convert"]
    write(copy, "adapter_config.json", {"peft_type": "LORA"})
    assert "OpenVINO IR format" in plan("transformers", "fp32", PLAIN).refusal
