"""The history: every word and every number, saved while it happens.

One SQLite file holds everything (storage/migrations.py says how). What a running chat writes never stops the
chat: see storage/recorder.py. What a person asks for (rename, delete, settings) raises StoreError when it fails.
All methods may be called from any thread; several apps may share one file.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil
from sqlite_utils import Database

from engines.protocol import Failed, Finished, Loaded, Message, PreparedModel, RunMetrics, Target
from engines.telemetry.observer import Observed
from storage import housekeeping, queries
from storage.codec import content_id, exact, new_id, now, readable, to_json
from storage.database import HistoryFile, StoreBusyError, StoreError
from storage.recent_chats import ChatMemory, RunMemo, TurnMemo
from storage.recorder import Recorder
from storage.records import Conversation, Filter, Page, Turn, until_replaced
from storage.rows import (
    ids_column,
    machine_as_row,
    metric_columns,
    observed_columns,
    offset_columns,
    outcome_columns,
    target_as_row,
)

__all__ = ["Store", "StoreBusyError", "StoreError"]

FILE_NAME = "arena.sqlite3"
Answer = TypeVar("Answer")
_TIDY_EVERY_S = 3600.0
LEAST_ROOM_BYTES = 200_000
"""With less space than this a reply may not fit any more."""
_CLOCK_TOLERANCE_S = 3.0
"""psutil derives start times from the boot time, which moves a little when the system clock is set."""


class Store:
    """The open history. `Store(path)` opens, migrates (after a backup) and raises StoreError when it cannot."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.file = HistoryFile(self.path)
        self.recorder = Recorder(self.file)
        self._memory = ChatMemory()
        self.writer = f"{os.getpid()}:{psutil.Process().create_time():.2f}"
        self._mine: set[str] = set()
        self._tidied_at = -math.inf
        self._tidy()

    def close(self, patience_s: float = 0.0) -> None:
        """Save what waits, for so long at most; runs of this store that are still going become `interrupted`."""
        for run_id in list(self._mine):
            self.recorder.write(partial(_interrupt, where="id = ?", values=[run_id]))
        self.recorder.close(patience_s)
        self.file.close()

    @property
    def trouble(self) -> str | None:
        """Why the history is not being written just now, in a sentence for people; None when all is well."""
        return self.recorder.trouble or self._no_room()

    def _no_room(self) -> str | None:
        """Said before anything is lost: a prompt that is sent now could not be kept."""
        try:
            free = shutil.disk_usage(self.path.parent).free
        except OSError:
            return None
        if free >= LEAST_ROOM_BYTES:
            return None
        return (
            f"The disk is full ({free / 1e6:.0f} MB are left), so what you send now will not be kept in the "
            f"history {self.path}. Free some space."
        )

    # --- a chat as it happens ------------------------------------------------------------------------------

    def start_conversation(self, title: str | None = None, owner: str | None = None) -> str:
        """A new conversation; without a title it goes by its first prompt. Returns its id."""
        self._tidy()
        conversation_id = new_id()
        row = {
            "id": conversation_id,
            "title": readable(title),
            "owner": readable(owner),
            "created_at": now(),
            "updated_at": now(),
            "exact": exact(title=title),
        }
        self.recorder.write(
            lambda db: insert(db, "conversations", _kept(db, row, "title", "exact", owner=owner))
        )
        self._memory.begin(conversation_id)
        return conversation_id

    def start_turn(
        self,
        conversation_id: str,
        prompt: str,
        *,
        system_prompt: str | None,
        mode: str,
        settings: Mapping[str, Any],
        replaces_turn_id: str | None = None,
        via: str | None = None,
        earlier: Sequence[Message] = (),
    ) -> str:
        """One prompt, about to be sent. `mode`: `together` or `in-turn`. Returns the turn's id.

        `via`: how it came where no person typed it (`api`, or `api: NAME` with the key's name); `earlier`: the chat
        that came with it.
        """
        turn_id, moment = new_id(self._last_turn(conversation_id)), now()
        self._memory.add_turn(conversation_id, TurnMemo(turn_id, prompt, replaces_turn_id))
        texts = {"prompt": prompt, "system_prompt": system_prompt}
        row = {
            "id": turn_id,
            "conversation_id": conversation_id,
            "created_at": moment,
            "mode": mode,
            "settings": to_json({name: value for name, value in settings.items() if name != "system_prompt"}),
            "replaces_turn_id": replaces_turn_id,
            "via": readable(via),
            "earlier": json.dumps([[m.role, m.content] for m in earlier]) if earlier else None,
            **{name: readable(text) for name, text in texts.items()},
            "exact": exact(**texts),
        }

        def write(db: Database) -> None:
            owner = _owner_of(db, conversation_id)
            insert(db, "turns", _kept(db, row, *texts, "exact", "earlier", owner=owner))
            db.execute("UPDATE conversations SET updated_at = ? WHERE id = ?", [moment, conversation_id])

        self.recorder.write(write, size=len(prompt))
        return turn_id

    def take_up(self, turn: Turn) -> None:
        """A turn of an earlier start of the app is about to get another run from this one."""
        self._memory.take_up(
            turn.conversation_id, TurnMemo(turn.id, turn.prompt or "", turn.replaces_turn_id)
        )

    def start_run(
        self,
        turn_id: str,
        panel: int,
        target: Target,
        *,
        machine: Mapping[str, Any],
        contended: bool,
        attempt: int = 1,
    ) -> str:
        """One target is about to answer. `machine`: facts that a number depends on. Returns the run's id.

        `contended`: as far as is known by now; `finish_run` tells what came of it.
        """
        run_id, moment = new_id(), now()
        self._memory.add_run(turn_id, run_id, RunMemo(panel, attempt))
        self._mine.add(run_id)
        machine_row = machine_as_row(machine)
        target_row = target_as_row(target)
        row = {
            "id": run_id,
            "turn_id": turn_id,
            "panel": panel,
            "attempt": attempt,
            "target_id": target_row["id"],
            "machine_id": machine_row["id"],
            "contended": int(contended),
            "status": "running",
            "writer": self.writer,
            "started_at": moment,
        }

        def write(db: Database) -> None:
            insert(db, "machines", machine_row, ignore=True)
            insert(db, "targets", target_row, ignore=True)
            insert(db, "runs", row)

        self.recorder.write(write)
        return run_id

    def describe_run(self, run_id: str, *, model: PreparedModel, loaded: Loaded) -> None:
        """What the worker that runs it is made of: package versions, conversion recipe, model revision."""
        versions, details = dict(loaded.versions), {**loaded.details, "device": loaded.device}
        environment = {
            "id": content_id(versions, details),
            "versions": to_json(versions),
            "details": to_json(details),
            "first_seen_at": now(),
        }

        def write(db: Database) -> None:
            found = db.execute(
                "SELECT engine, g.device, precision, model FROM runs r JOIN targets g ON g.id = target_id "
                "WHERE r.id = ?",
                [run_id],
            ).fetchone()
            if found is None:
                return
            target = target_as_row(Target(*found), model)
            insert(db, "environments", environment, ignore=True)
            insert(db, "targets", target, ignore=True)
            db.execute(
                "UPDATE runs SET environment_id = ?, target_id = ?, load_s = ?, compile_s = ?, warmup_s = ? "
                "WHERE id = ?",
                [environment["id"], target["id"], loaded.load_s, loaded.compile_s, loaded.warmup_s, run_id],
            )

        self.recorder.write(write)

    def save_partial(
        self,
        run_id: str,
        text: str,
        token_offsets_s: Sequence[float],
        reasoning: str | None = None,
        reply_ids: Sequence[int] = (),
    ) -> None:
        """The reply so far: call about once a second, so that a kill -9 loses no more than that."""
        self._memory.set_run(run_id, text, reasoning, "running")
        columns = {"text": text, "reasoning": reasoning or None, **offset_columns(token_offsets_s)}
        columns["output_tokens"] = len(token_offsets_s) or None  # pieces from elsewhere are no tokens
        columns["reply_ids"] = ids_column(reply_ids)
        self.recorder.write(
            lambda db: _update_run(db, run_id, columns, "status = 'running'"),
            key=run_id,
            replaces=run_id,
            size=len(text) + len(reasoning or ""),
        )

    def finish_run(
        self,
        run_id: str,
        outcome: Finished | Failed,
        *,
        text: str,
        metrics: RunMetrics,
        felt_ttft_s: float | None,
        observed: Observed | None = None,
        reasoning: str | None = None,
        note: str | None = None,
        reply_ids: Sequence[int] = (),
    ) -> None:
        """The run has ended, one way or another: `text` and `metrics` are what there is by now.

        `observed`: under which conditions it ran, and where; None when it never came to generating. `reasoning`: what
        was thought before the answer; `note`: what the person was told about the prompt; `reply_ids`: the whole
        reply's token ids, where they were seen.
        """
        columns = {
            "finished_at": now(),
            "writer": None,
            "text": text or None,
            "reasoning": reasoning or None,
            "note": readable(note),
            "reply_ids": ids_column(reply_ids),
            "felt_ttft_s": felt_ttft_s,
            **outcome_columns(outcome),
            **metric_columns(metrics),
            **observed_columns(observed),
        }
        self._memory.set_run(run_id, text, reasoning, columns["status"])
        self.recorder.write(
            lambda db: _update_run(db, run_id, columns),
            replaces=run_id,
            size=len(text) + len(reasoning or ""),
        )
        self._mine.discard(run_id)

    def mark_interrupted(self) -> int:
        """Runs whose app died become `interrupted`; those of other living apps are left alone. Returns how many."""
        with self.file.reading() as db:
            writers = [
                row[0] for row in db.execute("SELECT DISTINCT writer FROM runs WHERE status = 'running'")
            ]
        dead = [writer for writer in writers if not is_alive(writer)]
        with self.file.writing() as db:
            return sum(_interrupt(db, "writer IS ? AND status = 'running'", [writer]) for writer in dead)

    def vote(self, turn_id: str, winner_panel: int | str, blind: bool) -> None:
        """Which panel answered a turn best: its number, `tie`, or `none`. A later vote replaces an earlier one."""

        def write(db: Database) -> None:
            winner = db.execute(
                "SELECT id FROM runs WHERE turn_id = ? AND panel = ? ORDER BY attempt DESC, n DESC LIMIT 1",
                [turn_id, winner_panel],
            ).fetchone()
            db.execute(
                "INSERT OR REPLACE INTO votes (turn_id, winner, winner_run_id, blind, created_at) "
                "VALUES (?, ?, ?, ?, ?)",
                [turn_id, str(winner_panel), winner and winner[0], int(blind), now()],
            )

        self.recorder.write(write)

    # --- reading -------------------------------------------------------------------------------------------

    def panel_messages(
        self, conversation_id: str, panel: int, before_turn_id: str | None = None
    ) -> tuple[Message, ...]:
        """The chat one panel has seen, user and assistant messages only, without system prompts.

        The latest attempt of each turn counts. Turns that were replaced are left out with everything that
        followed them, and so are turns in which this panel said nothing. Ends before `before_turn_id`.
        Raises StoreError when the file cannot be read and this process has not heard all of the conversation.
        """
        messages: list[Message] = []
        for turn, latest in self._panel_turns(conversation_id, panel, before_turn_id):
            if (latest.text or latest.reasoning) and latest.status != "running":
                reply = Message("assistant", latest.text or "", latest.reasoning or None)
                messages += [Message("user", turn.prompt), reply]
        return tuple(messages)

    def panel_has_gaps(self, conversation_id: str, panel: int, before_turn_id: str | None = None) -> bool:
        """Whether `panel_messages` lacks what was said, because only its numbers were kept."""
        turns = self._panel_turns(conversation_id, panel, before_turn_id)
        return any(not turn.prompt and latest.status in ("finished", "stopped") for turn, latest in turns)

    def _panel_turns(
        self, conversation_id: str, panel: int, before_turn_id: str | None
    ) -> list[tuple[TurnMemo, RunMemo]]:
        """The turns that count for a panel, each with its latest attempt."""
        path: list[TurnMemo] = []
        for turn in self._chat(conversation_id):
            path = until_replaced(path, turn)
            if turn.id == before_turn_id:
                path.pop()
                break
        found = []
        for turn in path:
            attempts = [run for run in turn.runs.values() if run.panel == panel]
            if attempts:
                found.append((turn, max(attempts, key=lambda run: run.attempt)))
        return found

    def read(self, question: Callable[[Database], Answer]) -> Answer:
        """The answer to a question that reads the history and sees one consistent state; raises StoreError."""
        with self.file.reading() as db:
            return question(db)

    def conversation(self, conversation_id: str) -> Conversation | None:
        """A conversation with all its turns and runs, oldest first; None when there is none of that id."""
        with self.file.reading() as db:
            return queries.conversation(db, conversation_id)

    def has(self, conversation_id: str) -> bool:
        """Whether a conversation is in the history, or waits to be written there; False once it is deleted."""
        with self.file.reading() as db:
            sql = "SELECT deleted_at IS NULL FROM conversations WHERE id = ?"
            found = db.execute(sql, [conversation_id]).fetchone()
        return bool(found[0]) if found else self.recorder.is_waiting

    def conversations(self, where: Filter | None = None, *, limit: int = 50, offset: int = 0) -> Page:
        """The history list: pinned first, then newest first."""
        with self.file.reading() as db:
            return queries.conversations(db, where or Filter(), limit=limit, offset=offset)

    def ids_ending(self, ending: str) -> tuple[str, ...]:
        """Ids of the conversations whose id ends so: people copy the end of an id."""
        with self.file.reading() as db:
            return queries.ids_ending(db, ending)

    def peak_rss(self, target: Target) -> int | None:
        """Peak memory of the worker in the latest run of a target on this machine, in bytes; None: never measured."""
        with self.file.reading() as db:
            return queries.peak_rss(db, target)

    # --- settings ------------------------------------------------------------------------------------------

    def get_setting(self, key: str, default: Any = None) -> Any:
        """A setting as it was set; `default` when it never was."""
        with self.file.reading() as db:
            row = db.execute("SELECT value FROM settings WHERE key = ?", [key]).fetchone()
        return default if row is None else json.loads(row[0])

    def set_setting(self, key: str, value: Any) -> None:
        """Keep a setting; anything JSON can spell."""
        with self.file.writing() as db:
            db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", [key, json.dumps(value)])

    @property
    def keeps_text(self) -> bool:
        """False when the person wants numbers but no text in the file."""
        return bool(self.get_setting(housekeeping.KEEP_TEXT, True))

    # --- what a person does with the history ---------------------------------------------------------------

    def rename(self, conversation_id: str, title: str) -> None:
        """Give a conversation a title; an empty one takes it away."""
        housekeeping.rename(self.file, conversation_id, title)

    def pin(self, conversation_id: str, pinned: bool) -> None:
        """Keep a conversation on top of the list, and out of the age limit's reach."""
        housekeeping.pin(self.file, conversation_id, pinned)

    def delete(self, conversation_ids: Sequence[str]) -> int:
        """Delete conversations; `undelete` brings them back for ten minutes. Returns how many there were."""
        for conversation_id in conversation_ids:
            self._memory.forget(conversation_id)
        return housekeeping.delete(self.file, conversation_ids)

    def undelete(self, conversation_ids: Sequence[str]) -> int:
        """Bring deleted conversations back; returns how many could be."""
        return housekeeping.undelete(self.file, conversation_ids)

    def delete_everything(self) -> int:
        """Remove all conversations with their numbers, for good; returns how many there were."""
        self._memory.forget()
        return housekeeping.delete_everything(self.file)

    def remove_texts(self) -> int:
        """Remove all prompts and replies but keep the numbers; returns how many runs there are."""
        return housekeeping.remove_texts(self.file)

    # --- inside --------------------------------------------------------------------------------------------

    def _tidy(self) -> None:
        """Remove what is past its time; not now is soon enough when the file is busy."""
        if time.monotonic() - self._tidied_at < _TIDY_EVERY_S:
            return
        self._tidied_at = time.monotonic()
        try:
            housekeeping.tidy(self.file, self.get_setting(housekeeping.RETENTION_DAYS))
        except StoreError:
            pass

    def _last_turn(self, conversation_id: str) -> str | None:
        """Id of the newest turn: turns stand in the order of their ids, whatever happened to the clock."""
        known = [turn.id for turn in self._memory.turns(conversation_id)]
        try:
            with self.file.reading() as db:
                (saved,) = db.execute(
                    "SELECT max(id) FROM turns WHERE conversation_id = ?", [conversation_id]
                ).fetchone()
        except StoreError:
            saved = None
        return max([*known, *([saved] if saved else [])], default=None)

    def _chat(self, conversation_id: str) -> list[TurnMemo]:
        """The conversation from the file, completed from memory where its text is not there (yet)."""
        turns: dict[str, TurnMemo] = {}
        try:
            with self.file.reading() as db:
                turns = {turn.id: turn for turn in queries.chat(db, conversation_id)}
        except StoreError:
            if not self._memory.has_all(conversation_id):
                raise
        for memo in self._memory.turns(conversation_id):
            saved = turns.get(memo.id, memo)
            turns[memo.id] = TurnMemo(memo.id, memo.prompt, memo.replaces_turn_id, saved.runs | memo.runs)
        return [turns[turn_id] for turn_id in sorted(turns)]


def insert(db: Database, table: str, row: Mapping[str, Any], *, ignore: bool = False) -> None:
    """Insert one row; with `ignore`, a row of the same id stays as it is."""
    names = ", ".join(row)
    marks = ", ".join("?" * len(row))
    verb = "INSERT OR IGNORE" if ignore else "INSERT"
    db.execute(f"{verb} INTO {table} ({names}) VALUES ({marks})", list(row.values()))


def _kept(db: Database, row: Mapping[str, Any], *texts: str, owner: str | None) -> dict[str, Any]:
    """The row as it may be kept: without its texts when the person wants numbers only, or of visitors."""
    keeps = _is_on(db, housekeeping.KEEP_TEXT, True)
    if (owner or "").startswith(housekeeping.VISITOR_PREFIX):
        keeps = keeps and _is_on(db, housekeeping.KEEP_VISITORS_TEXT, False)
    return dict(row) if keeps else {name: None if name in texts else value for name, value in row.items()}


def _is_on(db: Database, key: str, default: bool) -> bool:
    found = db.execute("SELECT value FROM settings WHERE key = ?", [key]).fetchone()
    return default if found is None else bool(json.loads(found[0]))


def _owner_of(db: Database, conversation_id: str) -> str | None:
    found = db.execute("SELECT owner FROM conversations WHERE id = ?", [conversation_id]).fetchone()
    return found[0] if found else None


def _owner_of_run(db: Database, run_id: str) -> str | None:
    found = db.execute(
        "SELECT owner FROM conversations c JOIN turns t ON t.conversation_id = c.id "
        "JOIN runs r ON r.turn_id = t.id WHERE r.id = ?",
        [run_id],
    ).fetchone()
    return found[0] if found else None


def _update_run(db: Database, run_id: str, columns: dict[str, Any], condition: str = "1") -> None:
    texts = {name: columns[name] for name in ("text", "reasoning")}
    columns = {**columns, **{name: readable(text) for name, text in texts.items()}, "exact": exact(**texts)}
    # A hash of a short prompt can be guessed back, a log may quote it.
    columns = _kept(
        db,
        columns,
        *texts,
        *("exact", "reply_ids", "prompt_sha256", "error_details"),
        owner=_owner_of_run(db, run_id),
    )
    assignments = ", ".join(f"{name} = ?" for name in columns)
    db.execute(f"UPDATE runs SET {assignments} WHERE id = ? AND {condition}", [*columns.values(), run_id])


def _interrupt(db: Database, where: str, values: list[Any]) -> int:
    return db.execute(
        f"UPDATE runs SET status = 'interrupted', writer = NULL WHERE status = 'running' AND {where}", values
    ).rowcount


def is_alive(writer: str | None) -> bool:
    """Whether the app that wrote a row still runs: its process id, and the same start, as ids are used again."""
    try:
        pid, started = (writer or "").split(":")
        return abs(psutil.Process(int(pid)).create_time() - float(started)) < _CLOCK_TOLERANCE_S
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.Error:
        return True  # it exists, we may just not look at it
