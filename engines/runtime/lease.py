"""Lease: the right to use a loaded target, and what is known about that target."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engines.protocol import (
    Cancel,
    Event,
    Failed,
    Finished,
    Generate,
    GenerationRequest,
    Loaded,
    PreparedModel,
    Progress,
    Score,
    Scored,
    Target,
)
from engines.runtime.activity import GENERATE, Activity, Doing, GaveUpError
from engines.runtime.worker_process import WorkerProcess
from engines.telemetry.observer import Observed, Observer

CANCEL_TIMEOUT_S = 10.0

OnEvent = Callable[[Event], None]
Outcome = Finished | Scored | Failed


@dataclass
class Slot:
    """Everything about one target.

    `lock` guards the fields of every slot; it is the manager's, held for a few assignments and never over I/O,
    because whoever paints needs it fifteen times a second. `load_lock` and `run_lock` guard nothing: they make
    callers take turns loading and generating, so they are held as long as that takes, and whoever only looks does
    not need them.
    """

    target: Target
    log_path: Path
    lock: threading.RLock
    load_lock: threading.Lock = field(default_factory=threading.Lock)
    run_lock: threading.Lock = field(default_factory=threading.Lock)
    worker: WorkerProcess | None = None
    model: PreparedModel | None = None
    loaded: Loaded | None = None
    phase: str = "absent"
    progress: Progress | None = None
    failure: Failed | None = None
    users: int = 0
    crashes: int = 0
    last_used: float = 0.0
    reserved_bytes: int = 0
    peak_rss_bytes: int | None = None
    on_event: OnEvent | None = None
    tuning: Mapping[str, Any] = field(default_factory=dict)
    """What its worker was loaded with."""

    @property
    def idle(self) -> bool:
        return self.worker is not None and self.users == 0


class Lease:
    """The right to use a loaded target; several leases of one target take turns generating."""

    def __init__(
        self,
        slot: Slot,
        model: PreparedModel,
        loaded: Loaded,
        clock: Callable[[], float],
        note_outcome: Callable[[Slot, WorkerProcess, Outcome], None],
        activity: Activity,
        observer: Observer,
    ):
        """`note_outcome` is told how each generation ended."""
        self._slot, self._clock, self._note_outcome = slot, clock, note_outcome
        self._activity, self._observer = activity, observer
        self.observed: Observed | None = None
        """What went on during the last generation, and where it ran; None before, and when it never began."""
        self._cancelled: set[str] = set()
        self.loaded, self.model = loaded, model

    def generate(self, run_id: str, request: GenerationRequest, on_event: OnEvent) -> Finished | Failed:
        """Run one generation; events reach `on_event` on the worker's reader thread. Never raises."""
        outcome = self._have_answered(run_id, Generate(run_id, request), on_event)
        return outcome if isinstance(outcome, (Finished, Failed)) else _unexpected(run_id)

    def score(self, run_id: str, text: str, max_tokens: int) -> Scored | Failed:
        """Ask what the model expected of a text; `unavailable` where the library does not tell. Never raises."""
        outcome = self._have_answered(run_id, Score(run_id, text, max_tokens), lambda _event: None)
        return outcome if isinstance(outcome, (Scored, Failed)) else _unexpected(run_id)

    def _have_answered(self, run_id: str, command: Generate | Score, on_event: OnEvent) -> Outcome:
        slot = self._slot
        self.observed = None
        answer = _Answer(run_id, on_event)
        with slot.run_lock:
            with slot.lock:
                worker = slot.worker
            if worker is None or not worker.alive:
                return _never_reached(worker, run_id)
            try:
                with self._generating(run_id, on_event) as doing:
                    watch = self._observer.watch(doing, worker.pid)
                    with slot.lock:
                        slot.on_event, slot.phase = answer.take, "busy"
                    outcome = self._ask(worker, command, answer)
                    self.observed = watch.ended(slot.target.device, self.loaded)
            except GaveUpError:
                return Failed("cancelled", "Stopped before it began.", run_id=run_id)
            with slot.lock:
                slot.on_event = None
            self._note_outcome(slot, worker, outcome)
        return outcome

    def _generating(self, run_id: str, on_event: OnEvent) -> AbstractContextManager[Doing]:
        """Registered as a generation; waits while a measurement has the machine."""

        def waiting(holder: str) -> None:
            on_event(Progress("queue", f"Waiting: the machine is taken for {holder}"))

        return self._activity.doing(
            GENERATE, self._slot.target.label, cancelled=lambda: run_id in self._cancelled, on_wait=waiting
        )

    def _ask(self, worker: WorkerProcess, command: Generate | Score, answer: _Answer) -> Outcome:
        """Send the command and wait for its outcome, no longer than there is somebody to give one."""
        run_id = command.run_id
        if not worker.send(command):
            return answer.outcome or _never_reached(worker, run_id)
        if run_id in self._cancelled:
            worker.send(Cancel(run_id))
        deadline = None
        while not answer.done.wait(0.1):
            if worker.has_said_all():
                break
            if deadline is None and run_id in self._cancelled:
                deadline = self._clock() + CANCEL_TIMEOUT_S
            if deadline is not None and self._clock() > deadline:
                worker.stop(grace_s=0.5)
                message = f"The worker did not stop within {CANCEL_TIMEOUT_S:.0f} s and was ended."
                return Failed("hung", message, "The next prompt starts it afresh.", run_id=run_id)
        return answer.outcome or _ended(
            worker, run_id, "The worker process was ended while it wrote this reply."
        )

    def cancel(self, run_id: str) -> None:
        """Stop a generation, running or still waiting its turn; returns at once."""
        self._cancelled.add(run_id)
        with self._slot.lock:
            worker = self._slot.worker
        if worker is not None:
            worker.send(Cancel(run_id))


class _Answer:
    """Takes a generation's events: hands them on, keeps the one that ends it."""

    def __init__(self, run_id: str, on_event: OnEvent):
        self._run_id, self._on_event = run_id, on_event
        self.outcome: Outcome | None = None
        self.done = threading.Event()

    def take(self, event: Event) -> None:
        if isinstance(event, (Finished, Scored, Failed)):
            self.outcome = replace(event, run_id=self._run_id)
            self.done.set()
        else:
            self._on_event(event)


def _unexpected(run_id: str) -> Failed:
    return Failed("error", "The worker answered another question than was asked.", run_id=run_id)


def _never_reached(worker: WorkerProcess | None, run_id: str) -> Failed:
    return _ended(worker, run_id, "The worker process ended before the prompt reached it.")


def _ended(worker: WorkerProcess | None, run_id: str, message: str) -> Failed:
    """How it died where that is known; else that it is gone."""
    crash = worker.crash if worker is not None else None
    return replace(
        crash or Failed("crashed", message, "Send the prompt again to start it afresh."), run_id=run_id
    )
