"""What can be seen of this machine while something runs, and for the rest why not and what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from engines.telemetry import linux_devices, power
from engines.telemetry.device_sources import NvidiaDevices
from engines.telemetry.readings import slow_readings


@dataclass(frozen=True)
class Sight:
    """One kind of reading."""

    name: str
    ok: bool
    source: str
    reason: str | None = None
    remedy: str | None = None


def sights() -> tuple[Sight, ...]:
    """Every kind of reading there is for this system; some are asked of drivers, so not more than once a page."""
    found = [Sight("Processor, memory, each worker, other programs", True, f"psutil {psutil.__version__}")]
    if sys.platform == "linux":
        found += linux_sights(linux_devices.ROOT)
    elif sys.platform == "win32":
        found += _windows_sights()
    return (*found, _nvidia(NvidiaDevices), *_small_sights())


def linux_sights(root: Path) -> list[Sight]:
    """NPU, GPUs and energy, as the files under `root` tell."""
    return [_npu(root), _gpus(root), _energy(root)]


def _npu(root: Path) -> Sight:
    name, source = "NPU: busy time, memory, clock", "npu_busy_time_us in sysfs"
    if any(npu.busy_us is not None for npu in linux_devices.npus(root)):
        return Sight(name, True, source)
    if "NPU" in (linux_devices.accelerators(root) or ()):
        return Sight(
            name,
            False,
            source,
            "The NPU's driver does not tell its busy time.",
            "Use a kernel of 6.11 or later.",
        )
    return Sight(
        name,
        False,
        source,
        "This machine has no NPU with a driver.",
        "An NPU comes with Intel Core Ultra processors.",
    )


def _gpus(root: Path) -> Sight:
    name, source = "GPU: busy time and memory of each worker", "DRM fdinfo"
    folder = root / "dev" / "dri"
    try:
        nodes = [entry.name for entry in folder.iterdir() if entry.name.startswith("renderD")]
    except OSError:
        nodes = []
    if nodes:
        return Sight(name, True, source)
    return Sight(
        name,
        False,
        source,
        "No graphics driver offers a render node (/dev/dri).",
        "Install the GPU's kernel driver.",
    )


def _energy(root: Path) -> Sight:
    name, source = "Power of the processor", "RAPL, /sys/class/powercap"
    if linux_devices.energy_zones(root):
        return Sight(name, True, source)
    try:
        zones = [entry.name for entry in (root / "sys/class/powercap").iterdir() if ":" in entry.name]
    except OSError:
        zones = []
    if zones:
        return Sight(
            name,
            False,
            source,
            "Only root may read the energy counters.",
            "sudo chmod o+r /sys/class/powercap/intel-rapl:*/energy_uj allows it until the next start.",
        )
    return Sight(name, False, source, "This system has no energy counters; virtual machines never have.")


def _nvidia(open_devices: Callable[[], object]) -> Sight:
    name, source = "NVIDIA GPU: use, memory, power", "NVML (nvidia-ml-py)"
    try:
        open_devices()
    except Exception as error:  # noqa: BLE001 - no library, no driver, no card: NVML has an error for each
        remedy = "On a machine with an NVIDIA GPU, install its driver."
        return Sight(name, False, source, f"NVML cannot be used: {str(error).rstrip('.')}.", remedy)
    return Sight(name, True, source)


def _windows_sights() -> list[Sight]:
    found: list[Sight] = []
    if sys.platform == "win32":
        from engines.telemetry import windows_adapters

        name, source = "GPU and NPU: use and memory by process", "GPU Engine performance counters"
        kinds = windows_adapters.accelerators()
        if kinds is not None and "NPU" not in kinds:
            name = "GPU: use and memory by process"
        try:
            from engines.telemetry.windows_counters import WindowsDevices

            WindowsDevices()
            found.append(Sight(name, True, source))
        except (ImportError, OSError) as error:
            reason = f"They cannot be read: {error}."
            found.append(Sight(name, False, source, reason, "lodctr /R, as administrator, mends them."))
    return found


def _small_sights() -> list[Sight]:
    """Battery, temperatures, clock and power profile: many machines lack some, and nothing can be done about it."""
    names = {reading.name.split()[0] for reading in slow_readings()}
    kinds = (
        ("Battery", "battery", "This machine has none."),
        ("Temperatures", "temperature", "The system tells none."),
        ("Processor clock", "clock", "The system does not tell."),
    )
    found = [
        Sight(title, name in names, "psutil", None if name in names else why) for title, name, why in kinds
    ]
    profile = power.power_profile()
    why = None if profile else "The system has no power profiles."
    return [*found, Sight("Power profile", profile is not None, "firmware or frequency driver", why)]
