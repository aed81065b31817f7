"""Linux: what the kernel tells of NPUs, GPUs and energy, from files that an ordinary user may read.

Sources, each in the kernel's own documentation:

- Intel NPU: `npu_busy_time_us` and its neighbours, beside the accel device (drivers/accel/ivpu/ivpu_sysfs.c)
- GPUs, per process: DRM client usage stats in `/proc/PID/fdinfo` (Documentation/gpu/drm-usage-stats.rst; i915, xe and
  amdgpu say there which keys they have)
- AMD GPU, as a whole: `gpu_busy_percent` (Documentation/gpu/amdgpu/thermal.rst)
- energy: `energy_uj` of the powercap zones (Documentation/power/powercap/powercap.rst), which most systems let only
  root read

Functions take the root of the file system, so that recorded trees can be read. What is missing or may not be read is
None; counters only ever grow, until they wrap or the driver is loaded again.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path("/")
_KIBI = {"": 1, "KiB": 2**10, "MiB": 2**20}
_DISPLAY, _ACCELERATOR = "0x03", "0x12"
"""First byte of a PCI class: display controllers, processing accelerators."""


def read_text(path: Path) -> str | None:
    """A small file, stripped; None when it is missing, may not be read, or its driver is asleep."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read_number(path: Path) -> int | None:
    text = read_text(path)
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None


# --- what is here ------------------------------------------------------------------------------------------


def accelerators(root: Path = ROOT) -> frozenset[str] | None:
    """`GPU` and `NPU` as far as this machine has them; None where that cannot be told.

    Only PCs list all of theirs on the PCI bus, and under WSL the devices of Windows come through /dev/dxg instead.
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or (root / "dev" / "dxg").exists():
        return None
    bus = root / "sys" / "bus" / "pci" / "devices"
    try:
        classes = [read_text(device / "class") or "" for device in bus.iterdir()]
    except OSError:
        return None
    found = {"GPU"} if any(text.startswith(_DISPLAY) for text in classes) else set()
    accel = root / "sys" / "class" / "accel"
    if any(text.startswith(_ACCELERATOR) for text in classes) or (accel.is_dir() and any(accel.iterdir())):
        found.add("NPU")
    return frozenset(found)


# --- Intel NPU ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Npu:
    """One Intel NPU at one moment."""

    name: str
    """`accel0`."""
    busy_us: int | None
    """Time spent executing jobs since the driver was loaded."""
    memory_bytes: int | None
    frequency_mhz: int | None


def npus(root: Path = ROOT) -> tuple[Npu, ...]:
    """Every accel device of Intel's driver; others have no such files."""
    folder = root / "sys" / "class" / "accel"
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return ()
    return tuple(
        Npu(
            name,
            read_number(folder / name / "device" / "npu_busy_time_us"),
            read_number(folder / name / "device" / "npu_memory_utilization"),
            read_number(folder / name / "device" / "npu_current_frequency_mhz"),
        )
        for name in names
    )


# --- DRM clients -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DrmClient:
    """One user of one GPU (or NPU), as one of its file descriptors tells."""

    driver: str
    device: str
    """PCI slot, or the driver's name where there is none."""
    client: str
    engine_ns: Mapping[str, int] = field(default_factory=dict)
    """Engine -> time it was busy for this client (i915, amdgpu)."""
    cycles: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Engine -> cycles it was busy for this client, and cycles in all (xe)."""
    capacity: Mapping[str, int] = field(default_factory=dict)
    """Engine -> how many of them there are, where more than one."""
    resident_bytes: int | None = None
    kind: str = "GPU"
    """`NPU` where it was opened as an accel device, as AMD's and Intel's NPUs are."""

    @property
    def tells_use(self) -> bool:
        """Some drivers tell of memory only: xe before Linux 6.11, Intel's NPU."""
        return bool(self.engine_ns or self.cycles)


def parse_fdinfo(text: str) -> DrmClient | None:
    """One `/proc/PID/fdinfo/FD`; None when it is no DRM client's."""
    pairs = dict(_pairs(text))
    driver = pairs.get("drm-driver")
    if driver is None:
        return None
    engines = {
        name.removeprefix("drm-engine-"): number
        for name, value in pairs.items()
        if name.startswith("drm-engine-") and not name.startswith("drm-engine-capacity-")
        if (number := _count(value, "ns")) is not None
    }
    cycles = {}
    for name, value in pairs.items():
        engine = name.removeprefix("drm-cycles-")
        total = _count(pairs.get(f"drm-total-cycles-{engine}", ""))
        busy = _count(value)
        if name.startswith("drm-cycles-") and busy is not None and total is not None:
            cycles[engine] = (busy, total)
    capacity = {
        name.removeprefix("drm-engine-capacity-"): number
        for name, value in pairs.items()
        if name.startswith("drm-engine-capacity-") and (number := _count(value))
    }
    device = pairs.get("drm-pdev", driver)
    return DrmClient(
        driver, device, pairs.get("drm-client-id", ""), engines, cycles, capacity, _memory(pairs)
    )


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            yield name.strip(), value.strip()


def _count(value: str, unit: str = "") -> int | None:
    number, _, given = value.partition(" ")
    return int(number) if number.isdigit() and given.strip() in ("", unit) else None


def _memory(pairs: Mapping[str, str]) -> int | None:
    """`drm-resident-REGION` of all regions; `drm-memory-REGION` is its older name, which amdgpu keeps beside it."""
    for prefix in ("drm-resident-", "drm-memory-"):
        sizes = [_size(value) for name, value in pairs.items() if name.startswith(prefix)]
        known = [size for size in sizes if size is not None]
        if known:
            return sum(known)
    return None


def _size(value: str) -> int | None:
    number, _, unit = value.partition(" ")
    factor = _KIBI.get(unit.strip())
    return int(number) * factor if number.isdigit() and factor is not None else None


def drm_clients(pid: int, root: Path = ROOT) -> tuple[DrmClient, ...]:
    """The GPUs a process has open, each client once; only of one's own processes, or as root."""
    folder = f"{root}/proc/{pid}"  # joined by hand: hundreds of names for every worker, twice a second
    found: dict[tuple[str, str], DrmClient] = {}
    try:
        names = os.listdir(f"{folder}/fd")  # noqa: PTH208
    except OSError:
        return ()
    for name in names:
        kind = _kind(f"{folder}/fd/{name}")
        client = parse_fdinfo(read_text(Path(f"{folder}/fdinfo/{name}")) or "") if kind else None
        if client is not None and kind is not None:
            found.setdefault((client.device, client.client), replace(client, kind=kind))
    return tuple(found.values())


def _kind(descriptor: str) -> str | None:
    """A process has hundreds of descriptors; only those of device files are worth reading."""
    try:
        target = os.readlink(descriptor)  # noqa: PTH115
    except OSError:
        return None
    return "GPU" if "/dev/dri/" in target else "NPU" if "/dev/accel/" in target else None


def busy_share(before: DrmClient, after: DrmClient, elapsed_s: float) -> float | None:
    """How busy a client kept its busiest engine between two readings, 0 to 1; None when that cannot be told.

    A counter that has gone back (another client has the id now, or the driver started afresh) tells nothing.
    """
    shares = []
    for engine, now_ns in after.engine_ns.items():
        grown = now_ns - before.engine_ns.get(engine, 0)
        if grown >= 0 and elapsed_s > 0:
            shares.append(grown / 1e9 / elapsed_s / after.capacity.get(engine, 1))
    for engine, (busy, total) in after.cycles.items():
        busy_before, total_before = before.cycles.get(engine, (0, 0))
        if total > total_before and busy >= busy_before:
            shares.append((busy - busy_before) / (total - total_before) / after.capacity.get(engine, 1))
    return min(1.0, max(shares)) if shares else None


def amd_busy_percent(root: Path = ROOT) -> dict[str, int]:
    """`card0` -> how busy the whole GPU is, as amdgpu tells."""
    folder = root / "sys" / "class" / "drm"
    try:
        cards = sorted(e.name for e in folder.iterdir() if re.fullmatch(r"card\d+", e.name))
    except OSError:
        return {}
    found = {card: read_number(folder / card / "device" / "gpu_busy_percent") for card in cards}
    return {card: percent for card, percent in found.items() if percent is not None}


# --- energy ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EnergyZone:
    """One powercap zone at one moment."""

    name: str
    """`package-0`, `package-0 core`, `psys`."""
    energy_uj: int
    wraps_at_uj: int | None


def energy_zones(root: Path = ROOT) -> tuple[EnergyZone, ...]:
    """The RAPL zones that may be read, the whole packages first."""
    folder = root / "sys" / "class" / "powercap"
    try:
        names = sorted((e.name for e in folder.iterdir() if ":" in e.name), key=lambda n: (n.count(":"), n))
    except OSError:
        return ()
    zones = []
    for name in names:
        if name.startswith("intel-rapl-mmio"):
            continue  # the same package once more, through another door
        energy = read_number(folder / name / "energy_uj")
        if energy is not None:
            whole = name if name.count(":") == 1 else name.rpartition(":")[0]
            titles = [read_text(folder / zone / "name") or zone for zone in dict.fromkeys((whole, name))]
            title = " ".join(titles)  # every package has a `core`
            zones.append(EnergyZone(title, energy, read_number(folder / name / "max_energy_range_uj")))
    return tuple(zones)


def watts(before: EnergyZone, after: EnergyZone, elapsed_s: float) -> float | None:
    """Mean power between two readings; the counter starts again at 0 beyond `wraps_at_uj`."""
    grown = after.energy_uj - before.energy_uj
    if grown < 0:
        if not after.wraps_at_uj:
            return None
        grown += after.wraps_at_uj
    return grown / 1e6 / elapsed_s if elapsed_s > 0 and grown >= 0 else None
