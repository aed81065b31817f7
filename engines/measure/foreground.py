"""A fixed processor task that stands for the person's other work. `python -m engines.measure.foreground SLICES`.

One thread hashes blocks; each slice's rate is printed. Alone and then beside a lane that generates, the quotient is
the lane's foreground tax.
"""

from __future__ import annotations

import hashlib
import time

from engines.measure import child

SLICES = 8
SLICE_S = 0.25
_BLOCK = bytes(64 * 1024)


def rates(slices: int = SLICES) -> tuple[float, ...] | None:
    """Blocks hashed a second in each slice, from a child process; None when it could not be measured."""
    found = child.answer("engines.measure.foreground", slices)
    if not isinstance(found, list) or len(found) != slices:
        return None
    return tuple(found) if all(rate > 0 for rate in found) else None


def work(slices: int, slice_s: float = SLICE_S) -> list[float]:
    """Blocks a second, slice by slice."""
    found = []
    for _ in range(slices):
        blocks, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < slice_s:
            hashlib.sha256(_BLOCK).digest()
            blocks += 1
        found.append(blocks / elapsed)
    return found


if __name__ == "__main__":
    child.say(work(child.asked()))
