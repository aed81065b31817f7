"""How fast this machine reads memory: the limit that decoding runs into. `python -m engines.measure.bandwidth BYTES`.

A read loop in a process of its own: each thread takes the dot product of its slice with itself, which reads every
byte once and computes next to nothing. The working set is as large as the weights it is compared with, so what fits a
cache is measured in that cache. Best of several rounds, as STREAM reports it.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engines.measure import child

LARGEST_BYTES = 512 * 2**20
"""Beyond every cache; more would only take longer."""
SMALLEST_BYTES = 1 * 2**20
SECONDS = 1.0


def measured(working_set_bytes: int) -> float | None:
    """Bytes a second over a working set of that size, from a child process; None when it could not be measured."""
    size = min(max(working_set_bytes, SMALLEST_BYTES), LARGEST_BYTES)
    found = child.answer("engines.measure.bandwidth", size)
    return float(found) if isinstance(found, (int, float)) else None


def read_rate(size: int, threads: int, seconds: float = SECONDS) -> float:
    """Bytes a second, best round."""
    import numpy as np

    slices: list[Any] = [np.ones(max(1, size // threads // 4), np.float32) for _ in range(threads)]
    rounds = max(1, (16 * 2**20) // size)
    """Passes in one go: a small working set is read too quickly to be timed once."""

    def read(part: Any) -> None:
        for _ in range(rounds):
            np.dot(part, part)

    best, deadline = 0.0, time.perf_counter() + seconds
    with ThreadPoolExecutor(threads) as pool:
        while True:
            started = time.perf_counter()
            list(pool.map(read, slices))
            ended = time.perf_counter()
            best = max(best, rounds * sum(part.nbytes for part in slices) / (ended - started))
            if ended > deadline:
                return best


def main(size: int) -> float:
    """Bytes a second with as many threads as serve best."""
    import os

    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = "1"  # the threads are ours; read when numpy is loaded
    from engines.toolkit.process_facts import physical_cores

    counts = sorted({physical_cores(), os.cpu_count() or 1})
    return max(read_rate(size, count, SECONDS / len(counts)) for count in counts)


if __name__ == "__main__":
    child.say(main(child.asked()))
