"""What was seen of the accelerators during one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class DevicesSeen:
    """What the readings say about a run's time. A family that cannot be seen on this machine is absent."""

    busy: Mapping[str, float] = field(default_factory=dict)
    """`GPU`, `NPU` -> share of the time it was busy, 0 to 1; the worker's own share where that is told apart."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Family -> where the figure comes from."""
    by_process: frozenset[str] = frozenset()
    """Families whose figure is the worker's own."""
    present: frozenset[str] | None = None
    """Accelerator families that this machine has; None: that cannot be told here."""
    foreign_gpu_share: float | None = None
    """Of programs that are not ours."""
    swap_bytes_per_s: float | None = None
    """Where only a performance counter tells (Windows)."""
