"""What every section of a measurement's results is made of: the section itself, its tables, its units."""

from __future__ import annotations

from collections.abc import Sequence

from ui import format as fmt


def section(title: str, body: str, note: str = "") -> str:
    """A titled part of the page; nothing when there is nothing in it."""
    if not body:
        return ""
    said = f'<p class="ms-note">{note}</p>' if note else ""
    return (
        f'<section class="ms-section" aria-label="{fmt.text(title)}"><h3>{title}</h3>{said}{body}</section>'
    )


def table(label: str, head: Sequence[str], rows: Sequence[str], classes: str = "") -> str:
    """A table that scrolls in itself where it is too wide; `head` and `rows` are HTML."""
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    return (
        f'<div class="ms-scroll" tabindex="0" role="group" aria-label="{fmt.text(label)}">'
        f'<table class="ms-table {classes}">'
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def bytes_a_second(bytes_s: float | None) -> str:
    """Bytes a second, or that nobody knows them."""
    return fmt.MISSING if bytes_s is None else f"{bytes_s / 1e9:,.1f} GB/s"
