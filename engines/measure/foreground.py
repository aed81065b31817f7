"""A fixed processor task that stands for the person's other work. `python -m engines.measure.foreground SLICES`.

One thread hashes blocks; each slice's rate is printed. Alone and then beside a lane that generates, the quotient is
the lane's foreground tax.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time

from engines.runtime.worker_process import PROJECT_ROOT

SLICES = 8
SLICE_S = 0.25
_BLOCK = bytes(64 * 1024)
_TIMEOUT_S = 60.0


def rates(slices: int = SLICES) -> tuple[float, ...] | None:
    """Blocks hashed a second in each slice, from a child process; None when it could not be measured."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "engines.measure.foreground", str(slices)],
            cwd=PROJECT_ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=True,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        found = tuple(float(rate) for rate in json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return None
    return found if len(found) == slices and all(rate > 0 for rate in found) else None


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
    sys.stdout.write(json.dumps(work(int(sys.argv[1]))) + "\n")
