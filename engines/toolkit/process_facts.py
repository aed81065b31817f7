"""Facts about the process a library runs in: its memory, its cores, the versions installed beside it."""

from __future__ import annotations

import os
import sys
from importlib import metadata


def versions(*distributions: str) -> dict[str, str]:
    """Distribution name -> version, those not installed left out; imports nothing."""
    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def physical_cores() -> int:
    """Cores this process may use, hyperthreads counted once where the system tells."""
    usable = os.cpu_count() or 1
    if sys.platform == "linux":
        usable = len(os.sched_getaffinity(0))
    try:
        import psutil
    except ImportError:
        return usable
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def thread_counts() -> tuple[int, ...]:
    """Numbers of threads worth trying: one, half the logical cores, all of them."""
    logical = os.cpu_count() or 1
    return tuple(sorted({1, max(1, logical // 2), logical}))


def processor_name() -> str | None:
    from engines.hardware import machine_facts

    return machine_facts().get("processor")


def memory_bytes() -> tuple[int | None, int | None]:
    """Resident set size of this process now and at its peak."""
    try:
        # Not getrusage: its maximum starts with what the forking parent had resident.
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
            fields = dict(line.split(":", 1) for line in status if line.startswith(("VmRSS", "VmHWM")))
        now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return now, peak
    except (OSError, KeyError, ValueError):
        pass
    try:
        import psutil

        info = psutil.Process().memory_info()
        return info.rss, getattr(info, "peak_wset", None)
    except ImportError:
        return None, None
