"""How figures are written in sentences of a measurement, the same on the page, in reports and in a terminal."""

from __future__ import annotations

import math

_LEAST = 1e-9
"""Below this a row of zeros helps nobody."""


def percent(share: float, *, signed: bool = False, digits: int = 0) -> str:
    """`46 %`, or with its sign `+46 %`, `−3 %`."""
    text = f"{100 * share:{'+' if signed else ''}.{digits}f} %"
    return text.replace("-", "−")


def number(value: float, digits: int = 4) -> str:
    """A figure in so many digits, but all of those before the point: `0.01234`, `17.5`, `12,346`; no exponent."""
    text = f"{value:.{digits}g}"
    if abs(float(text)) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if "e" not in text or abs(value) < _LEAST:
        return text
    return f"{value:.{digits - 1 - math.floor(math.log10(abs(value)))}f}"
