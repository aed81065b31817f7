"""The sampler: all readings about twice a second while something runs, half as often while somebody only looks; the
last minutes are kept.

One thread for the whole app, asleep otherwise. A run takes a sample of its own at its start and at its end, so that
what was busy in between is known to the moment, however short it was.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from engines.telemetry.devices_seen import DeviceReading, DeviceSource, DevicesSeen
from engines.telemetry.presence import accelerators
from engines.telemetry.processes import ours
from engines.telemetry.readings import Reading, SystemReadings

log = logging.getLogger(__name__)

PERIOD_S = 0.5
KEPT_S = 180.0
LOOKED_AT_S = 7.0
"""How long a look at the readings keeps them coming: an idle page asks every five seconds."""
_LEAST_S = 0.05
"""Closer than that to the last one a sample says nothing."""

Workers = Callable[[], Iterable[tuple[int, str]]]
"""Process id and name of every worker that is loaded."""


@dataclass(frozen=True)
class Sample:
    """All readings of one moment; rates since the sample before."""

    at_s: float
    """`time.monotonic()`."""
    since_s: float
    """When the sample before was taken."""
    readings: Mapping[str, Reading]
    devices: tuple[DeviceReading, ...] = ()


@dataclass(frozen=True)
class Mark:
    """A run's start or end."""

    at_s: float
    what: str
    starts: bool


class Sampler:
    """Samples, marks, and what they say about a span of time. Thread-safe."""

    def __init__(
        self,
        busy: Callable[[], bool],
        workers: Workers,
        find_sources: Callable[[], Sequence[DeviceSource]] | None = None,
        period_s: float = PERIOD_S,
    ):
        """`busy`: whether anything of ours runs; `find_sources`: asked once, when the first sample is taken."""
        self._busy, self._workers = busy, workers
        self._find_sources, self._period_s = find_sources, period_s
        self._sources: Sequence[DeviceSource] | None = None
        self._system = SystemReadings()
        self._samples: deque[Sample] = deque(maxlen=round(KEPT_S / period_s) * 2)
        self._marks: deque[Mark] = deque(maxlen=200)
        self._names: dict[int, str] = {}
        self._taking = threading.Lock()
        self._wake = threading.Condition()
        self._looked_at = float("-inf")
        self._closed = False
        self._thread: threading.Thread | None = None
        self.version = 0
        """Grows with every sample."""

    # --- taking ----------------------------------------------------------------------------------------

    def look(self) -> None:
        """Somebody looks: keep the readings coming for a while."""
        self._looked_at = time.monotonic()
        self._start()

    def run_begins(self, what: str) -> None:
        self._marks.append(Mark(time.monotonic(), what, starts=True))
        self.sample()
        self._start()
        with self._wake:
            self._wake.notify_all()  # it may be waiting as long as when somebody only looks

    def run_ends(self, what: str) -> None:
        self.sample()
        self._marks.append(Mark(time.monotonic(), what, starts=False))

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def _start(self) -> None:
        with self._wake:
            if self._closed or self._thread is not None:
                return
            self._thread = threading.Thread(target=self._keep_sampling, name="sampler", daemon=True)
            self._thread.start()

    def _keep_sampling(self) -> None:
        while True:
            self.sample()
            with self._wake:
                busy = self._busy()
                looked_at = time.monotonic() - self._looked_at < LOOKED_AT_S
                if self._closed or not (busy or looked_at):
                    self._thread = None
                    return
                self._wake.wait(self._period_s if busy else 2 * self._period_s)

    def sample(self) -> None:
        """Take one now, unless one was just taken."""
        with self._taking:
            now = time.monotonic()
            last = self._samples[-1].at_s if self._samples else now
            if self._samples and now - last < _LEAST_S:
                return
            try:
                self._samples.append(self._take(now, last))
                self.version += 1
            except Exception:
                log.warning("this machine's readings failed", exc_info=True)

    def _take(self, now: float, last: float) -> Sample:
        if self._sources is None:
            self._sources = list(self._find_sources()) if self._find_sources else []
        self._names = dict(self._workers())
        readings = {reading.name: reading for reading in self._system.take(self._names, ours.pids())}
        devices: list[DeviceReading] = []
        for source in tuple(self._sources):
            try:
                devices += source.read(self._names)
            except Exception:
                log.warning("%s is not asked any more", type(source).__name__, exc_info=True)
                self._sources = [other for other in self._sources if other is not source]
        return Sample(now, last, readings, tuple(devices))

    # --- asking ----------------------------------------------------------------------------------------

    def samples(self) -> tuple[Sample, ...]:
        """The last minutes, oldest first."""
        with self._taking:
            newest = self._samples[-1].at_s if self._samples else 0.0
            return tuple(sample for sample in self._samples if newest - sample.at_s <= KEPT_S)

    def marks(self) -> tuple[Mark, ...]:
        return tuple(self._marks)

    def worker_names(self) -> Mapping[int, str]:
        """Process id -> target of the workers in the last sample."""
        return dict(self._names)

    def seen(self, since_s: float, until_s: float, pid: int | None) -> DevicesSeen:
        """What accelerators did between two moments, for the worker `pid` where that can be told."""
        within = [s for s in self.samples() if s.since_s < until_s + _LEAST_S and s.at_s > since_s + _LEAST_S]
        return weigh(within, pid, ours.pids(), accelerators())


def weigh(
    samples: Sequence[Sample], pid: int | None, own: Iterable[int], present: frozenset[str] | None
) -> DevicesSeen:
    """The mean over samples, each weighed by the time it stands for; of several devices of a kind, the busiest."""
    mine = set(own)
    shares: dict[tuple[str, str], list[tuple[float, float]]] = {}
    by_process: dict[tuple[str, str], bool] = {}
    foreign: dict[str, dict[int, float]] = {}
    watched_s: dict[str, float] = {}
    sources: dict[tuple[str, str], str] = {}
    for sample in samples:
        weight = max(sample.at_s - sample.since_s, 1e-6)
        for device in sample.devices:
            key = (device.kind, device.name)
            share = device.by_pid.get(pid or 0, 0.0) if device.sees_processes else device.busy
            if share is not None and device.kind != "power":
                shares.setdefault(key, []).append((share, weight))
                by_process[key], sources[key] = device.sees_processes, device.source
            if device.sees_everybody and device.kind == "GPU":
                watched_s[device.name] = watched_s.get(device.name, 0.0) + weight
                used = foreign.setdefault(device.name, {})
                for other, busy_share in device.by_pid.items():
                    if other not in mine:
                        used[other] = used.get(other, 0.0) + busy_share * weight
    busy: dict[str, float] = {}
    said: dict[str, str] = {}
    told_apart: set[str] = set()
    for (kind, name), values in shares.items():
        mean = _mean(values)
        if kind not in busy or mean > busy[kind]:
            busy[kind], said[kind] = mean, sources[(kind, name)]
            told_apart = told_apart | {kind} if by_process[(kind, name)] else told_apart - {kind}
    others = tuple(
        {other: total / watched_s[name] for other, total in used.items()} for name, used in foreign.items()
    )
    return DevicesSeen(busy, said, frozenset(told_apart), present, others or None)


def _mean(values: Sequence[tuple[float, float]]) -> float:
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
