"""`python app.py history …`: find, read, take away, bring in and delete conversations without the page."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from storage import housekeeping
from storage.exchange import exports, imports
from storage.exchange.documents import conversation_markdown
from storage.exchange.harmless import for_terminal
from storage.filters import VOTES
from storage.records import Conversation, Filter, Summary
from storage.store import FILE_NAME, Store, StoreError
from ui import format as fmt
from ui.cli import absolute, number, whole

NOT_FOUND = 1
MOST_DAYS = 36_500
_EXPORTS_ONE = ("md", "json")
_EXPORTS_MANY = ("csv", "jsonl", "parquet", "db")
_TEXTS = ("csv", "jsonl", "md", "json")


def register(subparsers: Any) -> None:
    """Add `history` and its actions."""
    history = subparsers.add_parser(
        "history", help="search, show, export, import or delete past conversations"
    )
    actions = history.add_subparsers(title="actions", metavar="ACTION", required=True)

    search = _action(actions, "search", _search, "conversations in which all words occur, newest first")
    search.add_argument("query", nargs="*", metavar="WORDS", help="without words: the newest conversations")
    _add_filters(search)
    search.add_argument("--limit", type=whole(1), default=20, metavar="N", help="default: %(default)s")
    search.add_argument(
        "--offset", type=whole(0, 10**12), default=0, metavar="N", help="leave out the first N"
    )

    show = _action(actions, "show", _show, "one conversation with its numbers, as Markdown")
    show.add_argument("id", help="as `history search` prints it; its last characters are enough")

    export = _action(actions, "export", _export, "write one conversation, a selection of runs, or everything")
    export.add_argument(
        "output",
        type=_file,
        metavar="FILE",
        help="where to; its ending tells the format; -: the terminal, with --format csv, jsonl, md or json",
    )
    export.add_argument("--format", choices=(*_EXPORTS_ONE, *_EXPORTS_MANY), help="md and json need --id")
    export.add_argument("--id", help="just this conversation")
    export.add_argument("--query", metavar="WORDS", help="conversations in which all words occur")
    _add_filters(export)

    bring = _action(actions, "import", _import, "merge another machine's database or export, nothing twice")
    bring.add_argument(
        "source", type=absolute, metavar="FILE", help="a .sqlite3 database, .jsonl or .json export"
    )
    bring.add_argument("--name", help="what to call the machine it comes from, instead of its own name")

    delete = _action(actions, "delete", _delete, "remove conversations with their numbers, for good")
    what = delete.add_mutually_exclusive_group(required=True)
    what.add_argument("ids", nargs="*", metavar="ID", default=[], help="as `history search` prints them")
    what.add_argument(
        "--older-than",
        type=number(0, MOST_DAYS),
        metavar="DAYS",
        help="all untouched for longer, except pinned ones",
    )
    what.add_argument("--all", action="store_true", help="everything")
    what.add_argument("--texts", action="store_true", help="all prompts and replies, but keep the numbers")
    delete.add_argument("--yes", action="store_true", help="do not ask")


def _action(actions: Any, name: str, run: Callable[[Store, argparse.Namespace], int], text: str) -> Any:
    parser = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--data-dir", type=absolute, default=argparse.SUPPRESS, help="folder of the history")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(run=lambda arguments: _with_store(run, arguments))
    return parser


def _add_filters(parser: argparse.ArgumentParser) -> None:
    for name in ("engine", "device", "precision", "model", "machine"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--status", choices=("finished", "stopped", "failed", "interrupted", "running"))
    parser.add_argument(
        "--vote", choices=VOTES, help="of the turn; won: by a run that fits the other filters"
    )
    parser.add_argument("--since", type=_day, metavar="YYYY-MM-DD", help="first day")
    parser.add_argument("--until", type=_day, metavar="YYYY-MM-DD", help="last day")


def _filter(arguments: argparse.Namespace) -> Filter:
    names = ("query", "engine", "device", "precision", "model", "machine", "status", "vote", "since", "until")
    chosen = {name: getattr(arguments, name) for name in names}
    if isinstance(chosen["query"], list):
        chosen["query"] = " ".join(chosen["query"]) or None
    return Filter(**chosen)


def _with_store(run: Callable[[Store, argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    store = Store(arguments.data_dir / FILE_NAME)
    try:
        return run(store, arguments)
    finally:
        store.close()


def _search(store: Store, arguments: argparse.Namespace) -> int:
    page = store.conversations(_filter(arguments), limit=arguments.limit, offset=arguments.offset)
    if arguments.json:
        return _print_json(
            {
                "total": page.total,
                "more": page.more,  # than `total`: what is searched for is counted up to a limit
                "conversations": [asdict(summary) for summary in page.summaries],
            }
        )
    for summary in page.summaries:
        print(_line(summary))
    print(f"{page.total_text} found, {len(page.summaries)} shown.", file=sys.stderr)
    return 0


def _line(summary: Summary) -> str:
    title = " ".join((summary.title or summary.first_prompt or "(text not kept)").split())[:70]
    found = f"\n    {summary.snippet}" if summary.snippet else ""
    failed = f", {summary.failed_runs} failed" if summary.failed_runs else ""
    return for_terminal(
        f"{summary.id}  {fmt.when(summary.updated_at)}  {title}\n"
        f"    {fmt.counted(summary.turns, 'turn')}, {fmt.counted(summary.runs, 'run')}{failed}: "
        f"{', '.join(summary.targets)}{found}"
    )


def _show(store: Store, arguments: argparse.Namespace) -> int:
    conversation = _find(store, arguments.id)
    if arguments.json:
        return _print_json(exports.conversation_document(store.file, conversation.id))
    print(conversation_markdown(conversation))
    return 0


def _file(text: str) -> Path:
    """A file, or `-`, the terminal."""
    return Path(text) if text == "-" else absolute(text)


def _export(store: Store, arguments: argparse.Namespace) -> int:
    if str(arguments.output) == "-":
        return _export_to_the_terminal(store, arguments)
    kind = arguments.format or {"sqlite3": "db", "sqlite": "db"}.get(
        ending := arguments.output.suffix.lstrip(".").lower(), ending
    )
    if kind in _EXPORTS_ONE:
        if not arguments.id:
            raise StoreError(
                f"A .{kind} file holds one conversation: say which with --id, or export as jsonl."
            )
        conversation = _find(store, arguments.id)
        count = sum(len(turn.runs) for turn in conversation.turns)
        exports.write_text(arguments.output, exports.conversation_text(store.file, conversation, kind))
    elif kind == "db":
        exports.export_database(store.file, arguments.output)
        count = None
    elif kind in _EXPORTS_MANY:
        where = _filter(arguments)
        if arguments.id:
            where = Filter(**{**asdict(where), "conversation_ids": (_find(store, arguments.id).id,)})
        count = exports.export_selection(store.file, where, arguments.output, kind)
    else:
        raise StoreError(
            f"“{arguments.output}” does not tell the format; add --format csv, jsonl, parquet or db."
        )
    size = arguments.output.stat().st_size
    if arguments.json:
        return _print_json({"file": str(arguments.output), "format": kind, "runs": count, "bytes": size})
    print(f"{arguments.output}: " + (f"{count:,} runs, " if count is not None else "") + f"{size:,} bytes")
    return 0


def _export_to_the_terminal(store: Store, arguments: argparse.Namespace) -> int:
    if arguments.format not in _TEXTS or arguments.json:
        raise StoreError(
            f"The terminal takes texts: say which with --format {', '.join(_TEXTS)}, and no --json."
        )
    with exports.own_folder() as folder:
        arguments.output = Path(folder) / f"export.{arguments.format}"
        with contextlib.redirect_stdout(io.StringIO()):  # what was written where concerns nobody then
            _export(store, arguments)
        text = arguments.output.read_text(encoding="utf-8-sig")
    print(text.rstrip("\r\n"))
    return 0


def _import(store: Store, arguments: argparse.Namespace) -> int:
    imported = imports.import_file(store.file, arguments.source, name=arguments.name)
    if arguments.json:
        return _print_json(asdict(imported))
    print(imported)
    return 0


def _delete(store: Store, arguments: argparse.Namespace) -> int:
    if arguments.older_than is not None:
        what = f"all conversations untouched for {arguments.older_than:g} days"
    elif arguments.all:
        what = "the whole history"
    elif arguments.texts:
        what = "all prompts and replies (the numbers stay)"
    else:
        arguments.ids = [_find(store, given).id for given in arguments.ids]
        what = f"{fmt.counted(len(arguments.ids), 'conversation')} with all numbers"
    if not arguments.yes and not _agreed(f"Delete {what} for good?"):
        print("Nothing was deleted.", file=sys.stderr)
        if arguments.json:
            _print_json({"deleted": 0})
        return NOT_FOUND
    if arguments.older_than is not None:
        count = housekeeping.delete_older(store.file, arguments.older_than)
    elif arguments.all:
        count = store.delete_everything()
    elif arguments.texts:
        count = store.remove_texts()
    else:
        count = store.delete(arguments.ids)
        housekeeping.remove_deleted(store.file)
    if arguments.json:
        return _print_json({"deleted": count, "of": "runs" if arguments.texts else "conversations"})
    of = fmt.counted(count, "reply", "replies") if arguments.texts else fmt.counted(count, "conversation")
    print(f"{of} removed.")
    return 0


def _find(store: Store, given: str) -> Conversation:
    """The conversation of that id, or whose id ends so; raises StoreError when there is none, or several."""
    conversation = store.conversation(given)
    if conversation is None:
        found = store.ids_ending(given)
        if len(found) > 1:
            raise StoreError(f"{len(found)} conversations have ids ending in {given}; give more of it.")
        conversation = store.conversation(found[0]) if found else None
    if conversation is None:
        raise StoreError(f"There is no conversation {given}; `history search` prints the ids.")
    return conversation


def _agreed(question: str) -> bool:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _print_json(document: Any) -> int:
    print(json.dumps(document, indent=2))
    return 0


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a day; write it as 2026-11-22") from error
