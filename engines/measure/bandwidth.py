"""How fast this machine reads memory: the limit that decoding runs into. `python -m engines.measure.bandwidth BYTES`.

A read loop in a process of its own: each thread takes the dot product of its slice with itself, which reads every
byte once and computes next to nothing. The working set is as large as the weights it is compared with, so what fits a
cache is measured in that cache. Best of several rounds, as STREAM reports it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engines.runtime.worker_process import PROJECT_ROOT

LARGEST_BYTES = 512 * 2**20
"""Beyond every cache; more would only take longer."""
SMALLEST_BYTES = 1 * 2**20
SECONDS = 1.0
_TIMEOUT_S = 60.0


def measured(working_set_bytes: int) -> float | None:
    """Bytes a second over a working set of that size, from a child process; None when it could not be measured."""
    size = min(max(working_set_bytes, SMALLEST_BYTES), LARGEST_BYTES)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "engines.measure.bandwidth", str(size)],
            cwd=PROJECT_ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=True,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        return float(json.loads(done.stdout)["bytes_s"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return None


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


def main(arguments: list[str]) -> None:
    """Print the figure as JSON."""
    import os

    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = "1"  # the threads are ours; read when numpy is loaded
    from engines.toolkit.process_facts import physical_cores

    size = int(arguments[0])
    counts = sorted({physical_cores(), os.cpu_count() or 1})
    rate = max(read_rate(size, count, SECONDS / len(counts)) for count in counts)
    sys.stdout.write(json.dumps({"bytes": size, "bytes_s": rate}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
