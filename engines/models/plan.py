"""What getting a model ready would cost, said before it is done.

A plan is a list of steps with bytes, memory and rough time, and a refusal with the numbers when it cannot fit. The
person may override a refusal: the estimates are good to a quarter, not to a byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from engines.protocol import Target

Number = TypeVar("Number", int, float)

ASSUMED_BYTES_PER_S = 10e6
"""For the rough time of a download: a line of 80 Mbit/s."""
DISK_MARGIN_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Step:
    """One thing to be done."""

    kind: str
    """`use`, `download` or `convert`."""
    text: str
    download_bytes: int | None = 0
    """None: not known without the network."""
    disk_bytes: int | None = 0
    peak_bytes: int = 0
    """Memory at the worst moment."""
    seconds: float | None = 0.0
    files: Mapping[str, int] = field(default_factory=dict)
    """What is downloaded, by repository and path, with sizes: engines that share a file fetch it once."""
    makes: str | None = None
    """The kind of folder a conversion makes: engines that share it convert once."""


@dataclass(frozen=True)
class Plan:
    """How a target's model gets ready."""

    target: Target
    ready: bool
    steps: tuple[Step, ...]
    disk_free_bytes: int
    available_bytes: int
    """Memory that can be had now."""
    load_bytes: int | None = None
    """Estimated memory of the worker that loads the result."""
    refusal: str | None = None
    """Why it should not be tried, with the numbers; None: nothing speaks against it."""
    remedy: str | None = None
    can_override: bool = False
    needs_remote_code: bool = False

    @property
    def download_bytes(self) -> int | None:
        return _total([step.download_bytes for step in self.steps])

    @property
    def disk_bytes(self) -> int | None:
        return _total([step.disk_bytes for step in self.steps])

    @property
    def peak_bytes(self) -> int:
        return max((step.peak_bytes for step in self.steps), default=0)

    @property
    def seconds(self) -> float | None:
        return _total([step.seconds for step in self.steps])

    def lines(self) -> list[str]:
        """The plan in words, one line each."""
        if self.ready:
            return [f"{self.target.model} is ready for {self.target.spelling}."]
        lines = [f"{number}. {step.text}" for number, step in enumerate(self.steps, start=1)]
        if self.steps:
            lines.append(
                f"Download {_bytes(self.download_bytes)} · disk {_bytes(self.disk_bytes)} of "
                f"{size(self.disk_free_bytes)} free · memory up to {size(self.peak_bytes)} of "
                f"{size(self.available_bytes)} available · about {duration(self.seconds)}"
            )
        if self.load_bytes:
            lines.append(f"Loaded, it will take about {size(self.load_bytes)} of memory.")
        if self.needs_remote_code:
            lines.append("It brings Python code of its own, which would run on this computer.")
        if self.refusal:
            lines.append(
                f"Not advisable: {self.refusal}" if self.can_override else f"Not possible: {self.refusal}"
            )
            if self.remedy:
                lines.append(self.remedy)
        return lines


def memory_refusal(needed: int, available: int, what: str) -> tuple[str, str]:
    """(reason, remedy) for work that does not fit into memory."""
    return (
        f"{what} needs about {size(needed)} of memory at its peak; {size(available)} are available.",
        "Close other programs or unload models, choose a smaller model, or one that its maker publishes ready-made.",
    )


def disk_refusal(needed: int, free: int, folder: object) -> tuple[str, str]:
    return (
        f"It needs {size(needed)} of disk space; {size(free)} are free on the disk of {folder}.",
        "Free some space (models remove), or choose another disk with --data-dir and HF_HOME.",
    )


def download_brief(what: str, count: int | None) -> str:
    much = f" (about {size(count)})" if count else ""
    return f"Not on this computer yet: the first prompt {what}{much}. The Models tab shows the plan."


def size(count: float | None) -> str:
    """Decimal units, as the Hub and disk makers write them."""
    if count is None:
        return "?"
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time"
    return f"{max(seconds, 1):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _bytes(count: int | None) -> str:
    return "of unknown size" if count is None else size(count)


def _total(values: Sequence[Number | None]) -> Number | None:
    """The sum; None where a part is not known."""
    known = [value for value in values if value is not None]
    return None if len(known) < len(values) else sum(known)
