"""Long work in a child process: downloads and conversions.

A child is the only thing that can be stopped at once, leaks nothing into the page's process, and may import the
heavy libraries. It gets one JSON job on stdin and answers with JSON lines; what the libraries print goes to a log
file. The end of its stdin ends the child, so a dead parent leaves none behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from engines.engine import EngineError, ModelError, OutOfMemoryError
from engines.processes.surroundings import without_secrets
from engines.protocol import Progress
from engines.telemetry.processes import ours
from engines.toolkit.private_pipes import take_over_stdio

PROJECT = Path(__file__).resolve().parents[2]
_POLL_S = 0.1
_TERMINATE_S = 3.0

OnProgress = Callable[[Progress], None]


class CancelledError(EngineError):
    """The person stopped it."""

    kind = "cancelled"


def run_job(
    module: str,
    job: Mapping[str, Any],
    log_path: Path,
    on_progress: OnProgress,
    cancelled: threading.Event,
    environment: Mapping[str, str] | None = None,
    *,
    needs_token: bool = False,
) -> dict[str, Any]:
    """Run `python -m module` on one job until it answers; returns its result.

    `needs_token`: the child may use the hub's token, because it downloads; no other gets any secret.

    Raises what the child reported (ModelError, OutOfMemoryError), CancelledError, or ModelError with the exit code
    when the child ended without an answer.
    """
    given = dict(os.environ) if needs_token else without_secrets()
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=PROJECT,
            env={**given, "PYTHONIOENCODING": "utf-8", **(environment or {})},
            creationflags=_background_flags(),
            process_group=0,  # Ctrl+C is for us, who cancel it in order
        )
    ours.add(process.pid)
    assert process.stdin is not None
    lines: queue.Queue[bytes | None] = queue.Queue()
    reader = threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        with contextlib.suppress(OSError):  # it has ended already; Windows does not call that a broken pipe
            process.stdin.write(json.dumps(dict(job)).encode() + b"\n")
            process.stdin.flush()
        return _follow(process, lines, on_progress, cancelled, log_path)
    finally:
        _end(process)
        ours.discard(process.pid)
        reader.join(timeout=_TERMINATE_S)


def _follow(
    process: subprocess.Popen[bytes],
    lines: queue.Queue[bytes | None],
    on_progress: OnProgress,
    cancelled: threading.Event,
    log_path: Path,
) -> dict[str, Any]:
    while True:
        if cancelled.is_set():
            raise CancelledError("Stopped.")
        try:
            line = lines.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        if line is None:
            raise _ended_without_answer(process, log_path)
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if "progress" in message:
            on_progress(Progress(**message["progress"]))
        elif "result" in message:
            result: dict[str, Any] = message["result"]
            return result
        elif "error" in message:
            raise _as_exception(message["error"])


def _as_exception(error: Mapping[str, Any]) -> EngineError:
    classes: dict[str, type[EngineError]] = {"memory": OutOfMemoryError, "cancelled": CancelledError}
    kind = classes.get(str(error.get("kind")), ModelError)
    return kind(error["message"], error.get("remedy"))


def _ended_without_answer(process: subprocess.Popen[bytes], log_path: Path) -> EngineError:
    try:
        code = process.wait(timeout=_TERMINATE_S)
    except subprocess.TimeoutExpired:
        code = None
    if code == -9:
        return OutOfMemoryError(
            f"The process was killed (exit code {code}), which is what the system does when memory runs out.",
            f"Close other programs or choose a smaller model. Log: {log_path}",
        )
    return ModelError(f"The process ended unexpectedly (exit code {code}).", f"Log: {log_path}")


def _read_lines(stream: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    if process.poll() is None:
        try:
            process.wait(timeout=0.3)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(timeout=_TERMINATE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _background_flags() -> int:
    if sys.platform == "win32":
        return subprocess.BELOW_NORMAL_PRIORITY_CLASS | subprocess.CREATE_NO_WINDOW
    return 0


# --- the child's end ---------------------------------------------------------------------------------------


class ChildEnd:
    """What a child module uses: reads the job, reports, and watches for the end of the parent."""

    def __init__(self, on_orphaned: Callable[[], None] = lambda: None):
        self._commands, self._answers = take_over_stdio()
        self._lock = threading.Lock()
        self._on_orphaned = on_orphaned
        if hasattr(os, "nice"):
            os.nice(10)
        self.job: dict[str, Any] = json.loads(self._commands.readline() or b"{}")
        threading.Thread(target=self._watch_parent, daemon=True).start()

    def progress(self, stage: str, text: str, fraction: float | None = None) -> None:
        self._send({"progress": {"stage": stage, "text": text, "fraction": fraction}})

    def result(self, value: Mapping[str, Any]) -> None:
        self._send({"result": dict(value)})

    def error(self, message: str, remedy: str | None = None, kind: str = "model") -> None:
        self._send({"error": {"message": message, "remedy": remedy, "kind": kind}})

    def _send(self, message: dict) -> None:
        with self._lock:
            try:
                self._answers.write(json.dumps(message).encode() + b"\n")
            except OSError:
                os._exit(1)

    def _watch_parent(self) -> None:
        self._commands.read()
        try:
            self._on_orphaned()
        finally:
            os._exit(1)
