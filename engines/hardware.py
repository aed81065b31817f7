"""Facts about this machine that belong beside every number: processor, memory, system, power state.

Facts, not readings: the dictionary is content-hashed into the log, so nothing that changes by itself from one
second to the next is in it.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any


def available_memory_bytes() -> int:
    """Memory that can be used without swapping, containers' limits considered."""
    import psutil

    available = psutil.virtual_memory().available
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit is not None and used is not None:
        available = min(available, max(0, limit - used))
    return available


def _cgroup(name: str) -> int | None:
    try:
        text = Path("/sys/fs/cgroup", name).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


@functools.cache
def _processor_name() -> str:
    if platform.system() == "Windows":
        return _registry_processor() or platform.processor()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def _registry_processor() -> str | None:
    if sys.platform != "win32":
        return None
    import winreg

    try:
        with winreg.OpenKey(
            winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        ) as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
    except OSError:
        return None


def power_state() -> str | None:
    """`mains`, `battery`, or None where the machine has no battery or does not tell."""
    import psutil

    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is None:
        return None
    return "mains" if battery.power_plugged else "battery"


def machine_facts() -> dict[str, Any]:
    """What this machine is; stable between two calls unless something really changed."""
    import psutil

    return {
        "name": platform.node(),
        "processor": _processor_name(),
        "architecture": platform.machine(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.system(),
        "system_version": platform.version() if platform.system() == "Windows" else platform.release(),
        "system_name": _system_name(),
        "power": power_state(),
    }


@functools.cache
def _system_name() -> str:
    if platform.system() == "Windows":
        return f"Windows {platform.release()}"
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
