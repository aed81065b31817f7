"""Backend Arena: one prompt, every local backend, side by side.

This module is the command line: it reads the settings, builds the store, the manager and the page, and hands
over to them. Without a command it serves the page. Nothing here or below loads an inference library; that is
the worker processes' business.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engines.endpoints.registry import SETTINGS, Endpoints, parse_option
from engines.engine import EngineError
from engines.environments.environments import Environments
from engines.hardware import machine_facts
from engines.models.library import ModelLibrary
from engines.protocol import ProtocolError
from engines.runtime.activity import Activity
from engines.runtime.manager import EngineManager
from storage.database import close_to_others
from storage.measurements import Measurements
from storage.store import Store, StoreError
from ui.api.keys import KeyNameError
from ui.arena import Arena
from ui.chat.turns import TurnError, Turns
from ui.cli import absolute, doctor, history, keys, measure, models, run, setup
from ui.cli.terminal import harmless_output
from ui.measure.desk import Desk
from ui.share.door import Door
from ui.share.hosts import is_loopback
from ui.share.logins import PasswordError
from ui.share.settings import add_options, make_door, read_settings, unused_options
from ui.share.sharing import Sharing, what_to_tell
from ui.share.tunnel import GradioTunnel
from ui.share.visitors import Visitors

DEFAULT_PORT = 7860
DATABASE_NAME = "arena.sqlite3"
EXIT_USAGE = 2


class SettingsError(Exception):
    """The app cannot start as it was told to; the message is one clear sentence."""


def build(data_dir: Path, python: str | None = None, endpoints: Sequence[str] = ()) -> Arena:
    """Build the store, the library, the manager and the turns on a data directory.

    `endpoints`: servers for this start only, as NAME=URL. Raises SettingsError for what is none.
    """
    servers = Endpoints(data_dir)
    try:
        for option in endpoints:
            servers.add(*parse_option(option), lasting=False)
    except EngineError as error:
        raise SettingsError(f"{error} {error.remedy or ''}".strip()) from error
    store = Store(data_dir / DATABASE_NAME)
    activity = Activity(shared=data_dir / "activity")
    library = ModelLibrary(data_dir, activity=activity)
    environments = Environments(data_dir, python, activity=activity)
    measurements = Measurements(store)
    manager = EngineManager(
        data_dir,
        library,
        environments,
        remembered_peak=store.peak_rss,
        activity=activity,
        settings={SETTINGS: servers.for_workers},
        tuned=measurements.tuned,
    )
    turns = Turns(manager, store, machine_facts)
    desk = Desk(manager, measurements, machine_facts)
    return Arena(
        data_dir, store, library, environments, servers, manager, turns, measurements=measurements, desk=desk
    )


@contextlib.contextmanager
def arena_on(arguments: argparse.Namespace) -> Iterator[Arena]:
    """The app's parts for as long as a command runs; every worker is gone afterwards."""
    arena = build(writable(arguments.data_dir), arguments.python, arguments.endpoint)
    try:
        yield arena
    finally:
        arena.close()


def default_data_dir() -> Path:
    """Where this system keeps a program's data; BACKEND_ARENA_DATA overrides it."""
    if chosen := os.environ.get("BACKEND_ARENA_DATA"):
        return absolute(chosen)
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "BackendArena"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "BackendArena"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "backend-arena"


def writable(data_dir: Path) -> Path:
    """The data directory, made if need be; raises SettingsError when nothing can be written there."""
    data_dir = data_dir.expanduser()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        # Only now: a Python of the Microsoft Store makes what is new in AppData elsewhere, and only an existing
        # folder tells where (https://docs.python.org/3/using/windows.html, "Redirection of local data").
        data_dir = data_dir.resolve()
        probe = data_dir / f".writable-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
        close_to_others(data_dir)
    except OSError as error:
        raise SettingsError(
            f"The data directory {data_dir} cannot be written ({error.strerror or error}). "
            "Choose another one with --data-dir."
        ) from error
    return data_dir


# --- serving the page --------------------------------------------------------------------------------------


def free_port(host: str, port: int) -> int:
    """The port, or any free one for 0; raises SettingsError when it is taken or not ours to take."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if os.name != "nt":  # on Windows this would let two servers share the port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"Port {port} on {host} cannot be used ({reason}). Perhaps Backend Arena is running already; "
            "otherwise choose another port with --port."
        ) from error


def serve(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl+C."""
    settings = read_settings(arguments)
    door, made = make_door(settings)
    port = free_port(arguments.host, arguments.port)
    with arena_on(arguments) as arena:
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        from ui.heap import give_back_at_once, leave_out_of_collections
        from ui.lost_lines import keep_quiet_about_them
        from ui.page import build as build_page
        from ui.share.owner_panel import machine_name
        from ui.theme import launch_options

        give_back_at_once()
        keep_quiet_about_them()
        interrupted = arena.store.mark_interrupted()
        sharing = Sharing(door, settings, made, port, lambda local: GradioTunnel(local, arena.data_dir))
        visitors = Visitors(door, arena.store, arena.turns)
        parts = (arena.manager, arena.store, arena.turns, arena.library)
        doors = _doors(arena)
        page = build_page(*parts, arena.environments, (sharing, visitors), doors, arena.desk)

        def visitors_page() -> Any:
            from ui.share.visitor_page import build as build_visitor_page

            return build_visitor_page(*parts, visitors, lambda: machine_name(arena.store))

        page.launch(
            server_name=arguments.host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            **launch_options(door, _api(arena, door, doors), visitors_page),
        )
        leave_out_of_collections()
        only_here = is_loopback(arguments.host) or arguments.host in ("0.0.0.0", "::")
        address = f"http://{'localhost' if only_here else arguments.host}:{port}"
        print(f"Backend Arena is at {address}  (Ctrl+C ends it; data in {arena.data_dir})", flush=True)
        view = sharing.start() if settings.share else sharing.view()
        for line in what_to_tell(view, door.locked):
            print(line, flush=True)
        if interrupted:
            print(
                f"{interrupted} unfinished replies of the last session were marked as interrupted.",
                flush=True,
            )
        threading.Thread(target=arena.manager.availability, name="probe", daemon=True).start()
        if not arguments.no_browser:
            webbrowser.open(address)
        _wait_for_the_end()
        sharing.close()
        visitors.close()
        page.close(verbose=False)
    return 0


def _doors(arena: Arena) -> Any:
    """What goes out and in beside the page."""
    from ui.api.keys import ApiKeys
    from ui.api.lanes import Lanes
    from ui.system.programs import Doors

    lanes = Lanes(arena.manager, arena.store, arena.library)
    return Doors(arena.endpoints, ApiKeys(arena.data_dir), lanes)


def _api(arena: Arena, door: Door, doors: Any) -> Any:
    """What programs use beside the page; they need a key as soon as people need a login."""
    from ui.api.api import Api
    from ui.api.server import build_api

    needs_key = lambda: door.locked  # noqa: E731 - read at each request
    return build_api(Api(arena.manager, arena.turns, doors.lanes, doors.keys, needs_key=needs_key))


def _wait_for_the_end() -> None:
    """Block until Ctrl+C or a polite request to end."""
    end = threading.Event()
    for name in ("SIGTERM", "SIGINT", "SIGBREAK", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: end.set())
    while not end.wait(1.0):  # with a timeout, or Windows would not see Ctrl+C
        pass


# --- the command line --------------------------------------------------------------------------------------


def _common() -> argparse.ArgumentParser:
    """Options every command takes; made anew for each parser, because `set_defaults` changes shared ones."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data-dir",
        type=absolute,
        default=argparse.SUPPRESS,
        help="folder for models, the log and caches",
    )
    common.add_argument(
        "--python",
        default=argparse.SUPPRESS,
        help="Python 3.11 or 3.12 to build the Intel NPU environment with",
    )
    common.add_argument(
        "--endpoint",
        action="append",
        default=argparse.SUPPRESS,
        metavar="NAME=URL",
        help="an OpenAI-compatible server as a backend, for this start: its lanes are endpoint/NAME/served@MODEL; "
        "its key is taken from NAME_API_KEY in the environment; may be repeated",
    )
    return common


def parser() -> argparse.ArgumentParser:
    """The command line; every command takes --data-dir before or after its name."""
    main_parser = argparse.ArgumentParser(
        prog="app.py",
        description="One prompt, every local backend, side by side. Without a command: serve the page.",
        parents=[_common()],
    )
    main_parser.set_defaults(run=serve, data_dir=default_data_dir(), python=None, endpoint=[])
    main_parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this PC only)"
    )
    main_parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="default: %(default)s; 0: any free one"
    )
    main_parser.add_argument("--no-browser", action="store_true", help="do not open a browser window")
    add_options(main_parser)
    commands = main_parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_CommandParser)
    for command_line in (doctor, run, measure):
        command_line.register(commands, arena_on)
    for command_line in (models, history, keys, setup):
        command_line.register(commands)
    return main_parser


class _CommandParser(argparse.ArgumentParser):
    """A command's parser: with the options that every command takes."""

    def __init__(self, **options: Any):
        super().__init__(**{**options, "parents": [*options.get("parents", ()), _common()]})

    def add_subparsers(self, **options: Any) -> Any:
        """Commands of a command, which have these options from it."""
        return super().add_subparsers(**{"parser_class": argparse.ArgumentParser, **options})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    os.umask(0o077)  # what we and our children write is for this user alone: logs quote prompts
    with harmless_output():
        return _main(arguments)


def nobody_reads(error: OSError) -> bool:
    """Whether whoever read our output has seen enough (`… | head`). Windows calls that EINVAL (cpython#79935)."""
    refused = os.name == "nt" and error.errno == errno.EINVAL and error.filename is None
    return refused or isinstance(error, BrokenPipeError)


def _main(arguments: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):  # a Windows console may not know every character of a reply
        with contextlib.suppress(AttributeError, OSError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr] # suppressed where it has none
    parsed = parser().parse_args(arguments)
    try:
        if parsed.run is not serve and (unused := unused_options(parsed)):
            raise SettingsError(
                f"{', '.join(unused)} is about serving the page, which this command does not."
            )
        status = parsed.run(parsed)
        sys.stdout.flush()
        return status
    except (SettingsError, KeyNameError, PasswordError, StoreError, ProtocolError, TurnError) as error:
        print(f"{error}", file=sys.stderr)
        if getattr(parsed, "json", None) is True:  # who asked for a document gets one, whatever happened
            print(json.dumps({"error": str(error)}))
        return EXIT_USAGE
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if not nobody_reads(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
