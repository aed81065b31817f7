"""Find a Python interpreter an isolated environment can be built on.

Old libraries stop at some Python version while the app itself may run on a newer one. Candidates are, in
order: the one named by the person, the one running the app, what Windows' `py` launcher knows, and PATH.
Each is asked for its version by running it: names and shims lie.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engines.engine import UnavailableError

_ASK = (
    "import json,platform,struct,sys;"
    "print(json.dumps([sys.executable,list(sys.version_info[:3]),struct.calcsize('P')*8,platform.machine()]))"
)
_ASK_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Interpreter:
    """A Python that answered when asked who it is."""

    executable: str
    version: tuple[int, int, int]
    bits: int
    machine: str

    @property
    def version_text(self) -> str:
        return ".".join(str(part) for part in self.version)


def ask(command: Sequence[str]) -> Interpreter | None:
    """Run a Python command line and return what it is; None when it does not run."""
    try:
        answer = subprocess.run(
            [*command, "-I", "-c", _ASK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_TIMEOUT_S,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        executable, version, bits, machine = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return Interpreter(executable, tuple(version), bits, machine)


def find_interpreter(
    versions: Sequence[tuple[int, int]], named: str | None = None, purpose: str = "this environment"
) -> Interpreter:
    """The first usable 64-bit interpreter of one of `versions`, best first.

    Raises UnavailableError that says what was looked for, what is there, and what to install.
    """
    if named is not None:
        return _named(named, versions, purpose)
    for command in _candidates(versions):
        found = ask(command)
        if found is not None and _fits(found, versions):
            return found
    wanted = _wording(versions)
    raise UnavailableError(
        f"{purpose} needs Python {wanted} (64-bit); the app runs on Python "
        f"{sys.version_info.major}.{sys.version_info.minor} and no other was found.",
        f"Install Python {versions[0][0]}.{versions[0][1]} from python.org, or name an interpreter "
        "with --python PATH; then set it up again.",
    )


def _named(named: str, versions: Sequence[tuple[int, int]], purpose: str) -> Interpreter:
    found = ask([named])
    if found is None:
        raise UnavailableError(
            f"“{named}” does not run as a Python interpreter.",
            f"Name a Python {_wording(versions)} interpreter with --python PATH.",
        )
    if not _fits(found, versions):
        raise UnavailableError(
            f"{purpose} needs Python {_wording(versions)} (64-bit); “{named}” is Python "
            f"{found.version_text} ({found.bits}-bit).",
            f"Name a Python {_wording(versions)} interpreter with --python PATH.",
        )
    return found


def _candidates(versions: Sequence[tuple[int, int]]) -> Iterator[list[str]]:
    yield [sys.executable]
    launcher = shutil.which("py") if os.name == "nt" else None
    for major, minor in versions:
        if launcher:
            yield [launcher, f"-{major}.{minor}"]
        path = shutil.which(f"python{major}.{minor}")
        if path:
            yield [path]
    for name in ("python3", "python"):
        path = shutil.which(name)
        if path:
            yield [path]


def _fits(found: Interpreter, versions: Sequence[tuple[int, int]]) -> bool:
    return found.bits == 64 and found.version[:2] in versions


def _wording(versions: Sequence[tuple[int, int]]) -> str:
    return " or ".join(f"{major}.{minor}" for major, minor in versions)
