"""One model for every backend of this PC: one plan with the sums, one piece of work that does it.

What several engines share (a download, a converted folder) is counted and done once. Each backend is got ready in a
thread of its own, so downloads run beside conversions; of conversions one runs at a time, because each may take all
the memory there is. What is done stays done: stopped or interrupted, the next try carries on with the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from engines.engine import EngineError, ModelError, OutOfMemoryError
from engines.models.plan import DISK_MARGIN_BYTES, Plan, Step, disk_refusal
from engines.processes.jobs import CancelledError, OnProgress
from engines.protocol import Availability, DeviceStatus, EngineSpec, PreparedModel, Progress, Target

CHOOSES_ITSELF = "AUTO"
"""A device that stands for one of the others."""


@dataclass(frozen=True)
class Backend:
    """An engine on a device of this PC, with the model it is to run."""

    target: Target
    spec: EngineSpec


def backends(
    model: str, specs: Iterable[EngineSpec], availability: Mapping[str, Availability]
) -> tuple[Backend, ...]:
    """Every engine that can run here, on each device it has, in its best default precision for it."""
    return tuple(
        Backend(Target(spec.name, status.device, _precisions(spec, status)[0], model), spec)
        for spec in specs
        if not spec.model_elsewhere and (found := availability.get(spec.name)) is not None and found.ok
        for status in found.device_status
        if status.ok and status.device != CHOOSES_ITSELF and _precisions(spec, status)
    )


def _precisions(spec: EngineSpec, status: DeviceStatus) -> tuple[str, ...]:
    return status.precisions or spec.precisions


@dataclass(frozen=True)
class JointPlan:
    """What one model costs for all backends together."""

    model: str
    plans: tuple[Plan, ...]
    """One for each backend, the refused ones included."""

    @property
    def possible(self) -> tuple[Plan, ...]:
        """Those that nothing speaks against."""
        return tuple(plan for plan in self.plans if plan.refusal is None)

    @property
    def ready(self) -> bool:
        return bool(self.possible) and all(plan.ready for plan in self.possible)

    @property
    def download_bytes(self) -> int | None:
        """None: something's size is not known without the network."""
        if any(step.download_bytes is None for step in self._steps()):
            return None
        return sum(self.files.values())

    @property
    def files(self) -> dict[str, int]:
        """Every file that is still to come, once, with its missing bytes."""
        return {name: size for step in self._steps() for name, size in step.files.items()}

    @property
    def disk_bytes(self) -> int | None:
        download = self.download_bytes
        return (
            None if download is None else download + sum(step.disk_bytes or 0 for step in self._conversions())
        )

    @property
    def peak_bytes(self) -> int:
        return max((step.peak_bytes for step in self._steps()), default=0)

    @property
    def seconds(self) -> float | None:
        """At most: downloads and conversions overlap where they can."""
        plain = [step for step in self._steps() if step.files]
        unknown = [step for step in plain if step.seconds is None]
        if self.download_bytes is None or unknown:
            return None
        rate = sum(step.download_bytes or 0 for step in plain) / max(
            1e-9, sum(step.seconds or 0 for step in plain)
        )
        download_s = self.download_bytes / rate if rate > 0 else 0.0
        return download_s + sum(step.seconds or 0 for step in self._conversions())

    @property
    def disk_free_bytes(self) -> int:
        return min((plan.disk_free_bytes for plan in self.plans), default=0)

    @property
    def available_bytes(self) -> int:
        return min((plan.available_bytes for plan in self.plans), default=0)

    @property
    def refusal(self) -> str | None:
        """Why all of it together should not be tried although each part could."""
        if not self.possible:
            reasons = list(dict.fromkeys(plan.refusal for plan in self.plans if plan.refusal))
            return reasons[0] if len(reasons) == 1 else "No backend here can have it."
        needed = self.disk_bytes
        if needed and needed + DISK_MARGIN_BYTES > self.disk_free_bytes:
            return disk_refusal(needed, self.disk_free_bytes, "the data directory")[0]
        return None

    def _steps(self) -> list[Step]:
        return [step for plan in self.possible if not plan.ready for step in plan.steps]

    def _conversions(self) -> list[Step]:
        return list({step.makes: step for step in self._steps() if step.makes}.values())


class Library(Protocol):
    """What is needed of the model library."""

    def as_stated(self, target: Target, spec: EngineSpec) -> Target: ...

    def plan(
        self,
        target: Target,
        spec: EngineSpec,
        *,
        trust_remote_code: bool = False,
        cancelled: threading.Event | None = None,
    ) -> Plan: ...

    def prepare(
        self,
        target: Target,
        spec: EngineSpec,
        on_progress: OnProgress,
        cancelled: threading.Event,
        *,
        trust_remote_code: bool = False,
        override: bool = False,
    ) -> PreparedModel: ...


def as_stated(library: Library, wanted: Iterable[Backend]) -> tuple[Backend, ...]:
    """Where a model is a ready folder, its own precision instead of each engine's default."""
    return tuple(
        replace(backend, target=library.as_stated(backend.target, backend.spec)) for backend in wanted
    )


def plan_together(
    library: Library,
    wanted: Sequence[Backend],
    *,
    trust_remote_code: bool = False,
    cancelled: threading.Event | None = None,
) -> JointPlan:
    """Plan every backend; asks the Hub about each repository once."""
    plans = tuple(
        library.plan(b.target, b.spec, trust_remote_code=trust_remote_code, cancelled=cancelled)
        for b in wanted
    )
    return JointPlan(wanted[0].target.model if wanted else "", plans)


# --- doing it ----------------------------------------------------------------------------------------------

WAITING, WORKING, READY, LEFT_OUT, FAILED, STOPPED = (
    *("waiting", "working", "ready", "left out", "failed", "stopped"),
)


@dataclass(frozen=True)
class Part:
    """How far one backend is."""

    target: Target
    state: str = WAITING
    """`waiting`, `working`, `ready`, `left out` (it does not fit, or cannot be had), `failed` or `stopped`."""
    progress: Progress | None = None
    prepared: PreparedModel | None = None
    problem: str | None = None
    remedy: str | None = None


class GetTogether:
    """Gets backends ready side by side; `parts` may be read from any thread."""

    def __init__(self, library: Library, wanted: Sequence[Backend], on_change: Callable[[Part], None]):
        """`on_change` is called for every step of every backend, from the threads that do the work."""
        self._library, self._wanted, self._on_change = library, tuple(wanted), on_change
        self._lock = threading.Lock()
        self._parts = {backend.target: Part(backend.target) for backend in self._wanted}

    @property
    def parts(self) -> tuple[Part, ...]:
        with self._lock:
            return tuple(self._parts.values())

    def run(
        self, cancelled: threading.Event, *, trust_remote_code: bool = False, override: bool = False
    ) -> tuple[Part, ...]:
        """Do it all; what cannot be had is left out or failed, and stops nobody else."""
        if not self._wanted:
            return ()
        options = {"trust_remote_code": trust_remote_code, "override": override}
        with ThreadPoolExecutor(max_workers=len(self._wanted)) as pool:
            list(pool.map(lambda backend: self._get(backend, cancelled, options), self._wanted))
        return self.parts

    def _get(self, backend: Backend, cancelled: threading.Event, options: Mapping[str, bool]) -> None:
        target, spec = backend.target, backend.spec
        try:
            if not options["override"]:
                plan = self._library.plan(
                    target, spec, trust_remote_code=options["trust_remote_code"], cancelled=cancelled
                )
                if plan.refusal is not None:
                    self._change(target, state=LEFT_OUT, problem=plan.refusal, remedy=plan.remedy)
                    return
            self._change(target, state=WORKING)
            prepared = self._prepare(backend, cancelled, options)
        except CancelledError as error:
            self._change(target, state=STOPPED, problem=str(error))
        except OutOfMemoryError as error:
            self._change(target, state=LEFT_OUT, problem=str(error), remedy=error.remedy)
        except EngineError as error:
            self._change(target, state=FAILED, problem=str(error), remedy=error.remedy)
        except OSError as error:
            self._change(target, state=FAILED, problem=f"The disk refused: {error}.")
        else:
            self._change(target, state=READY, progress=None, prepared=prepared)

    def _prepare(
        self, backend: Backend, cancelled: threading.Event, options: Mapping[str, bool]
    ) -> PreparedModel:
        wanted, spec = backend.target, backend.spec

        def prepare(target: Target) -> PreparedModel:
            return self._library.prepare(
                target, spec, lambda progress: self._change(wanted, progress=progress), cancelled, **options
            )

        try:
            return prepare(wanted)
        except ModelError:
            own = self._library.as_stated(wanted, spec)  # a ready folder says what it is once it is here
            if own == wanted:
                raise
            self._change(wanted, target=own)
            return prepare(own)

    def _change(self, wanted: Target, **changes: object) -> None:
        with self._lock:
            part = self._parts[wanted] = replace(self._parts[wanted], **changes)  # type: ignore[arg-type]
        self._on_change(part)
