"""Build one isolated environment: venv, packages, import probe; with progress, a log and clear failures.

Everything runs in child processes that end with this one (engines/processes/guarded.py). pip's temporary files are
kept inside the environment's own folder, so that an interrupted set-up leaves its rubbish in one place.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from engines.engine import OnProgress
from engines.environments import npu_wheel
from engines.environments.folders import discard, venv_python
from engines.environments.interpreters import Interpreter
from engines.environments.spec import (
    EnvironmentSpec,
    SetUpCancelledError,
    SetUpError,
    machine_fingerprint,
    requirements_sha256,
)
from engines.processes import guarded
from engines.processes.surroundings import without_secrets
from engines.protocol import Progress

_GB = 1e9
_PROBE_TIMEOUT_S = 300.0
_PROBE = """
import importlib, importlib.metadata as metadata, json, sys, warnings
warnings.simplefilter("ignore")
modules, distributions = json.loads(sys.argv[1])
for name in modules:
    importlib.import_module(name)
print("PROBED " + json.dumps({name: metadata.version(name) for name in distributions}))
"""
_NETWORK_SIGNS = (
    *("NewConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ProxyError", "SSLError"),
    *("Failed to establish a new connection", "Connection refused", "Connection reset", "getaddrinfo failed"),
    *("Temporary failure in name resolution", "Name or service not known", "Max retries exceeded"),
    *("Read timed out", "Connection aborted", "Connection broken", "Network is unreachable"),
)
_DISK_SIGNS = ("No space left on device", "Errno 28", "not enough space on the disk", "WinError 112")
_LONG_PATH_SIGNS = ("Windows Long Path", "enable-long-paths", "WinError 206", "path too long")
"""The first two are pip's own hint."""


class Build:
    """One set-up run. `run` builds from nothing; `works` asks an existing environment."""

    def __init__(
        self,
        spec: EnvironmentSpec,
        base: Interpreter,
        folder: Path,
        log_path: Path,
        on_progress: OnProgress,
        cancelled: threading.Event,
    ):
        self._spec = spec
        self._base = base
        self._folder = folder
        self._log_path = log_path
        self._on_progress = on_progress
        self._cancelled = cancelled
        self._python = venv_python(folder)
        self._started = time.monotonic()

    def works(self) -> bool:
        """Whether everything the environment is for can be imported."""
        self._report("Checking what is installed", 0.0)
        with self._log_path.open("a", encoding="utf-8") as log:
            try:
                self._probe(log)
            except SetUpError:
                return False
        return True

    def run(self) -> dict[str, Any]:
        """Build the environment; returns the record for its marker.

        Raises SetUpError or SetUpCancelledError; what is on disk then is rubbish without a marker.
        """
        try:
            with self._log_path.open("w", encoding="utf-8") as log:
                record = self._build(log)
            shutil.rmtree(self._temporary, ignore_errors=True)
        except BaseException as error:
            discard(self._folder)
            if isinstance(error, OSError):
                raise self._system_failure(error) from error
            raise
        record["size_bytes"] = _folder_bytes(self._folder)
        return record

    @property
    def _temporary(self) -> Path:
        return self._folder / "tmp"

    def _build(self, log: IO[str]) -> dict[str, Any]:
        spec = self._spec
        discard(self._folder)
        if self._folder.exists():
            raise SetUpError(
                f"The old environment in {self._folder} is in use.",
                f"Close its panels (or the other Backend Arena) and run it again. {self._again}",
            )
        self._check_disk()
        self._check_compiler()
        self._temporary.mkdir(parents=True)
        self._report(f"Creating an environment on Python {self._base.version_text}", 0.01)
        # In two steps, because venv swallows what ensurepip has to say when it fails.
        self._step(log, [self._base.executable, "-m", "venv", "--without-pip", str(self._folder)])
        self._step(log, [str(self._python), "-m", "ensurepip", "--upgrade", "--default-pip"])
        # Compiling every module takes as long as unpacking them; the import check compiles those in use.
        pip_options = ["--no-compile", "--only-binary=:all:", "--requirement", str(spec.requirements)]
        if self._builds_from_source:
            wheel = self._build_wheel(log)
            pip_options += ["--find-links", str(wheel.parent)]
        self._install(log, pip_options)
        self._report("Checking that everything imports", 0.95)
        versions = self._probe(log)
        return {
            "name": spec.name,
            "requirements_sha256": requirements_sha256(spec),
            "machine": machine_fingerprint(spec),
            "base": self._base.executable,
            "python_version": self._base.version_text,
            "versions": versions,
            "set_up_s": round(time.monotonic() - self._started, 1),
        }

    @property
    def _builds_from_source(self) -> bool:
        return self._spec.source_package is not None and sys.platform == "linux"

    def _build_wheel(self, log: IO[str]) -> Path:
        self._report(f"Building {self._spec.source_package} for this machine", 0.05)
        pins = self._spec.requirements.read_text(encoding="utf-8").split()
        setuptools = next((pin for pin in pins if pin.startswith("setuptools==")), "setuptools")
        requirement = next(pin for pin in pins if pin.startswith(f"{self._spec.source_package}=="))
        self._step(log, [*self._pip, "install", "--only-binary=:all:", setuptools])

        def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
            return self._step(log, command, env)

        return npu_wheel.build_wheel(self._python, requirement, self._temporary / "build", os.environ, run)

    @property
    def _site_packages(self) -> Path:
        if os.name == "nt":
            return self._folder / "Lib" / "site-packages"
        major, minor, _micro = self._base.version
        return self._folder / "lib" / f"python{major}.{minor}" / "site-packages"

    def _install(self, log: IO[str], options: Sequence[str]) -> None:
        meter = _PipMeter(self._site_packages, self._report, 0.15, 0.95)
        self._step(log, [*self._pip, "install", *options], on_line=meter.line, on_tick=meter.tick)

    def _probe(self, log: IO[str]) -> dict[str, str]:
        wanted = json.dumps([self._spec.imports, self._spec.distributions])
        output = self._step(log, [str(self._python), "-c", _PROBE, wanted], timeout_s=_PROBE_TIMEOUT_S)
        answers = [line for line in output.splitlines() if line.startswith("PROBED ")]
        if not answers:
            raise SetUpError(f"{self._spec.title} is installed but does not import.", self._again)
        return json.loads(answers[-1].removeprefix("PROBED "))

    # --- steps ---

    @property
    def _pip(self) -> list[str]:
        options = ["--disable-pip-version-check", "--no-input", "--retries", "3"]
        return [str(self._python), "-m", "pip", *options]

    @property
    def _again(self) -> str:
        return f"Run it again: python app.py setup {self._spec.name}. The log is {self._log_path}."

    def _report(self, text: str, fraction: float) -> None:
        self._on_progress(Progress("set-up", text, fraction))

    def _step(
        self,
        log: IO[str],
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        on_line=lambda _line: None,
        on_tick=lambda: None,
    ) -> str:
        """Run one command to its end and return its output; raises when it fails or is cancelled."""
        if self._cancelled.is_set():
            raise SetUpCancelledError("The set-up was cancelled.")
        log.write(f"$ {' '.join(str(part) for part in command)}\n")

        def keep(line: str) -> None:
            log.write(line + "\n")
            log.flush()
            on_line(line)

        result = guarded.run(
            command,
            cancelled=self._cancelled,
            on_line=keep,
            on_tick=on_tick,
            env={**self._child_env(), **(env or {})},
            timeout_s=timeout_s,
        )
        if self._cancelled.is_set():
            raise SetUpCancelledError("The set-up was cancelled.")
        if not result.ok:
            raise self._failure(command, result)
        return result.text

    def _child_env(self) -> dict[str, str]:
        """Ours, with temporary files in the environment's folder and no Python settings leaking in."""
        drop = {"PYTHONPATH", "PYTHONHOME", "PIP_REQUIRE_VIRTUALENV", "PIP_TARGET", "PIP_USER", "PIP_PREFIX"}
        env = {name: value for name, value in without_secrets().items() if name not in drop}
        folder = str(self._temporary)
        return {
            **env,
            "TMPDIR": folder,
            "TEMP": folder,
            "TMP": folder,
            "PYTHONUTF8": "1",
            "PYTHONNOUSERSITE": "1",
        }

    # --- what can go wrong ---

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self._log_path.parent).free
        if free < self._spec.disk_bytes:
            raise SetUpError(
                f"Not enough disk space: setting up {self._spec.title} needs about "
                f"{self._spec.disk_bytes / _GB:.1f} GB in {self._log_path.parent}, {free / _GB:.1f} GB are free.",
                "Free some space, or choose another disk with --data-dir.",
            )

    def _check_compiler(self) -> None:
        if self._builds_from_source and npu_wheel.compiler() is None:
            raise SetUpError(
                f"{self._spec.title} has to be built on Linux, and there is no C++ compiler.",
                "Install one (Debian, Ubuntu: sudo apt install g++), then run it again.",
            )

    def _failure(self, command: Sequence[str], result: guarded.CommandResult) -> SetUpError:
        text, title = result.text, self._spec.title
        if any(sign in text for sign in _DISK_SIGNS):
            return self._disk_full()
        if any(sign in text for sign in _LONG_PATH_SIGNS):
            return SetUpError(
                f"Setting up {title} failed: Windows refused a path longer than 260 characters.",
                "Enable long paths in Windows, or choose a short folder with --data-dir (for example C:\\arena).",
            )
        if any(sign in text for sign in _NETWORK_SIGNS):
            return SetUpError(
                f"Setting up {title} failed: the package index could not be reached.",
                f"Check the network connection (or pip's index and proxy settings). {self._again}",
            )
        if "ensurepip is not" in text or "No module named ensurepip" in text:
            major, minor, _micro = self._base.version
            return SetUpError(
                f"{self._base.executable} cannot make virtual environments: its venv package is missing.",
                f"Install it (Debian, Ubuntu: sudo apt install python{major}.{minor}-venv), then run it again.",
            )
        nowhere = re.findall(r"No matching distribution found for (\S+)", text)
        if nowhere:
            return SetUpError(
                f"Setting up {title} failed: the package index has no {nowhere[-1]} for "
                f"Python {self._base.version_text} on this system.",
                f"Check which index pip uses (pip config list). {self._again}",
            )
        errors = [line for line in result.tail if line.lower().startswith("error")] or list(result.tail[-1:])
        detail = errors[-1][:300] if errors else f"exit code {result.exit_code}"
        return SetUpError(f"Setting up {title} failed ({_short(command)}): {detail}", self._again)

    def _disk_full(self) -> SetUpError:
        free = shutil.disk_usage(self._log_path.parent).free
        return SetUpError(
            f"The disk ran full while setting up {self._spec.title}: {free / _GB:.2f} GB are left in "
            f"{self._log_path.parent}, about {self._spec.disk_bytes / _GB:.1f} GB are needed at the start.",
            f"Free some space, or choose another disk with --data-dir. {self._again}",
        )

    def _system_failure(self, error: OSError) -> SetUpError:
        if error.errno == 28 or getattr(error, "winerror", None) == 112:
            return self._disk_full()
        return SetUpError(f"Setting up {self._spec.title} failed: {error}.", self._again)


class _PipMeter:
    """Turns pip's lines into a fraction: half for collecting, half for installing."""

    _EXPECTED = 45

    def __init__(self, site_packages: Path, report, start: float, end: float):
        self._site_packages = site_packages
        self._report = report
        self._start = start
        self._span = end - start
        self._collected = 0
        self._installing = 0
        self._shown = 0.0

    def line(self, line: str) -> None:
        text = line.strip()
        if text.startswith("Installing collected packages:"):
            self._installing = text.count(",") + 1
        elif text.startswith("Collecting "):
            self._collected += 1
            self._fetching(re.split(r"[<>=!~;\[ ]", text.removeprefix("Collecting "))[0])
        elif text.startswith("Downloading "):  # file name and size
            self._fetching(text.removeprefix("Downloading ").split("/")[-1])

    def _fetching(self, what: str) -> None:
        part = min(1.0, self._collected / self._EXPECTED)
        self._report(f"Fetching packages: {what}", self._start + 0.5 * self._span * part)

    def tick(self) -> None:
        """pip is silent while it installs: count what has arrived."""
        if not self._installing or time.monotonic() - self._shown < 1.0:
            return
        self._shown = time.monotonic()
        arrived = min(self._installing, sum(1 for _ in self._site_packages.glob("*.dist-info")))
        text = f"Installing packages: {arrived} of {self._installing} in place"
        self._report(text, self._start + self._span * (0.5 + 0.5 * arrived / self._installing))


def _short(command: Sequence[str]) -> str:
    words = [Path(command[0]).name, *(str(part) for part in command[1:] if not str(part).startswith("-"))]
    return " ".join(words)[:80]


def _folder_bytes(folder: Path) -> int:
    total = 0
    for parent, _folders, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += (Path(parent) / name).lstat().st_size
    return total
