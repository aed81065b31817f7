"""Processor time by process: what is ours, and what other programs took meanwhile.

Two snapshots, one when a run begins and one when it ends, are enough: the system counts for us. Ours is what this app
started for its work (`ours`), this process itself, and what other apps on the same data directory tell of. A snapshot
costs one to three milliseconds and is taken outside the timed part of a run.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_KERNEL_THREADS_OF_LINUX = 2
"""Process id of kthreadd, the parent of every kernel thread."""
_SYSTEM_OF_WINDOWS = (0, 4)
"""The idle process and the kernel's own."""


@dataclass(frozen=True)
class Used:
    """One process and the processor time it has used."""

    pid: int
    parent: int
    name: str
    started: float
    """Tells two processes apart that have had one id: in the system's own unit."""
    cpu_s: float
    """Its own, and that of its children that have ended where the system adds it (Linux)."""
    rss_bytes: int | None = None
    own_s: float = 0.0
    """Without that of its children."""


@dataclass(frozen=True)
class Snapshot:
    """Processor time of everything at one moment."""

    at_s: float
    """`time.monotonic()`."""
    busy_s: float
    """All cores together, since the system's start."""
    processes: Mapping[int, Used]
    swapped_bytes: int | None = None
    """Swapped in and out since the system's start."""

    def family(self, roots: Iterable[int]) -> set[int]:
        """These processes and everything they have started, directly or not."""
        children: dict[int, list[Used]] = {}
        for used in self.processes.values():
            children.setdefault(used.parent, []).append(used)
        found: set[int] = set()
        waiting = [pid for pid in roots if pid in self.processes]
        while waiting:
            pid = waiting.pop()
            if pid in found:
                continue
            found.add(pid)
            born = self.processes[pid].started
            # An id is used again: a child is never older than its parent.
            waiting += [child.pid for child in children.get(pid, ()) if child.started >= born]
        return found


@dataclass(frozen=True)
class CpuTaken:
    """Processor seconds between two snapshots."""

    window_s: float
    ours_s: float
    foreign_s: float
    """Of programs that are not ours; what the kernel did for everybody is neither."""
    programs: tuple[tuple[str, float], ...]
    """Name -> seconds of the foreign programs that took most, the greediest first."""
    swapped_bytes: int | None = None


class Ours:
    """The processes this app has started for its work; whoever starts one says so. Thread-safe."""

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._lock = threading.Lock()

    def add(self, pid: int) -> None:
        with self._lock:
            self._pids.add(pid)

    def discard(self, pid: int) -> None:
        """It has ended and been waited for: from now on another process may have its id."""
        with self._lock:
            self._pids.discard(pid)

    def pids(self) -> frozenset[int]:
        """Them, and this process itself."""
        with self._lock:
            return frozenset((*self._pids, os.getpid()))


ours = Ours()
"""Of this process. What else it may have started (a browser to show the page) is not work of ours."""


def snapshot() -> Snapshot:
    """The processor time of every process that can be seen, now."""
    return Snapshot(time.monotonic(), _busy_s(), _list_processes(), _swapped_bytes())


def taken(
    before: Snapshot, after: Snapshot, our_roots: Iterable[int], started_by_us: Iterable[int] = ()
) -> CpuTaken:
    """What ours and what others took between two snapshots.

    `our_roots`: processes of ours, their children are not; `started_by_us`: processes of ours with all theirs.
    """
    window_s = max(after.at_s - before.at_s, 1e-6)
    own = {pid for pid in our_roots if pid in after.processes or pid in before.processes}
    own |= after.family(started_by_us) | before.family(started_by_us)
    kernel = _kernels_own(before) | _kernels_own(after)
    grown = _all_grown(before, after)
    ours_s = sum(seconds for pid, seconds in grown.items() if pid in own)
    kernel_s = sum(seconds for pid, seconds in grown.items() if pid in kernel and pid not in own)
    others = {pid: seconds for pid, seconds in grown.items() if pid not in own and pid not in kernel}
    listed_s = sum(others.values())
    # The system's own count also has what cannot be listed (another container, a protected process), but it is
    # made of ticks: up to two of them per core belong to nobody.
    cores = os.cpu_count() or 1
    counted_s = after.busy_s - before.busy_s - ours_s - kernel_s - 2 * cores / TICKS_A_SECOND
    most_s = max(window_s * cores - ours_s, 0.0)  # nobody takes more than there is
    return CpuTaken(
        window_s,
        max(ours_s, 0.0),
        min(max(listed_s, counted_s, 0.0), most_s),
        _by_name(before, after, others),
        _swapped(before, after),
    )


def _all_grown(before: Snapshot, after: Snapshot) -> dict[int, float]:
    """Processor time that each process has used in between.

    Where the system adds an ended process's whole time to the one that waited for it, what it had used before comes
    off there again, whoever it was: else an app whose worker ends would seem to have worked all that time just now.
    """
    grown = {}
    for pid, now in after.processes.items():
        old = before.processes.get(pid)
        grown[pid] = now.cpu_s - (old.cpu_s if old is not None and _is(old, now) else 0.0)
    for old in before.processes.values():
        if not _is(old, after.processes.get(old.pid)) and (heir := _heir(before, after, old)) is not None:
            grown[heir] -= old.cpu_s
    return {pid: max(0.0, seconds) for pid, seconds in grown.items()}


def _is(old: Used, now: Used | None) -> bool:
    """Whether it is the same process still, and none that has got its id."""
    return now is not None and now.started == old.started


def _heir(before: Snapshot, after: Snapshot, ended: Used) -> int | None:
    """The ancestor that still runs and has got an ended process's time, be it through others that ended too."""
    if sys.platform != "linux":
        return None
    parent = before.processes.get(ended.parent)
    if parent is None:
        return None
    return parent.pid if _is(parent, after.processes.get(parent.pid)) else _heir(before, after, parent)


def _by_name(
    before: Snapshot, after: Snapshot, pids: Iterable[int], most: int = 5
) -> tuple[tuple[str, float], ...]:
    """Who took most: by each process's own time, since a child's goes to a parent of another name when it ends."""
    summed: dict[str, float] = {}
    for pid in pids:
        now, old = after.processes[pid], before.processes.get(pid)
        earlier_s = old.own_s if old is not None and _is(old, now) else 0.0
        summed[now.name] = summed.get(now.name, 0.0) + max(0.0, now.own_s - earlier_s)
    greedy = sorted(summed.items(), key=lambda pair: -pair[1])[:most]
    return tuple((name, round(used_s, 3)) for name, used_s in greedy if used_s > 0)


def _swapped(before: Snapshot, after: Snapshot) -> int | None:
    if before.swapped_bytes is None or after.swapped_bytes is None:
        return None
    return max(0, after.swapped_bytes - before.swapped_bytes)


def _kernels_own(taken_at: Snapshot) -> set[int]:
    if sys.platform == "win32":
        return {pid for pid in _SYSTEM_OF_WINDOWS if pid in taken_at.processes}
    if sys.platform == "linux":
        found = taken_at.processes.get(_KERNEL_THREADS_OF_LINUX)
        if found is None or found.name != "kthreadd":  # in a container it is an ordinary process
            return set()
        return taken_at.family((_KERNEL_THREADS_OF_LINUX,))
    return set()


def _busy_s() -> float:
    """Processor time used by everything, all cores together; waiting and what a hypervisor took away left out."""
    times = psutil.cpu_times()
    known = ("user", "nice", "system", "irq", "softirq", "interrupt", "dpc")
    # On Windows interrupt and DPC time are inside system already.
    names = known[:5] if sys.platform != "win32" else ("user", "system")
    return float(sum(getattr(times, name, 0.0) for name in names))


def _swapped_bytes() -> int | None:
    if sys.platform != "linux":
        return (
            None  # psutil has no such counter elsewhere; Windows' is a performance counter (windows_counters)
        )
    try:
        found = psutil.swap_memory()
    except (OSError, RuntimeError):
        return None
    return int(found.sin + found.sout)


def _list_processes() -> dict[int, Used]:
    if sys.platform == "linux":
        return dict(_linux_processes(Path("/proc")))
    if sys.platform == "win32":
        from engines.telemetry.windows_processes import list_processes

        return {
            pid: Used(pid, parent, name, started, cpu_s, None, cpu_s)
            for pid, parent, name, started, cpu_s in list_processes()
        }
    return _own_processes()


def list_some(pids: Iterable[int]) -> dict[int, Used]:
    """Some processes only, with their memory; those that have ended are left out."""
    found = {}
    for pid in pids:
        used = _linux_process(Path("/proc"), str(pid)) if sys.platform == "linux" else _process(pid)
        if used is not None:
            found[pid] = used
    return found


def _linux_process(proc: Path, name: str) -> Used | None:
    try:
        with open(f"{proc}/{name}/stat", "rb") as stat:  # noqa: PTH123 - hundreds of them, twice a run
            return parse_stat(stat.read())
    except OSError:
        return None  # it has ended meanwhile


def _linux_processes(proc: Path) -> Iterable[tuple[int, Used]]:
    with os.scandir(proc) as entries:
        names = [entry.name for entry in entries if entry.name.isdigit()]
    for name in names:
        found = _linux_process(proc, name)
        if found is not None:
            yield found.pid, found


def parse_stat(text: bytes) -> Used | None:
    """One line of `/proc/PID/stat`, as proc_pid_stat(5) describes it; None when it is none.

    The name stands in parentheses and may itself hold parentheses and spaces.
    """
    start, end = text.find(b"("), text.rfind(b")")
    fields = text[end + 1 :].split()
    if start < 0 or end < start or len(fields) < 22:
        return None
    try:
        own, ended = (
            sum(int(fields[index]) for index in pair) for pair in ((11, 12), (13, 14))
        )  # u, s, cu, cs
        return Used(
            int(text[:start]),
            int(fields[1]),
            text[start + 1 : end].decode("utf-8", "replace"),
            float(fields[19]),
            (own + ended) / TICKS_A_SECOND,
            int(fields[21]) * _PAGE_BYTES,
            own / TICKS_A_SECOND,
        )
    except ValueError:
        return None


def _own_processes() -> dict[int, Used]:
    """This process and what it has started, where the others may not be read."""
    me = psutil.Process()
    pids = [me.pid, *(child.pid for child in me.children(recursive=True))]
    return {pid: used for pid in pids if (used := _process(pid)) is not None}


def _process(pid: int) -> Used | None:
    """One process through psutil; None when it has ended or may not be looked at."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            own_s = times.user + times.system
            rss, started = process.memory_info().rss, process.create_time()
            return Used(pid, process.ppid(), process.name(), started, own_s, rss, own_s)
    except psutil.Error:
        return None
