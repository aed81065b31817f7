"""Run one command as a child that ends with this process, also when this process is killed.

A short guard process stands between us and the command: it holds a pipe from us and ends the command's
whole process tree as soon as the pipe closes, which the operating system does for a killed parent too.
The same pipe is how a running command is cancelled, so there is one way to stop on every platform.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.telemetry.processes import Ours

_POLL_S = 0.2
_TAIL_LINES = 400
_GRACE_S = 10.0


@dataclass(frozen=True)
class CommandResult:
    """How a command ended; `tail` holds its last lines, stdout and stderr as they came."""

    exit_code: int
    tail: tuple[str, ...]
    cancelled: bool = False

    @property
    def ok(self) -> bool:
        return self.exit_code == 0 and not self.cancelled

    @property
    def text(self) -> str:
        return "\n".join(self.tail)


def run(
    command: Sequence[str | Path],
    *,
    cancelled: threading.Event | None = None,
    on_line: Callable[[str], None] = lambda _line: None,
    on_tick: Callable[[], None] = lambda: None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float | None = None,
) -> CommandResult:
    """Run `command` to its end, calling `on_line` per line of output and `on_tick` about every 0.2 s.

    Setting `cancelled` (or `timeout_s` running out) ends the command and everything it started; the result
    then says `cancelled`. Raises OSError when the guard itself cannot be started.
    """
    guard = _start_guard(command, env, cwd)
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read_lines, args=(guard, lines), daemon=True)
    reader.start()
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    stopped = False
    try:
        while True:
            try:
                line = lines.get(timeout=_POLL_S)
            except queue.Empty:
                line = ""
            if line is None:
                break
            if line:
                tail.append(line)
                on_line(line)
            on_tick()
            late = deadline is not None and time.monotonic() > deadline
            if not stopped and (late or (cancelled is not None and cancelled.is_set())):
                stopped = True
                _release(guard)
    finally:
        _release(guard)
        exit_code = _wait(guard)
        _work_of_ours().discard(guard.pid)
    return CommandResult(exit_code, tuple(tail), cancelled=stopped)


def _start_guard(
    command: Sequence[str | Path], env: Mapping[str, str] | None, cwd: Path | None
) -> subprocess.Popen[bytes]:
    # -I keeps this folder, and so our module names, off the guard's import path.
    guard = [sys.executable, "-I", str(Path(__file__).resolve()), *(str(part) for part in command)]
    process = subprocess.Popen(
        guard,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=None if env is None else dict(env),
        cwd=cwd,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    _work_of_ours().add(process.pid)
    return process


def _work_of_ours() -> Ours:
    from engines.telemetry.processes import ours  # not above: the guard itself can import nothing of ours

    return ours


def _read_lines(guard: subprocess.Popen[bytes], lines: queue.Queue[str | None]) -> None:
    assert guard.stdout is not None
    for raw in guard.stdout:
        text = raw.decode("utf-8", "replace").rstrip()
        if text:
            lines.put(text)
    lines.put(None)


def _release(guard: subprocess.Popen[bytes]) -> None:
    """Close our end of the pipe: the guard ends what it runs."""
    if guard.stdin is not None and not guard.stdin.closed:
        with contextlib.suppress(OSError):
            guard.stdin.close()


def _wait(guard: subprocess.Popen[bytes]) -> int:
    try:
        return guard.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        guard.kill()
        return guard.wait()


# --- the guard process ---------------------------------------------------------------------------------------


def _end_tree(child: subprocess.Popen[bytes]) -> None:
    import psutil

    family: list[psutil.Process | subprocess.Popen[bytes]] = [child]
    with contextlib.suppress(psutil.Error):
        family = [*psutil.Process(child.pid).children(recursive=True), child]
    for process in family:
        with contextlib.suppress(psutil.Error, OSError):
            process.kill()
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            os.killpg(child.pid, 9)  # whoever was started since the list was made


def _guard(command: Sequence[str]) -> int:
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=os.name == "posix",
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error}\n")
        return 127

    def end_with_parent() -> None:
        while os.read(0, 4096):
            pass
        _end_tree(child)

    threading.Thread(target=end_with_parent, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    status = _guard(sys.argv[1:])
    sys.stderr.flush()
    # The waiting thread still sits in read(), so leave without the interpreter's tidying up.
    os._exit(status if 0 <= status <= 255 else 1)
