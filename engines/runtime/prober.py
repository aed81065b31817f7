"""Asking each engine what it finds on this machine, in a short-lived worker process of its environment.

A library that hangs or crashes while it looks for devices costs its own engine an answer and nobody else anything.
The answers are kept: asking takes seconds, and devices rarely come and go.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from engines.engine import EngineError, UnavailableError
from engines.protocol import Availability, EngineSpec, Event, Failed, Probe, Probed
from engines.runtime.activity import PROBE, Activity, GaveUpError
from engines.runtime.worker_process import WorkerProcess

TIMEOUT_S = 120.0


class InterpreterSource(Protocol):
    """What is needed of the environments."""

    def interpreter(self, name: str) -> Path: ...


class Prober:
    """Engine name -> Availability, for all of `specs`. Thread-safe."""

    def __init__(
        self,
        specs: Mapping[str, EngineSpec],
        environments: InterpreterSource,
        start_worker: Callable[..., WorkerProcess],
        log_folder: Path,
        activity: Activity,
        settings: Callable[[EngineSpec], Mapping[str, Any]] = lambda _spec: {},
    ):
        """`settings`: what the workers of an engine are told (`EngineSpec.settings`)."""
        self._specs, self._environments = specs, environments
        self._start_worker, self._log_folder = start_worker, log_folder
        self._activity = activity
        self._settings = settings
        self._lock = threading.Lock()
        """Makes askers take turns, so it is held while the libraries answer; `known` never waits for it."""
        self._workers: set[WorkerProcess] = set()
        self._known: dict[str, Availability] | None = None
        self._closed = threading.Event()

    @property
    def known(self) -> Mapping[str, Availability] | None:
        """What the last probe found; None while there was none yet. Never waits."""
        return self._known

    def availability(self, *, refresh: bool = False) -> dict[str, Availability]:
        """All engines, asked at once; takes seconds the first time and with `refresh`."""
        with self._lock:
            if self._known is None or refresh:
                with ThreadPoolExecutor(max_workers=max(1, len(self._specs))) as pool:
                    answers = pool.map(self._ask, self._specs.values())
                    self._known = dict(zip(self._specs, answers, strict=True))
            return dict(self._known)

    def ask_again(self, name: str) -> Availability:
        """Ask one engine anew, because what it was told has changed."""
        answer = self._ask(self._specs[name])
        with self._lock:
            if self._known is not None:
                self._known = {**self._known, name: answer}
        return answer

    def require_device(self, spec: EngineSpec, device: str, announce: Callable[[], None]) -> None:
        """Raise UnavailableError unless `device` is here; `announce` is called first if that means asking."""
        known = (self._known or {}).get(spec.name)
        if known is None:
            announce()
            known = self._ask(spec)
        if not known.ok:
            raise UnavailableError(known.reason or f"{spec.title} has no device here.", known.remedy)
        status = next((status for status in known.device_status if status.device == device), None)
        if status is not None and not status.ok:
            raise UnavailableError(status.reason or f"{spec.title} finds no {device} here.", status.remedy)

    def shutdown(self) -> None:
        """End probes under way; they must not outlive the interpreter."""
        self._closed.set()
        for worker in tuple(self._workers):
            worker.stop(grace_s=1.0)
        if self._lock.acquire(timeout=10):
            self._lock.release()

    def _ask(self, spec: EngineSpec) -> Availability:
        try:
            with self._activity.doing(PROBE, spec.title, cancelled=self._closed.is_set):
                return self._ask_now(spec)
        except GaveUpError:
            return Availability(False, reason="The app is ending.")

    def _ask_now(self, spec: EngineSpec) -> Availability:
        try:
            interpreter = self._environments.interpreter(spec.environment)
        except EngineError as error:
            return Availability(False, reason=str(error), remedy=error.remedy)
        answers: list[Probed | Failed] = []
        answered = threading.Event()

        def listen(event: Event) -> None:
            if isinstance(event, (Probed, Failed)):
                answers.append(event)
                answered.set()

        if self._closed.is_set():
            return Availability(False, reason="The app is ending.")
        worker = self._start_worker(interpreter, self._log_folder / f"probe-{spec.name}.log")
        self._workers.add(worker)
        problem = worker.start(listen)
        try:
            if problem is None and worker.send(Probe(spec.module, self._settings(spec))):
                answer = answers[0] if self._wait(worker, answered) else None
                if isinstance(answer, Probed):
                    return answer.availability
                problem = answer
        finally:
            self._workers.discard(worker)
            worker.stop()
        problem = problem or Failed("hung", f"It did not answer within {TIMEOUT_S:.0f} s.")
        remedy = problem.remedy or f"Install the requirements again; see {worker.log_path}."
        return Availability(False, reason=problem.message, remedy=remedy)

    def _wait(self, worker: WorkerProcess, answered: threading.Event) -> bool:
        deadline = time.monotonic() + TIMEOUT_S
        while not answered.wait(0.1):
            if self._closed.is_set() or worker.has_said_all() or time.monotonic() > deadline:
                return answered.is_set()
        return True
