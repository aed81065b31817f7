"""The parent's end of one worker: starts it, talks to it, notices when it dies, ends it.

A reader thread hands every event straight to the listener, so nothing but a parsed line lies between a token
and the page. A writer thread hands over the commands: a worker that does not read (stopped, or stuck in native code)
then holds up nobody but itself. stderr goes to a log file of the worker's own, whose tail explains a crash.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from engines.processes.surroundings import without_secrets
from engines.protocol import (
    PROTOCOL_VERSION,
    Command,
    Event,
    Failed,
    ProtocolError,
    Ready,
    Shutdown,
    decode,
    encode,
)
from engines.telemetry.processes import ours

log = logging.getLogger(__name__)

PROJECT_ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60.0
GRACE_S = 3.0
"""How long a worker may take to end by itself before it is terminated, then killed."""
LOG_LIMIT_BYTES = 1_000_000
LOG_TAIL_LINES = 40
_QUIET_ENVIRONMENT = {
    "PYTHONUTF8": "1",
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",  # a worker loads what is on disk; downloads are the parent's business
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}

Listener = Callable[[Event], None]


def _ignore(_event: Event) -> None:
    pass


class WorkerProcess:
    """One child process. Thread-safe; the listener is called on the reader thread and must return quickly.

    After the process has ended, for whatever reason, the listener gets one last `Failed("crashed", …)` unless
    `stop` was called first. Whoever waits for an event must wait on `ended` too: nothing more comes after that.
    A listener that raises loses that one event; the trouble is logged and the reading goes on.
    """

    def __init__(
        self,
        interpreter: str | Path,
        log_path: Path,
        *,
        working_dir: Path | None = None,
    ):
        self.log_path = log_path
        self._interpreter = str(interpreter)
        self._working_dir = working_dir
        self._listener: Listener = _ignore
        self._outbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._told_of: set[type[Exception]] = set()
        self._stopping = False
        self._ready = threading.Event()
        self.ended = threading.Event()
        """Set when the process is gone and all it said, its crash included, has reached the listener."""
        self._popen: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._problem: Failed | None = None
        self.crash: Failed | None = None
        """How it died, if it did and was not told to."""

    @property
    def pid(self) -> int | None:
        """What it says itself once it has answered: the python.exe of a virtual environment on Windows only starts
        the interpreter, and it is the interpreter that takes memory and works on a GPU."""
        return self._pid

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._popen.poll() if self._popen else None

    def start(self, listener: Listener, timeout_s: float = START_TIMEOUT_S) -> Failed | None:
        """Start the process and wait until it answers; returns what went wrong, or None."""
        self._listener = listener
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        _rotate(self.log_path)
        if self._working_dir:
            self._working_dir.mkdir(parents=True, exist_ok=True)
        try:
            with self.log_path.open("ab") as log:
                self._popen = subprocess.Popen(
                    [self._interpreter, "-m", "engines.worker", repr(time.time())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=self._working_dir or PROJECT_ROOT,
                    env=self._environment(),
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                    process_group=0,  # Ctrl+C is for us, who end it in order; one that starts would die of it
                )
        except OSError as error:
            return Failed("error", f"The worker could not be started with {self._interpreter}: {error}")
        self._pid = self._popen.pid
        ours.add(self._pid)
        for work in (self._read, self._write):
            threading.Thread(target=work, args=(self._popen,), name=f"worker-{self.pid}", daemon=True).start()
        if self._stopping:  # told to stop before there was a process
            self.stop()
            return Failed("cancelled", "The worker was ended before it had started.")
        if not self._ready.wait(timeout_s):
            self.stop(grace_s=0)
            return Failed(
                "hung", f"The worker did not answer within {timeout_s:.0f} s.", details=self.log_tail()
            )
        return self._problem

    def _environment(self) -> dict[str, str]:
        return {**without_secrets(), **_QUIET_ENVIRONMENT, "PYTHONPATH": str(PROJECT_ROOT)}

    def send(self, command: Command) -> bool:
        """Hand over a command, without waiting for the worker to take it; False when the worker is gone."""
        if not self.alive or self.ended.is_set():
            return False
        self._outbox.put(command)
        return True

    def _write(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError, ValueError), process.stdin:  # closing tells the worker to end
            while (command := self._outbox.get()) is not None:
                process.stdin.write(encode(command))
                process.stdin.flush()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        try:
            with process.stdout:
                for line in _lines(process.stdout):
                    self._take(line)
                process.wait()
        finally:
            for pid in {process.pid, self._pid or process.pid}:
                ours.discard(pid)
        self._outbox.put(None)
        if not self._stopping:
            self.crash = self._crash_report(process.returncode)
            if not self._ready.is_set():
                self._problem = self.crash
            else:
                self._tell(self.crash)
        self.ended.set()
        self._ready.set()

    def _take(self, line: bytes) -> None:
        try:
            event = decode(line)
        except ProtocolError:
            return  # something printed before the worker took over its stdio
        if isinstance(event, Ready):
            self._greet(event)
        elif isinstance(event, Event):
            self._tell(event)

    def _tell(self, event: Event) -> None:
        try:
            self._listener(event)
        except Exception as error:
            if type(error) not in self._told_of:  # not once per token
                self._told_of.add(type(error))
                log.exception("a listener of worker %s failed on %s", self.pid, type(event).__name__)

    def _greet(self, ready: Ready) -> None:
        self._pid = ready.pid
        ours.add(ready.pid)
        if ready.protocol_version != PROTOCOL_VERSION:
            self._problem = Failed(
                "error",
                f"The worker speaks protocol {ready.protocol_version}, this app {PROTOCOL_VERSION}.",
                "Run the set-up of its environment again.",
            )
        self._ready.set()

    def _crash_report(self, code: int) -> Failed:
        return Failed(
            "crashed",
            f"The worker process ended unexpectedly ({describe_exit(code)}).",
            "Send the prompt again to start it afresh; the log tells more.",
            details=self.log_tail(),
            exit_code=code,
        )

    def stop(self, grace_s: float = GRACE_S) -> None:
        """End the process: ask, then terminate, then kill. Returns when it is gone."""
        self._stopping = True
        process = self._popen
        if process is None:
            return
        self._outbox.put(Shutdown())
        self._outbox.put(None)
        for patience_s, next_step in ((grace_s, process.terminate), (grace_s, process.kill)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)
                break
            with contextlib.suppress(OSError):
                next_step()
        process.wait()
        self.has_said_all()

    def has_said_all(self) -> bool:
        """Whether nothing more can come from it. Waits a moment for the last words of one that has just died."""
        if not self.ended.is_set() and not self.alive:
            self.ended.wait(GRACE_S)  # not for ever: a child of its own may hold the pipe open
        return not self.alive

    def rss_bytes(self) -> int | None:
        """Resident set size now; None when the process is gone."""
        import psutil

        try:
            return psutil.Process(self.pid).memory_info().rss if self.alive else None
        except psutil.Error:
            return None

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines of the worker's log."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - 64_000))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines until the other end is closed, or the pipe breaks."""
    with contextlib.suppress(OSError, ValueError):
        yield from iter(stream.readline, b"")


def describe_exit(code: int) -> str:
    """`exit code 3`, `killed by signal 9 (SIGKILL)`, `exit code 0xC0000005`."""
    if code < 0:
        import signal

        name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        return f"killed by signal {-code}, {name}"
    return f"exit code {code:#010x}" if code > 0xFFFF else f"exit code {code}"


def _rotate(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.stat().st_size > LOG_LIMIT_BYTES:
            path.replace(path.with_suffix(path.suffix + ".1"))
