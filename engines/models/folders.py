"""Model folders as they lie on disk: which format, how large, whole or damaged.

Everything here reads JSON and file sizes (and the JSON header of safetensors files); no inference library is
needed to say what a folder holds. A folder we made carries a manifest with the size of each of its files, so a
lost or truncated file is noticed before a library stumbles over it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.engine import ModelError
from engines.models.architectures import needs_own_code
from engines.models.judgement import ONNXRUNTIME_GENAI, OPENVINO, SAFETENSORS, judge_folder
from engines.toolkit.model_config import read_json, read_safetensors_header
from engines.toolkit.putting import put_in_place

FORMATS = (OPENVINO, ONNXRUNTIME_GENAI, SAFETENSORS)
FORMAT_TITLES = {
    OPENVINO: "OpenVINO IR",
    ONNXRUNTIME_GENAI: "ONNX Runtime GenAI",
    SAFETENSORS: "safetensors",
}

MANIFEST = "backend-arena.json"
MANIFEST_VERSION = 1

PROMPT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
)
"""What decides prompt token ids and stop ids: taken from the source in every format, so that all engines agree."""
SOURCE_PATTERNS = (
    *("*.safetensors", "*.safetensors.index.json", "config.json"),
    *PROMPT_FILES,
    *("tokenizer.model", "vocab.json", "merges.txt", "*.py"),
)
"""All a conversion or `transformers` reads; everything else in a repository stays where it is."""

_WEIGHTS = (".safetensors", ".bin", ".onnx", ".data", ".onnx_data")


@dataclass(frozen=True)
class ModelFacts:
    """What a safetensors folder says about itself, without loading it."""

    architecture: str | None
    model_type: str | None
    parameters: int
    weight_bytes: int
    vocab_size: int | None
    hidden_size: int | None
    layers: int | None
    context_tokens: int | None
    needs_remote_code: bool
    shapes: Mapping[str, tuple[int, ...]]
    """Tensor name -> shape, from the headers of the files."""


def recognise(folder: Path) -> str | None:
    """Format of a model folder that can be used; None for anything else."""
    try:
        found = judge_folder(folder)
    except (ModelError, OSError):
        return None
    return found.format if found.usable else None


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Safetensors files a checkpoint consists of; raises ModelError when its index names one that is missing."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():  # first, as transformers does; an index beside it is of an older save
        return (single,)
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{folder.name} is incomplete: {len(missing)} of {len(names)} weight files are missing "
                f"({', '.join(missing[:3])}).",
                "Get the model again.",
            )
        return tuple(folder / name for name in names)
    return tuple(sorted(folder.glob("*.safetensors")))


def read_facts(folder: Path) -> ModelFacts:
    """Facts about a safetensors folder; raises ModelError for a damaged or incomplete one."""
    config = read_json(folder / "config.json")
    files = weight_files(folder)
    if not files:
        raise ModelError(f"{folder} has no *.safetensors files.", "Get the model again.")
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        header = read_safetensors_header(path)
        shapes.update((name, tuple(t["shape"])) for name, t in header.items() if name != "__metadata__")
    return facts_from(
        config,
        sum(_product(shape) for shape in shapes.values()),
        sum(path.stat().st_size for path in files),
        shapes,
    )


def facts_from(
    config: Mapping[str, Any], parameters: int, weight_bytes: int, shapes: Mapping[str, tuple[int, ...]]
) -> ModelFacts:
    """Facts from a config.json and what is known about the weights; `shapes` may be empty."""
    return ModelFacts(
        architecture=(config.get("architectures") or [None])[0],
        model_type=config.get("model_type"),
        parameters=parameters,
        weight_bytes=weight_bytes,
        vocab_size=config.get("vocab_size"),
        hidden_size=config.get("hidden_size"),
        layers=config.get("num_hidden_layers"),
        context_tokens=config.get("max_position_embeddings"),
        needs_remote_code=needs_own_code(config),
        shapes=shapes,
    )


def _product(shape: Iterable[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


# --- sizes, hashes, manifests ------------------------------------------------------------------------------


def files_below(folder: Path) -> Iterator[Path]:
    """All files of a model folder, the manifest left out, in a fixed order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            yield path


def file_sizes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files_below(folder)}


def total_weight_bytes(sizes: Mapping[str, int]) -> int:
    """Size of the weight files, tokenizer models left out."""
    return sum(
        size
        for name, size in sizes.items()
        if name.endswith(_WEIGHTS) and "tokenizer" not in name.rsplit("/", 1)[-1]
    )


def source_files(folder: Path) -> list[Path]:
    """Files of a safetensors folder that decide what a conversion gives."""
    found = {path for pattern in SOURCE_PATTERNS for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)


def stat_signature(paths: Iterable[Path]) -> list[list[Any]]:
    """Cheap stand-in for a hash: name, size and change time of each file."""
    return [[p.name, (s := p.stat()).st_size, s.st_mtime_ns] for p in paths]


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as stream:
            while chunk := stream.read(2**18):
                digest.update(chunk)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a canonical JSON text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write atomically: a reader sees the old text or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")
    put_in_place(temporary, path)


def take_prompt_files(source: Path, folder: Path, model_format: str) -> None:
    """Give the folder the source's tokenizer, chat template and stop ids: equal prompts on every engine."""
    for pattern in PROMPT_FILES:
        for path in folder.glob(pattern):  # what a converter writes of its own would outweigh the source's
            path.unlink()
        for path in source.glob(pattern):
            copied = folder / path.relative_to(source)
            copied.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copied)
    if not (folder / "config.json").is_file() and (source / "config.json").is_file():
        shutil.copyfile(source / "config.json", folder / "config.json")
    path = folder / "tokenizer_config.json"
    if model_format == ONNXRUNTIME_GENAI and path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.get("tokenizer_class") == "TokenizersBackend":
            # transformers 5 writes this name; ONNX Runtime GenAI 0.13 refuses it.
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
            path.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder we made; None when there is none or it is unreadable."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if manifest.get("manifest_version") == MANIFEST_VERSION else None


def damage(folder: Path, sizes: Mapping[str, int]) -> str | None:
    """What is wrong with a folder compared to its recorded sizes; None when all is there."""
    for name, size in sizes.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found:,} bytes instead of {size:,}"
    return None


def remove_folder(folder: Path) -> None:
    """Delete a folder so that nothing half-deleted keeps its name: renamed first, then removed."""
    if not folder.exists():
        return
    doomed = folder.with_name(f".removing-{folder.name}-{os.getpid()}")
    try:
        folder.replace(doomed)
    except OSError:
        doomed = folder  # Windows refuses while a file is open; then remove what can be removed
    shutil.rmtree(doomed, ignore_errors=True)
    if doomed.exists():
        raise ModelError(
            f"{folder.name} could not be removed: a file in it is in use.",
            "Unload the model (or close the app that uses it) and try again.",
        )
