"""Isolated Python environments for libraries that cannot share one with the rest.

An environment is a name, a pinned requirements file and an interpreter to build on. It is created on
demand under the data directory, in a folder keyed by everything that decides its content. Virtual
environments cannot be moved, so it is built in place and a marker file is written last: a folder without
its marker is rubbish from an interrupted set-up and is removed by the next one.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from engines.engine import OnProgress, UnavailableError
from engines.environments.build import Build
from engines.environments.folders import discard, read_marker, venv_python, write_marker
from engines.environments.interpreters import Interpreter, find_interpreter
from engines.environments.spec import (
    ENVIRONMENTS,
    MAIN,
    EnvironmentSpec,
    EnvironmentStatus,
    SetUpCancelledError,
    SetUpError,
    environment_key,
    machine_fingerprint,
    requirements_sha256,
)
from engines.processes.locks import wait_for_lock
from engines.protocol import Progress
from engines.runtime.activity import SET_UP, Activity, GaveUpError

_STAGE = "set-up"
LOOK_AGAIN_S = 10.0
"""What stands in the way may be gone: a Python was installed, as the remedy said."""
_OTHERS = "Choose one of the other engines."


class Environments:
    """Creates, finds and repairs the environments of one data directory. Safe to call from any thread."""

    def __init__(
        self,
        data_dir: Path,
        python: str | None = None,
        specs: Sequence[EnvironmentSpec] = ENVIRONMENTS,
        activity: Activity | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`python` names the interpreter to build on; None: look for one."""
        self._root = Path(data_dir).resolve() / "environments"
        self._python = python
        self._activity = activity or Activity()
        self._specs = {spec.name: spec for spec in specs}
        self._locks = {name: threading.Lock() for name in self._specs}
        self._clock = clock
        self._looked: dict[str, tuple[float, UnavailableError | None]] = {}
        """When it was last found out what stands in an environment's way, and what that was."""

    def names(self) -> tuple[str, ...]:
        """The isolated environments; `main`, the one running the app, is not among them."""
        return tuple(self._specs)

    def interpreter(self, name: str) -> Path:
        """Python executable of an environment, for starting workers; cheap.

        Raises UnavailableError with reason and remedy when it is not set up.
        """
        if name == MAIN:
            return Path(sys.executable)
        status = self.status(name)
        if status.interpreter is None or not status.ready:
            raise UnavailableError(status.reason or f"{status.title} is not set up.", status.remedy)
        return status.interpreter

    def status(self, name: str) -> EnvironmentStatus:
        """Look at what is on disk; starts no Python of the environment."""
        if name == MAIN:
            return EnvironmentStatus(
                MAIN, "The app's own environment", "ready", Path(sys.executable), platform.python_version()
            )
        spec = self._spec(name)
        found = None
        for folder in self._folders(spec):
            record = read_marker(folder)
            if record is None:
                continue
            found = self._judge(spec, folder, record)
            if found.ready:
                return found
        return found or self._missing(spec)

    def log_path(self, name: str) -> Path:
        """Every line of the last set-up."""
        return self._root / f"{self._spec(name).name}.log"

    def create(
        self,
        name: str,
        on_progress: OnProgress,
        cancelled: threading.Event | None = None,
    ) -> EnvironmentStatus:
        """Set an environment up, or verify it and rebuild what is broken. Blocks for minutes.

        Raises UnavailableError when it is impossible here, SetUpError with one clear sentence and the
        remedy when it failed, SetUpCancelledError after `cancelled`. Running it again always finishes the job.
        """
        spec = self._spec(name)
        cancelled = cancelled or threading.Event()
        with self._exclusive(spec, on_progress, cancelled), self._registered(spec, on_progress, cancelled):
            base = self._base_interpreter(spec)
            folder = self._root / spec.name / environment_key(spec, base)
            build = Build(spec, base, folder, self.log_path(name), on_progress, cancelled)
            record = read_marker(folder)
            if record is None or not self._judge(spec, folder, record).ready or not build.works():
                write_marker(folder, build.run())
            for other in self._folders(spec):
                if other != folder:
                    discard(other)
        status = self.status(name)
        on_progress(Progress(_STAGE, f"{spec.title} is ready", 1.0))
        return status

    def remove(self, name: str) -> None:
        """Delete an environment and what interrupted set-ups left."""
        spec = self._spec(name)
        with self._exclusive(spec, lambda _progress: None, threading.Event()):
            for folder in self._folders(spec):
                discard(folder)

    def _spec(self, name: str) -> EnvironmentSpec:
        try:
            return self._specs[name]
        except KeyError:
            known = ", ".join(self._specs)
            raise UnavailableError(f"There is no environment “{name}”.", f"Known: {known}.") from None

    def _folders(self, spec: EnvironmentSpec) -> list[Path]:
        """Newest first."""
        parent = self._root / spec.name
        try:
            folders = [path for path in parent.iterdir() if path.is_dir()]
        except OSError:
            return []
        return sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)

    def _judge(self, spec: EnvironmentSpec, folder: Path, record: Mapping) -> EnvironmentStatus:
        interpreter = venv_python(folder)
        remedy = f"Run: python app.py setup {spec.name}"
        state, reason = "ready", None
        if record.get("requirements_sha256") != requirements_sha256(spec):
            state, reason = "outdated", f"{spec.title} was set up with other package versions."
        elif record.get("machine") != machine_fingerprint(spec):
            state, reason = "outdated", f"{spec.title} was built on a different processor or system."
        elif not interpreter.exists() or not Path(record.get("base", "")).exists():
            state = "broken"
            reason = f"The Python that {spec.title} was set up with ({record.get('base')}) is gone."
        return EnvironmentStatus(
            name=spec.name,
            title=spec.title,
            state=state,
            interpreter=interpreter,
            python_version=record.get("python_version"),
            versions=record.get("versions", {}),
            size_bytes=record.get("size_bytes"),
            set_up_s=record.get("set_up_s"),
            reason=reason,
            remedy=None if state == "ready" else remedy,
            log_path=self._existing_log(spec),
        )

    def _missing(self, spec: EnvironmentSpec) -> EnvironmentStatus:
        obstacle = self._obstacle(spec)
        reason = f"{spec.title} is not set up yet."
        if any(self._folders(spec)):
            reason = f"{spec.title} is being set up, or its last set-up was interrupted."
        return EnvironmentStatus(
            name=spec.name,
            title=spec.title,
            state="missing" if obstacle is None else "impossible",
            reason=reason if obstacle is None else str(obstacle),
            remedy=f"Run: python app.py setup {spec.name}" if obstacle is None else obstacle.remedy,
            log_path=self._existing_log(spec),
        )

    def _obstacle(self, spec: EnvironmentSpec) -> UnavailableError | None:
        """Why it cannot be set up here. The page asks every second, and to answer Pythons have to be started."""
        known = self._looked.get(spec.name)
        if known is None or self._clock() - known[0] > LOOK_AGAIN_S:
            try:
                self._base_interpreter(spec)
                obstacle = None
            except UnavailableError as error:
                obstacle = error
            known = self._looked[spec.name] = (self._clock(), obstacle)
        return known[1]

    def _existing_log(self, spec: EnvironmentSpec) -> Path | None:
        path = self.log_path(spec.name)
        return path if path.exists() else None

    def _base_interpreter(self, spec: EnvironmentSpec) -> Interpreter:
        if sys.platform not in spec.platforms:
            raise UnavailableError(f"{spec.title} exists for Windows and Linux only.", _OTHERS)
        base = find_interpreter(spec.pythons, self._python, spec.title)
        if base.machine.lower() not in spec.machines:
            raise UnavailableError(
                f"{spec.title} exists for x86-64 processors only; this Python is for {base.machine}.",
                _OTHERS,
            )
        return base

    @contextlib.contextmanager
    def _exclusive(
        self, spec: EnvironmentSpec, on_progress: OnProgress, cancelled: threading.Event
    ) -> Iterator[None]:
        """One set-up of an environment at a time, in this process and among several."""
        lock = self._locks[spec.name]
        waiting = Progress("queue", f"Waiting: {spec.title} is being set up already")
        while not lock.acquire(timeout=0.3):
            on_progress(waiting)
            _refuse_cancelled(cancelled)
        try:
            self._make_root(spec)

            def wait() -> None:
                on_progress(waiting)
                _refuse_cancelled(cancelled)

            with wait_for_lock(self._root / f"{spec.name}.lock", wait):
                yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _registered(
        self, spec: EnvironmentSpec, on_progress: OnProgress, cancelled: threading.Event
    ) -> Iterator[None]:
        """Told to the activity register; waits while a measurement has the machine."""

        def wait(holder: str) -> None:
            on_progress(Progress("queue", f"Waiting: the machine is taken for {holder}"))

        try:
            with self._activity.doing(SET_UP, spec.title, cancelled=cancelled.is_set, on_wait=wait):
                yield
        except GaveUpError:
            raise SetUpCancelledError("The set-up was cancelled.") from None

    def _make_root(self, spec: EnvironmentSpec) -> None:
        try:
            (self._root / spec.name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SetUpError(
                f"Cannot write to {self._root}: {error.strerror or error}.",
                "Choose another folder with --data-dir.",
            ) from error


def _refuse_cancelled(cancelled: threading.Event) -> None:
    if cancelled.is_set():
        raise SetUpCancelledError("The set-up was cancelled.")
