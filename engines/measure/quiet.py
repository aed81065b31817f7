"""What else goes on on this machine: looked at before, waited for, and marked at every repeat that was not alone."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engines.measure import machine
from engines.measure.records import LaneResult, Repeat
from engines.runtime.lease import Lease

QUIET_FOR_S = 0.5
WAIT_FOR_QUIET_S = 10.0
WAIT_IN_ALL_S = 60.0
"""Waiting for a quiet machine ends here for the whole session: some machines never are, and the repeats say so."""


class Quiet:
    """One per session."""

    def __init__(self, surroundings: machine.Surroundings, energy: machine.EnergyMeter):
        self._surroundings, self._energy = surroundings, energy
        self._idle_w: float | None = None
        self._waited_s = 0.0

    def look_around(self) -> dict[str, Any]:
        """What state the machine is in before anything is measured, as the measurement's `environment` tells it."""
        energy, started = self._energy.mark(), time.monotonic()
        seen, joules = self._surroundings.now(QUIET_FOR_S), self._energy.since(energy)
        self._idle_w = None if joules is None else joules / (time.monotonic() - started)
        return {
            "power": seen.other_load.power_after,
            "python": platform.python_version(),
            "other_load_cores": round(seen.other_load.foreign_cpu_cores, 3),
            "other_programs": list(seen.other_load.programs),
            "disturbing_cores": machine.disturbing_cores(),
            "temperature_c": machine.temperature_c(),
            "clock_mhz": machine.clock_mhz(),
            "energy": self._energy.source,
            "idle_w": self._idle_w,
        }

    def wait(self, result: LaneResult, halting: Callable[[], bool], say: Callable[[str], None]) -> None:
        """Give a busy machine a few seconds to become quiet; if it does not, the repeat will be marked."""
        started = time.monotonic()
        deadline = started + min(WAIT_FOR_QUIET_S, WAIT_IN_ALL_S - self._waited_s)
        last = result.repeats[-1] if result.repeats else None
        if last is None or not last.disturbed:
            return
        while time.monotonic() < deadline and not halting():
            seen = self._surroundings.now(QUIET_FOR_S)
            if not seen.disturbed:
                break
            cores, programs = seen.other_load.foreign_cpu_cores, ", ".join(seen.other_load.programs[:2])
            say(f"Waiting for a quiet machine: other programs keep {cores:.1f} cores busy ({programs})")
        self._waited_s += time.monotonic() - started

    def energy_meter(self) -> Callable[[], float | None]:
        """Joules above idle since now; the answer is None where this machine does not tell."""
        mark, started = self._energy.mark(), time.monotonic()

        def spent() -> float | None:
            joules = self._energy.since(mark)
            if joules is None or self._idle_w is None:
                return None
            return max(0.0, joules - self._idle_w * (time.monotonic() - started))

        return spent

    def marked(self, repeat: Repeat, lease: Lease) -> Repeat:
        """With what went on beside it."""
        seen = self._surroundings.during(lease)
        if seen is None:
            return repeat
        others = seen.other_load
        reasons = [*others.reasons, *(f"Meanwhile: {what}." for what in others.ours if seen.contended)]
        return replace(
            repeat,
            other_load_cores=round(others.foreign_cpu_cores, 3),
            disturbed=not seen.alone,
            disturbance=" ".join(reasons) or None,
        )
