"""Text made harmless for where it goes: models write all sorts, and people paste it.

A terminal obeys escape sequences (title, clipboard, clear the screen), a carriage return overwrites what stands
there, and a bidirectional override shows something else than is written. A spreadsheet runs what looks like a
formula. JSON needs none of this: it stays exact.
"""

from __future__ import annotations

import re
import unicodedata

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line feed, DEL, C1
    "\u202a-\u202e\u2066-\u2069"  # embeddings, overrides and isolates of bidirectional text
    "\ud800-\udfff]"
)
_FORMULA = "=+-@−"
_SPREADSHEET_SEES = ("\t", "\r", "\n")
"""Spreadsheets drop these before they look for a formula, each in its own way."""


def for_terminal(text: str) -> str:
    """The text with every character that a terminal would obey shown instead: `␛`, `<U+009B>`, `<U+202E>`."""
    return _CONTROLS.sub(lambda found: _shown(found[0]), text.replace("\r\n", "\n"))


def _shown(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return "\ufffd" if 0xD800 <= code <= 0xDFFF else f"<U+{code:04X}>"


def for_spreadsheet(text: str) -> str:
    """The text with an apostrophe in front where a spreadsheet might run it as a formula.

    However it is spelled: full-width or small signs, behind space, line ends, a byte order mark or other characters
    that are not seen.
    """
    if text.startswith(_SPREADSHEET_SEES):
        return f"'{text}"
    first = next((char for char in text if not _unseen(char)), "")
    return f"'{text}" if first and unicodedata.normalize("NFKC", first)[0] in _FORMULA else text


def _unseen(character: str) -> bool:
    return character.isspace() or unicodedata.category(character)[0] in "CZ"
