"""What apps on one data directory tell each other: what each is doing, and which of them has the machine to itself.

One small file per app, to which it only ever appends a line when something begins or ends, so that a reader never
finds half of the truth and no lock is held. The files of apps that have died are known by their process and ignored;
after an hour, when no run can have overlapped them any more, whoever starts next removes them. Reading costs a look
at the folder; what has been read is not read again. Trouble with the folder costs the neighbours' knowledge of each
other and nothing else.

A measurement says that it wants the machine, looks whether anybody is doing something, and only then says that it has
it. Whoever begins something says so first and looks for a measurement afterwards. Both write before they look, so one
of two that come at the same moment always sees the other, and gives way.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import psutil
from filelock import FileLock, Timeout

WANTS, HAS, FREE = "wants", "has", "free"
_SUFFIX = ".jsonl"
_NEW_FILE_BYTES = 1_000_000
_CLOCK_TOLERANCE_S = 3.0
"""psutil derives start times from the boot time, which moves a little when the system clock is set."""
_POLL_S = 0.02


@dataclass
class Entry:
    """One thing that another app does or did; readings of the system's clock."""

    kind: str
    what: str
    began: float
    ended: float | None = None


@dataclass
class _Neighbour:
    """What is known of one app from its file."""

    path: Path
    pid: int = 0
    started: float = 0.0
    read: int = 0
    """Bytes of the file that have been taken in."""
    entries: dict[int, Entry] = field(default_factory=dict)
    hold: str = FREE
    hold_what: str = ""
    processes: tuple[int, ...] = ()
    seen_alive: float = 0.0
    dead: bool = False


class Neighbours:
    """This app's place among those on a data directory. Thread-safe."""

    def __init__(self, folder: Path, kept_s: float, our_processes: Callable[[], Iterable[int]]):
        """`kept_s`: how long what has ended matters; `our_processes`: what this app has started for its work."""
        self._folder, self._kept_s, self._our_processes = folder, kept_s, our_processes
        self._lock = threading.RLock()
        self._file: BinaryIO | None = None
        self._names: list[str] = []
        """Files of this app, the newest last."""
        self._known: dict[str, _Neighbour] = {}
        self._open = 0
        self._closed = False
        self._turn: FileLock | None = None

    def close(self) -> None:
        """Say nothing more; the file stays for those whose runs it overlapped."""
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.close()
                self._file = None

    # --- telling ---------------------------------------------------------------------------------------

    def began(self, number: int, kind: str, what: str) -> None:
        with self._lock:
            self._open += 1
        processes = sorted(self._our_processes())
        self._write({"begin": number, "kind": kind, "what": what, "at": time.time(), "processes": processes})

    def ended(self, number: int) -> None:
        with self._lock:
            self._open -= 1
        self._write({"end": number, "at": time.time()})

    def took_back(self, number: int) -> None:
        """What was said to begin did not: it gives way."""
        with self._lock:
            self._open -= 1
        self._write({"never": number})

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._closed:
                return
            if self._file is None or (self._open <= 1 and self._file.tell() > _NEW_FILE_BYTES):
                self._file = self._start_file()
            self._file.write(json.dumps(line).encode("ascii") + b"\n")

    def _start_file(self) -> BinaryIO:
        if self._file is not None:
            self._file.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_old()
        name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}{_SUFFIX}"
        head = {"app": os.getpid(), "started": psutil.Process().create_time()}
        unnamed = self._folder / f"{name}.new"  # a file without its first line would be nobody's
        unnamed.write_bytes(json.dumps(head).encode("ascii") + b"\n")
        unnamed.replace(self._folder / name)
        self._names.append(name)
        return (self._folder / name).open("ab", buffering=0)

    def _remove_old(self) -> None:
        """Files that can matter to nobody: of dead apps, or this app's own but last."""
        for name in self._names[:-1]:
            with contextlib.suppress(OSError):
                (self._folder / name).unlink()
        self._look()
        for neighbour in tuple(self._known.values()):
            with contextlib.suppress(OSError):
                if neighbour.dead and time.time() - neighbour.path.stat().st_mtime > self._kept_s:
                    neighbour.path.unlink()

    # --- the machine to oneself ------------------------------------------------------------------------

    def try_to_hold(self, what: str) -> str | None:
        """Take the machine; returns what stands in the way, or None when it is taken."""
        if not self._take_turn():
            return "another measurement"
        self._write({"hold": WANTS, "what": what})
        busy = self.doing_now()
        if busy:
            self.release()
            return busy[0].what
        self._write({"hold": HAS, "what": what})
        return None

    def release(self) -> None:
        self._write({"hold": FREE})
        with self._lock:
            if self._turn is not None:
                self._turn.release()
                self._turn = None

    def _take_turn(self) -> bool:
        """Measurements of all apps take turns; the system lets go of a dead one's lock."""
        with self._lock:
            if self._turn is not None:
                return True
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                lock = FileLock(self._folder / "measuring.lock", timeout=0, thread_local=False)
                lock.acquire()
            except Timeout:
                return False
            except OSError:
                return True  # no folder, no neighbours
            self._turn = lock
            return True

    def holder(self) -> str | None:
        """What another app has the machine for; None when nobody has. Waits for one that is just about to say."""
        while True:
            with self._lock:
                alive = [neighbour for neighbour in self._look() if not neighbour.dead]
            states = {neighbour.hold: neighbour.hold_what for neighbour in alive}
            if HAS in states:
                return states[HAS]
            if WANTS not in states:
                return None
            time.sleep(_POLL_S)

    # --- asking ----------------------------------------------------------------------------------------

    def doing_now(self) -> tuple[Entry, ...]:
        """What other apps are doing."""
        with self._lock:
            return tuple(
                entry
                for neighbour in self._look()
                if not neighbour.dead
                for entry in neighbour.entries.values()
                if entry.ended is None
            )

    def overlapping(self, since: float, until: float) -> tuple[Entry, ...]:
        """What other apps did at any moment between two readings of the system's clock."""
        with self._lock:
            return tuple(
                entry
                for neighbour in self._look()
                for entry in neighbour.entries.values()
                if entry.began < until and _end_of(entry, neighbour) > since
            )

    def processes(self) -> tuple[int, ...]:
        """The other apps, and what they have started for their work."""
        with self._lock:
            return tuple(
                pid
                for neighbour in self._look()
                if not neighbour.dead
                for pid in (neighbour.pid, *neighbour.processes)
                if pid != os.getpid()
            )

    def _look(self) -> list[_Neighbour]:
        """Take in what is new; the caller holds the lock."""
        try:
            with os.scandir(self._folder) as found:
                names = {entry.name for entry in found if entry.name.endswith(_SUFFIX)}
        except OSError:
            return []
        for name in names - set(self._names):
            neighbour = self._known.setdefault(name, _Neighbour(self._folder / name))
            _take_in(neighbour)
        self._known = {name: known for name, known in self._known.items() if name in names}
        now = time.time()
        for neighbour in self._known.values():
            if not neighbour.dead:
                neighbour.dead = not _is_alive(neighbour)
                neighbour.seen_alive = neighbour.seen_alive if neighbour.dead else now
            _forget_old(neighbour, now - self._kept_s)
        return list(self._known.values())


def _end_of(entry: Entry, neighbour: _Neighbour) -> float:
    """An entry that never ended goes on, or ended with its app, which was last seen at a known moment."""
    if entry.ended is not None:
        return entry.ended
    return max(entry.began, neighbour.seen_alive) if neighbour.dead else float("inf")


def _take_in(neighbour: _Neighbour) -> None:
    with contextlib.suppress(OSError):
        if neighbour.path.stat().st_size <= neighbour.read:
            return
        with neighbour.path.open("rb") as file:
            file.seek(neighbour.read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        neighbour.read += len(whole)
        for line in _lines(whole):
            _apply(neighbour, line)


def _lines(text: bytes) -> Iterator[dict[str, Any]]:
    for raw in text.splitlines():
        try:
            line = json.loads(raw)
        except ValueError:
            continue  # not ours; a disk that was full
        if isinstance(line, dict):
            yield line


def _apply(neighbour: _Neighbour, line: dict[str, Any]) -> None:
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if "app" in line:
            neighbour.pid, neighbour.started = int(line["app"]), float(line["started"])
            neighbour.dead = False  # it was nobody's before this line
        elif "begin" in line:
            neighbour.entries[line["begin"]] = Entry(str(line["kind"]), str(line["what"]), float(line["at"]))
            neighbour.processes = tuple(int(pid) for pid in line.get("processes", ()))
        elif "end" in line:
            neighbour.entries[line["end"]].ended = float(line["at"])
        elif "never" in line:
            del neighbour.entries[line["never"]]
        elif "hold" in line:
            neighbour.hold, neighbour.hold_what = str(line["hold"]), str(line.get("what", ""))


def _is_alive(neighbour: _Neighbour) -> bool:
    """Its process runs, and is the one that wrote the file: ids are used again."""
    if not neighbour.pid:
        return False
    try:
        started = psutil.Process(neighbour.pid).create_time()
        return abs(started - neighbour.started) < _CLOCK_TOLERANCE_S
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _forget_old(neighbour: _Neighbour, before: float) -> None:
    neighbour.entries = {
        number: entry
        for number, entry in neighbour.entries.items()
        if entry.ended is None or entry.ended > before
    }
