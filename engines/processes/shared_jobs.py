"""One job, several askers: callers that want the same thing at the same time share the work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from engines.processes.jobs import CancelledError, OnProgress
from engines.protocol import Progress
from engines.runtime.activity import Activity, GaveUpError

_POLL_S = 0.1


class _Shared:
    def __init__(self) -> None:
        self.waiters: dict[object, OnProgress] = {}
        self.cancelled = threading.Event()
        self.done = threading.Event()
        self.last: Progress | None = None
        self.result: Any = None
        self.error: BaseException | None = None


class SharedJobs:
    """Callers that want the same thing at the same time share one job; it is stopped when all of them gave up."""

    def __init__(self, activity: Activity) -> None:
        """`activity` is told of every job, under the kind it runs as."""
        self._activity = activity
        self._lock = threading.Lock()
        self._jobs: dict[str, _Shared] = {}

    def run(
        self,
        kind: str,
        what: str,
        key: str,
        work: Callable[[OnProgress, threading.Event], Any],
        on_progress: OnProgress,
        cancelled: threading.Event,
    ) -> Any:
        """Do `work`, or join the caller who is doing it. `kind`: `download` or `convert`; `what`: the
        model, in words that may stand beside a number for good: no path.

        Raises what the work raised, or CancelledError.
        """
        waiter = object()
        while True:
            with self._lock:
                job = self._jobs.get(key)
                if job is None:
                    job = self._jobs[key] = _Shared()
                    threading.Thread(
                        target=self._work, args=(kind, what, key, job, work), daemon=True
                    ).start()
                if not job.cancelled.is_set():
                    job.waiters[waiter] = on_progress
                    break
            job.done.wait()  # an abandoned job is still winding down; then start afresh
        if job.last is not None:
            on_progress(job.last)
        while not job.done.wait(_POLL_S):
            if cancelled.is_set():
                self._leave(job, waiter)
                raise CancelledError("Stopped.")
        if job.error is not None:
            raise job.error
        return job.result

    def _leave(self, job: _Shared, waiter: object) -> None:
        with self._lock:
            job.waiters.pop(waiter, None)
            last_one = not job.waiters
            if last_one:
                job.cancelled.set()
        if last_one:
            job.done.wait()

    def _work(
        self,
        kind: str,
        what: str,
        key: str,
        job: _Shared,
        work: Callable[[OnProgress, threading.Event], Any],
    ) -> None:
        def report(progress: Progress) -> None:
            job.last = progress
            with self._lock:
                listeners = list(job.waiters.values())
            for listener in listeners:
                listener(progress)

        def waiting(holder: str) -> None:
            report(Progress("queue", f"Waiting: the machine is taken for {holder}"))

        try:
            with self._activity.doing(kind, what, cancelled=job.cancelled.is_set, on_wait=waiting):
                job.result = work(report, job.cancelled)
        except GaveUpError:
            job.error = CancelledError("Stopped.")
        except BaseException as error:  # noqa: BLE001 — handed to every waiter
            job.error = error
        finally:
            with self._lock:
                self._jobs.pop(key, None)
            job.done.set()
