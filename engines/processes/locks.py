"""Waiting for a lock between processes, which the system releases when its holder dies."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout


def wait_for_lock(path: Path, on_wait: Callable[[], None], poll_s: float = 0.3) -> FileLock:
    """Take the lock on `path`, calling `on_wait` (which may raise to give up) each time it is not to be had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(blocking=False)
            return lock
        except Timeout:
            on_wait()
            time.sleep(poll_s)
