"""A short task in a process of its own, so that this one's threads and libraries have no part in what is measured."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from engines.runtime.worker_process import PROJECT_ROOT

_TIMEOUT_S = 60.0


def answer(module: str, argument: int) -> Any:
    """What `python -m module argument` says with `say`; None when it fails or takes too long."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, str(argument)],
            cwd=PROJECT_ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=True,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        return json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def asked() -> int:
    """In the child: the argument. Ctrl+C is for the parent: it would end this one, and nothing would be known."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return int(sys.argv[1])


def say(found: Any) -> None:
    """In the child: the answer."""
    sys.stdout.write(json.dumps(found) + "\n")
