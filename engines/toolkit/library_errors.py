"""How what a library raises becomes a sentence for people.

Libraries answer a missing or damaged model with anything from a page of C++ source paths to a dead process; the
one list of signs that memory ran out is here too.
"""

from __future__ import annotations

from pathlib import Path

from engines.engine import EngineError, ModelError, OutOfMemoryError

_MODEL_REMEDY = "Get or convert the model again."
_MEMORY_SIGNS = (
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "not enough memory",
    "failed to allocate",
    "can't allocate memory",
    "cannot allocate memory",
    # Windows says these two in its user's language, so their numbers tell:
    "error 1455",  # ERROR_COMMITMENT_LIMIT, “The paging file is too small …”
    "8007000e",  # E_OUTOFMEMORY, of DirectML
)

_MEMORY_REMEDY = "Unload other models, choose int4, or close other programs."


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
