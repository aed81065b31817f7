"""The commands of `app.py`."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def absolute(path: str) -> Path:
    """A path as it was typed, such that it means the same wherever a child process works, `~` included.

    Shells leave a `~` as it is in `--option=~/folder`, and on Windows always.
    """
    return Path(path).expanduser().absolute()


def whole(least: int, most: int = 1_000_000) -> Callable[[str], int]:
    """Reads a whole number within bounds, for argparse."""

    def read(text: str) -> int:
        value = int(text) if text.strip().lstrip("+-").isdecimal() and len(text) < 20 else None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"“{text}” is no whole number from {least} to {most:,}")
        return value

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """Reads a number within bounds, for argparse."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"“{text}” is no number from {least:g} to {most:,g}")
        return value

    return read
