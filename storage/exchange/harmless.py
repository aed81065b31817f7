"""Text made harmless for where it goes: models write all sorts, and people paste it.

A terminal obeys escape sequences (title, clipboard, clear the screen), a carriage return overwrites what stands
there, and a bidirectional override shows something else than is written. A Markdown viewer fetches pictures, may run
HTML, and takes all that follows an open fence or comment for its inside. JSON needs none of this: it stays exact.
(For spreadsheets: engines/toolkit/spreadsheets.py.)
"""

from __future__ import annotations

import re
from typing import Any

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line feed, DEL, C1
    "\u202a-\u202e\u2066-\u2069"  # embeddings, overrides and isolates of bidirectional text
    "\ud800-\udfff]"
)
_LINKS = ("http://", "https://", "mailto:", "#")
_WHAT_FOLLOWS = "What follows."
_LONGEST_PARSED = 60_000


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


def for_markdown(text: str) -> str:
    """A text inside a Markdown document: as it is while it is tame there, else shown letter by letter in a fence.

    Tame is what brings no HTML and no picture, links to pages and mail only, and ends before what follows it.
    """
    return text if len(text) <= _LONGEST_PARSED and _is_tame(text) else _fenced(text)


def _is_tame(text: str) -> bool:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark")
    parser.validateLink = lambda url: True  # type: ignore[method-assign] # to see those that it would leave out
    found: dict[str, Any] = {}
    blocks = parser.parse(f"{text}\n\n{_WHAT_FOLLOWS}", found)
    if len(blocks) < 3 or blocks[-3].level or blocks[-2].content != _WHAT_FOLLOWS:
        return False
    tokens = [*blocks, *(child for block in blocks for child in block.children or ())]
    links = [str(token.attrs["href"]) for token in tokens if "href" in token.attrs]
    links += [str(named["href"]) for named in found.get("references", {}).values()]
    live = any(token.type in ("html_block", "html_inline", "image") for token in tokens)
    return not live and all(link.lower().startswith(_LINKS) for link in links)


def _fenced(text: str) -> str:
    fence = "`" * max(3, *(len(found) + 1 for found in re.findall("`+", text)), 3)
    return f"{fence}text\n{text}\n{fence}"


def for_markdown_line(text: str) -> str:
    """A text inside a line of a Markdown document, its signs shown as they are."""
    return re.sub(r"([\\`\[<&])", r"\\\1", " ".join(text.split()))
