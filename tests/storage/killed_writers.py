"""Forks writers one after the other, kills each with SIGKILL while it writes, and prints how many runs they finished.

A process of its own, because forking one that has threads (a test session has many) may copy a lock that is held.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from storage.store import Store
from tests.storage.filling import CPU, run, turn


def write_for_ever(path: Path, reports: int) -> None:
    """Finish runs, and leave every second one growing; each finished one is reported after it was saved."""
    store = Store(path)
    conversation_id = store.start_conversation("killed")
    os.write(reports, b"r")
    while True:
        turn_id = turn(store, conversation_id, "prompt")
        run(store, turn_id, "reply " * 50)
        os.write(reports, b"f")
        growing = store.start_run(turn_id, 1, CPU, machine={}, contended=False)
        store.save_partial(growing, "part", (0.1, 0.2))


def killed_writer(path: Path, delay_s: float) -> int:
    """Fork a writer and kill it so long after its start; returns how many finished runs it reported."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        with contextlib.suppress(BaseException):
            write_for_ever(path, write_end)
        os._exit(1)
    os.close(write_end)
    reports = os.read(read_end, 1)
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while chunk := os.read(read_end, 65536):
        reports += chunk
    os.close(read_end)
    return reports.count(b"f")


if __name__ == "__main__":
    kills = int(sys.argv[2])
    finished = sum(killed_writer(Path(sys.argv[1]), 0.002 + 0.07 * kill / kills) for kill in range(kills))
    sys.stdout.write(str(finished))
