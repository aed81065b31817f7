"""Writes of running chats: they never fail the chat. What cannot be written now waits in memory, in order.

When the disk is full, or another program holds the lock, `trouble` says so in one sentence, the writes queue up,
and a thread tries again every second until everything is on disk; then `trouble` is None again.

One lock guards the queue and is never held over I/O. Writes take turns instead, and whoever cannot have its turn
soon, because a slow disk keeps the one before it, leaves its write in the queue: no reply waits for another's disk.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlite_utils import Database

from storage.database import HistoryFile, StoreBusyError, StoreError

RETRY_S = 1.0
PATIENCE_S = 0.2
"""How long a write waits for the one before it; a usual one takes a millisecond."""
MAX_WAITING_BYTES = 256 * 2**20
"""Texts that may wait in memory; beyond this, new writes are lost (and `trouble` says so)."""

Write = Callable[[Database], object]


@dataclass(eq=False)
class _Waiting:
    write: Write
    key: str | None
    size: int


class Recorder:
    """Executes writes now, or as soon as the file allows it. Thread-safe."""

    def __init__(self, file: HistoryFile):
        self._file = file
        self._turn = threading.Lock()
        """Whoever writes has it; held over I/O, so nobody waits for it for long."""
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._lost = 0
        self._reason: str | None = None
        self._retrier: threading.Thread | None = None
        self._closing = threading.Event()

    @property
    def trouble(self) -> str | None:
        """Why the history is not being written just now, for people; None when all is well."""
        # Without the lock: a page that asks must not wait for a write that waits for another program.
        reason, waiting, lost = self._reason, len(self._waiting), self._lost
        if reason is None:
            return None
        kept = f" {waiting} changes wait in memory and will be saved then." if waiting else ""
        return reason + kept + (f" {lost} more did not fit there and are lost." if lost else "")

    @property
    def is_waiting(self) -> bool:
        """Whether something is still to be written."""
        return bool(self._waiting)

    def write(
        self, write: Write, *, key: str | None = None, replaces: str | None = None, size: int = 0
    ) -> None:
        """Execute, or queue when the file cannot be written just now.

        Queued writes whose `key` is `replaces` are dropped: only the newest state of a growing reply counts.
        Raises StoreError only for what waiting cannot mend.
        """
        if not self._waiting and self._turn.acquire(timeout=PATIENCE_S):
            try:
                if not self._waiting and self._succeeds(write):
                    return
            finally:
                self._turn.release()
        with self._lock:
            self._waiting = [other for other in self._waiting if not replaces or other.key != replaces]
            self._queue(_Waiting(write, key, size))

    def _succeeds(self, write: Write) -> bool:
        """Execute, holding the turn; False when it may work in a moment."""
        try:
            self._execute(write)
        except StoreBusyError as error:
            self._reason = str(error)
            return False
        self._reason = None
        return True

    def flush(self) -> bool:
        """Try to write what waits; True when nothing waits any more."""
        with self._turn:
            while self._waiting:
                first = self._waiting[0]
                try:
                    self._execute(first.write)
                except StoreBusyError as error:
                    self._reason = str(error)
                    return False
                except StoreError as error:
                    with self._lock:
                        self._lost += 1
                    self._reason = str(error)
                with self._lock:
                    if first in self._waiting:  # a newer state may have taken its place meanwhile
                        self._waiting.remove(first)
            with self._lock:
                self._reason, self._lost = None, 0
            return True

    def close(self, patience_s: float = 0.0) -> None:
        """Try until everything is written, for so long at most; what still waits then is lost."""
        deadline = time.monotonic() + patience_s
        while not self.flush() and time.monotonic() < deadline:
            time.sleep(min(RETRY_S, max(0.0, deadline - time.monotonic())))
        self._closing.set()

    def _execute(self, write: Write) -> None:
        try:
            with self._file.writing() as db:
                write(db)
        except StoreError as error:
            if isinstance(error.__cause__, sqlite3.IntegrityError):
                raise StoreError(
                    "This conversation is no longer in the history (it was deleted), so nothing was saved."
                ) from error
            raise

    def _queue(self, waiting: _Waiting) -> None:
        """Let it wait; the caller holds the lock."""
        if sum(other.size for other in self._waiting) + waiting.size > MAX_WAITING_BYTES:
            self._lost += 1
        else:
            self._waiting.append(waiting)
        if self._retrier is None or not self._retrier.is_alive():
            self._retrier = threading.Thread(target=self._retry, name="history-retry", daemon=True)
            self._retrier.start()

    def _retry(self) -> None:
        while not self._closing.wait(RETRY_S):
            self.flush()
            with self._lock:
                if not self._waiting:
                    self._retrier = None
                    return
