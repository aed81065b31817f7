"""A turn and its runs while they live in this process."""

from __future__ import annotations

import threading
import time
import uuid

from engines.protocol import Target
from engines.runtime.lease import Lease
from engines.telemetry.observer import Observed
from ui.chat.gates import OPEN, Gate
from ui.chat.run_view import RunFold, RunView
from ui.chat.settings import Settings


class LiveRun:
    """One target's generation for one turn, in this process."""

    def __init__(self, fold: RunFold, panel: int, target: Target, attempt: int):
        self.panel, self.target, self.attempt = panel, target, attempt
        self.run_id: str = uuid.uuid4().hex
        self.gate: Gate = OPEN
        """What it has to pass before it begins, and what may be seen of it."""
        self.logged = False
        """Whether the log has a row for it."""
        self.fold = fold
        self.observed: Observed | None = None
        """Under which conditions it ran, and where, once it has ended."""
        self.done = threading.Event()
        self.cancelled = threading.Event()
        self._lease: Lease | None = None
        self._lock = threading.Lock()

    def view(self) -> RunView:
        """As it may be shown."""
        return self.gate.seen(self.fold.view())

    def hold(self, lease: Lease | None) -> None:
        with self._lock:
            self._lease = lease
            cancelled = self.cancelled.is_set()
        if lease is not None and cancelled:
            lease.cancel(self.run_id)

    def stop(self) -> None:
        """Ask the run to stop, whatever it is doing; returns at once."""
        with self._lock:
            self.cancelled.set()
            lease = self._lease
        if lease is not None:
            lease.cancel(self.run_id)


class LiveTurn:
    """One prompt sent to N targets."""

    def __init__(self, conversation_id: str, turn_id: str, prompt: str, mode: str, settings: Settings):
        self.conversation_id, self.turn_id = conversation_id, turn_id
        self.prompt, self.mode, self.settings = prompt, mode, settings
        self.gate: Gate = OPEN
        self.asked_at = time.time()
        """When it was sent, seconds since the epoch: the clock of every prompt made of it."""
        self.notice: str | None = None
        """Something the person should know about the turn as a whole."""
        self.runs: tuple[LiveRun, ...] = ()
        """The latest run of each panel, in panel order."""

    @property
    def done(self) -> bool:
        return all(run.done.is_set() for run in self.runs)

    def run_of(self, panel: int) -> LiveRun | None:
        return next((run for run in self.runs if run.panel == panel), None)

    def stop(self, panel: int | None = None) -> None:
        """Stop one panel's run, or all."""
        for run in self.runs:
            if panel is None or run.panel == panel:
                run.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every run is done; False when `timeout` seconds were not enough."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for run in self.runs:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not run.done.wait(left):
                return False
        return True

    def replace_run(self, run: LiveRun) -> None:
        others = [other for other in self.runs if other.panel != run.panel]
        self.runs = tuple(sorted((*others, run), key=lambda r: r.panel))
