"""What a person does with the history afterwards: rename, pin, delete with a way back, privacy, age limits.

Deleting hides a conversation at once and removes it for good UNDO_S later (or at the next start), so that it can
be undone. `delete_everything` and `remove_texts` leave nothing behind: the file is rewritten and the copies made
before migrations go too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

from sqlite_utils import Database

from engines.measure.document import DocumentError, dumps, loads
from engines.measure.privacy import without_texts
from storage.codec import exact, now, readable, timestamp
from storage.database import HistoryFile

UNDO_S = 600.0
RETENTION_DAYS = "retention_days"
"""Setting: conversations untouched for longer are deleted, unless pinned; None keeps them for ever."""
KEEP_TEXT = "keep_text"
"""Setting: False keeps numbers but no text."""
KEEP_VISITORS_TEXT = "keep_visitors_text"
"""Setting: True keeps what visitors of a shared page wrote and read, too; else only the numbers of their runs."""
VISITOR_PREFIX = "visitor:"
"""How the `owner` of a visitor's conversation begins."""


def rename(file: HistoryFile, conversation_id: str, title: str) -> None:
    """Give a conversation a title; an empty one takes the title away. Raises StoreError."""
    kept = title.strip() or None
    with file.writing() as db:
        db.execute(
            "UPDATE conversations SET title = ?, exact = ? WHERE id = ?",
            [readable(kept), exact(title=kept), conversation_id],
        )


def pin(file: HistoryFile, conversation_id: str, pinned: bool) -> None:
    """Keep a conversation on top of the list, and out of the age limit's reach. Raises StoreError."""
    with file.writing() as db:
        db.execute("UPDATE conversations SET pinned = ? WHERE id = ?", [int(pinned), conversation_id])


def delete(file: HistoryFile, conversation_ids: Sequence[str]) -> int:
    """Hide conversations now, remove them UNDO_S later; returns how many there were. Raises StoreError."""
    with file.writing() as db:
        _remove_deleted(db, UNDO_S)
        return _each(
            db,
            "UPDATE conversations SET deleted_at = ? WHERE deleted_at IS NULL AND id = ?",
            [(now(), conversation_id) for conversation_id in conversation_ids],
        )


def undelete(file: HistoryFile, conversation_ids: Sequence[str]) -> int:
    """Bring deleted conversations back; returns how many could be. Raises StoreError."""
    with file.writing() as db:
        return _each(
            db,
            "UPDATE conversations SET deleted_at = NULL WHERE deleted_at IS NOT NULL AND id = ?",
            [(conversation_id,) for conversation_id in conversation_ids],
        )


def remove_deleted(file: HistoryFile, older_than_s: float = 0.0) -> int:
    """Remove for good what was deleted longer ago than that, in seconds. Raises StoreError."""
    with file.writing() as db:
        return _remove_deleted(db, older_than_s)


def delete_older(file: HistoryFile, days: float) -> int:
    """Remove for good the conversations untouched for that many days, except pinned ones. Raises StoreError."""
    cutoff = timestamp(datetime.now(timezone.utc) - timedelta(days=days))
    with file.writing() as db:
        removed = db.execute(
            "DELETE FROM conversations WHERE pinned = 0 AND updated_at < ?", [cutoff]
        ).rowcount
    for backup in file.backups():
        if backup.stat().st_mtime < time.time() - days * 86400:
            backup.unlink(missing_ok=True)
    return removed


def delete_everything(file: HistoryFile) -> int:
    """Remove all conversations, runs and votes and what they hang on; settings stay. Raises StoreError."""
    with file.writing() as db:
        removed = db.execute("DELETE FROM conversations").rowcount
        for table in ("measurements", "environments", "targets", "machines"):
            db.execute(f"DELETE FROM {table}")
    _leave_no_trace(file)
    return removed


def remove_texts(file: HistoryFile) -> int:
    """Keep the numbers of all runs but remove prompts, replies, titles and logs. Raises StoreError."""
    with file.writing() as db:
        removed = db.execute(
            "UPDATE runs SET text = NULL, reasoning = NULL, exact = NULL, reply_ids = NULL, prompt_sha256 = NULL, "
            "error_details = NULL WHERE status <> 'running'"
        ).rowcount
        db.execute("UPDATE turns SET prompt = NULL, system_prompt = NULL, earlier = NULL, exact = NULL")
        db.execute("UPDATE conversations SET title = NULL, exact = NULL")
        _remove_measured_texts(db)
    _leave_no_trace(file)
    return removed


def _remove_measured_texts(db: Database) -> None:
    """A measurement keeps the prompts of a person's own suite, and replies to the quality gate's instructions."""
    for measurement_id, text in db.execute("SELECT id, document FROM measurements").fetchall():
        try:
            kept = dumps(without_texts(loads(text)), indent=None)
        except DocumentError:
            kept = "{}"
        db.execute("UPDATE measurements SET document = ? WHERE id = ?", [kept, measurement_id])


def tidy(file: HistoryFile, retention_days: float | None) -> None:
    """What happens at each start, and hourly: past the undo time, past the age limit. Raises StoreError."""
    remove_deleted(file, UNDO_S)
    if retention_days is not None:
        delete_older(file, retention_days)


def _each(db: Database, sql: str, rows: Sequence[tuple[str, ...]]) -> int:
    return sum(db.execute(sql, list(row)).rowcount for row in rows)


def _remove_deleted(db: Database, older_than_s: float) -> int:
    cutoff = timestamp(datetime.now(timezone.utc) - timedelta(seconds=older_than_s))
    return db.execute("DELETE FROM conversations WHERE deleted_at <= ?", [cutoff]).rowcount


def _leave_no_trace(file: HistoryFile) -> None:
    """Removed text lingers in free pages, in the index and in the write-ahead log until they are rewritten."""
    for backup in file.backups():
        backup.unlink(missing_ok=True)
    with file.maintaining() as db:
        for table in ("turns", "runs"):
            db.execute(f"INSERT INTO {table}_fts ({table}_fts) VALUES ('delete-all')")
        db.execute("VACUUM")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
