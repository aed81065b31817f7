"""`setup`: create, repair or remove the isolated environment an engine needs."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from typing import Any

from engines.engine import EngineError
from engines.environments.environments import Environments
from engines.environments.spec import ENVIRONMENTS, EnvironmentStatus
from engines.protocol import Progress


def register(subparsers: Any) -> None:
    """Add the sub-command; the app's own parser supplies --data-dir and --python."""
    command = subparsers.add_parser(
        "setup",
        help="set up the environment of an engine that cannot share one",
        description="Set up, verify or repair an engine's own Python environment (about 2 GB). "
        "It needs Python 3.11 or 3.12, found by itself or named with --python PATH.",
    )
    command.add_argument("environment", choices=[spec.name for spec in ENVIRONMENTS], metavar="ENVIRONMENT")
    command.add_argument("--remove", action="store_true", help="delete it instead")
    command.add_argument("--json", action="store_true", help="one JSON document on stdout")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do it, with progress on stderr; exit status 0 only when the environment is ready (or removed)."""
    environments = Environments(arguments.data_dir, getattr(arguments, "python", None))
    name = arguments.environment
    cancelled = threading.Event()
    outcome: dict[str, Any] = {"error": None, "remedy": None}
    worker = threading.Thread(
        target=_work, args=(environments, name, arguments.remove, cancelled, outcome), daemon=True
    )
    worker.start()
    while worker.is_alive():
        try:
            worker.join(0.2)  # with a timeout, or Windows would not see Ctrl+C
        except KeyboardInterrupt:
            print("\nCancelling …", file=sys.stderr)
            cancelled.set()
    status = environments.status(name)
    if arguments.json:
        print(json.dumps({**_record(status), **outcome}, indent=2))
    else:
        _tell(status, outcome, arguments.remove)
    return 1 if outcome["error"] else 0


def _work(
    environments: Environments, name: str, remove: bool, cancelled: threading.Event, outcome: dict[str, Any]
) -> None:
    try:
        if remove:
            environments.remove(name)
        else:
            environments.create(name, _ProgressLine(), cancelled)
    except EngineError as error:
        outcome.update(error=str(error), remedy=error.remedy)
    except Exception as error:  # noqa: BLE001 - a thread's exception would vanish
        outcome.update(error=f"{type(error).__name__}: {error}")


class _ProgressLine:
    """Progress on stderr, a line now and then: a terminal is sent no control characters (ui/cli/terminal.py)."""

    def __init__(self) -> None:
        self._last = ""
        self._at = float("-inf")

    def __call__(self, progress: Progress) -> None:
        share = "" if progress.fraction is None else f"{progress.fraction:4.0%} "
        if progress.text != self._last and (time.monotonic() - self._at > 5 or progress.fraction == 1):
            self._at, self._last = time.monotonic(), progress.text
            print(f"{share}{progress.text}", file=sys.stderr, flush=True)


def _record(status: EnvironmentStatus) -> dict[str, Any]:
    return {
        "environment": status.name,
        "state": status.state,
        "interpreter": str(status.interpreter) if status.interpreter else None,
        "python_version": status.python_version,
        "versions": dict(status.versions),
        "size_bytes": status.size_bytes,
        "set_up_s": status.set_up_s,
        "log": str(status.log_path) if status.log_path else None,
    }


def _tell(status: EnvironmentStatus, outcome: dict[str, Any], removed: bool) -> None:
    if outcome["error"]:
        print(f"\n{outcome['error']}", file=sys.stderr)
        if outcome["remedy"]:
            print(outcome["remedy"], file=sys.stderr)
    elif removed:
        print(f"{status.title} is removed.")
    else:
        size = f", {status.size_bytes / 1e9:.1f} GB" if status.size_bytes else ""
        print(f"{status.title} is ready (Python {status.python_version}{size}).")
        print("Choose it in a panel, or look at: python app.py doctor")
