"""From what a person typed and chose to SQL conditions: safe against FTS5's query syntax and SQL alike.

A search finds conversations with a prompt, a reply or a title in which every word occurs, each as the beginning of a
word.
What the full-text index cannot find (emoji, and Chinese, Japanese or Thai, which it does not split into words) is
found by reading the texts.
"""

from __future__ import annotations

import json
import re
import unicodedata
from datetime import date, datetime, timedelta
from typing import Any

from sqlite_utils import Database

from storage.codec import readable, timestamp
from storage.records import Filter

Condition = tuple[str, list[Any]]
HITS_READ = 3000
"""Newest hits that a search without filters looks at, in prompts and in replies each."""

_WORD = re.compile(r"[^\W_]+")
_UNSPLIT = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


_LOOKED_FOR_AT_FIRST = 8
"""SQLite takes expressions of a thousand terms at most."""
_LIKE_SIGNS, _ESCAPED = re.compile(r"[\\%_]"), r"\\\g<0>"


def words(query: str) -> list[str]:
    """The words of a search, as the index splits them."""
    return _WORD.findall(unicodedata.normalize("NFC", readable(query) or ""))


def fts_query(query: str) -> str | None:
    """An FTS5 query of quoted words, the beginning of a word being enough; None: the index cannot answer."""
    found = words(query)
    if not found or _UNSPLIT.search(query):
        return None
    return " ".join(f'"{word}"*' for word in found)


def matching_conversations(db: Database, query: str, *, everything: bool) -> list[str]:
    """Ids of conversations with a hit; of the newest HITS_READ hits only, unless `everything`."""
    fts = fts_query(query)
    if fts is None:
        pieces = _ascii_lower(readable(query) or "").replace("\x00", " ").split()
        prompts = " AND ".join(["instr(lower(prompt), ?)"] * len(pieces)) or "0"
        replies = prompts.replace("prompt", "text")
        sql = (
            f"SELECT conversation_id FROM turns WHERE {prompts} UNION SELECT conversation_id FROM turns "
            f"WHERE id IN (SELECT turn_id FROM runs WHERE {replies})"
        )
        values = [*pieces, *pieces]
    else:
        limit = "" if everything else f" ORDER BY rowid DESC LIMIT {HITS_READ}"
        sql = (
            "SELECT t.conversation_id FROM turns t WHERE t.n IN "
            f"(SELECT rowid FROM turns_fts WHERE turns_fts MATCH ?{limit}) "
            "UNION SELECT t.conversation_id FROM runs r JOIN turns t ON t.id = r.turn_id WHERE r.n IN "
            f"(SELECT rowid FROM runs_fts WHERE runs_fts MATCH ?{limit})"
        )
        values = [fts, fts]
    return [*dict.fromkeys((*(row[0] for row in db.execute(sql, values)), *_titled(db, query)))]


def _ascii_lower(text: str) -> str:
    """As SQLite's `lower` does it."""
    return "".join(char.lower() if char.isascii() else char for char in text)


def _titled(db: Database, query: str) -> list[str]:
    """Ids of conversations whose title, as a person gave it, has all the words; titles are few and short."""
    begins = fts_query(query) is not None
    wanted = [_folded(word) for word in (words(query) if begins else query.split())]
    if not wanted:
        return []
    # Folding is for Python, which takes its time: a title in ASCII alone is folded by SQLite's LIKE.
    first = wanted[:_LOOKED_FOR_AT_FIRST]
    perhaps = " AND (title LIKE ? ESCAPE '\\' OR title GLOB '*[^ -~]*')" * len(first)
    found = db.execute(
        f"SELECT id, title FROM conversations WHERE title IS NOT NULL AND deleted_at IS NULL{perhaps}",
        [f"%{_LIKE_SIGNS.sub(_ESCAPED, word)}%" for word in first],
    )
    return [row_id for row_id, title in found if _holds(_folded(title), wanted, begins)]


def _holds(title: str, wanted: list[str], begins: bool) -> bool:
    if not begins:
        return all(word in title for word in wanted)
    held = words(title)
    return all(any(word.startswith(begin) for word in held) for begin in wanted)


def _folded(text: str) -> str:
    """Without case and diacritics, as the index has it."""
    if text.isascii():
        return text.lower()
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(char for char in apart if not unicodedata.combining(char))


def of_run(where: Filter) -> Condition:
    """Conditions on one run: `r` runs, `t` turns."""
    parts: list[str] = []
    values: list[Any] = []
    named = {name: readable(getattr(where, name)) for name in ("engine", "device", "precision", "model")}
    if chosen := {name: value for name, value in named.items() if value is not None}:
        parts.append(
            f"r.target_id IN (SELECT id FROM targets WHERE {' AND '.join(f'{name} = ?' for name in chosen)})"
        )
        values += chosen.values()
    if where.machine is not None:
        parts.append("r.machine_id IN (SELECT id FROM machines WHERE name = ?)")
        values.append(readable(where.machine))
    if where.status is not None:
        parts.append("r.status = ?")
        values.append(where.status)
    if where.contended is not None:
        parts.append("r.contended = ?")
        values.append(int(where.contended))
    if where.since is not None:
        parts.append("r.started_at >= ?")
        values.append(_start_of(where.since))
    if where.until is not None:
        parts.append("r.started_at < ?")
        values.append(_start_of(where.until, days=1))
    if where.vote is not None:
        parts.append(_VOTES[where.vote])
    return " AND ".join(parts), values


def _start_of(day: str, days: int = 0) -> str:
    """When a day (or the one so many days later) begins here, as the database spells moments."""
    try:
        return timestamp(
            datetime.combine(date.fromisoformat(day) + timedelta(days=days), datetime.min.time())
        )
    except (OverflowError, ValueError):  # the calendar's first or last day: nothing lies beyond it
        return day


_VOTES = {
    "voted": "EXISTS (SELECT 1 FROM votes v WHERE v.turn_id = t.id)",
    "missing": "NOT EXISTS (SELECT 1 FROM votes v WHERE v.turn_id = t.id)",
    "won": "EXISTS (SELECT 1 FROM votes v WHERE v.turn_id = t.id AND v.winner_run_id = r.id)",
    "tie": "EXISTS (SELECT 1 FROM votes v WHERE v.turn_id = t.id AND v.winner = 'tie')",
    "none": "EXISTS (SELECT 1 FROM votes v WHERE v.turn_id = t.id AND v.winner = 'none')",
}
VOTES = tuple(_VOTES)


def of_conversation(db: Database, where: Filter) -> Condition:
    """Conditions on one conversation, `c`: it is not deleted, and holds a run that fits, and the words."""
    parts, values = ["c.deleted_at IS NULL"], []
    if where.owner is not None:
        parts.append("c.owner = ?")
        values.append(readable(where.owner))
    if where.conversation_ids is not None:
        parts.append(f"c.id IN ({', '.join('?' * len(where.conversation_ids))})")
        values += where.conversation_ids
    run, run_values = of_run(where)
    if run:
        parts.append(
            "EXISTS (SELECT 1 FROM turns t CROSS JOIN runs r ON r.turn_id = t.id "
            f"WHERE t.conversation_id = c.id AND {run})"
        )
        values += run_values
    if where.query is not None and where.query.strip():
        everything = bool(run) or where.owner is not None
        parts.append("c.id IN (SELECT value FROM json_each(?))")
        values.append(json.dumps(matching_conversations(db, where.query, everything=everything)))
    return " AND ".join(parts), values


def excerpt(query: str, text: str, width: int = 160) -> str | None:
    """The part of a text around the first hit of a search; None when there is none in it."""
    found = words(query) if fts_query(query) else query.split()
    at = min((hit for word in found if (hit := text.lower().find(word.lower())) >= 0), default=-1)
    if at < 0:
        return None
    start = max(0, at - width // 4)
    cut = " ".join(text[start : start + width].split())
    return ("…" if start else "") + cut + ("…" if start + width < len(text) else "")
