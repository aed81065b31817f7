"""Text files that other programs wrote: UTF-8, or what Windows PowerShell's `>` makes of any program's output."""

from __future__ import annotations

import codecs
from pathlib import Path


def read(path: Path) -> str:
    """The text without its byte order mark, line ends as `\\n`; raises OSError or UnicodeError."""
    raw = path.read_bytes()
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = raw.decode("utf-16" if wide else "utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")
