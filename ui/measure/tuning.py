"""Tuning one lane in the background: what is being tried, what came of it, and taking it back. Knows no page.

One at a time, like a measurement: the tuner takes the machine for itself. What it keeps is used from then on by every
run of that target, until it is taken back.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from engines.measure.tuner import Tuned, tune
from engines.protocol import Target
from engines.runtime.manager import EngineFailure
from storage.database import StoreError
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


class TuningWork:
    """Thread-safe."""

    def __init__(self, desk: Desk, seconds: float = SECONDS):
        self._desk, self._seconds = desk, seconds
        self._lock = threading.Lock()
        self._views: dict[str, TuningView] = {}

    def view(self, target: Target) -> TuningView | None:
        with self._lock:
            return self._views.get(str(target))

    @property
    def busy(self) -> bool:
        with self._lock:
            return any(view.running for view in self._views.values())

    def start(self, target: Target, job: str) -> str | None:
        """Begin, for `decode` or `prefill`; the sentence for the person when that cannot be now."""
        with self._lock:
            if self._desk.busy or any(view.running for view in self._views.values()):
                return "A measurement or a tuning is running: one at a time has the machine. Stop it first, or wait."
            self._views[str(target)] = TuningView(target, True, "Starting")
        threading.Thread(target=self._work, args=(target, job), name="tune", daemon=True).start()
        return None

    def take_back(self, target: Target) -> None:
        """Use the engine's defaults again. Raises StoreError."""
        self._desk.measurements.take_back_tuning(target)
        with self._lock:
            self._views.pop(str(target), None)

    def _work(self, target: Target, job: str) -> None:
        found, error = None, None
        try:
            found = tune(
                self._desk.manager,
                target,
                self._seconds,
                lambda text: self._change(target, now=text),
                job=job,
            )
            self._desk.measurements.keep_tuning(target, found.best, found.why)
        except (EngineFailure, StoreError) as problem:
            error = str(problem)
        except Exception as problem:  # noqa: BLE001 - a thread's exception would vanish
            error = f"{type(problem).__name__}: {problem}"
        self._change(target, running=False, now="", found=found, error=error)

    def _change(self, target: Target, **changes: object) -> None:
        with self._lock:
            self._views[str(target)] = replace(self._views[str(target)], **changes)  # type: ignore[arg-type]
