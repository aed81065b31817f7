"""What the machine is doing: other load before and during, temperature, clock, energy. Readings, no threads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from engines.runtime.lease import Lease
from engines.telemetry import power
from engines.telemetry.disturbance import Conditions, Watch, cpu_limit_cores


class Surroundings(Protocol):
    """Tells what goes on beside a measurement."""

    def now(self, seconds: float) -> Conditions:
        """Look for so long."""

    def during(self, lease: Lease) -> Conditions | None:
        """What went on during the lease's last generation; None: nobody looked."""


class Seen:
    """As the app's own watch over every run sees it (engines/telemetry)."""

    def now(self, seconds: float) -> Conditions:
        watch = Watch(power.in_words)
        time.sleep(seconds)
        return watch.ended(())

    def during(self, lease: Lease) -> Conditions | None:
        return lease.observed.conditions if lease.observed else None


def disturbing_cores() -> float:
    """Cores kept busy by others from which on a repeat counts as disturbed."""
    return cpu_limit_cores()


def temperature_c() -> float | None:
    """The hottest processor sensor; None where there is none to read."""
    import psutil

    read = getattr(psutil, "sensors_temperatures", None)
    try:
        groups = read() if read else {}
    except (OSError, RuntimeError):
        return None
    readings = [
        reading.current
        for name in ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")
        for reading in groups.get(name, ())
        if reading.current and reading.current > 0
    ]
    return max(readings) if readings else None


def clock_mhz() -> float | None:
    import psutil

    try:
        clock = psutil.cpu_freq()
    except (OSError, RuntimeError, NotImplementedError):
        return None
    return float(clock.current) if clock and clock.current else None


class EnergyMeter:
    """Joules that the machine says it took; `source` None: it does not say, and nothing is guessed.

    Linux tells the processor package's energy (RAPL, powercap; often for root only) and, when it discharges, the
    battery's. A counter that wraps is wound on.
    """

    def __init__(self, root: Path = Path("/sys/class")):
        self._rapl = sorted(
            path
            for path in root.glob("powercap/*/energy_uj")
            if _is_package(path.parent) and _number(path) is not None
        )
        self._battery = None
        if not self._rapl:
            discharging = [
                folder
                for folder in sorted(root.glob("power_supply/*"))
                if _text(folder / "status") == "Discharging" and _number(folder / "energy_now")
            ]
            self._battery = discharging[0] / "energy_now" if discharging else None

    @property
    def source(self) -> str | None:
        if self._rapl:
            return "RAPL: processor package"
        return "battery discharge: the whole machine" if self._battery else None

    def mark(self) -> dict[str, float]:
        """Counter -> joules; without a counter that cannot be read just now."""
        factor = 1e-6 if self._rapl else -3600 / 1e6  # µJ that were used, µWh that are left
        counters = self._rapl or ([self._battery] if self._battery else [])
        return {str(path): factor * count for path in counters if (count := _number(path)) is not None}

    def since(self, mark: dict[str, float]) -> float | None:
        """Joules since then; None: not told."""
        now = self.mark()
        if len(now) < max(1, len(self._rapl)) or now.keys() != mark.keys():
            return None
        total = 0.0
        for name, joules in now.items():
            used = joules - mark[name]
            if used < 0:
                used += (_number(Path(name).with_name("max_energy_range_uj")) or 0.0) / 1e6
            if used < 0:
                return None
            total += used
        return total


def _is_package(zone: Path) -> bool:
    """A whole processor, once: not a part of it, not its second door (mmio), not the platform it is a part of."""
    own = zone.name.count(":") == 1 and not zone.name.startswith("intel-rapl-mmio")
    return own and _text(zone / "name") != "psys"


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> float | None:
    text = _text(path)
    try:
        return float(text) if text else None
    except ValueError:
        return None
