"""EngineManager: which targets are loaded, who uses them, and what has to go when memory is short.

One worker process per target, loaded on first use. Unloading is ending the process, the only way that truly
returns memory. Leases count users; idle workers end after a keep-alive, or earlier, least recently used first,
when another target needs their room. A worker that crashes twice in a row stays down until the person retries.

Two kinds of locks, never mixed. The manager's `_lock` guards the slots' fields; nothing slow is done under it,
because the page asks for every target's state fifteen times a second. The others (`load_lock` and `run_lock` of a
slot, `_room` here) guard nothing: they make loads, generations and evictions take turns, and last as long as those.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from engines import ENGINES
from engines.engine import EngineError, UnavailableError
from engines.hardware import available_memory_bytes
from engines.protocol import (
    Availability,
    EngineSpec,
    Event,
    Failed,
    Finished,
    Load,
    Loaded,
    PreparedModel,
    Progress,
    Target,
)
from engines.runtime.activity import LOAD, Activity, GaveUpError
from engines.runtime.lease import Lease, Outcome, Slot
from engines.runtime.prober import InterpreterSource, Prober
from engines.runtime.worker_process import GRACE_S, WorkerProcess
from engines.telemetry import device_sources
from engines.telemetry.observer import Observer
from engines.telemetry.sampler import Sampler

KEEP_ALIVE_S = 300.0
CRASHES_UNTIL_BLOCKED = 2
MEMORY_SHARE = 0.9
"""Share of the available memory that loading a target may take."""
_LIBRARY_BYTES = 400_000_000
"""What an inference library takes beside the weights; the start of an estimate, replaced by what is measured."""

OnProgress = Callable[[Progress], None]


class EngineFailure(Exception):  # noqa: N818 - the field says failure
    """A target could not be made ready; `failed` says why, for people and for the log."""

    def __init__(self, failed: Failed):
        super().__init__(failed.message)
        self.failed = failed


class ModelSource(Protocol):
    """What the manager needs of the model library."""

    def is_ready(self, target: Target, spec: EngineSpec) -> bool: ...

    def prepare(
        self, target: Target, spec: EngineSpec, on_progress: OnProgress, cancelled: threading.Event
    ) -> PreparedModel: ...


@dataclass(frozen=True)
class TargetState:
    """What a panel shows about its target."""

    target: Target
    phase: str
    """`absent`, `preparing` (download, conversion), `loading`, `ready`, `busy`, `failed`."""
    progress: Progress | None = None
    rss_bytes: int | None = None
    peak_rss_bytes: int | None = None
    loaded: Loaded | None = None
    failure: Failed | None = None
    log_path: Path | None = None
    users: int = 0


class EngineManager:
    """Owns every worker process of the app. Thread-safe."""

    def __init__(
        self,
        data_dir: Path,
        library: ModelSource,
        environments: InterpreterSource,
        *,
        specs: Sequence[EngineSpec] = ENGINES,
        remembered_peak: Callable[[Target], int | None] = lambda _target: None,
        available_memory: Callable[[], int] = available_memory_bytes,
        clock: Callable[[], float] = time.monotonic,
        start_worker: Callable[..., WorkerProcess] = WorkerProcess,
        keep_alive_s: float = KEEP_ALIVE_S,
        memory_share: float = MEMORY_SHARE,
        activity: Activity | None = None,
        settings: Mapping[str, Callable[[], Mapping[str, Any]]] | None = None,
        tuned: Callable[[Target], Mapping[str, Any]] = lambda _target: {},
    ):
        """`remembered_peak`: the last measured peak RSS of a target in bytes, from the log; `activity`: the
        register of what uses the machine, shared with the model library; `settings`: the owner's settings that
        workers can be told, by the name in `EngineSpec.settings`; `tuned`: what a person has had a target tuned to
        (values of its engine's `tunables`), empty for the engine's defaults."""
        self.activity = activity or Activity()
        self.sampler = Sampler(lambda: bool(self.activity.now()), self._workers, device_sources.sources)
        self.observer = Observer(self.activity, self.sampler)
        self._clock = clock
        self.specs = {spec.name: spec for spec in specs}
        self.keep_alive_s = keep_alive_s
        self._data_dir, self._library, self._environments = data_dir, library, environments
        self._remembered_peak, self._available_memory = remembered_peak, available_memory
        self._start_worker, self._memory_share = start_worker, memory_share
        self._slots: dict[Target, Slot] = {}
        self._lock = threading.RLock()
        self._room = threading.Lock()
        self._settings = settings or {}
        self.tuned = tuned
        logs = data_dir / "logs"
        self._prober = Prober(self.specs, environments, start_worker, logs, self.activity, self._settings_of)
        self._closed = threading.Event()
        threading.Thread(target=self._end_idle_workers, name="keep-alive", daemon=True).start()

    # --- what can run here -----------------------------------------------------------------------------

    @property
    def known_availability(self) -> Mapping[str, Availability] | None:
        """What the last probe found; None while there was none yet. Never waits."""
        return self._prober.known

    def availability(self, *, refresh: bool = False) -> dict[str, Availability]:
        """Engine name -> which devices it has here. The first call takes seconds: every library is asked."""
        return self._prober.availability(refresh=refresh)

    def settings_changed(self, name: str) -> None:
        """The settings of that name are new: ask the engines that take them again, and end their idle workers."""
        for spec in self.specs.values():
            if spec.settings == name:
                for state in self.states():
                    if state.target.engine == spec.name:
                        self.unload(state.target)
                        self.retry(state.target)
                self._prober.ask_again(spec.name)

    def _settings_of(self, spec: EngineSpec) -> Mapping[str, Any]:
        read = self._settings.get(spec.settings) if spec.settings else None
        return read() if read else {}

    # --- what is loaded --------------------------------------------------------------------------------

    def state(self, target: Target) -> TargetState:
        """What is known about a target now; cheap enough to ask several times a second."""
        with self._lock:
            slot = self._slots.get(target)
            if slot is None:
                return TargetState(target, "absent")
            state = TargetState(
                target,
                slot.phase,
                slot.progress,
                None,
                slot.peak_rss_bytes,
                slot.loaded,
                slot.failure,
                slot.log_path,
                slot.users,
            )
            worker = slot.worker
        return replace(state, rss_bytes=worker.rss_bytes()) if worker else state

    def states(self) -> tuple[TargetState, ...]:
        """Every target that was ever asked for in this process."""
        with self._lock:
            targets = tuple(self._slots)
        return tuple(self.state(target) for target in targets)

    @contextlib.contextmanager
    def lease(
        self,
        target: Target,
        on_progress: OnProgress = lambda _progress: None,
        cancelled: threading.Event | None = None,
        tuning: Mapping[str, Any] | None = None,
    ) -> Iterator[Lease]:
        """Make the target ready (download, convert, load, warm up as needed) and hold it while in use.

        `tuning`: values of the engine's `tunables`; None: what this target was tuned to, else the defaults. A worker
        that was loaded with others is loaded anew, unless somebody uses it.

        Raises EngineFailure when that is impossible or `cancelled` was set meanwhile.
        """
        cancelled = cancelled or threading.Event()
        slot = self._slot(target)
        with self._lock:
            slot.users += 1
        try:
            model, loaded = self._ensure_loaded(slot, on_progress, cancelled, tuning)
            yield Lease(slot, model, loaded, self._clock, self._note_outcome, self.activity, self.observer)
        finally:
            with self._lock:
                slot.users -= 1
                slot.last_used = self._clock()

    def is_ready(self, target: Target) -> bool:
        """Whether the model is on disk in the target's format: nothing to download, nothing to convert."""
        try:
            return self._library.is_ready(target, self._spec(target))
        except EngineError:
            return False

    def prepare(
        self,
        target: Target,
        on_progress: OnProgress = lambda _progress: None,
        cancelled: threading.Event | None = None,
    ) -> PreparedModel:
        """Make the model files ready (download, convert) without loading them; raises EngineFailure."""
        try:
            return self._prepare(target, on_progress, cancelled or threading.Event())
        except EngineFailure:
            raise
        except Exception as error:
            raise EngineFailure(_as_failed(error)) from error

    def _prepare(self, target: Target, report: OnProgress, cancelled: threading.Event) -> PreparedModel:
        spec = self._spec(target)
        if not self._library.is_ready(target, spec):
            # Before minutes go into downloading or converting for a device that is not here.
            asking = Progress("start", "Asking the library which devices are here")
            self._prober.require_device(spec, target.device, lambda: report(asking))
        return self._library.prepare(target, spec, report, cancelled)

    def forget_compiled(self, target: Target) -> None:
        """Throw away what the device compiled for a target that is not loaded: for measuring a first start."""
        with self._lock:
            slot = self._slots.get(target)
            if slot is not None and slot.worker is not None:
                return
        shutil.rmtree(self._compiled_folder(target), ignore_errors=True)

    def keeps_compiled(self, target: Target) -> bool:
        """Whether loading has left something compiled on disk that makes the next start shorter."""
        return any(path.is_file() for path in self._compiled_folder(target).rglob("*"))

    def _compiled_folder(self, target: Target) -> Path:
        return self._data_dir / "cache" / "compiled" / _file_name(target)

    def unload(self, target: Target) -> bool:
        """End the worker of a target; False when it is in use."""
        with self._lock:
            slot = self._slots.get(target)
            if slot is not None and slot.users:
                return False
            worker = self._detach(slot) if slot is not None else None
        _stop_all([worker])
        return True

    def retry(self, target: Target) -> None:
        """Forget that a target failed; the next lease tries again."""
        with self._lock:
            slot = self._slot(target)
            slot.crashes = 0
            if slot.phase == "failed":
                slot.phase, slot.failure = "absent", None

    def shutdown(self) -> None:
        """End every worker. The manager is of no use afterwards."""
        self._closed.set()
        with self._lock:
            workers = [self._detach(slot) for slot in self._slots.values() if slot.worker]
        _stop_all(workers, grace_s=1.0)
        self._prober.shutdown()
        self.sampler.close()
        self.activity.close()

    def _workers(self) -> list[tuple[int, str]]:
        """Process and name of every loaded target."""
        with self._lock:
            alive = [(slot.worker, slot.target) for slot in self._slots.values() if slot.worker]
        return [(worker.pid, str(target)) for worker, target in alive if worker.pid is not None]

    def _note_outcome(self, slot: Slot, worker: WorkerProcess, outcome: Outcome) -> None:
        """Book a run's end: peaks, crashes, and what the target can do next."""
        with self._lock:
            if isinstance(outcome, Finished):
                peak = outcome.metrics.peak_rss_bytes
                slot.peak_rss_bytes = max(peak or 0, slot.peak_rss_bytes or 0) or None
                slot.crashes = 0
            if slot.worker is not worker:
                return  # it was ended, or its death has been booked, meanwhile
            if isinstance(outcome, Failed) and outcome.kind in ("crashed", "hung"):
                self._book_crash(slot, outcome)
            else:
                slot.phase = "ready"

    # --- loading ---------------------------------------------------------------------------------------

    def _slot(self, target: Target) -> Slot:
        with self._lock:
            if target not in self._slots:
                self._slots[target] = Slot(target, self._log_path(_file_name(target)), self._lock)
            return self._slots[target]

    def _log_path(self, name: str) -> Path:
        return self._data_dir / "logs" / f"{name}.log"

    def _ensure_loaded(
        self,
        slot: Slot,
        on_progress: OnProgress,
        cancelled: threading.Event,
        tuning: Mapping[str, Any] | None,
    ) -> tuple[PreparedModel, Loaded]:
        while not slot.load_lock.acquire(timeout=0.1):  # somebody else is loading it: share what they see
            if cancelled.is_set():
                raise EngineFailure(_cancelled())
            progress = slot.progress
            if progress is not None:
                on_progress(progress)
        try:
            wanted = dict(self.tuned(slot.target) if tuning is None else tuning)
            self._end_if_tuned_otherwise(slot, wanted, insist=tuning is not None)
            with self._lock:
                worker, loaded, model = slot.worker, slot.loaded, slot.model
                blocked = slot.failure if slot.crashes >= CRASHES_UNTIL_BLOCKED else None
            if worker is not None and worker.alive and loaded is not None and model is not None:
                return model, loaded
            if blocked is not None:
                raise EngineFailure(blocked)
            with self._lock:
                slot.tuning = wanted
            return self._load(slot, on_progress, cancelled)
        finally:
            slot.load_lock.release()

    def _end_if_tuned_otherwise(self, slot: Slot, wanted: Mapping[str, Any], *, insist: bool) -> None:
        """End a worker that was loaded with another tuning; one in use stays, and is refused if one must `insist`."""
        with self._lock:
            if slot.worker is None or slot.tuning == wanted:
                return
            if slot.users > 1:
                if not insist:
                    return
                message = f"{slot.target.spelling} is in use with other settings."
                raise EngineFailure(Failed("error", message, "Try again when its reply is finished."))
            worker = self._detach(slot)
        _stop_all([worker])

    def _load(
        self, slot: Slot, on_progress: OnProgress, cancelled: threading.Event
    ) -> tuple[PreparedModel, Loaded]:
        def report(progress: Progress) -> None:
            with self._lock:
                slot.progress = progress
            on_progress(progress)

        with self._lock:
            slot.phase, slot.failure = "preparing", None
        try:
            return self._load_with_room(slot, report, cancelled)
        except EngineFailure as failure:
            self._note_load_failure(slot, failure.failed)
            raise
        except (
            Exception
        ) as error:  # whatever it was, the target must not stand there as being loaded for ever
            failed = _as_failed(error)
            self._note_load_failure(slot, failed)
            raise EngineFailure(failed) from error
        finally:
            with self._lock:
                slot.reserved_bytes, slot.progress = 0, None

    def _load_with_room(
        self, slot: Slot, report: OnProgress, cancelled: threading.Event
    ) -> tuple[PreparedModel, Loaded]:
        spec = self._spec(slot.target)
        interpreter = self._environments.interpreter(spec.environment)
        model = self._prepare(slot.target, report, cancelled)
        if cancelled.is_set():
            raise EngineFailure(_cancelled())
        with self._lock:
            slot.model, slot.phase = model, "loading"
        self._make_room(slot, self._need_bytes(slot, model), cancelled)
        with self._loading(slot.target, report, cancelled):
            try:
                return model, self._load_worker(slot, spec, model, interpreter, report, cancelled)
            except EngineFailure as failure:
                if failure.failed.kind != "memory" or not self._evict_all_idle():
                    raise
                report(Progress("load", "Out of memory: other models were unloaded, trying once more"))
                return model, self._load_worker(slot, spec, model, interpreter, report, cancelled)

    @contextlib.contextmanager
    def _loading(self, target: Target, report: OnProgress, cancelled: threading.Event) -> Iterator[None]:
        """Registered as a load; waits while a measurement has the machine."""

        def waiting(holder: str) -> None:
            report(Progress("queue", f"Waiting: the machine is taken for {holder}"))

        try:
            with self.activity.doing(LOAD, target.label, cancelled=cancelled.is_set, on_wait=waiting):
                yield
        except GaveUpError:
            raise EngineFailure(_cancelled()) from None

    def _spec(self, target: Target) -> EngineSpec:
        spec = self.specs.get(target.engine)
        if spec is None:
            known = ", ".join(self.specs)
            raise UnavailableError(f"There is no engine “{target.engine}”.", f"Choose one of: {known}.")
        if not spec.offers(target.precision):
            known = ", ".join((*spec.precisions, *(variant.spelling for variant in spec.variants)))
            raise UnavailableError(
                f"{spec.title} has no precision “{target.precision}”.", f"Choose one of: {known}."
            )
        return spec

    def _load_worker(
        self,
        slot: Slot,
        spec: EngineSpec,
        model: PreparedModel,
        interpreter: Path,
        report: OnProgress,
        cancelled: threading.Event,
    ) -> Loaded:
        report(Progress("start", "Starting the worker"))
        answers: list[Loaded | Failed] = []
        answered = threading.Event()

        def listen(event: Event) -> None:
            if isinstance(event, Progress):
                report(event)
            elif isinstance(event, (Loaded, Failed)):
                answers.append(event)
                answered.set()

        cache_dir = self._compiled_folder(slot.target)
        worker = self._start_worker(interpreter, slot.log_path, working_dir=cache_dir)
        with self._lock:
            slot.worker, slot.on_event = worker, listen
        problem = worker.start(lambda event: self._route(slot, worker, event))
        if problem is None:
            settings = self._settings_of(spec)
            worker.send(
                Load(spec.module, slot.target, model, str(cache_dir), settings=settings, tuning=slot.tuning)
            )
            problem = _wait_for_load(worker, answered, cancelled)
        answer = problem or answers[0]
        if isinstance(answer, Failed):
            with self._lock:
                slot.worker = slot.on_event = None
            worker.stop(grace_s=0.5)
            raise EngineFailure(answer)
        with self._lock:
            slot.on_event = None
            if slot.worker is worker:  # it may have been ended meanwhile
                slot.loaded, slot.peak_rss_bytes, slot.phase = answer, answer.peak_rss_bytes, "ready"
        return answer

    def _route(self, slot: Slot, worker: WorkerProcess, event: Event) -> None:
        """Hand an event to whoever waits for it; a crash in idleness has nobody waiting."""
        with self._lock:
            if slot.worker is not worker:
                return
            listener = slot.on_event
            if listener is None and isinstance(event, Failed) and event.kind == "crashed":
                self._book_crash(slot, event)
        if listener is not None:
            listener(event)

    def _book_crash(self, slot: Slot, failed: Failed) -> None:
        slot.crashes += 1
        slot.worker = slot.loaded = None
        slot.phase = "failed"
        slot.failure = failed
        if slot.crashes >= CRASHES_UNTIL_BLOCKED:
            slot.failure = replace(
                failed,
                message=f"{failed.message} That was {slot.crashes} times in a row.",
                remedy="It is not started again by itself: read the log, then press Retry.",
            )

    def _note_load_failure(self, slot: Slot, failed: Failed) -> None:
        with self._lock:
            if failed.kind == "crashed":
                self._book_crash(slot, failed)
            elif failed.kind == "cancelled":
                slot.phase = "absent"
            else:
                slot.phase, slot.failure = "failed", failed

    # --- memory ----------------------------------------------------------------------------------------

    def _need_bytes(self, slot: Slot, model: PreparedModel) -> int:
        """Last measured peak of the target, else an estimate from its weight files."""
        remembered = slot.peak_rss_bytes or self._remembered_peak(slot.target)
        if remembered:
            return remembered
        if model.estimated_peak_bytes:
            return model.estimated_peak_bytes
        return _LIBRARY_BYTES + (model.weight_bytes or 0) * 5 // 4

    def _make_room(self, slot: Slot, need: int, cancelled: threading.Event) -> None:
        """Evict idle workers, least recently used first, until `need` bytes fit; raises EngineFailure if never.

        Those who make room take turns: what one frees, another must not count on.
        """
        while not self._room.acquire(timeout=0.1):
            if cancelled.is_set():
                raise EngineFailure(_cancelled())
        try:
            victim = self._reserve(slot, need, refuse=True)
            while victim is not None:
                victim.stop()
                victim = self._reserve(slot, need, refuse=False)
        finally:
            self._room.release()

    def _reserve(self, slot: Slot, need: int, *, refuse: bool) -> WorkerProcess | None:
        """Reserve `need` bytes, or detach the worker that has to end first.

        With `refuse`: raises EngineFailure when ending all that are idle would not do either.
        """
        resident = self._resident_bytes()
        available = int(self._available_memory() * self._memory_share)
        with self._lock:
            others = [other for other in self._slots.values() if other is not slot]
            # What may be taken now, less what targets being loaded have still to take.
            budget = available - sum(
                max(0, other.reserved_bytes - resident.get(other.target, 0)) for other in others
            )
            idle = sorted((other for other in others if other.idle), key=lambda other: other.last_used)
            if refuse and need > budget + sum(resident.get(other.target, 0) for other in idle):
                raise EngineFailure(_too_large(slot.target, need, max(budget, 0)))
            if need <= budget or not idle:
                slot.reserved_bytes = need
                return None
            return self._detach(idle[0])

    def _resident_bytes(self) -> dict[Target, int]:
        """What each loaded target takes now; asks the system, so not to be called with the lock."""
        with self._lock:
            workers = [(slot.target, slot.worker) for slot in self._slots.values() if slot.worker is not None]
        return {target: worker.rss_bytes() or 0 for target, worker in workers}

    def _evict_all_idle(self) -> bool:
        with self._lock:
            workers = [self._detach(slot) for slot in self._slots.values() if slot.idle]
        _stop_all(workers)
        return bool(workers)

    def _detach(self, slot: Slot) -> WorkerProcess | None:
        """Take the worker away from its target; the caller holds the lock, and ends the worker without it."""
        worker, slot.worker, slot.loaded = slot.worker, None, None
        if worker is not None:
            slot.phase = "absent"
        return worker

    def _end_idle_workers(self) -> None:
        while not self._closed.wait(min(5.0, max(0.05, self.keep_alive_s / 4))):
            with self._lock:
                oldest = self._clock() - self.keep_alive_s
                workers = [
                    self._detach(slot)
                    for slot in self._slots.values()
                    if slot.idle and slot.phase == "ready" and slot.last_used < oldest
                ]
            _stop_all(workers)


def _wait_for_load(
    worker: WorkerProcess, answered: threading.Event, cancelled: threading.Event
) -> Failed | None:
    """Wait for the answer to `Load`, no longer than there is somebody to give one; None: there is one."""
    while not answered.wait(0.1):
        if cancelled.is_set():
            return _cancelled()
        if worker.has_said_all() and not answered.is_set():
            return worker.crash or Failed(
                "crashed",
                "The worker process was ended while it loaded the model.",
                "Send the prompt again to start it afresh.",
                details=worker.log_tail(),
            )
    return None


def _stop_all(workers: Sequence[WorkerProcess | None], grace_s: float = GRACE_S) -> None:
    """End these processes, all at once; returns when they are gone."""
    ending = [worker for worker in workers if worker is not None]
    with ThreadPoolExecutor(max_workers=max(1, len(ending))) as pool:
        list(pool.map(lambda worker: worker.stop(grace_s), ending))


def _as_failed(error: Exception) -> Failed:
    if isinstance(error, EngineError):
        return Failed(error.kind, str(error), error.remedy)
    return Failed(
        "error",
        f"The model could not be made ready: {type(error).__name__}: {error}",
        details="".join(traceback.format_exception(error)),
    )


def _too_large(target: Target, need: int, budget: int) -> Failed:
    return Failed(
        "memory",
        f"{target.spelling} needs about {_gigabytes(need)} of memory; {_gigabytes(budget)} can be had now.",
        "Unload other models, choose int4 or a smaller model, or close other programs.",
    )


def _cancelled() -> Failed:
    return Failed("cancelled", "Stopped before the model was ready.")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _file_name(target: Target) -> str:
    """A name for files of this target that any file system takes; unlike targets never share one."""
    text = f"{target.engine}-{target.device}-{target.precision}-{target.model}"
    digest = hashlib.sha256(str(target).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', text)[:80]}-{digest}"
