"""Giving what has been written its final name.

Windows refuses to rename a file, or a folder with a file in it, that another program has open, and what has just been
written is opened by the virus scanner and the search index. They let go after a moment, so it is tried again for a
while, as pip and uv do it (https://github.com/astral-sh/uv/issues/17679). Elsewhere a refusal is final.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

PATIENCE_S = 10.0 if os.name == "nt" else 0.0
_PAUSE_S = 0.1


def put_in_place(made: Path, target: Path) -> None:
    """Rename `made` to `target`, over a file of that name; raises OSError."""
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            made.replace(target)
            return
        except PermissionError:
            if time.monotonic() >= give_up_at:
                raise
            time.sleep(_PAUSE_S)
