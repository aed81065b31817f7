"""The power state in words: the source, and the profile that decides how fast the processor may run.

Cheap enough for both ends of every run: files on Linux, two calls on Windows, nothing is started.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from engines.hardware import power_state

_PROFILES = (
    # https://docs.kernel.org/userspace-api/sysfs-platform_profile.html
    "/sys/firmware/acpi/platform_profile",
    # What power-profiles-daemon sets where the firmware has no profiles:
    # https://docs.kernel.org/admin-guide/pm/intel_pstate.html#energy-vs-performance-hints
    "/sys/devices/system/cpu/cpu0/cpufreq/energy_performance_preference",
)
_OVERLAYS = {
    # GUIDs of powrprof's overlay schemes, the “power mode” of Windows' settings.
    "961cc777-2547-4f9d-8174-7d86181b8a7a": "best power efficiency",
    "00000000-0000-0000-0000-000000000000": "balanced",
    "3af9b8d9-7c97-431d-ad78-34a8bfea439f": "better performance",
    "ded574b5-45a0-4f42-8737-46345c09c238": "best performance",
}


def power_profile(root: Path = Path("/")) -> str | None:
    """`balanced`, `performance`, …: the system's own word; None where there is none."""
    return _windows_mode() if sys.platform == "win32" else linux_profile(root)


def linux_profile(root: Path) -> str | None:
    """The first profile that the firmware or the frequency driver under `root` tells."""
    for name in _PROFILES:
        try:
            text = (root / name.lstrip("/")).read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            continue
        if text:
            return text
    return None


def in_words(
    source: Callable[[], str | None] = power_state, profile: Callable[[], str | None] = power_profile
) -> str | None:
    """`mains, balanced`; None where nothing is known."""
    parts = [part for part in (source(), profile()) if part]
    return ", ".join(parts) or None


def overlay_name(guid: str) -> str:
    """What Windows' settings call an overlay scheme."""
    return _OVERLAYS.get(guid.strip("{}").lower(), guid)


def _windows_mode() -> str | None:
    if sys.platform != "win32":
        return None
    import ctypes
    import uuid

    raw = (ctypes.c_ubyte * 16)()
    try:
        failed = ctypes.WinDLL("powrprof").PowerGetActualOverlayScheme(ctypes.byref(raw))
    except (OSError, AttributeError):  # before Windows 10 1709
        return None
    if failed:
        return None
    mode = overlay_name(str(uuid.UUID(bytes_le=bytes(raw))))
    return f"{mode}, energy saver" if _energy_saver() else mode


def _energy_saver() -> bool:
    """SYSTEM_POWER_STATUS.SystemStatusFlag."""
    if sys.platform != "win32":
        return False
    import ctypes

    raw = (ctypes.c_ubyte * 12)()
    return bool(ctypes.WinDLL("kernel32").GetSystemPowerStatus(ctypes.byref(raw))) and raw[3] == 1
