"""Text for cells of a spreadsheet, which runs what looks like a formula, whoever wrote it."""

from __future__ import annotations

import unicodedata

_FORMULA = "=+-@−"
_SEES = ("\t", "\r", "\n")
"""Spreadsheets drop these before they look for a formula, each in its own way."""


def for_spreadsheet(text: str) -> str:
    """The text with an apostrophe in front where a spreadsheet might run it as a formula.

    However it is spelled: full-width or small signs, behind space, line ends, a byte order mark or other characters
    that are not seen.
    """
    if text.startswith(_SEES):
        return f"'{text}"
    first = next((char for char in text if not _unseen(char)), "")
    return f"'{text}" if first and unicodedata.normalize("NFKC", first)[0] in _FORMULA else text


def _unseen(character: str) -> bool:
    return character.isspace() or unicodedata.category(character)[0] in "CZ"
