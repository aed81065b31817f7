"""Bringing in another history: a database, JSON Lines, or one conversation's JSON, whole or not at all.

What is read was written by others: it is checked before anything is merged, and only known columns are taken. Rows
come from plain tables alone (a view can be endless, a trigger can do anything), numbers and dates have to be such as
the app could have written, and there is a deadline, after which nothing has been imported.
"""

from __future__ import annotations

import functools
import json
import platform
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from engines.toolkit import text_files
from storage.codec import pack_offsets, readable, to_json
from storage.database import HistoryFile, StoreError, sentence, uri
from storage.exchange.exports import FORMAT, FORMAT_VERSION
from storage.migrations import migrations

TABLES = ("machines", "environments", "targets", "conversations", "turns", "runs", "votes", "measurements")
"""In the order in which rows may refer to each other."""


DEADLINE_S = 300.0
"""An import that takes longer is given up; as long as a merge runs nothing else can be written."""
LARGEST = 1e15
"""No figure of a history is larger: Infinity and its like come from elsewhere, and break what reads them."""
YEARS = ("1970", "2999")


@dataclass(frozen=True)
class Imported:
    """What an import brought."""

    conversations: int
    runs: int
    already_here: int
    """Runs that were there before and were left as they are."""
    machines: tuple[str, ...]
    brought_back: int = 0
    """Conversations that had been deleted here a moment ago: who imports them wants them."""

    def __str__(self) -> str:
        names = ", ".join(self.machines) or "an unnamed machine"
        what = f"{_counted(self.runs, 'run')} in {_counted(self.conversations, 'conversation')}"
        said = f"Imported {what} from {names}."
        if self.already_here:
            said += f" {_counted(self.already_here, 'run')} {_were(self.already_here)} here already."
        if self.brought_back:
            said += f" {_counted(self.brought_back, 'deleted conversation')} {_were(self.brought_back)} brought back."
        return said


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def import_file(file: HistoryFile, source: Path, *, name: str | None = None) -> Imported:
    """Merge a database or an export into the history. Raises StoreError; then nothing was changed.

    `name`: what to call the machine it comes from, when its own name would not do.
    """
    try:
        with source.open("rb") as start:
            is_database = start.read(16) == b"SQLite format 3\x00"
        if is_database:
            return _import_database(file, source, name)
        with tempfile.TemporaryDirectory(prefix="history-import-") as folder:
            staged = HistoryFile(Path(folder) / "staged.sqlite3")
            try:
                _stage(staged, _documents(source), source)
                _count_panels_from_one(staged)
            finally:
                staged.close()
            return _merge(file, staged.path, name)
    except OSError as error:
        raise StoreError(f"{source} cannot be read: {error.strerror or error}.") from error


def _import_database(file: HistoryFile, source: Path, name: str | None) -> Imported:
    """Bring a copy up to our version first: the source is not touched."""
    with tempfile.TemporaryDirectory(prefix="history-import-") as folder:
        copy = Path(folder) / "copy.sqlite3"
        try:
            original = sqlite3.connect(f"{uri(source.absolute())}?mode=ro", uri=True)
            target = sqlite3.connect(copy)
            try:
                original.backup(target)
                _give_up_after(target, DEADLINE_S)
                target.execute("PRAGMA trusted_schema = 0")
                _refuse_strange_schema(target, source)
                (verdict,) = target.execute("PRAGMA quick_check(1)").fetchone()
            finally:
                original.close()
                target.close()
        except sqlite3.Error as error:
            raise sentence(error, source) from error
        if verdict != "ok":
            raise StoreError(f"{source} is damaged ({verdict}), so nothing was imported.")
        staged = HistoryFile(copy)
        staged.close()
        return _merge(file, copy, name)


def _give_up_after(connection: sqlite3.Connection, seconds: float) -> None:
    """Interrupt whatever the connection does once the time is up."""
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: int(time.monotonic() > deadline), 100_000)


def _refuse_strange_schema(connection: sqlite3.Connection, source: Path) -> None:
    """Only what our own steps make may be in a history: no other view or trigger, and tables that are tables."""
    known = known_schema()
    for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall():
        ours = (kind, name) in known
        plain = kind == "table" and not str(sql or "").upper().startswith("CREATE VIRTUAL")
        strange = (
            (kind in ("view", "trigger") and " ".join(str(sql).split()) not in known.get((kind, name), ()))
            or (name in TABLES and not plain)
            or (kind == "table" and not plain and not ours)
        )
        if strange:
            raise StoreError(
                f"{source} holds the {kind} “{str(name)[:60]}”, which no history has; nothing was imported."
            )
    for table in TABLES:
        hidden = "SELECT count(*) FROM pragma_table_xinfo(?) WHERE hidden <> 0"
        if connection.execute(hidden, [table]).fetchone()[0]:
            raise StoreError(f"{source} computes columns of its {table}; nothing was imported.")


@functools.cache
def known_schema() -> Mapping[tuple[str, str], set[str]]:
    """(kind, name) -> how any of our versions spells it, white space aside."""
    found: dict[tuple[str, str], set[str]] = {}
    db = Database(memory=True)
    for migration in migrations.pending(db):
        migration.fn(db)
        for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_master").fetchall():
            found.setdefault((kind, name), set()).add(" ".join(str(sql).split()))
    db.close()
    return found


def _merge(file: HistoryFile, staged: Path, name: str | None) -> Imported:
    with file.maintaining() as db:
        db.conn.execute("ATTACH ? AS other", [str(staged)])
        _give_up_after(db.conn, DEADLINE_S)
        try:
            db.conn.execute("BEGIN IMMEDIATE")
            try:
                imported = _merge_tables(db, name)
                db.conn.execute("COMMIT")
            except BaseException:
                db.rollback()
                raise
        finally:
            db.conn.set_progress_handler(None, 0)
            db.conn.execute("DETACH other")
    return imported


_STORED_AS = {
    "INTEGER": ("integer", "real", "null"),  # a median between two whole microseconds is none itself
    "REAL": ("real", "integer", "null"),
    "TEXT": ("text", "null"),
    "BLOB": ("blob", "null"),
}
_MOMENTS = ("created_at", "updated_at", "started_at", "finished_at")
_NO_MOMENT = (
    "({0} NOT GLOB '????-??-??T??:??:??.???Z' OR date({0}) IS NOT substr({0}, 1, 10) "
    f"OR substr({{0}}, 1, 4) NOT BETWEEN '{YEARS[0]}' AND '{YEARS[1]}')"
)
_NO_FIGURE = f"(typeof({{0}}) IN ('integer', 'real') AND abs({{0}}) > {LARGEST:.0f})"
_JSON = [
    "facts",
    "versions",
    "details",
    "recipe",
    "exact",
    "settings",
    "earlier",
    "other_load",
    "placement",
    "server",
    "document",
]
_NO_FIGURE_WITHIN = f"""({{0}} IS NOT NULL AND EXISTS (
    SELECT 1 FROM json_tree({{0}}) WHERE type IN ('integer', 'real') AND abs(value) > {LARGEST:.0f}))"""
_RULES = {
    "machines": "json_type(facts) = 'object'",
    "environments": "json_type(versions) = 'object' AND json_type(details) = 'object'",
    "targets": "recipe IS NULL OR json_valid(recipe)",
    "conversations": "exact IS NULL OR json_type(exact) = 'object'",
    "turns": "json_type(settings) = 'object' AND mode IN ('together', 'in-turn') "
    "AND (exact IS NULL OR json_type(exact) = 'object') AND (earlier IS NULL OR "
    "json_type(earlier) = 'array' AND NOT EXISTS (SELECT 1 FROM json_each(earlier) "
    "WHERE json_type(value) IS NOT 'array' OR json_array_length(value) <> 2 "
    "OR json_type(value, '$[0]') <> 'text' OR json_type(value, '$[1]') <> 'text'))",
    "runs": "status IN ('running', 'finished', 'stopped', 'failed', 'interrupted') "
    "AND typeof(panel) = 'integer' AND typeof(attempt) = 'integer' AND contended IN (0, 1) "
    "AND (disturbed IS NULL OR disturbed IN (0, 1)) AND stamp_rule IN ('start', 'end') "
    "AND (other_load IS NULL OR json_type(other_load) = 'object') "
    "AND (placement IS NULL OR json_type(placement) = 'object') "
    "AND (placement_badge IS NULL OR placement_badge IN ('proven', 'claimed', 'contradicted')) "
    "AND (clock IS NULL OR clock IN ('client', 'server')) AND (server IS NULL OR json_type(server) = 'object') "
    "AND length(piece_offsets) % 5 IS NOT 1 AND length(token_offsets) % 5 IS NOT 1 "
    "AND (exact IS NULL OR json_type(exact) = 'object')",
    "votes": "1",
    "measurements": "json_type(document) = 'object' "
    "AND status IN ('running', 'paused', 'stopped', 'finished', 'failed')",
}


def _check(db: Database) -> None:
    """Whether the rows of the staged file are as ours would be; SQLite itself takes any value anywhere."""
    for table in TABLES:
        columns = db.execute("SELECT name, type FROM pragma_table_info(?)", [table]).fetchall()
        wrong = [f"typeof({name}) NOT IN {_STORED_AS[kind]}" for name, kind in columns]
        wrong += [_NO_MOMENT.format(name) for name, _ in columns if name in _MOMENTS]
        wrong += [
            _NO_FIGURE.format(name) for name, kind in columns if kind in ("INTEGER", "REAL") and name != "n"
        ]
        wrong += [_NO_FIGURE_WITHIN.format(name) for name, _ in columns if name in _JSON]
        try:
            bad = _number(
                db, f"SELECT count(*) FROM other.{table} WHERE {' OR '.join(wrong)} OR NOT ({_RULES[table]})"
            )
            texts = ", ".join(name for name, kind in columns if kind == "TEXT")
            for _ in db.execute(f"SELECT {texts} FROM other.{table}"):
                pass  # SQLite keeps any bytes as text; Python reads none but UTF-8, and then no page could be read
        except sqlite3.OperationalError as error:  # malformed JSON, or text that is none
            raise StoreError(f"The file has {table} that no history would have ({error}).") from error
        if bad:
            raise StoreError(
                f"The file has {bad:,} {table} that no history would have; nothing was imported."
            )


def _merge_tables(db: Database, name: str | None) -> Imported:
    _check(db)
    in_file = _number(db, "SELECT count(*) FROM other.runs")
    before = [_number(db, f"SELECT count(*) FROM main.{table}") for table in ("conversations", "runs")]
    machines = _name_machines(db, name)
    back = _take_what_went_on(db)
    alive = "conversation_id IN (SELECT id FROM other.conversations WHERE deleted_at IS NULL)"
    only = {
        "conversations": "deleted_at IS NULL",
        "turns": alive,
        "runs": f"turn_id IN (SELECT id FROM other.turns WHERE {alive})",
        "votes": "turn_id IN (SELECT id FROM main.turns)",
        "measurements": "conversation_id IS NULL OR conversation_id IN (SELECT id FROM main.conversations)",
    }
    for table in TABLES:
        columns = ", ".join(
            column
            for (column,) in db.execute("SELECT name FROM pragma_table_info(?)", [table]).fetchall()
            if column != "n"
        )
        db.execute(
            f"INSERT OR IGNORE INTO main.{table} ({columns}) SELECT {columns} FROM other.{table} "
            f"WHERE {only.get(table, '1')}"
        )
    after = [_number(db, f"SELECT count(*) FROM main.{table}") for table in ("conversations", "runs")]
    conversations, runs = after[0] - before[0], after[1] - before[1]
    return Imported(conversations, runs, in_file - runs, machines, back)


def _take_what_went_on(db: Database) -> int:
    """Let go of what the file knows better: it was deleted here, or had not ended when it was brought in before.

    Returns how many deleted conversations are back.
    """
    back = db.execute(
        "UPDATE main.conversations SET deleted_at = NULL WHERE deleted_at IS NOT NULL "
        "AND id IN (SELECT id FROM other.conversations WHERE deleted_at IS NULL)"
    ).rowcount
    db.execute(
        "DELETE FROM main.runs WHERE status = 'interrupted' "
        "AND id IN (SELECT r.id FROM other.runs r JOIN other.turns t ON t.id = r.turn_id "
        "JOIN other.conversations c ON c.id = t.conversation_id "
        "WHERE r.status <> 'interrupted' AND c.deleted_at IS NULL)"
    )
    db.execute(
        "UPDATE main.measurements AS m SET (updated_at, status, document) = "
        "(SELECT o.updated_at, o.status, o.document FROM other.measurements o WHERE o.id = m.id) "
        "WHERE m.imported_from IS NOT NULL "
        "AND EXISTS (SELECT 1 FROM other.measurements o WHERE o.id = m.id AND o.updated_at > m.updated_at)"
    )
    return back


def _name_machines(db: Database, name: str | None) -> tuple[str, ...]:
    """Mark what comes with the machine it comes from; what this machine wrote itself stays its own."""
    # `other` is our own staged copy, so it may be written.
    db.execute("UPDATE other.runs SET status = 'interrupted', writer = NULL WHERE status = 'running'")
    db.execute(
        """
        UPDATE other.conversations SET imported_from = coalesce(imported_from, ?1, (
            SELECT nullif(m.name, ?2) FROM other.turns t JOIN other.runs r ON r.turn_id = t.id
            JOIN other.machines m ON m.id = r.machine_id WHERE t.conversation_id = conversations.id
            ORDER BY r.id LIMIT 1
        ))
        """,
        [readable(name), platform.node()],
    )
    db.execute(
        "UPDATE other.measurements SET writer = NULL, "
        "status = CASE WHEN status IN ('running', 'paused') THEN 'stopped' ELSE status END, "
        "imported_from = coalesce(imported_from, ?1, (SELECT nullif(json_extract(document, '$.machine.name'), ?2)))",
        [readable(name), platform.node()],
    )
    if name:
        db.execute("UPDATE other.machines SET name = ? WHERE name IS NULL", [readable(name)])
    found = db.execute(
        "SELECT DISTINCT name FROM other.machines WHERE name IS NOT NULL ORDER BY 1"
    ).fetchall()
    return tuple(row[0] for row in found)


def _number(db: Database, sql: str) -> int:
    return int(db.execute(sql).fetchone()[0])


# --- JSON --------------------------------------------------------------------------------------------------


def _documents(source: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON Lines file, or of a conversation's JSON, as complete run records."""
    try:
        with source.open(encoding=text_files.encoding(source)) as lines:
            first = lines.readline()
            try:
                record = json.loads(first)
            except ValueError:
                record = json.loads(first + lines.read())  # one indented document
            yield _checked(record)
            yield from (_checked(json.loads(line)) for line in lines if line.strip())
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{source} is neither a history database nor a JSON export of one ({error}); nothing was imported."
        ) from error


def _checked(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError("a record is not ours")
    if not isinstance(record.get("version"), int) or record["version"] > FORMAT_VERSION:
        raise ValueError("written by a newer version; update the app")
    return record


def _stage(staged: HistoryFile, records: Iterable[dict[str, Any]], source: Path) -> None:
    """Put records into an empty history, where the schema itself checks them."""
    with staged.writing() as db:
        known = {
            table: {row[0] for row in db.execute("SELECT name FROM pragma_table_info(?)", [table]).fetchall()}
            for table in TABLES
        }
        for number, record in enumerate(records, 1):
            try:
                for table, row in _rows(record):
                    _insert(db, table, row, known[table])
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError, sqlite3.Error) as error:
                raise StoreError(
                    f"{source}: record {number} is not as an export writes it ({error}); nothing was imported."
                ) from error


def _count_panels_from_one(staged: HistoryFile) -> None:
    """As migration 005 does for databases: exports of earlier versions may have a panel 0, with others after it."""
    from_zero = "(SELECT turn_id FROM runs WHERE panel = 0)"
    of_it = f"conversation_id IN (SELECT conversation_id FROM turns WHERE id IN {from_zero})"
    moved = f"turn_id IN (SELECT id FROM turns WHERE {of_it})"
    with staged.writing() as db:
        db.execute(
            f"UPDATE votes SET winner = CAST(winner + 1 AS TEXT) WHERE winner GLOB '[0-9]' AND {moved}"
        )
        db.execute(f"UPDATE runs SET panel = panel + 1 WHERE {moved}")


def _rows(record: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The database rows in a record of either kind, in the order in which they may refer to each other."""
    if "measurement" in record:
        yield "measurements", record["measurement"]
        return
    yield "conversations", record["conversation"]
    for turn in record.get("turns", ()):
        yield from _turn_rows(turn)
    for part in record.get("runs", [record]):
        yield "machines", part["machine_facts"]
        if part["environment"]:
            yield "environments", part["environment"]
        yield "targets", part["target"]
        yield from _turn_rows(part["turn"])
        yield "runs", part["run"]
    for measurement in record.get("measurements", ()):
        yield "measurements", measurement


def _turn_rows(turn: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "turns", dict(turn)
    if turn.get("vote"):
        yield "votes", turn["vote"]


def _insert(db: Database, table: str, row: Mapping[str, Any], known: set[str]) -> None:
    columns = {name: _column(value) for name, value in row.items() if name in known and name != "n"}
    for name in ("token_offsets", "piece_offsets"):
        if row.get(f"{name}_s"):
            columns[name] = pack_offsets(row[f"{name}_s"])
    marks = ", ".join("?" * len(columns))
    db.execute(
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) ON CONFLICT DO NOTHING",
        list(columns.values()),
    )


def _column(value: Any) -> Any:
    return (
        to_json(value)
        if isinstance(value, (dict, list))
        else readable(value)
        if isinstance(value, str)
        else value
    )
