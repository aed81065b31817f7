"""What went on beside a run, decided when it has ended: other work of ours, other programs, the power state.

*Alone* is a claim about a whole run. `Watch` takes one look when the run begins and one when it ends; what ran in
between of ours is known to the register (engines/runtime/activity.py), what other programs took is counted by the
system. The stamps::

    contended   another run, load, conversion, download, set-up or probe of ours overlapped it, of this process or of
                another one on the same data directory
    disturbed   other programs took more than a tenth of the processor (at least a quarter of a core, at most three
                quarters), more than a tenth of a GPU (less what drawing the page takes), or memory was swapped
                at more than 20 MB a second, or the power state changed

No system tells an ordinary program what memory bandwidth others take; other programs' processor and GPU time and
swapping are what can be seen of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from engines.telemetry.devices_seen import DevicesSeen
from engines.telemetry.page_browser import page_processes
from engines.telemetry.processes import CpuTaken, Snapshot, ours, snapshot, taken

CPU_SHARE = 0.10
LEAST_CORES, MOST_CORES = 0.25, 0.75
"""Bounds of what a tenth of the processor means: a browser's odd jobs are no disturbance on a small machine, and one
busy program is one on a large machine."""
PAGE_CORES = 1.5
"""What the browser may take to draw the page; more is another program's work in it."""
SWAP_BYTES_PER_S = 20e6
GPU_SHARE = 0.10
PAGE_GPU_SHARE = 0.25
"""What the browser and the system's compositor may take of a GPU to draw the page; more is other work of theirs."""
COMPOSITORS = ("dwm.exe", "xorg", "xwayland", "gnome-shell", "kwin_wayland", "kwin_x11")
"""Programs that put the windows of all others on the screen."""
_LEAST_CPU_S = 0.05
"""Less than that in a very short run is a rounding error of the system's clock ticks."""


@dataclass(frozen=True)
class OtherLoad:
    """What went on beside a run, in numbers. Shares are of all cores together, 0 to 1."""

    window_s: float
    foreign_cpu_share: float
    """Of programs that are not ours."""
    foreign_cpu_cores: float
    limit_cpu_cores: float
    """Above this the run is disturbed."""
    programs: tuple[str, ...] = ()
    """`chrome 0.42 cores`: who took most, the greediest first."""
    page_cpu_cores: float | None = None
    """Of the browser that draws the page, where it was looked up; not in `foreign_cpu_cores`."""
    foreign_gpu_share: float | None = None
    """None where the system does not tell."""
    swap_bytes_per_s: float | None = None
    power_before: str | None = None
    power_after: str | None = None
    ours: tuple[str, ...] = ()
    """What of ours overlapped it: `load openvino-genai/CPU/int8 + demo`."""
    reasons: tuple[str, ...] = ()
    """Why the run is disturbed, a sentence each; empty when it is not."""


@dataclass(frozen=True)
class Conditions:
    """Under which conditions a run ran."""

    contended: bool
    disturbed: bool
    other_load: OtherLoad

    @property
    def alone(self) -> bool:
        """Only such a run's numbers may stand for its backend."""
        return not self.contended and not self.disturbed


class Overlap(Protocol):
    """What is needed of something that overlapped."""

    @property
    def kind(self) -> str: ...

    @property
    def what(self) -> str: ...


def cpu_limit_cores(cores: int | None = None) -> float:
    """How many cores' worth of time other programs may take before a run counts as disturbed."""
    return min(max(CPU_SHARE * (cores or os.cpu_count() or 1), LEAST_CORES), MOST_CORES)


class Watch:
    """One run's surroundings, from `Watch(…)` to `ended`; each costs a few milliseconds, outside the timed part."""

    def __init__(
        self,
        power_state: Callable[[], str | None],
        others_processes: Callable[[], Iterable[int]] = tuple,
        look: Callable[[], Snapshot] = snapshot,
        page: Callable[[Snapshot], set[int]] = page_processes,
    ):
        """`power_state`: mains or battery, and the power profile, in words; `others_processes`: those of other apps
        on the same data directory."""
        self._power_state, self._others_processes = power_state, others_processes
        self._look, self._page = look, page
        self._power_before = power_state()
        self._roots = set(others_processes())
        self.before = look()
        self.after: Snapshot | None = None

    def ended(self, overlaps: Iterable[Overlap], devices: DevicesSeen | None = None) -> Conditions:
        """The run is over; `overlaps`: what else of ours went on meanwhile."""
        after = self.after = self._look()
        roots = self._roots | set(self._others_processes())
        used = taken(self.before, after, {os.getpid()}, {*ours.pids(), *roots} - {os.getpid()})
        devices = devices or DevicesSeen()
        page_cores, gpu_share = None, devices.foreign_gpu_share()
        over_gpu = gpu_share is not None and gpu_share > GPU_SHARE
        browser = self._page(after) if _over(used) or over_gpu else set()
        if _over(used) and browser:
            used, page_cores = self._without_page(used, browser, roots)
        if over_gpu:
            desktop = {pid for pid, used in after.processes.items() if used.name.lower() in COMPOSITORS}
            gpu_share = devices.foreign_gpu_share(browser | desktop, PAGE_GPU_SHARE)
        power_after = self._power_state()
        return _judge(used, page_cores, gpu_share, devices, overlaps, (self._power_before, power_after))

    def cpu_cores_of(self, pid: int) -> float | None:
        """How many cores a process and its children kept busy on average; None when it cannot be told."""
        if self.after is None or pid not in self.after.processes or pid not in self.before.processes:
            return None
        used = taken(self.before, self.after, (), (pid,))
        return used.ours_s / used.window_s

    def _without_page(
        self, used: CpuTaken, browser: set[int], roots: set[int]
    ) -> tuple[CpuTaken, float | None]:
        """The same, less what drawing the page takes."""
        assert self.after is not None
        page_cores = taken(self.before, self.after, browser).ours_s / used.window_s
        rest = taken(self.before, self.after, {os.getpid(), *browser}, {*ours.pids(), *roots} - {os.getpid()})
        too_much_s = max(0.0, page_cores - PAGE_CORES) * used.window_s
        return (
            CpuTaken(
                rest.window_s, rest.ours_s, rest.foreign_s + too_much_s, rest.programs, rest.swapped_bytes
            ),
            page_cores,
        )


def _over(used: CpuTaken) -> bool:
    return used.foreign_s >= _LEAST_CPU_S and used.foreign_s / used.window_s > cpu_limit_cores()


def _judge(
    used: CpuTaken,
    page_cores: float | None,
    gpu_share: float | None,
    devices: DevicesSeen,
    overlaps: Iterable[Overlap],
    power: tuple[str | None, str | None],
) -> Conditions:
    power_before, power_after = power
    cores, limit = used.foreign_s / used.window_s, cpu_limit_cores()
    swap = devices.swap_bytes_per_s
    if used.swapped_bytes is not None:
        swap = used.swapped_bytes / max(used.window_s, 1.0)
    programs = tuple(
        f"{name} {seconds / used.window_s:.2f} cores"
        for name, seconds in used.programs
        if seconds / used.window_s >= 0.01
    )
    reasons = []
    if _over(used):
        who = f" ({', '.join(programs[:3])})" if programs else ""
        reasons.append(
            f"Other programs kept {cores:.2f} cores busy{who}; up to {limit:.2f} do not count as a disturbance."
        )
    if gpu_share is not None and gpu_share > GPU_SHARE:
        reasons.append(
            f"Other programs kept the GPU busy {gpu_share:.0%} of the time; up to "
            f"{GPU_SHARE:.0%} do not count as a disturbance."
        )
    if swap is not None and swap > SWAP_BYTES_PER_S:
        reasons.append(f"Memory was swapped at {swap / 1e6:.0f} MB/s: it was short.")
    if power_before != power_after:
        reasons.append(
            f"The power state changed from {power_before or 'unknown'} to {power_after or 'unknown'}."
        )
    named = tuple(dict.fromkeys(f"{other.kind} {other.what}" for other in overlaps))
    load = OtherLoad(
        window_s=round(used.window_s, 3),
        foreign_cpu_share=round(cores / (os.cpu_count() or 1), 4),
        foreign_cpu_cores=round(cores, 3),
        limit_cpu_cores=round(limit, 3),
        programs=programs,
        page_cpu_cores=None if page_cores is None else round(page_cores, 3),
        foreign_gpu_share=gpu_share,
        swap_bytes_per_s=None if swap is None else round(swap),
        power_before=power_before,
        power_after=power_after,
        ours=named,
        reasons=tuple(reasons),
    )
    return Conditions(bool(named), bool(reasons), load)
