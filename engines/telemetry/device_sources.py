"""Where readings of accelerators come from: a source per kind of system, asked for what was busy since last time."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engines.telemetry import linux_devices
from engines.telemetry.devices_seen import DeviceReading, DeviceSource
from engines.telemetry.linux_devices import DrmClient, EnergyZone, Npu


class LinuxDevices:
    """Intel's NPU, every GPU whose driver tells about its clients, AMD's own figure, and energy zones."""

    def __init__(self, root: Path = linux_devices.ROOT):
        self._root = root
        self._at = 0.0
        self._npus: dict[str, Npu] = {}
        self._clients: dict[tuple[int, str, str], DrmClient] = {}
        self._zones: dict[str, EnergyZone] = {}

    def read(self, pids: Iterable[int]) -> list[DeviceReading]:
        now = time.monotonic()
        elapsed_s, self._at = now - self._at, now
        return [*self._read_npus(elapsed_s), *self._read_gpus(pids, elapsed_s), *self._read_energy(elapsed_s)]

    def _read_npus(self, elapsed_s: float) -> list[DeviceReading]:
        before, self._npus = self._npus, {npu.name: npu for npu in linux_devices.npus(self._root)}
        found = []
        for name, npu in self._npus.items():
            old = before.get(name)
            busy = None
            if old is not None and npu.busy_us is not None and old.busy_us is not None:
                grown_us = npu.busy_us - old.busy_us
                busy = (
                    min(1.0, grown_us / 1e6 / elapsed_s) if grown_us >= 0 else None
                )  # the driver began again
            if npu.busy_us is not None or npu.memory_bytes is not None:
                found.append(
                    DeviceReading(
                        f"NPU {name}",
                        "NPU",
                        "npu_busy_time_us",
                        busy,
                        memory_bytes=npu.memory_bytes,
                        frequency_mhz=npu.frequency_mhz,
                    )
                )
        return found

    def _read_gpus(self, pids: Iterable[int], elapsed_s: float) -> list[DeviceReading]:
        before, self._clients = self._clients, {}
        shares: dict[tuple[str, str], dict[int, float]] = {}
        memory: dict[tuple[str, str], int] = {}
        tell_use: set[tuple[str, str]] = set()
        for pid in pids:
            for client in linux_devices.drm_clients(pid, self._root):
                key = (pid, client.device, client.client)
                self._clients[key] = client
                which = (client.kind, client.device)
                mine = shares.setdefault(which, {})
                if client.tells_use:
                    tell_use.add(which)
                old = before.get(key)
                share = linux_devices.busy_share(old, client, elapsed_s) if old else None
                if share is not None:
                    mine[pid] = min(1.0, mine.get(pid, 0.0) + share)
                memory[which] = memory.get(which, 0) + (client.resident_bytes or 0)
        found = [
            DeviceReading(
                f"{kind} {device}",
                kind,
                "DRM fdinfo",
                by_pid=mine,
                sees_processes=(kind, device) in tell_use,
                memory_bytes=memory.get((kind, device)) or None,
            )
            for (kind, device), mine in shares.items()
        ]
        for card, percent in linux_devices.amd_busy_percent(self._root).items():
            found.append(DeviceReading(f"GPU {card}", "GPU", "gpu_busy_percent", percent / 100))
        return found

    def _read_energy(self, elapsed_s: float) -> list[DeviceReading]:
        zones = {zone.name: zone for zone in linux_devices.energy_zones(self._root)}
        before, self._zones = self._zones, zones
        found = []
        for name, zone in zones.items():
            power = linux_devices.watts(before[name], zone, elapsed_s) if name in before else None
            if power is not None:
                found.append(DeviceReading(name, "power", "RAPL powercap", watts=power))
        return found


class NvidiaDevices:
    """NVIDIA GPUs through NVML, where its library and a driver are; it averages over its own last sample period."""

    def __init__(self) -> None:
        import pynvml

        self._nvml: Any = pynvml
        pynvml.nvmlInit()
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        self._asked_us = [0] * len(self._handles)

    def read(self, pids: Iterable[int]) -> list[DeviceReading]:
        return [self._one(number, handle) for number, handle in enumerate(self._handles)]

    def _one(self, number: int, handle: Any) -> DeviceReading:
        nvml = self._nvml
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        power = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        clock = self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)
        samples = self._ask(nvml.nvmlDeviceGetProcessUtilization, handle, self._asked_us[number]) or ()
        for sample in samples:
            self._asked_us[number] = max(self._asked_us[number], int(sample.timeStamp))
        return DeviceReading(
            f"NVIDIA {number}",
            "GPU",
            "NVML",
            None if rates is None else rates.gpu / 100,
            by_pid=nvidia_shares((int(s.pid), int(s.smUtil)) for s in samples),
            sees_processes=bool(samples),
            sees_everybody=bool(samples),
            memory_bytes=None if memory is None else int(memory.used),
            watts=None if power is None else power / 1000,
            frequency_mhz=None if clock is None else float(clock),
        )

    def _ask(self, question: Any, *arguments: Any) -> Any:
        """None for what this card, driver or user cannot be told."""
        try:
            return question(*arguments)
        except self._nvml.NVMLError:
            return None


def nvidia_shares(samples: Iterable[tuple[int, int]]) -> dict[int, float]:
    """(process, percent of the multiprocessors) -> process -> mean share; NVML gives several samples a process."""
    collected: dict[int, list[int]] = {}
    for pid, percent in samples:
        if 0 <= percent <= 100:  # now and then it is a number that no percentage can be
            collected.setdefault(pid, []).append(percent)
    return {pid: sum(values) / len(values) / 100 for pid, values in collected.items()}


def sources() -> list[DeviceSource]:
    """Every source that this machine has."""
    found: list[DeviceSource] = []
    if sys.platform == "linux":
        found.append(LinuxDevices())
    elif sys.platform == "win32":
        try:
            from engines.telemetry.windows_counters import WindowsDevices

            found.append(WindowsDevices())
        except (ImportError, OSError):
            pass  # the performance counters are switched off, or pywin32 is missing
    try:
        found.append(NvidiaDevices())
    except Exception:  # noqa: BLE001 - no library, no driver, no card: NVML has an error for each
        pass
    return found
