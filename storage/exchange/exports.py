"""Taking the history away and bringing another one in.

A conversation leaves as Markdown (to read) or JSON (to keep); a selection of runs as CSV, JSON Lines or Parquet;
everything as a copy of the database. JSON, JSON Lines and databases can be brought in again, on any machine: rows
have ids that are unique everywhere, so nothing is doubled, and what came keeps the name of its machine.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import psutil
from sqlite_utils import Database

from engines.toolkit.spreadsheets import for_spreadsheet
from storage.codec import unpack_offsets
from storage.database import HistoryFile, StoreError, make_private
from storage.exchange.documents import conversation_markdown
from storage.exchange.parquet import write_parquet
from storage.filters import of_conversation, of_run
from storage.queries import rows
from storage.records import Conversation, Filter

FORMAT = "backend-arena"
FORMAT_VERSION = 1
_HEAD = {"format": FORMAT, "version": FORMAT_VERSION}

COLUMNS: dict[str, type] = {
    **dict.fromkeys(("run_id", "conversation_id", "turn_id", "started_at"), str),
    "panel": int,
    "attempt": int,
    **dict.fromkeys(("engine", "device", "precision", "model", "revision", "machine", "mode"), str),
    **dict.fromkeys(("contended", "disturbed", "alone"), bool),
    **dict.fromkeys(("stamp_rule", "placement_badge"), str),
    **dict.fromkeys(("status", "finish_reason", "error_kind", "error_message", "vote"), str),
    **dict.fromkeys(("prompt_tokens", "cached_prompt_tokens", "output_tokens"), int),
    **dict.fromkeys(
        ("ttft_s", "felt_ttft_s", "prefill_tok_s", "decode_tok_s", "itl_median_s", "itl_p95_s"), float
    ),
    **dict.fromkeys(("reasoning_tokens", "answer_tokens"), int),
    **dict.fromkeys(("first_reasoning_s", "first_answer_s", "answer_s"), float),
    **dict.fromkeys(("total_s", "load_s", "compile_s", "warmup_s"), float),
    "peak_rss_bytes": int,
    **dict.fromkeys(("prompt_sha256", "system_prompt", "prompt", "reasoning", "text", "note"), str),
    **dict.fromkeys(("clock", "via"), str),
}
"""Columns of an exported selection: the figures of `run_metrics`, the vote on the turn, and the texts."""


def selection(db: Database, where: Filter) -> Iterator[dict[str, Any]]:
    """The runs that fit a filter, oldest first: a row of COLUMNS each, and its `n` in the table `runs`."""
    conversation, values = of_conversation(db, where)
    run, run_values = of_run(where)
    cursor = db.execute(
        f"""
        SELECT x.*, r.error_message, v.winner AS vote, t.system_prompt, t.prompt, r.reasoning, r.text,
            r.note
        FROM conversations c JOIN turns t ON t.conversation_id = c.id JOIN runs r ON r.turn_id = t.id
        JOIN run_metrics x ON x.n = r.n LEFT JOIN votes v ON v.turn_id = t.id
        WHERE {conversation} AND {run or "1"} ORDER BY r.id
        """,
        [*values, *run_values],
    )
    names = [column[0] for column in cursor.description]
    for row in cursor:
        record = dict(zip(names, row, strict=True))
        for name in ("contended", "disturbed", "alone"):
            record[name] = None if record[name] is None else bool(record[name])
        yield {"n": record["n"], **{name: record[name] for name in COLUMNS}}


FOLDER_PREFIX = "backend-arena-"


def own_folder() -> tempfile.TemporaryDirectory[str]:
    """A private folder for exports, gone with the app; those of apps that were killed go now."""
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*-*"):
        pid = left.name.removeprefix(FOLDER_PREFIX).partition("-")[0]
        with suppress(OSError):
            if pid.isdigit() and left.is_dir() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", ignore_cleanup_errors=True)


# --- going out ---------------------------------------------------------------------------------------------


def export_csv(file: HistoryFile, where: Filter, path: Path) -> int:
    """Write the runs that fit as CSV (UTF-8 with a mark, as spreadsheets like it); returns how many."""
    with _private_text(path, "utf-8-sig") as out, file.reading() as db:
        writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        return _count(writer.writerow(_harmless(row)) for row in selection(db, where))


def export_jsonl(file: HistoryFile, where: Filter, path: Path) -> int:
    """Write the runs that fit as JSON Lines, complete: `import_file` reads them again. Returns how many."""
    with _private_text(path) as out, file.reading() as db:
        complete = _Complete(db)
        conversations: dict[str, None] = {}
        count = 0
        for row in selection(db, where):
            conversations[row["conversation_id"]] = None
            out.write(json.dumps({**_HEAD, **row, **complete.of(row.pop("n"))}) + "\n")
            count += 1
        for conversation_id in conversations:
            for measurement in _measurements(db, conversation_id):
                out.write(json.dumps({**_HEAD, "measurement": measurement}) + "\n")
        return count


def export_parquet(file: HistoryFile, where: Filter, path: Path) -> int:
    """Write the runs that fit as Parquet; returns how many. Raises StoreError when the library is missing."""
    with file.reading() as db:
        return write_parquet(selection(db, where), COLUMNS, path)


def export_database(file: HistoryFile, path: Path) -> int:
    """A consistent copy of everything, also while a chat goes on; returns its size in bytes. Raises StoreError."""
    _refuse_devices(path)
    partial = path.with_name(path.name + ".part")
    try:
        partial.unlink(missing_ok=True)
        make_private(partial)
        file.copy_to(partial)
        partial.replace(path)
    except OSError as error:
        raise StoreError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return path.stat().st_size


EXPORTS: Mapping[str, Callable[[HistoryFile, Filter, Path], int]] = {
    "csv": export_csv,
    "jsonl": export_jsonl,
    "parquet": export_parquet,
}


def export_selection(file: HistoryFile, where: Filter, path: Path, kind: str) -> int:
    """Write the runs that fit to `path`, whole or not at all; returns how many. Raises StoreError."""
    _refuse_devices(path)
    partial = path.with_name(path.name + ".part")
    try:
        make_private(partial)
        count = EXPORTS[kind](file, where, partial)
        partial.replace(path)
    except OSError as error:
        raise StoreError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return count


def _refuse_devices(path: Path) -> None:
    """What is no file would not be written to, but replaced: for root even /dev/null."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device"
        raise StoreError(
            f"{path} cannot be written: it is {what}. Give a file a name, or - for the terminal."
        )


def conversation_text(file: HistoryFile, conversation: Conversation, kind: str) -> str:
    """A conversation as `md` or `json`."""
    if kind == "md":
        return conversation_markdown(conversation)
    return json.dumps(conversation_document(file, conversation.id), indent=2)


def write_text(path: Path, text: str) -> None:
    """Write a text readable only by its user; raises StoreError."""
    try:
        with _private_text(path) as out:
            out.write(text.encode("utf-8", "replace").decode("utf-8"))
    except OSError as error:
        raise StoreError(f"{path} could not be written: {error.strerror or error}.") from error


def conversation_document(file: HistoryFile, conversation_id: str) -> dict[str, Any] | None:
    """A conversation with all its numbers, as JSON can hold it; `import_file` reads it again."""
    with file.reading() as db:
        where = Filter(conversation_ids=(conversation_id,))
        found = rows(db, "SELECT * FROM conversations WHERE id = ? AND deleted_at IS NULL", [conversation_id])
        if not found:
            return None
        complete = _Complete(db)
        return {
            **_HEAD,
            "conversation": _plain(found[0]),
            "turns": [
                complete.turn(row["id"])
                for row in rows(
                    db, "SELECT id FROM turns WHERE conversation_id = ? ORDER BY id", [conversation_id]
                )
            ],
            "runs": [{**complete.of(row.pop("n")), **row} for row in selection(db, where)],
            "measurements": _measurements(db, conversation_id),
        }


def _measurements(db: Database, conversation_id: str) -> list[dict[str, Any]]:
    found = rows(db, "SELECT * FROM measurements WHERE conversation_id = ?", [conversation_id])
    return [_plain(row) for row in found]


def _count(written: Iterator[Any]) -> int:
    return sum(1 for _ in written)


def _harmless(row: dict[str, Any]) -> dict[str, Any]:
    return {name: for_spreadsheet(value) if isinstance(value, str) else value for name, value in row.items()}


@contextmanager
def _private_text(path: Path, encoding: str = "utf-8") -> Iterator[TextIO]:
    make_private(path)
    with path.open("w", encoding=encoding, newline="") as out:
        yield out


_JSON_COLUMNS = (
    *("facts", "versions", "details", "recipe", "settings", "server", "earlier", "document"),
    *("other_load", "placement"),
)


_OURS = ("n", "writer", "deleted_at", "reply_ids")
"""What means nothing on another computer; the words of a reply are exported, its token ids are not."""


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A database row as JSON can hold it: nested JSON opened, offsets in seconds, no row number."""
    plain = {name: value for name, value in row.items() if name not in _OURS}
    for name in _JSON_COLUMNS:
        if plain.get(name) is not None:
            plain[name] = json.loads(plain[name])
    for name in ("token_offsets", "piece_offsets"):
        if name in plain:
            plain[f"{name}_s"] = list(unpack_offsets(plain.pop(name)))
    return plain


class _Complete:
    """Finds the rows that a run hangs on; each is read once."""

    def __init__(self, db: Database):
        self._db = db
        self._known: dict[tuple[str, str], dict[str, Any]] = {}

    def of(self, n: int) -> dict[str, Any]:
        """The run's own row and those it hangs on, by table."""
        (run,) = rows(self._db, "SELECT * FROM runs WHERE n = ?", [n])
        turn = self.turn(run["turn_id"])
        return {
            "run": _plain(run),
            "turn": turn,
            "conversation": self._row("conversations", turn["conversation_id"]),
            "target": self._row("targets", run["target_id"]),
            "machine_facts": self._row("machines", run["machine_id"]),
            "environment": run["environment_id"] and self._row("environments", run["environment_id"]),
        }

    def turn(self, turn_id: str) -> dict[str, Any]:
        votes = rows(self._db, "SELECT * FROM votes WHERE turn_id = ?", [turn_id])
        return {**self._row("turns", turn_id), "vote": votes[0] if votes else None}

    def _row(self, table: str, row_id: str) -> dict[str, Any]:
        if (table, row_id) not in self._known:
            if len(self._known) > 10_000:
                self._known.clear()
            found = rows(self._db, f"SELECT * FROM {table} WHERE id = ?", [row_id])
            self._known[table, row_id] = _plain(found[0])
        return self._known[table, row_id]
