"""What a model folder or repository is, judged before anything is planned, imported, downloaded or converted.

Only names, sizes and small JSON files are looked at (on disk also the first bytes and the tensor names), so that a
repository can be judged before a byte of its weights is fetched. The first rule that fits decides; a refusal says
what was found, what is missing, and what to do. One thing is asked for everywhere: a tokenizer.json, because all
engines' prompts are made from it.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.engine import ModelError
from engines.models.architectures import unbuildable
from engines.models.contents import Contents, FolderContents, listed
from engines.models.graphs import check_onnxruntime_genai, check_openvino
from engines.models.other_kinds import OTHER_KINDS, other_problem, other_remedy
from engines.models.other_tasks import other_task, reads_images
from engines.models.quantised import quantised
from engines.toolkit.model_config import genai_files, read_json

log = logging.getLogger(__name__)

OPENVINO = "openvino"
ONNXRUNTIME_GENAI = "onnxruntime-genai"
SAFETENSORS = "safetensors"

DOCUMENTS = (
    *("config.json", "genai_config.json", "adapter_config.json", "tokenizer_config.json"),
    *("quantize_config.json", "quant_config.json", "hf_quant_config.json", "openvino_config.json"),
)
"""Small JSON files that say what a folder is."""
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors$")

GET_AGAIN = "Get the model again."


@dataclass(frozen=True)
class Judgement:
    """What was found. `problem` is None when the app can use it."""

    what: str
    """In words: `original weights`, `an AWQ checkpoint`."""
    format: str | None = None
    """Format of the folder, when it is of a kind that an engine here loads or a converter reads."""
    problem: str | None = None
    remedy: str | None = None
    reads_images: bool = False
    """A multimodal checkpoint: its text part runs where the library has one, and no converter here takes it out."""

    @property
    def usable(self) -> bool:
        return self.problem is None

    def require(self) -> str:
        """Its format; raises ModelError when it cannot be used."""
        if self.problem is not None or self.format is None:
            raise ModelError(self.problem or f"This is {self.what}.", self.remedy)
        return self.format


def judge_folder(folder: Path, model: str | None = None, wanted: Sequence[str] = ()) -> Judgement:
    """Judge a folder on disk; raises ModelError when there is none, or something in it is broken or unreadable.

    `wanted`: the formats that are of use, best first. A folder that holds several is judged as the first of them.
    """
    try:
        return _judge_folder(folder, model, wanted)
    except OSError as error:
        reason = (error.strerror or str(error)).rstrip(".")
        raise ModelError(
            f"{error.filename or folder} cannot be read: {reason}.",
            "Look whether the disk is there, and who may read the folder.",
        ) from error


def _judge_folder(folder: Path, model: str | None, wanted: Sequence[str]) -> Judgement:
    if folder.is_file():
        if folder.suffix.lower() in OTHER_KINDS:
            return _other_kind(str(folder), folder.name)
        raise ModelError(f"{folder} is a file.", "Choose the folder that it lies in.")
    if not folder.is_dir():
        raise ModelError(
            f"There is no folder {folder}.", "Check the path, or give a Hugging Face id like org/name."
        )
    contents = FolderContents(folder, model)
    found = _as_wanted(contents, judge(contents), wanted)
    if found.usable:
        files = ((entry.name, entry.stat()) for entry in os.scandir(folder) if entry.is_file())
        _read_through(
            folder, found.format, tuple((name, s.st_size, s.st_mtime_ns) for name, s in sorted(files))
        )
    return found


@functools.lru_cache(maxsize=256)
def _read_through(folder: Path, model_format: str | None, _state: tuple[tuple[str, int, int], ...]) -> None:
    """Raise ModelError when a file is not what its name says; once for each state of the folder."""
    with (folder / "tokenizer.json").open("rb") as stream:
        begins = stream.read(64).lstrip()[:1]
        stream.seek(-min(64, stream.seek(0, os.SEEK_END)), os.SEEK_END)
        ends = stream.read().rstrip()[-1:]
    if (begins, ends) != (b"{", b"}"):
        raise ModelError(
            f"tokenizer.json in {folder} is damaged: it is no whole JSON object.", "Get the file again."
        )
    if (folder / "tokenizer_config.json").is_file():
        read_json(folder / "tokenizer_config.json")
    if model_format == OPENVINO:
        check_openvino(folder)
    elif model_format == ONNXRUNTIME_GENAI:
        check_onnxruntime_genai(folder)


def judge(contents: Contents) -> Judgement:
    """The first rule that fits; see the rules below, in their order."""
    try:
        for rule in _RULES:
            found = rule(contents)
            if found is not None:
                return found
        return _nothing(contents)
    except (
        AttributeError,
        TypeError,
        KeyError,
    ) as error:  # a list where the format has an object, and the like
        log.info("Judging %s", contents.name, exc_info=True)
        raise ModelError(
            f"A JSON file of {contents.name} is not in the form it should have: {error}.", GET_AGAIN
        ) from error


def _as_wanted(contents: Contents, found: Judgement, wanted: Sequence[str]) -> Judgement:
    """What was exported may lie beside what it was made from."""
    for kind in wanted if found.format in (OPENVINO, ONNXRUNTIME_GENAI) else ():
        if kind == found.format:
            break
        other = next(filter(None, (rule(contents) for rule in _RULES_OF[kind])), None)
        if other is not None and other.format == kind and other.usable:
            return other
    return found


# --- the rules ---------------------------------------------------------------------------------------------


def _pointers(contents: Contents) -> Judgement | None:
    pointers = contents.pointers()
    if not pointers:
        return None
    return Judgement(
        "a Git LFS checkout without its files",
        problem=f"{contents.name} is incomplete: {listed(pointers)} {'is' if len(pointers) == 1 else 'are'} only "
        "a pointer to the real file (Git LFS, or a link whose file is gone).",
        remedy="Run `git lfs install` and `git lfs pull` in the folder, or get the model again by its name.",
    )


def _onnxruntime_genai(contents: Contents) -> Judgement | None:
    if "genai_config.json" not in contents.sizes():
        return None
    what, settings = "a model for ONNX Runtime GenAI", contents.document("genai_config.json")
    model = settings.get("model") or {}
    inputs = [name for name in ("vision", "speech", "encoder") if model.get(name)]
    if inputs:
        return Judgement(
            f"a model with {listed(inputs)} input for ONNX Runtime GenAI",
            problem=f"{contents.name} is a model with {listed(inputs)} input (genai_config.json); this app runs "
            "models that go from text to text.",
            remedy="Choose a text model.",
        )
    missing = [name for name in genai_files(settings) if name not in contents.sizes()]
    if missing or not genai_files(settings):
        return Judgement(
            what,
            problem=f"{contents.name} is incomplete: its genai_config.json names "
            f"{listed(missing) or 'no graph'}, which is missing.",
            remedy=GET_AGAIN,
        )
    return _with_tokenizer(contents, Judgement(what, ONNXRUNTIME_GENAI))


def _openvino(contents: Contents) -> Judgement | None:
    sizes = contents.sizes()
    graphs = sorted(name for name in sizes if name.endswith(".xml") and name.startswith("openvino_"))
    models = [name for name in graphs if "tokenizer" not in name]
    if "openvino_model.xml" not in sizes:
        if not models:
            return None
        kind = "encoder-decoder" if "openvino_encoder_model.xml" in models else "multimodal"
        return Judgement(
            f"an OpenVINO IR in parts ({kind})",
            problem=f"{contents.name} is an OpenVINO IR in parts ({listed(models)}), of a model that is "
            f"{kind}; this app runs text models whose graph is openvino_model.xml.",
            remedy="Choose a text model.",
        )
    if "openvino_model.bin" not in sizes:
        return Judgement(
            "an OpenVINO IR without weights",
            problem=f"{contents.name} is incomplete: it lacks openvino_model.bin.",
            remedy=GET_AGAIN,
        )
    refused = _refused_architecture(contents)
    if refused is not None:
        return refused
    if "config.json" not in sizes:
        return Judgement(
            "an OpenVINO IR without config.json",
            problem=f"{contents.name} has no config.json, so its context length and stop tokens are not known.",
            remedy="Copy config.json and generation_config.json from the original model into the folder.",
        )
    return _with_tokenizer(contents, Judgement("an OpenVINO IR", OPENVINO))


def _diffusers(contents: Contents) -> Judgement | None:
    if "model_index.json" not in contents.sizes():
        return None
    return Judgement(
        "a diffusers pipeline",
        problem=f"{contents.name} is a diffusers pipeline (model_index.json): it makes pictures or sound, not text.",
        remedy="Choose a language model.",
    )


def _adapter(contents: Contents) -> Judgement | None:
    sizes = contents.sizes()
    files = [name for name in sizes if name.startswith("adapter_model.")]
    if not files and "adapter_config.json" not in sizes:
        return None
    settings = contents.document("adapter_config.json")
    base = settings.get("base_model_name_or_path") or "its base model"
    kind = str(settings.get("peft_type") or "PEFT").upper()
    beside = " beside a whole model" if any(_is_weights(name) for name in sizes) else ""
    return Judgement(
        f"a {kind} adapter",
        problem=f"{contents.name} holds a {kind} adapter{beside} (adapter_config.json): only the changes to {base}.",
        remedy="Merge it into its base model first, with peft: "
        f"AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload().save_pretrained(…). Base model: {base}.",
    )


def _embedding(contents: Contents) -> Judgement | None:
    sizes = contents.sizes()
    marks = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
    found = next((name for name in marks if name in sizes), None)
    if found is None:
        return None
    return _not_a_chat_model(contents, "an embedding model", f"it turns text into vectors ({found})")


def _checkpoint(contents: Contents) -> Judgement | None:
    sizes = contents.sizes()
    weights = [name for name in sizes if _is_weights(name)]
    if not weights:
        return None
    if "config.json" not in sizes:
        own = "params.json" if "params.json" in sizes else None
        return Judgement(
            "weights without config.json",
            problem=f"{contents.name} has weights ({listed(weights)}) but no config.json"
            + (f"; {own} belongs to its maker's own layout." if own else "."),
            remedy="Get it in the layout of transformers: config.json, *.safetensors and tokenizer.json together.",
        )
    for rule in (_quantised, _refused_architecture, _unknown_architecture, _missing_shards):
        found = rule(contents)
        if found is not None:
            return found
    config = contents.document("config.json")
    images = reads_images(config)
    what = "original weights of a multimodal model" if images else "original weights"
    return _with_tokenizer(contents, Judgement(what, SAFETENSORS, reads_images=images))


def _quantised(contents: Contents) -> Judgement | None:
    found = quantised(contents)
    if found is None:
        return None
    many = f", {found.bits} bits" if found.bits else ""
    original = _original(contents, contents.document("config.json"))
    return Judgement(
        found.title,
        problem=f"{contents.name} is {found.title}: its weights are quantised already{many} ({found.stated_in} says "
        f"“{found.method}”), in a way that no engine here loads and no converter here reads.",
        remedy=f"Choose the original weights{original}; int4 and int8 are made from them here. "
        "GPU quantisations (AWQ, GPTQ, EXL2, MLX …) are made for other programs.",
    )


def _original(contents: Contents, config: Mapping[str, Any]) -> str:
    """` (org/name)`, as far as a config or a name tells it."""
    stated = config.get("_name_or_path")
    if (
        isinstance(stated, str)
        and stated.count("/") == 1
        and stated != contents.model
        and stated[0] not in "./~"
    ):
        return f" ({stated})"
    return ""


def _refused_architecture(contents: Contents) -> Judgement | None:
    """Models for other tasks than chatting; what is not known is left to the libraries."""
    other = other_task(contents.document("config.json"))
    return _not_a_chat_model(contents, *other) if other else None


def _unknown_architecture(contents: Contents) -> Judgement | None:
    """What the installed transformers cannot build: neither it nor a converter here does anything with it."""
    found = unbuildable(contents.document("config.json"))
    return (
        Judgement(found.what, problem=f"{contents.name} {found.why}", remedy=found.remedy) if found else None
    )


def _not_a_chat_model(contents: Contents, what: str, does: str) -> Judgement:
    return Judgement(
        what,
        problem=f"{contents.name} is {what}: {does}; it cannot answer a prompt.",
        remedy="Choose a model that writes text: its config.json names an architecture that ends in ForCausalLM.",
    )


def _missing_shards(contents: Contents) -> Judgement | None:
    """Weights in several files, one of which is not there."""
    sizes, what = contents.sizes(), "original weights, incomplete"
    if "model.safetensors" in sizes:  # then transformers looks no further
        return None
    if "model.safetensors.index.json" in sizes:
        index = contents.document("model.safetensors.index.json")
        names = sorted(set(index.get("weight_map", {}).values())) or ["those that its index should name"]
        missing = [name for name in names if name not in sizes]
        count = len(names)
    else:
        shards = [match for name in sizes if (match := _SHARD.match(name))]
        if not shards:
            weights = [name for name in sizes if _is_weights(name)]
            return Judgement(
                "weights under another name",
                problem=f"{contents.name} has no model.safetensors: its weights are in {listed(weights)}, where "
                "transformers does not look for them.",
                remedy="Get it in the layout of transformers: config.json, model.safetensors and tokenizer.json.",
            )
        total, stem = max(int(m["total"]) for m in shards), shards[0]["stem"]
        names = [f"{stem}-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)]
        missing = [name for name in names if name not in sizes] or ["model.safetensors.index.json"]
        count = total
    if not missing:
        return None
    return Judgement(
        what,
        problem=f"{contents.name} is incomplete: {len(missing)} of {count} weight files are missing "
        f"({listed(missing)}).",
        remedy=GET_AGAIN,
    )


def _pickled(contents: Contents) -> Judgement | None:
    names = [name for name in contents.sizes() if re.search(r"\.(bin|pt|pth|ckpt)$", name)]
    names = [n for n in names if not n.startswith(("optimizer", "scheduler", "rng_state", "training_args"))]
    if not names or not ("config.json" in contents.sizes() or any("consolidated" in name for name in names)):
        return None
    if any(n.startswith("vocabulary.") for n in contents.sizes()):
        return _other(contents, "a CTranslate2 model", names)
    where = contents.model or "the folder"
    return Judgement(
        "weights in PyTorch's old .bin files",
        problem=f"{contents.name} has its weights only as {listed(names)}: Python pickles, which can run code when "
        "they are opened. There are no *.safetensors files.",
        remedy="Save them once as safetensors, on a machine where you trust them: "
        f"AutoModelForCausalLM.from_pretrained(“{where}”).save_pretrained(…). Many repositories also have a "
        "newer version with *.safetensors.",
    )


def _other_formats(contents: Contents) -> Judgement | None:
    for suffix, what in OTHER_KINDS.items():
        found = [name for name in contents.sizes() if name.lower().endswith(suffix)]
        if found:
            return _other(contents, what, found)
    return None


def _other_kind(name: str, file: str) -> Judgement:
    what = OTHER_KINDS[Path(file).suffix.lower()]
    return Judgement(what, problem=other_problem(name, what, [file]), remedy=other_remedy(what))


def _other(contents: Contents, what: str, files: list[str]) -> Judgement:
    return Judgement(what, problem=other_problem(contents.name, what, files), remedy=other_remedy(what))


def _in_subfolders(contents: Contents) -> Judgement | None:
    """The model lies one or more folders deeper: a repository with a build per device, or a cache's root."""
    marks = ("genai_config.json", "openvino_model.xml", "model.safetensors", "model.safetensors.index.json")
    folders = sorted({p.rpartition("/")[0] for p in contents.nested() if p.rpartition("/")[2] in marks})
    folders = [f for f in folders if not f.startswith("onnx")]
    if not folders:
        onnx = [p for p in contents.nested() if p.endswith(".onnx")]
        return _other(contents, OTHER_KINDS[".onnx"], onnx) if onnx else None
    remedy = f"Choose one of these folders: {listed(folders, 6)}."
    if contents.model is not None:
        remedy = (
            "Choose the original model: builds that its makers publish this way are taken for it where they fit. "
            f"Or download one folder and import it: {listed(folders, 4)}."
        )
    return Judgement(
        "a folder of models",
        problem=f"{contents.name} holds no model itself; its folders do ({listed(folders)}).",
        remedy=remedy,
    )


def _nothing(contents: Contents) -> Judgement:
    sizes = contents.sizes()
    found = f"It holds {listed(sorted(sizes))}." if sizes else "It is empty."
    return Judgement(
        "no model",
        problem=f"{contents.name} is not a model this app knows: it has none of the files this app can use, which "
        f"are config.json with *.safetensors, openvino_model.xml, or genai_config.json. {found}",
        remedy="Choose the folder that directly holds these files, or the original model by its Hugging Face id.",
    )


_RULES: tuple[Callable[[Contents], Judgement | None], ...] = (
    *(_pointers, _onnxruntime_genai, _openvino, _diffusers, _adapter, _embedding),
    *(_checkpoint, _pickled, _other_formats, _in_subfolders),
)
_RULES_OF = {
    ONNXRUNTIME_GENAI: (_onnxruntime_genai,),
    OPENVINO: (_openvino,),
    SAFETENSORS: (_adapter, _embedding, _checkpoint),
}


# --- the tokenizer -----------------------------------------------------------------------------------------

_OTHER_TOKENIZERS = (
    # (files, what they are, whether transformers can save a tokenizer.json from them)
    (("tokenizer.model",), "a SentencePiece model", True),
    (("spiece.model",), "a SentencePiece model", True),
    (("sentencepiece.bpe.model",), "a SentencePiece model", True),
    (("vocab.json", "merges.txt"), "an older BPE vocabulary", True),
    (("vocab.txt",), "a WordPiece vocabulary", True),
    (("tekken.json",), "Mistral's tekken file", True),
    (("openvino_tokenizer.xml",), "OpenVINO's tokenizer graph", False),
)


def _with_tokenizer(contents: Contents, found: Judgement) -> Judgement:
    """The judgement, turned into a refusal when there is no tokenizer.json to make prompts from."""
    sizes = contents.sizes()
    if sizes.get("tokenizer.json"):
        return found
    other, can_save = "no tokenizer at all", False
    for names, what, convertible in _OTHER_TOKENIZERS:
        if all(name in sizes for name in names):
            other, can_save = f"only {what} ({listed(names)})", convertible
            break
    else:
        ranks = [name for name in sizes if name.endswith(".tiktoken") or name == "tiktoken.model"]
        if ranks:
            other, can_save = f"only a tiktoken file ({listed(ranks)})", True
    empty = "has an empty tokenizer.json" if "tokenizer.json" in sizes else "has no tokenizer.json"
    remedy = "Copy tokenizer.json and tokenizer_config.json from the original model into the folder."
    if can_save:
        remedy = (
            "Save it once with transformers: AutoTokenizer.from_pretrained("
            f"“{contents.model or '…'}”).save_pretrained(…), and put the tokenizer.json into a copy of the folder."
        )
    elif contents.model is not None:
        remedy = "Choose another repository of this model, one with a tokenizer.json."
    return Judgement(
        f"{found.what} without tokenizer.json",
        problem=f"{contents.name} {empty}, which every engine here needs for equal prompts; it has {other}.",
        remedy=remedy,
    )


# --- small helpers -----------------------------------------------------------------------------------------


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and not name.startswith("adapter_model")
