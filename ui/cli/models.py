"""`python app.py models list|plan|get|convert|remove|import [--json]`: the Models tab for a terminal."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines import ENGINES, spec_by_name
from engines.engine import EngineError, ModelError
from engines.environments.environments import Environments
from engines.models.inventory import Installed
from engines.models.library import ModelLibrary
from engines.models.model_names import entered
from engines.models.plan import Plan, duration, size
from engines.models.together import (
    LEFT_OUT,
    READY,
    Backend,
    GetTogether,
    JointPlan,
    Part,
    as_stated,
    backends,
    plan_together,
)
from engines.protocol import EngineSpec, Progress, ProtocolError, Target, to_jsonable
from engines.runtime.manager import EngineManager
from ui.cli import absolute

Reply = tuple[int, Any, list[str]]
"""Exit status, the JSON document, the lines for a terminal."""


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `models` to the app's commands."""
    parser = subparsers.add_parser("models", help="list, plan, get, convert, remove or import models")
    parser.add_argument("--offline", action="store_true", help="do not use the network")
    actions = parser.add_subparsers(dest="models_action", required=True, metavar="ACTION")

    _action(actions, "list", "every model on this computer: formats, sizes, places", _list)
    for name, help_text, function in (
        ("plan", "what getting a model ready would cost", _plan),
        ("get", "get a model ready for one or more targets: ready-made if published, else converted", _get),
        ("convert", "like get, but always convert from the original weights", _convert),
    ):
        action = _action(actions, name, help_text, function)
        action.add_argument("model", help="demo, a Hugging Face id, or a folder")
        which = action.add_mutually_exclusive_group(required=name != "plan")
        which.add_argument(
            "--on",
            action="append",
            metavar="TARGET",
            help="ENGINE/DEVICE/PRECISION, for example openvino-genai/CPU/int4; may be repeated",
        )
        which.add_argument(
            "--for",
            dest="wanted_for",
            choices=["all"],
            help="all: every engine that can run here, on each of its devices"
            + (" (default)" if name == "plan" else ""),
        )
        action.add_argument(
            "--trust-remote-code",
            action="store_true",
            help="let Python code that comes with the model run on this computer",
        )
        if name != "plan":
            action.add_argument(
                "--override", action="store_true", help="go on though memory or disk seem too small"
            )
    remove = _action(actions, "remove", "remove a model, or one entry of `list` by its id", _remove)
    remove.add_argument("what", metavar="MODEL|ID")
    imported = _action(actions, "import", "offer a model folder on disk; it stays where it is", _import)
    imported.add_argument("folder")


def _action(
    actions: argparse._SubParsersAction,
    name: str,
    help_text: str,
    function: Callable[[argparse.Namespace, ModelLibrary], Reply],
) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=help_text)
    action.add_argument("--json", action="store_true", help="print one JSON document")
    # Both are options of the commands above too; an option is obeyed wherever it stands.
    action.add_argument(
        "--offline", action="store_true", default=argparse.SUPPRESS, help="do not use the network"
    )
    action.add_argument("--data-dir", type=absolute, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    action.set_defaults(run=lambda arguments: _run(function, arguments))
    return action


def _run(function: Callable[[argparse.Namespace, ModelLibrary], Reply], arguments: argparse.Namespace) -> int:
    library = ModelLibrary(arguments.data_dir, offline=arguments.offline)
    try:
        status, document, lines = function(arguments, library)
    except (EngineError, ProtocolError) as error:
        remedy = getattr(error, "remedy", None)
        status, document = 1, {"error": str(error), "remedy": remedy}
        lines = [line for line in (str(error), remedy) if line]
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        print("\n".join(lines), file=sys.stderr if status else sys.stdout)
    return status


def _list(_arguments: argparse.Namespace, library: ModelLibrary) -> Reply:
    entries = library.installed()
    return 0, {"models": [asdict(entry) for entry in entries]}, _table(entries)


def _table(entries: tuple[Installed, ...]) -> list[str]:
    rows = [("model", "format", "for", "kind", "size", "id")]
    for entry in entries:
        precision = " ".join(part for part in (entry.precision, entry.device) if part)
        rows.append((entry.model, entry.format, precision or "–", entry.kind, size(entry.bytes), entry.id))
    lines = columns(rows)
    lines += [f"! {entry.id}: {entry.problem}" for entry in entries if entry.problem]
    return [*lines, f"Together {size(sum(entry.bytes for entry in entries))}"]


def _plan(arguments: argparse.Namespace, library: ModelLibrary) -> Reply:
    together = plan_together(
        library, _wanted(arguments, library), trust_remote_code=arguments.trust_remote_code
    )
    document = {**joint_document(together), "plans": [plan_document(plan) for plan in together.plans]}
    if arguments.on:
        lines = [
            line
            for plan in together.plans
            for line in (f"{plan.target}:", *(f"  {text}" for text in plan.lines()))
        ]
        return (1 if any(plan.refusal for plan in together.plans) else 0), document, lines
    return (1 if together.refusal else 0), document, _plan_table(together)


def _plan_table(together: JointPlan) -> list[str]:
    """One line for each backend, then the sums."""
    rows: list[tuple[str, ...]] = [("backend", "how", "download", "disk", "memory", "about", "loaded")]
    for plan in together.plans:
        rows.append((plan.target.spelling, _how(plan), *_figures(plan)))
    lines = [f"{together.model}:", *(f"  {line}" for line in columns(rows)), ""]
    refused = [plan for plan in together.plans if plan.refusal]
    lines += [f"! {plan.target.spelling}: {plan.refusal} {plan.remedy or ''}".rstrip() for plan in refused]
    if together.ready:
        return [*lines, "Everything that can be had is ready."]
    if together.possible:
        lines.append(
            f"Together: download {size(together.download_bytes)} · disk {size(together.disk_bytes)} of "
            f"{size(together.disk_free_bytes)} free · memory up to {size(together.peak_bytes)} of "
            f"{size(together.available_bytes)} available · about {duration(together.seconds)}. "
            "What engines share is counted once."
        )
    return lines + ([f"Not advisable: {together.refusal}"] if together.refusal else [])


def _how(plan: Plan) -> str:
    if plan.ready:
        return "ready"
    if plan.refusal and not plan.steps:
        return "not possible"
    ways = {"download": "download", "convert": "convert here", "use": "use"}
    how = " + ".join(dict.fromkeys(ways[step.kind] for step in plan.steps))
    return f"does not fit ({how})" if plan.refusal else how


def _figures(plan: Plan) -> tuple[str, ...]:
    loaded = size(plan.load_bytes) if plan.load_bytes else "–"
    if plan.ready or not plan.steps:
        return "–", "–", "–", "–", loaded
    return (
        size(plan.download_bytes),
        size(plan.disk_bytes),
        size(plan.peak_bytes) if plan.peak_bytes else "–",
        duration(plan.seconds),
        loaded,
    )


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as text, in columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def joint_document(together: JointPlan) -> dict[str, Any]:
    """The sums over all backends, as JSON; what engines share is counted once."""
    return {
        "model": together.model,
        "ready": together.ready,
        "download_bytes": together.download_bytes,
        "disk_bytes": together.disk_bytes,
        "disk_free_bytes": together.disk_free_bytes,
        "peak_bytes": together.peak_bytes,
        "available_bytes": together.available_bytes,
        "seconds": together.seconds,
        "refusal": together.refusal,
    }


def plan_document(plan: Plan) -> dict[str, Any]:
    """A plan as JSON."""
    return {
        **asdict(plan),
        "target": plan.target.spelling,
        "model": plan.target.model,
        "download_bytes": plan.download_bytes,
        "disk_bytes": plan.disk_bytes,
        "peak_bytes": plan.peak_bytes,
        "seconds": plan.seconds,
    }


def _get(arguments: argparse.Namespace, library: ModelLibrary) -> Reply:
    if arguments.wanted_for:
        return _get_together(arguments, library)
    return _prepare(arguments, library, use_prebuilt=True)


def _convert(arguments: argparse.Namespace, library: ModelLibrary) -> Reply:
    return _prepare(arguments, library, use_prebuilt=False)


def _prepare(arguments: argparse.Namespace, library: ModelLibrary, *, use_prebuilt: bool) -> Reply:
    prepared, lines = [], []
    for target, spec in ((b.target, b.spec) for b in _wanted(arguments, library)):
        model = library.prepare(
            target,
            spec,
            _print_progress(),
            threading.Event(),
            trust_remote_code=arguments.trust_remote_code,
            override=arguments.override,
            use_prebuilt=use_prebuilt,
        )
        prepared.append(to_jsonable(model) | {"target": target.spelling})
        lines.append(f"{target} is ready: {model.path} ({size(model.weight_bytes)})")
    return 0, {"prepared": prepared}, lines


def _get_together(arguments: argparse.Namespace, library: ModelLibrary) -> Reply:
    """Every backend at once. Exit status 0: at least one is ready, none failed; what does not fit is left out."""
    cancelled, told = threading.Event(), dict[Target, str]()

    def tell(part: Part) -> None:
        line = (
            f"{part.target.spelling}: {part.problem or (part.progress and part.progress.text) or part.state}"
        )
        if told.get(part.target) != line:
            told[part.target] = line
            print(line, file=sys.stderr, flush=True)

    work = GetTogether(library, _wanted(arguments, library), tell)
    options = {"trust_remote_code": arguments.trust_remote_code, "override": arguments.override}
    thread = threading.Thread(target=work.run, args=(cancelled,), kwargs=options, daemon=True)
    thread.start()
    while thread.is_alive():
        try:
            thread.join(0.2)  # with a timeout, or Windows would not see Ctrl+C
        except KeyboardInterrupt:
            print("\nStopping …", file=sys.stderr)
            cancelled.set()
    parts = work.parts
    lines = [f"{p.target.spelling}: {p.state}{f' ({p.problem})' if p.problem else ''}" for p in parts]
    states = {part.state for part in parts}
    document = {"model": entered(arguments.model, look_around=True), "parts": [_part(part) for part in parts]}
    if not parts:
        lines = ["No engine can run here; `doctor` says why."]
    return (0 if READY in states <= {READY, LEFT_OUT} else 1), document, lines


def _part(part: Part) -> dict[str, Any]:
    return {
        "target": part.target.spelling,
        "state": part.state,
        "problem": part.problem,
        "remedy": part.remedy,
        "prepared": to_jsonable(part.prepared) if part.prepared else None,
    }


def _print_progress() -> Callable[[Progress], None]:
    last = [""]

    def show(progress: Progress) -> None:
        share = "" if progress.fraction is None else f"{progress.fraction:4.0%} "
        line = f"{progress.stage}: {share}{progress.text}"
        if line != last[0]:
            last[0] = line
            print(line, file=sys.stderr, flush=True)

    return show


def _remove(arguments: argparse.Namespace, library: ModelLibrary) -> Reply:
    freed = library.remove(entered(arguments.what))
    return (
        0,
        {"removed": arguments.what, "freed_bytes": freed},
        [f"Removed {arguments.what}: {size(freed)} freed."],
    )


def _import(arguments: argparse.Namespace, library: ModelLibrary) -> Reply:
    entry = library.import_folder(Path(entered(arguments.folder, look_around=True)))
    line = f"{entry.path} can be used now: {entry.format}, {size(entry.bytes)}. Its name in a target is its path."
    return 0, {"imported": asdict(entry)}, [line]


def _wanted(arguments: argparse.Namespace, library: ModelLibrary) -> tuple[Backend, ...]:
    """The backends that were named, or all that can run here."""
    if arguments.on:
        return tuple(Backend(target, spec) for target, spec in _targets(arguments))
    data_dir = arguments.data_dir
    manager = EngineManager(data_dir, library, Environments(data_dir, getattr(arguments, "python", None)))
    try:
        availability = manager.availability()
    finally:
        manager.shutdown()
    return as_stated(library, backends(entered(arguments.model, look_around=True), ENGINES, availability))


def _targets(arguments: argparse.Namespace) -> list[tuple[Target, EngineSpec]]:
    targets = []
    model = entered(arguments.model, look_around=True)
    for spelling in arguments.on:
        target = Target.parse(spelling, model)
        spec = spec_by_name(target.engine)
        if spec is None:
            raise ModelError(f"There is no engine “{target.engine}”.", "`doctor` lists the engines.")
        targets.append((target, spec))
    return targets
