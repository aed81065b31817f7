"""What a model folder states about itself, read from its small files; nothing is loaded.

The plain ways in which a folder is wrong are found here, from file names and JSON, before a library sees it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.engine import ModelError

_MODEL_REMEDY = "Get or convert the model again."


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
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def context_tokens(config: Mapping[str, Any]) -> int | None:
    """Positions the model was built for: prompt and reply together."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return None


def rope_switch(config: Mapping[str, Any]) -> int | None:
    """Length in tokens above which a LongRoPE model (Phi-3 128k) changes its position factors; None: never.

    Keys computed below it are wrong above it, so a kept KV cache must not be carried across.
    """
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    return config.get("original_max_position_embeddings") if kind in ("longrope", "su") else None
