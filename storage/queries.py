"""Reading the history: plain functions over one consistent state of the file."""

from __future__ import annotations

from typing import Any

from sqlite_utils import Database

from engines.protocol import Target
from storage.codec import readable, restored
from storage.filters import excerpt, of_conversation
from storage.recent_chats import RunMemo, TurnMemo
from storage.records import (
    COUNTED,
    Conversation,
    Filter,
    Page,
    Run,
    Summary,
    Vote,
    conversation_from_row,
    run_from_row,
    turn_from_row,
)

_RUNS = """
SELECT r.*, g.engine, g.device, g.precision, g.model, g.revision, g.recipe_sha256, m.name AS machine
FROM runs r JOIN targets g ON g.id = r.target_id JOIN machines m ON m.id = r.machine_id
"""


def conversation(db: Database, conversation_id: str) -> Conversation | None:
    """A conversation with everything in it."""
    found = rows(db, "SELECT * FROM conversations WHERE id = ? AND deleted_at IS NULL", [conversation_id])
    if not found:
        return None
    of_it = "(SELECT id FROM turns WHERE conversation_id = ?)"
    runs: dict[str, list[Run]] = {}
    for row in rows(db, f"{_RUNS} WHERE turn_id IN {of_it} ORDER BY panel, attempt, r.id", [conversation_id]):
        runs.setdefault(row["turn_id"], []).append(run_from_row(row))
    votes = {
        row["turn_id"]: Vote(row["winner"], row["winner_run_id"], bool(row["blind"]), row["created_at"])
        for row in rows(db, f"SELECT * FROM votes WHERE turn_id IN {of_it}", [conversation_id])
    }
    turns = tuple(
        turn_from_row(row, tuple(runs.get(row["id"], ())), votes.get(row["id"]))
        for row in rows(db, "SELECT * FROM turns WHERE conversation_id = ? ORDER BY id", [conversation_id])
    )
    return conversation_from_row(found[0], turns)


def chat(db: Database, conversation_id: str) -> list[TurnMemo]:
    """Just the texts of a conversation, oldest turn first; a text that was not kept is empty."""
    turns = {
        row["id"]: TurnMemo(row["id"], restored(row, "prompt") or "", row["replaces_turn_id"])
        for row in rows(
            db,
            "SELECT id, prompt, replaces_turn_id, exact FROM turns WHERE conversation_id = ? ORDER BY id",
            [conversation_id],
        )
    }
    for row in rows(
        db,
        "SELECT r.id, turn_id, panel, attempt, status, text, reasoning, r.exact FROM runs r "
        "JOIN turns t ON t.id = r.turn_id WHERE t.conversation_id = ?",
        [conversation_id],
    ):
        texts = restored(row, "text"), restored(row, "reasoning")
        memo = RunMemo(row["panel"], row["attempt"], row["status"], *texts)
        turns[row["turn_id"]].runs[row["id"]] = memo
    return list(turns.values())


def conversations(db: Database, where: Filter, *, limit: int, offset: int) -> Page:
    """Pinned first, then newest first."""
    condition, values = of_conversation(db, where)
    listed = rows(
        db,
        f"SELECT * FROM conversations c WHERE {condition} ORDER BY pinned DESC, updated_at DESC LIMIT ? OFFSET ?",
        [*values, limit, offset],
    )
    if len(listed) < limit and (listed or not offset):
        total = offset + len(listed)
    else:
        capped = "" if where == Filter() else f" LIMIT {COUNTED + 1}"
        (total,) = db.execute(
            f"SELECT count(*) FROM (SELECT 1 FROM conversations c WHERE {condition}{capped})", values
        ).fetchone()
    more = where != Filter() and total > COUNTED
    summaries = tuple(_summary(db, row, where.query) for row in listed)
    return Page(summaries, COUNTED if more else total, offset, more)


def _summary(db: Database, row: dict[str, Any], query: str | None) -> Summary:
    turns = rows(db, "SELECT prompt, exact FROM turns WHERE conversation_id = ? ORDER BY id", [row["id"]])
    runs = rows(
        db,
        "SELECT status, engine, device, precision, model, m.name AS machine FROM turns t "
        "CROSS JOIN runs r ON r.turn_id = t.id JOIN targets g ON g.id = r.target_id "
        "JOIN machines m ON m.id = r.machine_id WHERE t.conversation_id = ? ORDER BY r.panel, r.n",
        [row["id"]],
    )
    return Summary(
        id=row["id"],
        title=restored(row, "title"),
        first_prompt=restored(turns[0], "prompt") if turns else None,
        owner=row["owner"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        pinned=bool(row["pinned"]),
        imported_from=row["imported_from"],
        turns=len(turns),
        runs=len(runs),
        failed_runs=sum(run["status"] in ("failed", "interrupted") for run in runs),
        targets=tuple(dict.fromkeys(f"{run['engine']}/{run['device']}/{run['precision']}" for run in runs)),
        models=tuple(dict.fromkeys(run["model"] for run in runs)),
        machine=next((run["machine"] for run in runs), None),
        snippet=_snippet(db, row["id"], query) if query and query.strip() else None,
    )


def _snippet(db: Database, conversation_id: str, query: str) -> str | None:
    texts = db.execute(
        "SELECT prompt FROM turns WHERE conversation_id = ?1 UNION ALL SELECT r.text FROM turns t "
        "CROSS JOIN runs r ON r.turn_id = t.id WHERE t.conversation_id = ?1",
        [conversation_id],
    )
    return next((found for (text,) in texts if text and (found := excerpt(query, text))), None)


def choices(db: Database) -> dict[str, tuple[str, ...]]:
    """What the filters can be set to: every engine, device, precision, model and machine there is."""
    columns = ("engine", "device", "precision", "model")
    found = {
        name: tuple(row[0] for row in db.execute(f"SELECT DISTINCT {name} FROM targets ORDER BY 1"))
        for name in columns
    }
    names = db.execute("SELECT DISTINCT name FROM machines WHERE name IS NOT NULL ORDER BY 1")
    return {**found, "machine": tuple(row[0] for row in names)}


def used_targets(db: Database) -> tuple[Target, ...]:
    """Targets that have finished runs, the most used first."""
    found = db.execute(
        "SELECT engine, device, precision, model FROM targets g JOIN runs r ON r.target_id = g.id "
        "WHERE r.status = 'finished' GROUP BY 1, 2, 3, 4 ORDER BY count(*) DESC, 1, 2, 3, 4"
    )
    return tuple(Target(*row) for row in found)


def ids_ending(db: Database, ending: str) -> tuple[str, ...]:
    """Ids of the conversations whose id ends so."""
    ending = ending.upper()
    found = db.execute(
        "SELECT id FROM conversations WHERE deleted_at IS NULL AND substr(id, ?) = ?",
        [-max(1, len(ending)), ending],
    )
    return tuple(row[0] for row in found)


def peak_rss(db: Database, target: Target) -> int | None:
    """The last measured peak memory of a target on this machine, in bytes."""
    found = db.execute(
        "SELECT r.peak_rss_bytes FROM targets g JOIN runs r ON r.target_id = g.id "
        "JOIN turns t ON t.id = r.turn_id JOIN conversations c ON c.id = t.conversation_id "
        "WHERE g.engine = ? AND g.device = ? AND g.precision = ? AND g.model = ? "
        "AND r.peak_rss_bytes IS NOT NULL AND c.imported_from IS NULL ORDER BY r.started_at DESC LIMIT 1",
        [readable(text) for text in (target.engine, target.device, target.precision, target.model)],
    ).fetchone()
    return int(found[0]) if found else None


def rows(db: Database, sql: str, values: list[Any] | None = None) -> list[dict[str, Any]]:
    """All rows as dictionaries."""
    cursor = db.execute(sql, values or [])
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]
