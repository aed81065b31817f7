"""What a model folder states about itself, read from its small files; nothing is loaded.

The plain ways in which a folder is wrong are found here, from file names and JSON, before a library sees it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.engine import ModelError

_MODEL_REMEDY = "Get or convert the model again."


_TEXT_PARTS = ("text_config", "llm_config", "language_config")
_SWITCHING = ("longrope", "su", "dynamic")
"""Kinds of position factors that depend on how long the text is: LongRoPE (Phi-3 128k), dynamic NTK."""
_HEADER_LIMIT = 100 * 2**20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder; raises ModelError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent} has no {path.name}.", "Choose a complete model folder.") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.", "Get the file again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object.", "Get the file again.")
    return value


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON header of one file; raises ModelError when the file is cut or is something else."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_HEADER_LIMIT, size):
            raise ModelError(
                f"{path.name} is not a safetensors file (no valid header).", "Get the file again."
            )
        try:
            header = json.loads(stream.read(length))
            ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ModelError(
                f"{path.name} has a damaged safetensors header: {error}.", "Get the file again."
            ) from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ModelError(
            f"{path.name} is damaged: {size:,} bytes where its header promises {expected:,}.",
            "Get the file again.",
        )
    return header


def refuse_invented_weights(missing: Iterable[str], folder: Path) -> None:
    """Raise ModelError when a library had to fill tensors that a checkpoint lacks: it takes random numbers.

    `missing` is what it reports; tied weights and buffers that are computed anew are not among it.
    """
    names = sorted(missing)
    if names:
        raise ModelError(
            f"The checkpoint in {folder} lacks {len(names)} tensor{'s' if len(names) > 1 else ''} of its "
            f"architecture, for example {names[0]}; with random numbers in their place it would answer nonsense.",
            _MODEL_REMEDY,
        )


def refuse_other_shapes(mismatched: Iterable[Sequence[Any]], folder: Path) -> None:
    """Raise ModelError when tensors have other shapes than config.json gives them.

    `mismatched`: (name, shape in the file, shape by the configuration) of each.
    """
    found = sorted(mismatched, key=lambda entry: str(entry[0]))
    if found:
        name, there, stated = found[0]
        raise ModelError(
            f"config.json in {folder} does not belong to the checkpoint beside it: {name} has the shape "
            f"{tuple(there)} there and {tuple(stated)} by the configuration.",
            _MODEL_REMEDY,
        )


def require_files(folder: Path, names: Sequence[str], title: str) -> None:
    """Raise ModelError unless `folder` directly holds all `names`, none of them empty."""
    if not folder.is_dir():
        raise ModelError(f"There is no model folder {folder}.", _MODEL_REMEDY)
    for name in names:
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{folder} is not a model for {title}: it has no {name}.", _MODEL_REMEDY)
        if not path.stat().st_size:
            raise ModelError(f"The model in {folder} is damaged: {name} is empty.", _MODEL_REMEDY)


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, with the text part of a multimodal model laid over it; raises ModelError."""
    config = read_json(folder / "config.json")
    text = next((part for name in _TEXT_PARTS if isinstance(part := config.get(name), dict)), None)
    return {**config, **text} if text else config


def genai_files(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The graphs that a genai_config.json names: the decoder's, or those of its pipeline."""
    model = settings.get("model") or {}
    names = [part.get("filename") for part in model.values() if isinstance(part, dict)]
    for stage in (model.get("decoder") or {}).get("pipeline") or ():
        names += [part.get("filename") for part in stage.values() if isinstance(part, dict)]
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str) and name))


def genai_stop_ids(folder: Path) -> tuple[int, ...]:
    """End-of-sequence ids that a genai_config.json states; 0 is an id like any other."""
    if not (folder / "genai_config.json").is_file():
        return ()
    return token_ids((read_json(folder / "genai_config.json").get("model") or {}).get("eos_token_id"))


def token_ids(stated: Any) -> tuple[int, ...]:
    """Ids that a configuration states as one number or as a list; whatever is no number is none."""
    ids = stated if isinstance(stated, list) else [stated]
    return tuple(i for i in ids if isinstance(i, int) and not isinstance(i, bool))


def genai_providers(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Execution providers that the decoder's session names, in lower case; none: the CPU's."""
    session = ((settings.get("model") or {}).get("decoder") or {}).get("session_options") or {}
    return tuple(name.lower() for options in session.get("provider_options") or () for name in options)


def context_tokens(config: Mapping[str, Any]) -> int | None:
    """Positions the model was built for: prompt and reply together."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"):
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return None


def rope_switch(config: Mapping[str, Any]) -> int | None:
    """Length in tokens above which a model changes its position factors; None: never.

    Keys computed below it are wrong above it, so a kept KV cache must not be carried across. It is read wherever a
    config may state it: `rope_scaling` or `rope_parameters`, one for all layers or one per kind of layer, of the
    whole or of its text part; the length inside them or beside them. Without a length it is the context's.
    """
    parts = scopes(config)
    beside = [_length(scope.get("original_max_position_embeddings")) for scope in reversed(parts)]
    switches = []
    for scope in parts:
        for parameters in _rope_parameters(scope):
            if _rope_type(parameters) in _SWITCHING:
                inside = _length(parameters.get("original_max_position_embeddings"))
                stated = [length for length in (*beside, inside, context_tokens(scope)) if length]
                switches += stated[:1]
    return min(switches, default=None)


def rope_grows(config: Mapping[str, Any]) -> bool:
    """Whether a model's position factors change with every token above its switch (dynamic NTK)."""
    return any(_rope_type(p) == "dynamic" for scope in scopes(config) for p in _rope_parameters(scope))


def scopes(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A config and the parts of it that describe the text model: a statement may stand in any of them."""
    return [config, *(part for name in _TEXT_PARTS if isinstance(part := config.get(name), dict))]


def _rope_type(parameters: Mapping[str, Any]) -> Any:
    return parameters.get("rope_type") or parameters.get("type")


def _rope_parameters(scope: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for name in ("rope_scaling", "rope_parameters"):
        stated = scope.get(name)
        if isinstance(stated, dict):
            yield stated
            yield from (part for part in stated.values() if isinstance(part, dict))


def _length(value: Any) -> int | None:
    return (
        int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else None
    )
