"""What can be read of this machine everywhere, through psutil: processor, memory, swap, battery, temperatures, clock.

Each reading names its source; what a machine does not have is absent, never 0. Rates are taken between two calls.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from engines.telemetry.processes import Used, list_some

SLOW_S = 5.0
"""Temperatures, the battery and the clock change slowly, and some take milliseconds to read."""


@dataclass(frozen=True)
class Reading:
    """One figure at one moment."""

    name: str
    """`cpu`, `cpu.0`, `memory`, `GPU 0000:00:02.0`, `worker.4242.rss` …"""
    value: float
    unit: str
    """`share` (0 to 1), `cores`, `bytes`, `W`, `°C`, `MHz`."""
    source: str


class SystemReadings:
    """Readings of the whole system and of chosen processes; each call gives the rates since the one before."""

    def __init__(self) -> None:
        self._cores: list[tuple[float, float]] = []
        self._used: dict[int, Used] = {}
        self._at = 0.0
        self._slow: tuple[Reading, ...] = ()
        self._slow_at = -SLOW_S

    def take(self, workers: Iterable[int], own: Iterable[int]) -> list[Reading]:
        """`workers`: processes shown each for itself; `own`: all of this app's, the workers among them."""
        now = time.monotonic()
        elapsed_s, self._at = now - self._at, now
        found = self._processor()
        found += self._processes(set(workers), set(own), found, elapsed_s)
        memory = psutil.virtual_memory()
        found.append(Reading("memory", (memory.total - memory.available) / memory.total, "share", "psutil"))
        found.append(Reading("memory used", memory.total - memory.available, "bytes", "psutil"))
        try:
            swap = psutil.swap_memory()
            if swap.total:
                found.append(Reading("swap", swap.used / swap.total, "share", "psutil"))
        except (OSError, RuntimeError):
            pass
        if now - self._slow_at >= SLOW_S:
            self._slow, self._slow_at = tuple(slow_readings()), now
        return [*found, *self._slow]

    def _processor(self) -> list[Reading]:
        """Per core and of all: what was not idle since the last call."""
        times = [
            (sum(t) - getattr(t, "guest", 0.0) - getattr(t, "guest_nice", 0.0), _idle(t)) for t in _per_core()
        ]
        before, self._cores = self._cores, times
        if len(before) != len(times):
            return []
        shares = [
            min(1.0, max(0.0, 1 - (idle - idle_before) / (total - total_before)))
            for (total, idle), (total_before, idle_before) in zip(times, before, strict=True)
            if total > total_before
        ]
        if not shares:
            return []
        cores = [Reading(f"cpu.{number}", share, "share", "psutil") for number, share in enumerate(shares)]
        return [Reading("cpu", sum(shares) / len(shares), "share", "psutil"), *cores]

    def _processes(
        self, workers: set[int], own: set[int], processor: list[Reading], elapsed_s: float
    ) -> list[Reading]:
        """Cores and memory of each worker, and the cores of everything that is not ours."""
        before, self._used = self._used, list_some(workers | own)
        found, ours_cores, known = [], 0.0, bool(before)
        for pid, used in self._used.items():
            old = before.get(pid)
            if old is None or old.started != used.started or elapsed_s <= 0:
                continue
            cores = max(0.0, used.own_s - old.own_s) / elapsed_s
            ours_cores += cores
            if pid in workers:
                found.append(Reading(f"worker.{pid}.cpu", cores, "cores", "processor time of the process"))
        for pid in workers:
            rss = self._used[pid].rss_bytes if pid in self._used else None
            if rss is not None:
                found.append(Reading(f"worker.{pid}.rss", rss, "bytes", "resident set of the process"))
        total = next((reading.value for reading in processor if reading.name == "cpu"), None)
        if total is not None and known:
            all_cores = total * (os.cpu_count() or 1)
            found.append(Reading("others", max(0.0, all_cores - ours_cores), "cores", "psutil less our own"))
        return found


def _per_core() -> list[tuple[float, ...]]:
    return list(psutil.cpu_times(percpu=True))


def _idle(times: object) -> float:
    return float(getattr(times, "idle", 0.0)) + float(getattr(times, "iowait", 0.0))


def slow_readings() -> Iterable[Reading]:
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is not None:
        yield Reading("battery", battery.percent / 100, "share", "psutil")
    temperatures = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    for chip, sensors in temperatures.items():
        hottest = max((float(getattr(s, "current", 0) or 0) for s in sensors), default=0.0)
        if hottest > 0:
            yield Reading(f"temperature {chip}", hottest, "°C", "psutil")
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError, RuntimeError):
        frequency = None
    if frequency is not None and frequency.current:
        yield Reading("clock", float(frequency.current), "MHz", "psutil")
