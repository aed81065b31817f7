"""Numbers to text, one spelling for the whole page: `123 ms`, `45.3 tok/s`, `1.9 GB`, `–` for what is not known.

Digits never jump in width more than they must (a live figure keeps its decimals), a missing value is an en dash and
never a zero, and sizes are decimal (1 GB = 10^9 bytes), as Hugging Face and disk makers write them.
"""

from __future__ import annotations

from datetime import datetime
from html import escape
from typing import Any

MISSING = "–"


def seconds(value: float | None) -> str:
    """A duration in about three figures: `4.2 ms`, `87 ms`, `1.37 s`, `48.2 s`, `2 min 05 s`, `1 h 04 min`."""
    if value is None:
        return MISSING
    value = max(value, 0.0)
    if value < 0.01:
        return f"{1000 * value:.1f} ms"
    if value < 0.9995:
        return f"{1000 * value:.0f} ms"
    if value < 10:
        return f"{value:.2f} s"
    if value < 99.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def elapsed(value: float | None) -> str:
    """Elapsed seconds of something that still runs: one decimal, so that the figure does not flicker."""
    return MISSING if value is None else f"{value:.1f} s" if value < 99.95 else seconds(value)


def rate(value: float | None) -> str:
    """Tokens per second without the unit: `6.42`, `45.3`, `1,204`."""
    if value is None:
        return MISSING
    if value < 9.995:  # what would be rounded up to another width is spelled as that
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 999.95 else f"{value:,.0f}"


def tok_s(value: float | None) -> str:
    return MISSING if value is None else f"{rate(value)} tok/s"


def count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def counted(value: int, one: str, many: str | None = None) -> str:
    """`1 token`, `2 tokens`."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def size(value: float | None) -> str:
    """Bytes, decimal: `812 kB`, `412 MB`, `1.94 GB`."""
    if value is None:
        return MISSING
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= 0.9995 * step:
            number = value / step
            return f"{number:.2f} {unit}" if unit == "GB" and number < 9.995 else f"{number:.0f} {unit}"
    return f"{value:.0f} B"


def when(moment: str | None) -> str:
    """A stored moment, by this PC's clock: `22 Nov 2026, 14:03`."""
    if moment is None:
        return MISSING
    try:
        local = datetime.fromisoformat(moment.replace("Z", "+00:00")).astimezone()
    except (ValueError, OverflowError, OSError):  # an import may hold anything
        return moment
    return f"{local.day} {local:%b %Y, %H:%M}"


def percent(fraction: float | None) -> str:
    return MISSING if fraction is None else f"{100 * min(max(fraction, 0.0), 1.0):.0f} %"


def ratio(value: float | None) -> str:
    """How many times as fast: `1.8×`."""
    return MISSING if value is None else f"{value:.1f}×" if value < 10 else f"{value:.0f}×"


def text(value: Any) -> str:
    """Text made safe for HTML, inside elements and inside quoted attributes; None is the missing sign."""
    return MISSING if value is None else escape(str(value), quote=True)


def shorten(value: str, limit: int = 60) -> str:
    """First line of a text, cut at `limit` characters."""
    line = " ".join(value.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"
