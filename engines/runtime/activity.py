"""Activity: what of ours uses the machine now and did lately, and the right to have it to oneself.

Every generation, load, conversion, download, set-up and probe goes through `Activity.doing`, so that a number can say
afterwards what ran beside it. A measurement takes the machine with `Activity.exclusive`: it waits until everything
else has ended and everything else waits until it has. One lock guards the records; nothing slow is done under it.
Apps on one data directory tell each other (neighbours.py), so both hold across processes, too.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from engines.runtime.neighbours import Neighbours
from engines.telemetry.processes import ours

GENERATE, LOAD, CONVERT, DOWNLOAD, SET_UP, PROBE, MEASURE = (
    *("generate", "load", "convert", "download", "set-up", "probe", "measure"),
)
KEPT_S = 3600.0
"""How long what has ended is remembered; no run that asks is longer."""
_KEPT = 4000
_POLL_S = 0.1


class GaveUpError(Exception):
    """The caller was cancelled while it waited for the machine."""


@dataclass(frozen=True)
class Doing:
    """One thing that uses, or used, the machine."""

    number: int
    kind: str
    """`generate`, `load`, `convert`, `download`, `set-up`, `probe` or `measure`."""
    what: str
    """For people: the target or the model."""
    started_s: float
    """Readings of the activity's monotonic clock."""
    ended_s: float | None = None

    def overlaps(self, since_s: float, until_s: float) -> bool:
        return self.started_s < until_s and (self.ended_s is None or self.ended_s > since_s)


def _go_on() -> bool:
    return False


def _say_nothing(_holder: str) -> None:
    pass


class Exclusive:
    """The machine is one measurement's. Threads that work for it say so with `in_this_thread`."""

    def __init__(self, what: str):
        self.what = what
        self.threads = {threading.get_ident()}

    @contextlib.contextmanager
    def in_this_thread(self) -> Iterator[None]:
        """Let this thread load and generate although the machine is taken: it works for the holder."""
        me = threading.get_ident()
        self.threads.add(me)
        try:
            yield
        finally:
            self.threads.discard(me)


class Activity:
    """The register of one process, and what it knows of its neighbours. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, shared: Path | None = None):
        """`shared`: the folder in which apps on one data directory tell each other; None: this one is alone."""
        self.clock = clock
        self._neighbours = Neighbours(shared, KEPT_S, ours.pids) if shared else None
        self._changed = threading.Condition()
        """Its lock guards everything below; it is never held over I/O."""
        self._numbers = 0
        self._now: dict[int, tuple[Doing, int]] = {}
        """Number -> what is going on, and the thread that does it."""
        self._past: deque[Doing] = deque(maxlen=_KEPT)
        self._holder: Exclusive | None = None

    @contextlib.contextmanager
    def doing(
        self,
        kind: str,
        what: str,
        *,
        cancelled: Callable[[], bool] = _go_on,
        on_wait: Callable[[str], None] = _say_nothing,
    ) -> Iterator[Doing]:
        """Enter what begins now; waits first while a measurement has the machine.

        `on_wait` is told, again and again, for what the machine is taken. Raises GaveUpError once `cancelled()`.
        What is part of something that this thread does already never waits.
        """
        me = threading.get_ident()
        entry: Doing | None = None
        while entry is None:
            with self._changed:
                holder = self._holder
                inside = any(thread == me for _, thread in self._now.values())
                ours_to_take = holder is None or me in holder.threads or inside
                if ours_to_take:
                    entry = self._enter(kind, what, me)
                else:
                    self._changed.wait(_POLL_S)
            taken_for = holder.what if holder is not None else ""
            if entry is not None:
                elsewhere = self._announce(entry, gives_way=holder is None and not inside)
                if elsewhere is None:
                    break
                entry, taken_for = None, elsewhere
                time.sleep(_POLL_S)
            if cancelled():
                raise GaveUpError(f"Stopped while waiting for: {taken_for}")
            on_wait(taken_for)
        assert entry is not None
        try:
            yield entry
        finally:
            if self._neighbours is not None:
                self._neighbours.ended(entry.number)
            with self._changed:
                self._leave(entry)

    def _announce(self, entry: Doing, *, gives_way: bool) -> str | None:
        """Tell the neighbours; where one has the machine, take the entry back and return what it has it for."""
        if self._neighbours is None:
            return None
        self._neighbours.began(entry.number, entry.kind, entry.what)
        holder = self._neighbours.holder() if gives_way else None
        if holder is not None:
            self._neighbours.took_back(entry.number)
            with self._changed:
                self._now.pop(entry.number, None)
                self._changed.notify_all()
        return holder

    @contextlib.contextmanager
    def exclusive(
        self,
        what: str,
        *,
        cancelled: Callable[[], bool] = _go_on,
        on_wait: Callable[[str], None] = _say_nothing,
    ) -> Iterator[Exclusive]:
        """Have the machine: wait until nothing else goes on, then keep everything new waiting.

        What is new while this waits still goes first: it may be a part of what is going on. `on_wait` is told what
        that is. Raises GaveUpError once `cancelled()`; several measurements
        take turns.
        """
        mine = Exclusive(what)
        entry: Doing | None = None
        while entry is None:
            with self._changed:
                if self._holder is None and not self._now:
                    self._holder = mine
                    entry = self._enter(MEASURE, what, threading.get_ident())
                    waits_for = ""
                else:
                    waits_for = next(doing.what for doing, _ in self._now.values())
                    self._changed.wait(_POLL_S)
            if entry is not None:
                in_the_way = self._neighbours.try_to_hold(what) if self._neighbours is not None else None
                if in_the_way is None:
                    break
                self._let_go(entry)
                entry, waits_for = None, in_the_way
                time.sleep(_POLL_S)
            if cancelled():
                raise GaveUpError(f"Stopped while waiting for: {waits_for}")
            on_wait(waits_for)
        assert entry is not None
        try:
            yield mine
        finally:
            if self._neighbours is not None:
                self._neighbours.release()
            with self._changed:
                self._holder = None
                self._leave(entry)

    def _let_go(self, entry: Doing) -> None:
        """The measurement cannot have the machine yet: what is new here goes first."""
        with self._changed:
            self._holder = None
            self._now.pop(entry.number, None)
            self._changed.notify_all()

    def now(self) -> tuple[Doing, ...]:
        """What is going on, in the order in which it began."""
        with self._changed:
            return tuple(doing for doing, _ in self._now.values())

    def overlapping(
        self, since_s: float, until_s: float, *, besides: Doing | None = None
    ) -> tuple[Doing, ...]:
        """What of ours went on at any moment between two readings of the clock; `besides` itself left out.

        A measurement that holds the machine is not counted: what runs then runs for it.
        """
        with self._changed:
            known = (*self._past, *(doing for doing, _ in self._now.values()))
        own = None if besides is None else besides.number
        here = tuple(
            doing
            for doing in known
            if doing.number != own and doing.kind != MEASURE and doing.overlaps(since_s, until_s)
        )
        return (*here, *self._elsewhere(since_s, until_s))

    def _elsewhere(self, since_s: float, until_s: float) -> tuple[Doing, ...]:
        """The same of the other apps, whose moments are told by the system's clock."""
        if self._neighbours is None or self._holder is not None:
            return ()  # while this app has the machine, the others enter only to see that and give way
        ahead_s = time.time() - self.clock()
        return tuple(
            Doing(
                0,
                entry.kind,
                f"{entry.what} in another process",
                entry.began - ahead_s,
                None if entry.ended is None else entry.ended - ahead_s,
            )
            for entry in self._neighbours.overlapping(since_s + ahead_s, until_s + ahead_s)
        )

    def processes_elsewhere(self) -> tuple[int, ...]:
        """Process ids of the other apps on the same data directory, and of what they have started for their work."""
        return self._neighbours.processes() if self._neighbours is not None else ()

    def close(self) -> None:
        """Tell the neighbours nothing more."""
        if self._neighbours is not None:
            self._neighbours.close()

    def _enter(self, kind: str, what: str, thread: int) -> Doing:
        self._numbers += 1
        doing = Doing(self._numbers, kind, what, self.clock())
        self._now[doing.number] = (doing, thread)
        return doing

    def _leave(self, doing: Doing) -> None:
        self._now.pop(doing.number, None)
        now_s = self.clock()
        self._past.append(replace(doing, ended_s=now_s))
        while self._past and (self._past[0].ended_s or now_s) < now_s - KEPT_S:
            self._past.popleft()
        self._changed.notify_all()
