"""Windows: what the performance counters tell of GPUs and NPUs, per process and adapter, and of paging.

The counter sets *GPU Engine* and *GPU Process Memory* have an instance per process, adapter and engine, as Task
Manager shows them; an NPU is an adapter there like any other, told apart by DXCore (windows_adapters). Names::

    pid_4242_luid_0x00000000_0x0000C5D2_phys_0_eng_3_engtype_Compute      Utilization Percentage
    pid_4242_luid_0x00000000_0x0000C5D2_phys_0                            Dedicated Usage, Shared Usage (bytes)

https://learn.microsoft.com/windows/win32/perfctrs/about-performance-counters
https://devblogs.microsoft.com/directx/gpus-in-the-task-manager/
"""

from __future__ import annotations

import functools
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from engines.telemetry import windows_adapters
from engines.telemetry.devices_seen import DeviceReading
from engines.telemetry.windows_adapters import Adapter

ENGINE_PATH = r"\GPU Engine(*)\Utilization Percentage"
MEMORY_PATHS = (r"\GPU Process Memory(*)\Dedicated Usage", r"\GPU Process Memory(*)\Shared Usage")
PAGES_PATH = r"\Memory\Pages/sec"
LIST_AGAIN_S = 10.0
_INSTANCE = re.compile(
    r"pid_(?P<pid>\d+)_luid_(?P<luid>0x[0-9A-Fa-f]{8}_0x[0-9A-Fa-f]{8})_phys_(?P<phys>\d+)"
    r"(?:_eng_(?P<engine>\d+)_engtype_(?P<type>.*?))?(?:#\d+)*$"
)


@dataclass(frozen=True)
class Instance:
    """What a counter instance's name says."""

    pid: int
    luid: str
    """As in windows_adapters.Adapter."""
    engine: str | None = None
    """`3 Compute`; None for memory."""


@functools.lru_cache(maxsize=8192)  # the same few thousand names at every sample
def parse_instance(name: str) -> Instance | None:
    """One instance name; None when it is no GPU counter's. PDH puts `#1` behind the second of equal names."""
    found = _INSTANCE.match(name)
    if found is None:
        return None
    high, low = found["luid"].split("_")
    luid = windows_adapters.luid_text(int(high, 16), int(low, 16))
    engine = f"{found['engine']} {found['type']}".strip() if found["engine"] is not None else None
    return Instance(int(found["pid"]), luid, engine)


def readings(
    utilisation: Mapping[str, float], memory: Mapping[str, float], adapters: Iterable[Adapter]
) -> list[DeviceReading]:
    """Counter values by instance name -> a reading per adapter.

    A process's share of an adapter is that of the engine it uses most; the adapter's is that of its busiest engine,
    summed over processes, as Task Manager does it. An adapter without any instance is idle, not absent.
    """
    engines: dict[str, dict[str, float]] = {}
    shares: dict[str, dict[int, float]] = {}
    for name, percent in utilisation.items():
        instance = parse_instance(name)
        if instance is None or instance.engine is None or percent < 0:
            continue
        share = min(percent / 100, 1.0)
        of_adapter = engines.setdefault(instance.luid, {})
        of_adapter[instance.engine] = of_adapter.get(instance.engine, 0.0) + share
        mine = shares.setdefault(instance.luid, {})
        mine[instance.pid] = max(mine.get(instance.pid, 0.0), share)
    used: dict[str, float] = {}
    for name, count in memory.items():
        instance = parse_instance(name)
        if instance is not None and count >= 0:
            used[instance.luid] = used.get(instance.luid, 0.0) + count
    return [
        DeviceReading(
            f"{adapter.kind} {adapter.name}",
            adapter.kind,
            "GPU Engine performance counters",
            min(1.0, max(engines.get(adapter.luid, {}).values(), default=0.0)),
            by_pid={pid: share for pid, share in shares.get(adapter.luid, {}).items() if share > 0},
            sees_processes=True,
            sees_everybody=True,
            memory_bytes=round(used[adapter.luid]) if adapter.luid in used else None,
        )
        for adapter in adapters
        if adapter.hardware
    ]


class KnownAdapters:
    """The adapters, listed again when a counter names one that is not among them, every LIST_AGAIN_S at most.

    An adapter has its LUID until the system starts again or the adapter does: after a driver's restart or an update,
    and when an external GPU is plugged in, there are others.
    """

    def __init__(self, listing: Callable[[], Sequence[Adapter] | None], clock: Callable[[], float]):
        self._listing, self._clock = listing, clock
        self._adapters: Sequence[Adapter] = listing() or ()
        self._listed_at = clock()

    def named_in(self, instances: Iterable[str]) -> Sequence[Adapter]:
        """All adapters, with those that these instances of counters name."""
        known = {adapter.luid for adapter in self._adapters}
        named = {found.luid for name in instances if (found := parse_instance(name)) is not None}
        if named - known and self._clock() - self._listed_at >= LIST_AGAIN_S:
            self._listed_at = self._clock()
            self._adapters = self._listing() or self._adapters
        return self._adapters


if sys.platform == "win32":
    import pywintypes
    import win32pdh

    class WindowsDevices:
        """The counters through PDH, in English whatever the system speaks; raises OSError where there are none."""

        def __init__(self) -> None:
            self._adapters = KnownAdapters(windows_adapters.adapters, time.monotonic)
            try:
                self._query = win32pdh.OpenQuery()
                self._engine = win32pdh.AddEnglishCounter(self._query, ENGINE_PATH)
                self._memory = [win32pdh.AddEnglishCounter(self._query, path) for path in MEMORY_PATHS]
            except pywintypes.error as error:
                raise OSError(str(error)) from error
            self._collected = False

        def read(self, pids: Iterable[int]) -> list[DeviceReading]:
            try:
                win32pdh.CollectQueryData(self._query)
                if not self._collected:  # a rate needs two
                    self._collected = True
                    return []
                memory: dict[str, float] = {}
                for kind, counter in zip(MEMORY_PATHS, self._memory, strict=True):
                    # The two counters' instances have the same names: the path's end keeps them apart.
                    values = self._values(counter)
                    memory.update({f"{name}#{MEMORY_PATHS.index(kind)}": v for name, v in values.items()})
                utilisation = self._values(self._engine)
                return readings(utilisation, memory, self._adapters.named_in((*utilisation, *memory)))
            except pywintypes.error:
                return []  # no instance now: nobody uses a GPU, or a driver is being restarted

        def _values(self, counter: int) -> dict[str, float]:
            found = win32pdh.GetFormattedCounterArray(counter, win32pdh.PDH_FMT_DOUBLE)
            return {str(name): float(value) for name, value in found.items()}
