"""What every engine asks of a model folder before its library sees it, and how library errors become sentences.

Libraries answer a missing or damaged folder with anything from a page of C++ source paths to a dead process, so
the plain cases are checked first, from file names and JSON, and what the library still raises is put into words.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from engines.engine import EngineError, ModelError, OutOfMemoryError
from engines.models.folders import read_json

_MEMORY_SIGNS = ("out of memory", "bad_alloc", "bad allocation", "not enough memory", "failed to allocate")
_MEMORY_REMEDY = "Unload other models, choose int4, or close other programs."
_MODEL_REMEDY = "Get or convert the model again."


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


def load_error(error: Exception, folder: Path, title: str, device: str = "CPU") -> EngineError:
    """What a person should read when `title` could not load `folder` onto `device`.

    An EngineError stays what it is. On a CPU what fails is the model; elsewhere it is as likely the driver.
    """
    if isinstance(error, EngineError):
        return error
    if is_memory_error(error):
        return OutOfMemoryError(f"{title} ran out of memory while loading {folder.name}.", _MEMORY_REMEDY)
    if device != "CPU":
        return EngineError(
            f"{title} cannot load the model in {folder} onto {device}: {first_sentence(error)}",
            "Update the device's driver, or choose another device or precision.",
        )
    return ModelError(f"{title} cannot load the model in {folder}: {first_sentence(error)}", _MODEL_REMEDY)


def generation_error(error: Exception, title: str) -> Exception:
    """The error to raise when a generation failed: running out of memory gets its own kind."""
    if not isinstance(error, EngineError) and is_memory_error(error):
        return OutOfMemoryError(f"{title} ran out of memory while generating.", _MEMORY_REMEDY)
    return error


def is_memory_error(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _MEMORY_SIGNS)


def first_sentence(error: BaseException, longest: int = 240) -> str:
    """The most telling line of a library's message: no "Exception from", no source path."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    text = (telling or [line for line in lines if line] or [type(error).__name__])[0]
    return text if len(text) <= longest else text[: longest - 1] + "…"


def versions(*distributions: str) -> dict[str, str]:
    """Distribution name -> version, those not installed left out; imports nothing."""
    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def physical_cores() -> int:
    """Cores this process may use, hyperthreads counted once where the system tells."""
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Windows
        usable = os.cpu_count() or 1
    try:
        import psutil
    except ImportError:
        return usable
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def processor_name() -> str | None:
    from engines.hardware import machine_facts

    return machine_facts().get("processor")
