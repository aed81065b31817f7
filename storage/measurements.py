"""Measurements in the history: the session's journal, and finding, keeping and bringing them in again.

Each repeat is a run of a conversation that belongs to the measurement, so History, Trends, filters and exports have
it like any other; the whole measurement is one JSON document beside. Saving never stops a measurement: what cannot be
written now is written when the file allows it (storage/recorder.py).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from engines.measure.document import DocumentError, dumps, loads
from engines.measure.journal import Ran
from engines.measure.privacy import model_name, without_texts
from engines.measure.records import Case, Lane, Measurement, Repeat
from engines.protocol import Finished, RunMetrics, Target
from storage.codec import content_id, new_id, now, readable, to_json
from storage.database import StoreError
from storage.rows import machine_as_row, metric_columns, observed_columns, outcome_columns, target_as_row
from storage.store import Store, insert, is_alive

DECODE, PREFILL, MEASURED = "decode", "prefill", "measured"
REFUSED = "refused"
"""`error_kind` of a repeat that finished and is no measurement all the same."""
_OF_TARGET = "engine = ? AND device = ? AND precision = ? AND model = ?"
_PREFERRED = "preferred_targets"
_LISTED = ("id", "conversation_id", "created_at", "updated_at", "contract", "suite", "model", "status")


@dataclass(frozen=True)
class Listed:
    """One line of the list of measurements."""

    id: str
    conversation_id: str | None
    created_at: str
    updated_at: str
    contract: str
    suite: str
    model: str
    status: str
    """As saved; `running` or `paused` of an app that is gone can be gone on with."""
    resumable: bool
    """Not what another computer began: its repeats and this one's are not of one kind."""
    imported_from: str | None


@dataclass(frozen=True)
class Tuning:
    """Settings that are kept for a target and a job."""

    target: Target
    job: str
    """`decode` (long answers), `prefill` (long prompts), or `measured`: as a measurement had them."""
    settings: Mapping[str, Any]
    found_at: str
    why: str | None
    in_use: bool = True
    """Whether every run of the target gets them; of its tunings at most one is in use."""
    chosen: bool = False
    """Whether a person chose that."""


class Measurements:
    """The measurements of one store; `saved` and `repeated` make it a session's journal."""

    def __init__(self, store: Store):
        self._store = store
        self._conversations: dict[str, str] = {}
        self._turns: dict[tuple[str, str, int, int], str] = {}

    # --- a measurement as it happens -----------------------------------------------------------------------

    def saved(self, measurement: Measurement) -> None:
        """Keep the measurement as it is now."""
        text = self._text(measurement)
        conversation_id = self._conversation(measurement)
        row = {
            "id": measurement.id,
            "conversation_id": conversation_id,
            "created_at": measurement.created_at,
            "updated_at": measurement.updated_at or now(),
            "contract": measurement.contract,
            "suite": measurement.suite.name,
            "model": readable(measurement.model),
            "status": measurement.status,
            "writer": self._store.writer if measurement.status in ("running", "paused") else None,
            "document": text,
        }
        self._write(lambda db: _upsert(db, row), measurement.id, len(text))

    def repeated(self, measurement: Measurement, lane: Lane, case: Case, repeat: Repeat, ran: Ran) -> None:
        """One repeat as a run of the log."""
        conversation_id = self._conversation(measurement)
        key = (measurement.id, case.name, repeat.number, repeat.attempt)
        turn_id = self._turns.get(key)
        turn = None
        if turn_id is None:
            turn_id = self._turns[key] = new_id()
            turn = _turn_row(turn_id, conversation_id, measurement, case, repeat)
        panel = next(at for at, result in enumerate(measurement.lanes, 1) if result.lane.key == lane.key)
        machine, target = machine_as_row(measurement.machine), target_as_row(lane.target, ran.model)
        environment = _environment_row(lane, ran)
        run = {
            "id": new_id(),
            "turn_id": turn_id,
            "panel": panel,
            "attempt": 1,
            "target_id": target["id"],
            "machine_id": machine["id"],
            "environment_id": environment["id"] if environment else None,
            "contended": int(repeat.disturbed),
            "started_at": repeat.started_at or now(),
            "finished_at": now(),
            **outcome_columns(ran.outcome),
            **metric_columns(_metrics(repeat, ran)),
            **observed_columns(ran.observed),
        }
        if repeat.refused:  # no measurement, so no median, trend or choice of the fastest may rest on it
            run |= {"status": "failed", "error_kind": REFUSED, "error_message": f"Refused: {repeat.refused}."}

        def write(db: Database) -> None:
            if turn is not None:
                insert(db, "turns", turn)
            insert(db, "machines", machine, ignore=True)
            insert(db, "targets", target, ignore=True)
            if environment is not None:
                insert(db, "environments", environment, ignore=True)
            insert(db, "runs", run)

        self._write(write, None, 4096)

    def _conversation(self, measurement: Measurement) -> str | None:
        """The conversation its runs hang on; made at first sight, found again after the app was closed."""
        if measurement.id not in self._conversations:
            with contextlib.suppress(StoreError), self._store.file.reading() as db:
                found = db.execute(
                    "SELECT conversation_id FROM measurements WHERE id = ?", [measurement.id]
                ).fetchone()
                if found is not None and found[0] is not None:
                    self._conversations[measurement.id] = found[0]
                    return str(found[0])
            title = f"Measurement: {measurement.suite.title}, {model_name(measurement.model)}"
            self._conversations[measurement.id] = self._store.start_conversation(title)
        return self._conversations[measurement.id]

    def _text(self, measurement: Measurement) -> str:
        kept = True
        with contextlib.suppress(StoreError):
            kept = self._store.keeps_text
        return dumps(measurement if kept else without_texts(measurement), indent=None)

    def _write(self, write: Any, key: str | None, size: int) -> None:
        with contextlib.suppress(StoreError):  # deleted meanwhile; `trouble` tells of the rest
            self._store.recorder.write(write, key=key, replaces=key, size=size)

    # --- finding them again --------------------------------------------------------------------------------

    def listed(self, limit: int = 50, model: str | None = None) -> tuple[Listed, ...]:
        """The measurements, newest first."""
        where, values = ("", []) if model is None else ("AND m.model = ?", [model])
        with self._store.file.reading() as db:
            found = db.execute(
                "SELECT m.id, m.conversation_id, m.created_at, m.updated_at, m.contract, m.suite, m.model, "
                "m.status, m.writer, m.imported_from FROM measurements m "
                "LEFT JOIN conversations c ON c.id = m.conversation_id "
                f"WHERE c.deleted_at IS NULL {where} ORDER BY m.created_at DESC, m.n DESC LIMIT ?",
                [*values, limit],
            ).fetchall()
        return tuple(
            Listed(
                **dict(zip(_LISTED, row[:8], strict=True)),
                resumable=row[7] in ("running", "paused", "stopped")
                and not _lives(row[8])
                and row[9] is None,
                imported_from=row[9],
            )
            for row in found
        )

    def measurement(self, measurement_id: str) -> Measurement | None:
        """A measurement by its id, or by the end of it; None when there is none.

        Raises StoreError if it is damaged, or several end so.
        """
        found = self._ending(measurement_id, "document")
        try:
            return loads(found[0]) if found else None
        except DocumentError as error:
            raise StoreError(f"The measurement {measurement_id} cannot be read: {error}") from error

    def origin(self, measurement_id: str) -> str | None:
        """Which other computer a measurement was brought in from; None: it is this one's, or there is none."""
        found = self._ending(measurement_id, "imported_from")
        return found[0] if found else None

    def _ending(self, ending: str, column: str) -> tuple[Any, ...] | None:
        with self._store.file.reading() as db:
            found = db.execute(
                f"SELECT id, {column} FROM measurements WHERE id = ?1 OR (?1 <> '' AND substr(id, -length(?1)) = ?1) "
                "ORDER BY id = ?1 DESC LIMIT 2",
                [ending],
            ).fetchall()
        if len(found) > 1 and found[0][0] != ending:
            raise StoreError(f"Several measurements have ids ending in {ending}; give more of it.")
        return found[0][1:] if found else None

    def bring_in(self, measurement: Measurement, name: str | None = None) -> bool:
        """Keep another machine's measurement, or how it stands by now; False when it is here already.

        Raises StoreError.
        """
        row = {
            "id": measurement.id,
            "conversation_id": None,
            "created_at": measurement.created_at,
            "updated_at": measurement.updated_at or now(),
            "contract": measurement.contract,
            "suite": measurement.suite.name,
            "model": readable(measurement.model),
            "status": measurement.status if measurement.status in ("finished", "failed") else "stopped",
            "imported_from": readable(name or str(measurement.machine.get("processor") or "another machine")),
            "document": dumps(measurement, indent=None),
        }
        with self._store.file.writing() as db:
            known = db.execute(
                "SELECT updated_at, imported_from FROM measurements WHERE id = ?", [measurement.id]
            ).fetchone()
            if known is None:
                insert(db, "measurements", row)
                return True
            fresher = measurement.updated_at is not None and measurement.updated_at > known[0]
            if known[1] is None or not fresher:  # what is this computer's own stays as it is
                return False
            db.execute(
                "UPDATE measurements SET updated_at = ?, status = ?, document = ? WHERE id = ?",
                [row["updated_at"], row["status"], row["document"], measurement.id],
            )
            return True

    def amend(self, measurement: Measurement) -> None:
        """Keep what was set beside a measurement; how it stands and whose it is stays. Raises StoreError."""
        text = self._text(measurement)
        with self._store.file.writing() as db:
            db.execute("UPDATE measurements SET document = ? WHERE id = ?", [text, measurement.id])

    def delete(self, measurement_id: str) -> None:
        """Remove a measurement with its runs, for good. Raises StoreError."""
        with self._store.file.writing() as db:
            db.execute(
                "DELETE FROM conversations WHERE id = (SELECT conversation_id FROM measurements WHERE id = ?)",
                [measurement_id],
            )
            db.execute("DELETE FROM measurements WHERE id = ?", [measurement_id])

    # --- what comes of them --------------------------------------------------------------------------------

    def tuned(self, target: Target) -> Mapping[str, Any]:
        """The settings that are in use for a target on this machine; empty: the engine's defaults."""
        with contextlib.suppress(StoreError):
            return next((kept.settings for kept in self.tunings(target) if kept.in_use), {})
        return {}

    def tunings(self, target: Target | None = None) -> tuple[Tuning, ...]:
        """Everything that is tuned on this machine, or of one target; what is in use first. Raises StoreError."""
        where = f"WHERE {_OF_TARGET}" if target else ""
        with self._store.file.reading() as db:
            found = db.execute(
                "SELECT engine, device, precision, model, job, settings, found_at, why, in_use, chosen FROM tunings "
                f"{where} ORDER BY model, engine, device, precision, in_use DESC, job",
                [*_named(target)] if target else [],
            ).fetchall()
        return tuple(
            Tuning(Target(*row[:4]), row[4], _settings(row[5]), row[6], row[7], bool(row[8]), bool(row[9]))
            for row in found
        )

    def keep_tuning(
        self, target: Target, settings: Mapping[str, Any], why: str | None = None, job: str = DECODE
    ) -> None:
        """Keep these settings for a job; empty ones take the job's tuning back. Raises StoreError.

        They are used from now on, unless another job's are in use that a person chose; those for long prompts stand
        back behind any others.
        """
        with self._store.file.writing() as db:
            before = next((kept for kept in self.tunings(target) if kept.in_use), None)
            db.execute(f"DELETE FROM tunings WHERE {_OF_TARGET} AND job = ?", [*_named(target), job])
            if not settings:
                return
            row = {
                **dict(zip(("engine", "device", "precision", "model"), _named(target), strict=True)),
                "job": job,
                "settings": json.dumps(dict(settings)),
                "found_at": now(),
                "why": readable(why),
            }
            insert(db, "tunings", row)
            same = before is not None and before.job == job
            if before is None or same or not (before.chosen or job == PREFILL):
                _put_in_use(db, target, job, chosen=before is not None and same and before.chosen)

    def use_tuning(self, target: Target, job: str | None) -> None:
        """Use the settings that are kept for this job from now on; None: the engine's defaults. Raises StoreError."""
        with self._store.file.writing() as db:
            _put_in_use(db, target, job, chosen=True)

    def use_settings(self, target: Target, settings: Mapping[str, Any]) -> None:
        """Use exactly these settings from now on, as a measurement had them. Raises StoreError."""
        kept = next((kept for kept in self.tunings(target) if dict(kept.settings) == dict(settings)), None)
        if kept is None and settings:
            self.keep_tuning(target, settings, "as measured", MEASURED)
        self.use_tuning(target, kept.job if kept else MEASURED if settings else None)

    def take_back_tuning(self, target: Target, job: str | None = None) -> None:
        """Forget what is kept for a job (None: for all); if in use, the defaults are then. Raises StoreError."""
        with self._store.file.writing() as db:
            db.execute(
                f"DELETE FROM tunings WHERE {_OF_TARGET} AND job = coalesce(?, job)", [*_named(target), job]
            )

    def preferred(self, model: str) -> str | None:
        """The lane that a person chose for a model by “Use it”, spelled as a target."""
        chosen = self._store.get_setting(_PREFERRED, {})
        return chosen.get(model) if isinstance(chosen, dict) else None

    def prefer(self, target: Target) -> None:
        """Make a target the default panel for its model. Raises StoreError."""
        chosen = self._store.get_setting(_PREFERRED, {})
        chosen = chosen if isinstance(chosen, dict) else {}
        self._store.set_setting(_PREFERRED, {**chosen, target.model: target.spelling})


def _named(target: Target) -> tuple[str | None, ...]:
    return tuple(readable(text) for text in (target.engine, target.device, target.precision, target.model))


def _settings(text: str) -> Mapping[str, Any]:
    found = json.loads(text)
    return found if isinstance(found, dict) else {}


def _put_in_use(db: Database, target: Target, job: str | None, *, chosen: bool) -> None:
    db.execute(f"UPDATE tunings SET in_use = 0, chosen = 0 WHERE {_OF_TARGET}", [*_named(target)])
    db.execute(
        f"UPDATE tunings SET in_use = 1, chosen = ? WHERE {_OF_TARGET} AND job = ?",
        [chosen, *_named(target), job],
    )


def _lives(writer: str | None) -> bool:
    return writer is not None and is_alive(writer)


def _upsert(db: Database, row: Mapping[str, Any]) -> None:
    names = [name for name in row if name != "id"]
    db.execute(
        f"INSERT INTO measurements ({', '.join(row)}) VALUES ({', '.join('?' * len(row))}) "
        f"ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in names)}",
        list(row.values()),
    )
    db.execute(
        "UPDATE conversations SET updated_at = ? WHERE id = ?", [row["updated_at"], row["conversation_id"]]
    )


def _turn_row(
    turn_id: str, conversation_id: str | None, measurement: Measurement, case: Case, repeat: Repeat
) -> dict[str, Any]:
    again = f", attempt {repeat.attempt}" if repeat.attempt > 1 else ""
    return {
        "id": turn_id,
        "conversation_id": conversation_id,
        "created_at": repeat.started_at or now(),
        "mode": "in-turn",
        "settings": to_json(
            {
                "measurement": measurement.id,
                "contract": measurement.contract,
                "case": case.name,
                "round": repeat.number,
                "attempt": repeat.attempt,
                "max_new_tokens": case.new_tokens,
                "temperature": 0.0,
            }
        ),
        "prompt": f"Measure: {case.title}, round {repeat.number}{again}",
    }


def _environment_row(lane: Lane, ran: Ran) -> dict[str, Any] | None:
    if ran.loaded is None:
        return None
    versions, details = dict(ran.loaded.versions), {**ran.loaded.details, "device": ran.loaded.device}
    return {
        "id": content_id(versions, details),
        "versions": to_json(versions),
        "details": to_json(details),
        "first_seen_at": now(),
    }


def _metrics(repeat: Repeat, ran: Ran) -> RunMetrics:
    loaded = ran.loaded
    return RunMetrics(
        prompt_tokens=repeat.prompt_tokens,
        cached_prompt_tokens=repeat.cached_prompt_tokens,
        output_tokens=len(repeat.token_offsets_s) if isinstance(ran.outcome, Finished) else 0,
        prompt_sha256=repeat.prompt_sha256,
        token_offsets_s=repeat.token_offsets_s,
        total_s=repeat.total_s,
        load_s=loaded.load_s if loaded else None,
        compile_s=loaded.compile_s if loaded else None,
        warmup_s=loaded.warmup_s if loaded else None,
        peak_rss_bytes=repeat.peak_rss_bytes,
    )
