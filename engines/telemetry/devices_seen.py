"""What is read of accelerators at one moment, and what was seen of them during one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class DeviceReading:
    """One accelerator since the last time it was asked."""

    name: str
    """`NPU accel0`, `GPU 0000:00:02.0`."""
    kind: str
    """`GPU` or `NPU`; `power` for an energy zone."""
    source: str
    busy: float | None = None
    """The whole device's, 0 to 1; None where only single processes can be seen."""
    by_pid: Mapping[int, float] = field(default_factory=dict)
    """Process -> its share, 0 to 1."""
    sees_processes: bool = False
    sees_everybody: bool = False
    """Whether `by_pid` has other programs', too."""
    memory_bytes: int | None = None
    watts: float | None = None
    frequency_mhz: float | None = None


class DeviceSource(Protocol):
    """Something that can be asked about accelerators."""

    def read(self, pids: Iterable[int]) -> list[DeviceReading]:
        """What was busy since the last call, and for which of `pids`; the first call only begins."""
        ...


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
    foreign_gpus: tuple[Mapping[int, float], ...] | None = None
    """For each GPU, the share of every process that is not ours; None where the system does not tell."""
    swap_bytes_per_s: float | None = None
    """Where only a performance counter tells (Windows)."""

    def foreign_gpu_share(self, drawing: Iterable[int] = (), allowed: float = 0.0) -> float | None:
        """What programs that are not ours took of the GPU they took most of; None where the system does not tell.

        Of what the processes `drawing` took together only the rest above `allowed` counts.
        """
        if self.foreign_gpus is None:
            return None
        draws = set(drawing)
        shares = [0.0]
        for by_pid in self.foreign_gpus:
            drew = sum(share for pid, share in by_pid.items() if pid in draws)
            others = sum(by_pid.values()) - drew + max(0.0, drew - allowed)
            shares.append(min(1.0, others))
        return max(shares)
