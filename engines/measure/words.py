"""How figures are written in sentences of a measurement, the same on the page, in reports and in a terminal."""

from __future__ import annotations


def percent(share: float, *, signed: bool = False, digits: int = 0) -> str:
    """`46 %`, or with its sign `+46 %`, `−3 %`."""
    text = f"{100 * share:{'+' if signed else ''}.{digits}f} %"
    return text.replace("-", "−")
