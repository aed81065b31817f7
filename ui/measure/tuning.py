"""Tuning one lane in the background: what is being tried, stopping it, and what came of it. Knows no page.

One at a time, like a measurement: the tuner takes the machine for itself. What it keeps is used from then on by every
run of that target, until it is taken back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from engines.measure.tuner import JOBS, Tuned, spelled, tune
from engines.protocol import Target
from engines.runtime.manager import EngineFailure
from storage.database import StoreError
from storage.measurements import Tuning
from ui.measure.desk import Desk

SECONDS = 300.0


@dataclass(frozen=True)
class TuningView:
    """How the tuning of a lane stands, or how the last one ended."""

    target: Target
    running: bool
    now: str
    found: Tuned | None = None
    error: str | None = None
    stopping: bool = False


class TuningWork:
    """Thread-safe."""

    def __init__(self, desk: Desk, seconds: float = SECONDS):
        self._desk, self._seconds = desk, seconds
        self._lock = threading.Lock()
        self._views: dict[str, TuningView] = {}
        self._stop = threading.Event()

    def view(self, target: Target) -> TuningView | None:
        with self._lock:
            return self._views.get(str(target))

    @property
    def busy(self) -> bool:
        with self._lock:
            return any(view.running for view in self._views.values())

    def start(self, target: Target, job: str) -> str | None:
        """Begin, for one of the tuner's jobs; the sentence for the person when that cannot be now."""
        if job not in JOBS:
            return "A lane is tuned for long answers or for long prompts."
        with self._lock:
            if self._desk.busy or any(view.running for view in self._views.values()):
                return "A measurement or a tuning is running: one at a time has the machine. Stop it first, or wait."
            self._views[str(target)] = TuningView(target, True, "Starting")
            self._stop = stop = threading.Event()
            threading.Thread(target=self._work, args=(target, job, stop), name="tune", daemon=True).start()
        return None

    def stop(self, target: Target) -> None:
        """End the tuning of this lane; the settings that were kept before stay."""
        with self._lock:
            view = self._views.get(str(target))
            if view is not None and view.running:
                self._stop.set()
                self._views[str(target)] = replace(view, now="Stopping", stopping=True)

    def tunings(self, target: Target) -> tuple[Tuning, ...]:
        """What is kept for a lane, what is in use first. Raises StoreError."""
        return self._desk.measurements.tunings(target)

    def use(self, target: Target, job: str) -> None:
        """Use what is kept for this job. Raises StoreError."""
        self._desk.measurements.use_tuning(target, job)

    def take_back(self, target: Target, job: str | None = None) -> None:
        """Forget what is kept for this job (None: for all). Raises StoreError."""
        self._desk.measurements.take_back_tuning(target, job)
        with self._lock:
            self._views.pop(str(target), None)

    def _work(self, target: Target, job: str, stop: threading.Event) -> None:
        found, error = None, None
        try:
            found = tune_and_keep(
                self._desk, target, self._seconds, job, lambda text: self._say(target, text), stop
            )
        except (EngineFailure, StoreError) as problem:
            error = str(problem)
        except Exception as problem:  # noqa: BLE001 - a thread's exception would vanish
            error = f"{type(problem).__name__}: {problem}"
        with self._lock:
            self._views[str(target)] = TuningView(target, False, "", found, error)

    def _say(self, target: Target, text: str) -> None:
        with self._lock:
            view = self._views[str(target)]
            if not view.stopping:
                self._views[str(target)] = replace(view, now=text)


def tune_and_keep(
    desk: Desk,
    target: Target,
    seconds: float,
    job: str,
    tell: Callable[[str], None],
    stop: threading.Event,
) -> Tuned:
    """Tune a target for a job and keep what is best for it, of what was kept before, too.

    Raises EngineFailure or StoreError.
    """
    measurements = desk.measurements
    kept = next((each.settings for each in measurements.tunings(target) if each.job == job), {})
    found = tune(
        desk.manager,
        target,
        seconds,
        tell,
        job=job,
        kept=kept,
        in_use=measurements.tuned(target),
        stop=stop,
    )
    if not found.stopped and dict(found.best) != dict(kept):
        measurements.keep_tuning(target, found.best, found.why, job)
    now = measurements.tuned(target)
    if found.best and now and dict(now) != dict(found.best):
        return replace(found, why=f"{found.why} {spelled(now)} stays in use until you choose otherwise.")
    return found
