"""`python app.py measure`: the fair benchmark without the page. Ctrl+C stops it and keeps what is done."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.measure import comparison, document, foreign, lanes, suites, tables, tuner
from engines.measure.privacy import without_private
from engines.measure.records import Measurement, Watch
from engines.measure.verdict import JOBS
from engines.models.model_names import entered
from engines.protocol import DEMO_MODEL, Target
from engines.runtime.manager import EngineFailure
from engines.toolkit import text_files
from ui import format as fmt
from ui.arena import Arena, OpenArena
from ui.cli import absolute, number, whole
from ui.measure.desk import DeskError
from ui.measure.estimate import estimate, rates_in, roughly
from ui.measure.tuning import tune_and_keep

_FILES = ("json", "html", "md", "csv", "jsonl")
_NOTHING_MEASURED = 1
_USAGE = 2
_STOPPED = 130


class _RefusedError(Exception):
    """What was asked for cannot be done; one sentence."""


def register(commands: Any, open_arena: OpenArena) -> None:
    """Add `measure`."""
    command = commands.add_parser("measure", help="measure backends fairly and say which one to use for what")
    command.add_argument(
        "--suite",
        default="quick",
        metavar="quick|standard|sweep|FILE",
        help='default: %(default)s; a file holds one JSON object a line: {"prompt": …, "new_tokens": …}',
    )
    command.add_argument(
        "--on",
        action="append",
        default=[],
        metavar="TARGET",
        help="ENGINE/DEVICE/PRECISION, for example openvino-genai/CPU/int4; may be repeated; all: "
        "every lane here, without AUTO (it is one of the others) and without servers (their tokens are not known)",
    )
    command.add_argument("--model", default=DEMO_MODEL, help="demo, a Hugging Face id, or a folder")
    command.add_argument(
        "--repeats", type=whole(1, 1000), metavar="N", help="at least 5 for intervals worth the name"
    )
    command.add_argument(
        "--tune", action="store_true", help="first try each engine's settings, keep the best"
    )
    command.add_argument(
        "--tune-minutes",
        type=number(0.01, 600),
        default=5.0,
        metavar="M",
        help="minutes a lane (default: %(default)g)",
    )
    command.add_argument(
        "--tune-for",
        choices=tuple(tuner.JOBS),
        default="decode",
        help="long answers (decode) or long prompts (prefill); default: %(default)s",
    )
    command.add_argument(
        "--untune", action="store_true", help="take the kept settings of the targets back, and end"
    )
    command.add_argument("--job", choices=[job.name for job in JOBS], help="what `verdict` is for")
    command.add_argument("--keep-loaded", action="store_true", help="let the other lanes stay in memory")
    command.add_argument("--resume", metavar="ID", help="go on with a measurement that was stopped")
    for name, what in (("json", "all of it as JSON"), ("html", "a report that opens anywhere")):
        command.add_argument(
            f"--{name}", type=_file, metavar="FILE", help=f"write {what} (-: to the terminal)"
        )
    for name, what in (
        ("md", "Markdown"),
        ("csv", "every repeat as CSV"),
        ("jsonl", "JSON Lines as llama-bench's"),
    ):
        command.add_argument(f"--{name}", type=_file, metavar="FILE", help=f"write {what}")
    command.add_argument(
        "--against", type=_file, metavar="FILE", help="hold it against an earlier or another machine's JSON"
    )
    command.add_argument(
        "--foreign",
        type=_file,
        action="append",
        default=[],
        metavar="FILE",
        help="another benchmark's results: of llama-bench, llm_bench, vLLM and others (docs/measure.md)",
    )
    command.add_argument("--private", action="store_true", help="keep machine name, folders and own prompts")
    command.set_defaults(run=lambda arguments: _measure(arguments, open_arena))


def _file(text: str) -> Path:
    """A file, or `-`, the terminal."""
    return Path(text) if text == "-" else absolute(text)


def _measure(arguments: argparse.Namespace, open_arena: OpenArena) -> int:
    arguments.model = entered(arguments.model, look_around=True)
    try:
        suite = suites.with_repeats(suites.named(arguments.suite), arguments.repeats)
        earlier = _read(arguments.against) if arguments.against else None
        added = tuple(row for path in arguments.foreign for row in _foreign(path))
        _check_places(arguments)
        if not arguments.on and not arguments.resume:
            raise _RefusedError("Say what to measure: --on ENGINE/DEVICE/PRECISION, or --on all.")
        with open_arena(arguments) as arena:
            if arguments.untune:
                return _untune(arguments, arena)
            if arguments.resume:
                arena.desk.resume(arguments.resume)
            else:
                _start(arguments, arena, suite)
            stopped = _watch(arena)
            session = arena.desk.session
            if session is None:
                return _NOTHING_MEASURED
            found = replace(session.measurement, foreign=(*session.measurement.foreign, *added))
            if added:
                arena.measurements.saved(found)
            if arena.store.trouble:
                print(arena.store.trouble, file=sys.stderr)
        _write_files(arguments, found, earlier)
    except (_RefusedError, suites.SuiteError, DeskError) as error:
        print(f"{error}", file=sys.stderr)
        return _USAGE
    if stopped:
        print(f"Stopped. Go on with: {_going_on(found)}", file=sys.stderr)
        return _STOPPED
    return 0 if any(r.counts for result in found.measured for r in result.repeats) else _NOTHING_MEASURED


def _targets(arguments: argparse.Namespace, arena: Arena) -> list[Target]:
    targets: list[Target] = []
    for spelling in arguments.on:
        if spelling == "all":
            print("Asking every library what it can do here …", file=sys.stderr, flush=True)
            targets += lanes.available(arena.manager, arguments.model)
        else:
            targets.append(Target.parse(spelling, arguments.model))
    return list(dict.fromkeys(targets))


def _untune(arguments: argparse.Namespace, arena: Arena) -> int:
    for target in _targets(arguments, arena):
        arena.measurements.take_back_tuning(target)
        print(f"{target} uses the engine's defaults again.")
    return 0


def _start(arguments: argparse.Namespace, arena: Arena, suite: Any) -> None:
    targets = _targets(arguments, arena)
    arena.desk.check(targets)
    if arguments.tune:
        for target in targets:
            _tune(arguments, arena, target)
    expected = estimate(targets, suite, rates_in(arena.store))
    print(
        f"{suite.title}: {fmt.counted(len(suite.cases), 'case')}, {fmt.counted(suite.repeats, 'repeat')}. "
        f"{expected.text}",
        file=sys.stderr,
        flush=True,
    )
    # A lane may name its model itself, `…/int4@MODEL`.
    arena.desk.start(targets[0].model, targets, suite, keep_loaded=arguments.keep_loaded)


def _tune(arguments: argparse.Namespace, arena: Arena, target: Target) -> None:
    """In a thread of its own, so that Ctrl+C ends it in order; raises KeyboardInterrupt then."""
    stop = threading.Event()
    seconds, job = arguments.tune_minutes * 60, arguments.tune_for
    with ThreadPoolExecutor(1, "tune") as pool:
        work = pool.submit(tune_and_keep, arena.desk, target, seconds, job, _teller(), stop)
        try:
            while not wait([work], 0.2).done:
                pass
        except KeyboardInterrupt:
            stop.set()
            print("Stopping; what was kept before stays.", file=sys.stderr, flush=True)
    try:
        said = work.result().why
    except EngineFailure as failure:
        said = f"could not be tuned: {failure}"
    print(f"{target}: {said}", file=sys.stderr, flush=True)
    if stop.is_set():
        raise KeyboardInterrupt


def _watch(arena: Arena) -> bool:
    """Tell on stderr what goes on until it is over; True when it was stopped."""
    told, time_told, stopped = _teller(), False, False
    while True:
        try:
            if arena.desk.wait(0.2):
                break
            session = arena.desk.session
            watch = session.watch() if session else None
            if watch is not None:
                told(_line(watch))
                if watch.left_s is not None and watch.measurement.fitted and not time_told:
                    time_told = True
                    left = fmt.counted(watch.total - watch.done, "step")
                    told(f"This will take about {roughly(watch.left_s)}: {left}.")
        except KeyboardInterrupt:
            stopped = True
            session = arena.desk.session
            # Said now, too: who presses Ctrl+C again does not see what is said at the end.
            again = f" Go on with: {_going_on(session.measurement)}" if session else ""
            print(f"Stopping; what is done is kept.{again}", file=sys.stderr, flush=True)
            if session:
                session.stop()
    return stopped


def _going_on(measurement: Measurement) -> str:
    return f"python app.py measure --resume {measurement.id}"


def _line(watch: Watch) -> str:
    left = f", {roughly(watch.left_s)} left" if watch.left_s else ""
    return f"[{watch.done}/{watch.total}{left}] {watch.now}"


def _teller() -> Callable[[str], None]:
    last, at = [""], [0.0]

    def tell(line: str) -> None:
        text = line.split("] ", 1)[-1]
        if text != last[0] and (time.monotonic() - at[0] > 0.5 or not line.startswith("[")):
            last[0], at[0] = text, time.monotonic()
            print(line, file=sys.stderr, flush=True)

    return tell


def _write_files(arguments: argparse.Namespace, found: Measurement, earlier: Measurement | None) -> None:
    from ui.measure.report_html import report

    compared = comparison.compare(earlier, found) if earlier else None
    shown = found if arguments.private else without_private(found)
    texts = {
        "json": lambda: document.dumps(shown, arguments.job) + "\n",
        "html": lambda: report(found, beside=[earlier] if earlier else [], private=arguments.private),
        "md": lambda: tables.markdown(shown),
        "csv": lambda: tables.csv_text(shown),
        "jsonl": lambda: "".join(f"{document.line(row)}\n" for row in foreign.llama_bench_lines(shown)),
    }
    to_terminal, problems = False, []
    for name, make in texts.items():
        path: Path | None = getattr(arguments, name)
        if path is not None and str(path) == "-":
            to_terminal = True
            print(make(), end="")
        elif path is not None:
            try:
                encoding = "utf-8-sig" if name == "csv" else "utf-8"
                # A folder's name may be no text: better one sign of it lost than the file.
                path.write_text(make(), encoding=encoding, errors="replace", newline="")
            except OSError as error:
                problems.append(f"{path} could not be written: {error.strerror or error}.")
    if not to_terminal:
        print(tables.text(found, arguments.job))
    if compared is not None:  # beside a document on the terminal it must not stand
        print("\n" + tables.comparison_text(compared), file=sys.stderr if to_terminal else sys.stdout)
    if problems:
        raise _RefusedError("\n".join(problems))


def _check_places(arguments: argparse.Namespace) -> None:
    """What can be known to fail is said before hours are spent on what cannot be written then."""
    for path in (getattr(arguments, name) for name in _FILES):
        if path is None or str(path) == "-":
            continue
        if path.is_dir():
            raise _RefusedError(f"{path} cannot be written: it is a folder. Give the file a name.")
        if not path.parent.is_dir():
            raise _RefusedError(f"{path} cannot be written: there is no folder {path.parent}.")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise _RefusedError(f"{path} cannot be written: you may not write there.")


def _read(path: Path) -> Measurement:
    try:
        return document.loads(text_files.read(path))
    except (OSError, UnicodeError, document.DocumentError) as error:
        raise _RefusedError(f"{path} cannot be compared with: {error}") from error


def _foreign(path: Path) -> tuple[Any, ...]:
    try:
        return foreign.read(text_files.read(path))
    except (OSError, UnicodeError, foreign.ForeignError) as error:
        raise _RefusedError(f"{path} cannot be added: {error}") from error
