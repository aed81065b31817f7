"""Text files that other programs wrote: UTF-8, or what Windows PowerShell's `>` makes of any program's output."""

from __future__ import annotations

import codecs
from pathlib import Path


def encoding(path: Path) -> str:
    """What to open the file with, by its byte order mark; raises OSError."""
    with path.open("rb") as stream:
        begins = stream.read(2)
    return "utf-16" if begins in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def read(path: Path) -> str:
    """The text without its byte order mark, line ends as `\\n`; raises OSError or UnicodeError."""
    return path.read_text(encoding=encoding(path))
