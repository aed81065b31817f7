"""Watches each run from its first to its last moment: what disturbed it, and where it ran."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engines.protocol import Loaded
from engines.telemetry import placement, power
from engines.telemetry.devices_seen import DevicesSeen
from engines.telemetry.disturbance import Conditions, Overlap, Watch
from engines.telemetry.placement import Placement

log = logging.getLogger(__name__)


class Begun(Overlap, Protocol):
    """What is needed of an entry in the register of what uses the machine."""

    @property
    def started_s(self) -> float: ...


class Register(Protocol):
    """What is needed of that register (engines/runtime/activity.py)."""

    @property
    def clock(self) -> Callable[[], float]: ...

    def overlapping(self, since_s: float, until_s: float, *, besides: Any) -> Sequence[Overlap]: ...

    def processes_elsewhere(self) -> Iterable[int]: ...


class Eyes(Protocol):
    """What looks at the devices (engines/telemetry/sampler.py)."""

    def run_begins(self, what: str) -> None: ...

    def run_ends(self, what: str) -> None: ...

    def seen(self, since_s: float, until_s: float, pid: int | None) -> DevicesSeen: ...


@dataclass(frozen=True)
class Observed:
    """What was seen of one run."""

    conditions: Conditions
    placement: Placement


class RunWatch:
    """One run under observation."""

    def __init__(
        self,
        activity: Register,
        doing: Begun,
        worker_pid: int | None,
        eyes: Eyes,
    ):
        self._activity, self._doing, self._pid, self._eyes = activity, doing, worker_pid, eyes
        self._watch: Watch | None = None
        try:
            eyes.run_begins(doing.what)
            self._watch = Watch(power.in_words, activity.processes_elsewhere)
        except Exception:
            log.warning("a run is not watched", exc_info=True)

    def ended(self, requested: str, loaded: Loaded) -> Observed | None:
        """The run is over; call before its `doing` is left. None where it could not be watched."""
        if self._watch is None:
            return None
        try:
            return self._seen(self._watch, requested, loaded)
        except Exception:
            log.warning("a run's end is not seen", exc_info=True)
            return None

    def _seen(self, watch: Watch, requested: str, loaded: Loaded) -> Observed:
        since, until = self._doing.started_s, self._activity.clock()
        self._eyes.run_ends(self._doing.what)
        seen = self._eyes.seen(since, until, self._pid)
        overlaps = self._activity.overlapping(since, until, besides=self._doing)
        conditions = watch.ended(overlaps, seen)
        cores = None if self._pid is None else watch.cpu_cores_of(self._pid)
        return Observed(conditions, placement.judge(requested, loaded, cores, seen))


class Observer:
    """Starts the watch over a run; one for the whole app."""

    def __init__(self, activity: Register, eyes: Eyes):
        self._activity, self._eyes = activity, eyes

    def watch(self, doing: Begun, worker_pid: int | None) -> RunWatch:
        """Call inside the run's `doing`, just before the worker is told to begin."""
        return RunWatch(self._activity, doing, worker_pid, self._eyes)
