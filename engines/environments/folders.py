"""An environment's folder on disk: its interpreter, and the marker that says it is finished."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from engines.toolkit.putting import put_in_place

_MARKER = "complete.json"


def venv_python(folder: Path) -> Path:
    """The interpreter inside a virtual environment's folder."""
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def discard(folder: Path) -> None:
    """Delete an environment, its marker first: what is half deleted must not look finished."""
    with contextlib.suppress(OSError):
        (folder / _MARKER).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def read_marker(folder: Path) -> Mapping | None:
    try:
        record = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def write_marker(folder: Path, record: Mapping) -> None:
    partial = folder / f"{_MARKER}.partial"
    partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
    put_in_place(partial, folder / _MARKER)
