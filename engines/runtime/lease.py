"""Lease: the right to use a loaded target, and what is known about that target."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

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
    Target,
)
from engines.runtime.activity import GENERATE, Activity, Doing, GaveUpError
from engines.runtime.worker_process import WorkerProcess
from engines.telemetry.observer import Observed, Observer

CANCEL_TIMEOUT_S = 10.0

OnEvent = Callable[[Event], None]


@dataclass
class Slot:
    """Everything about one target. `lock` guards the fields; the two others order loading and generating."""

    target: Target
    log_path: Path
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

    @property
    def idle(self) -> bool:
        return self.worker is not None and self.users == 0


class Lease:
    """The right to use a loaded target; several leases of one target take turns generating."""

    def __init__(
        self,
        slot: Slot,
        clock: Callable[[], float],
        note_outcome: Callable[[Slot, Finished | Failed], None],
        activity: Activity,
        observer: Observer,
    ):
        """`note_outcome` is told how each generation ended."""
        self._slot, self._clock, self._note_outcome = slot, clock, note_outcome
        self._activity, self._observer = activity, observer
        self.observed: Observed | None = None
        """What went on during the last generation, and where it ran; None before, and when it never began."""
        self._cancelled: set[str] = set()
        self.loaded: Loaded = slot.loaded
        self.model: PreparedModel = slot.model

    def generate(self, run_id: str, request: GenerationRequest, on_event: OnEvent) -> Finished | Failed:
        """Run one generation; events reach `on_event` on the worker's reader thread. Never raises."""
        slot, outcome, done = self._slot, [], threading.Event()
        self.observed = None

        def listen(event: Event) -> None:
            if isinstance(event, (Finished, Failed)):
                outcome.append(replace(event, run_id=run_id))
                done.set()
            else:
                on_event(event)

        with slot.run_lock:
            worker = slot.worker
            if worker is None or not worker.alive:
                return Failed(
                    "crashed", "The worker process ended before the prompt reached it.", run_id=run_id
                )
            try:
                with self._generating(run_id, on_event) as doing:
                    watch = self._observer.watch(doing, worker.pid)
                    slot.on_event, slot.phase = listen, "busy"
                    worker.send(Generate(run_id, request))
                    if run_id in self._cancelled:
                        worker.send(Cancel(run_id))
                    self._wait(run_id, worker, done, outcome)
                    self.observed = watch.ended(slot.target.device, self.loaded)
            except GaveUpError:
                return Failed("cancelled", "Stopped before it began.", run_id=run_id)
            slot.on_event = None
            self._note_outcome(slot, outcome[0])
        return outcome[0]

    def _generating(self, run_id: str, on_event: OnEvent) -> AbstractContextManager[Doing]:
        """Registered as a generation; waits while a measurement has the machine."""

        def waiting(holder: str) -> None:
            on_event(Progress("queue", f"Waiting: the machine is taken for {holder}"))

        return self._activity.doing(
            GENERATE, str(self._slot.target), cancelled=lambda: run_id in self._cancelled, on_wait=waiting
        )

    def _wait(
        self, run_id: str, worker: WorkerProcess, done: threading.Event, outcome: list[Finished | Failed]
    ) -> None:
        deadline = None
        while not done.wait(0.1):
            if deadline is None and run_id in self._cancelled:
                deadline = self._clock() + CANCEL_TIMEOUT_S
            if deadline is not None and self._clock() > deadline:
                worker.stop(grace_s=0.5)
                message = f"The worker did not stop within {CANCEL_TIMEOUT_S:.0f} s and was ended."
                outcome.append(Failed("hung", message, "The next prompt starts it afresh.", run_id=run_id))
                return

    def cancel(self, run_id: str) -> None:
        """Stop a generation, running or still waiting its turn; returns at once."""
        self._cancelled.add(run_id)
        worker = self._slot.worker
        if worker is not None:
            worker.send(Cancel(run_id))
