"""Which accelerators this machine has at all: an engine cannot have used one that is not there."""

from __future__ import annotations

import functools
import sys

from engines.telemetry import linux_devices


@functools.cache
def accelerators() -> frozenset[str] | None:
    """`GPU` and `NPU` as far as this machine has them; None where that cannot be told. Asked once."""
    if sys.platform == "linux":
        return linux_devices.accelerators()
    if sys.platform == "win32":
        from engines.telemetry import windows_adapters

        return windows_adapters.accelerators()
    return None
