"""How fast a target was over time, and what changed in between.

Runs that shared the machine, with other work of ours (contended) or with other programs (disturbed), never mix with
those that had it to themselves; what ran elsewhere than it claims is left out. Marks say where the machine or the
environment of consecutive runs differs: a driver, a package, the power state.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from storage.filters import of_run
from storage.queries import rows
from storage.records import Filter

METRICS = {
    "decode_tok_s": "nullif(coalesce(length(r.token_offsets) / 5, CASE WHEN r.clock = 'client' "
    "THEN r.output_tokens END) - 1, 0) * 1e6 / nullif(r.last_token_us - r.first_token_us, 0)",
    "ttft_s": "r.first_token_us / 1e6",
}
"""The two figures of a trend, as in the view `run_metrics`, which would also compute the others."""

_KIND = (
    "CASE WHEN r.placement_badge = 'contradicted' THEN 'misplaced' "
    "WHEN r.contended OR r.disturbed THEN 'shared' "
    "WHEN r.stamp_rule = 'start' THEN 'alone by the old rule' ELSE 'alone' END"
)


@dataclass(frozen=True)
class Bucket:
    """Runs next to each other in time."""

    start: str
    end: str
    runs: int
    median: float
    low: float
    high: float
    """10th and 90th percentile; of fewer than ten runs the least and the greatest."""


@dataclass(frozen=True)
class Mark:
    """Something that numbers depend on changed before this run."""

    at: str
    changes: tuple[str, ...]
    machine: str | None = None


@dataclass(frozen=True)
class Trend:
    """One metric of one selection over time."""

    metric: str
    alone: tuple[Bucket, ...]
    contended: tuple[Bucket, ...]
    """Runs that were contended or disturbed."""
    marks: tuple[Mark, ...]
    runs: int
    median: float | None
    """Of the runs that had the machine to themselves."""
    median_contended: float | None
    old_rule: int = 0
    """Runs among those alone whose stamp knows only what went on when they began."""
    misplaced: int = 0
    """Runs that are left out because they ran elsewhere than they claim."""


def trend(db: Database, where: Filter, metric: str, *, buckets: int = 60) -> Trend:
    """The finished runs that fit, oldest first, in at most `buckets` groups of equal size per kind."""
    condition, values = of_run(Filter(**{**vars(where), "query": None, "status": "finished"}))
    points = db.execute(
        f"SELECT r.started_at, {METRICS[metric]}, {_KIND}, r.machine_id, r.environment_id, m.name "
        "FROM runs r CROSS JOIN machines m ON m.id = r.machine_id "
        "CROSS JOIN turns t ON t.id = r.turn_id CROSS JOIN conversations c ON c.id = t.conversation_id "
        f"WHERE {condition} AND c.deleted_at IS NULL ORDER BY r.started_at",
        values,
    ).fetchall()
    points = [point for point in points if point[1] is not None]
    misplaced = sum(kind == "misplaced" for _, _, kind, *_ in points)
    points = [point for point in points if point[2] != "misplaced"]
    alone = [(at, value) for at, value, kind, *_ in points if kind != "shared"]
    together = [(at, value) for at, value, kind, *_ in points if kind == "shared"]
    return Trend(
        metric,
        _bucketed(alone, buckets),
        _bucketed(together, buckets),
        _marks(db, [(at, *on) for at, _, _, *on in points]),
        len(points),
        statistics.median(value for _, value in alone) if alone else None,
        statistics.median(value for _, value in together) if together else None,
        sum(kind == "alone by the old rule" for _, _, kind, *_ in points),
        misplaced,
    )


def _bucketed(points: Sequence[tuple[str, float]], buckets: int) -> tuple[Bucket, ...]:
    size = max(1, -(-len(points) // buckets))
    return tuple(_bucket(points[at : at + size]) for at in range(0, len(points), size))


def _bucket(points: Sequence[tuple[str, float]]) -> Bucket:
    ordered = sorted(value for _, value in points)
    tenth = len(ordered) // 10
    return Bucket(
        points[0][0],
        points[-1][0],
        len(ordered),
        statistics.median(ordered),
        ordered[tenth],
        ordered[-1 - tenth],
    )


def _marks(db: Database, points: Iterable[tuple[str, str, str | None, str | None]]) -> tuple[Mark, ...]:
    """Where the machine or the environment of consecutive runs differs, and in what; each machine by itself."""
    marks: list[Mark] = []
    known: dict[str, dict[str, Any]] = {}
    before: dict[str | None, tuple[str, str | None]] = {}
    for at, machine, environment, name in points:
        old = before.get(name)
        new = (machine, environment or (old[1] if old else None))
        if old is not None and new != old:
            changes = differences(*(_facts(db, pair, known) for pair in (old, new)))
            marks += [Mark(at, changes, name)] if changes else []
        before[name] = new
    return tuple(marks)


def _facts(db: Database, pair: tuple[str, str | None], known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    machine, environment = pair
    if machine not in known:
        (row,) = rows(db, "SELECT facts FROM machines WHERE id = ?", [machine])
        known[machine] = json.loads(row["facts"])
    if environment is None:
        return known[machine]
    if environment not in known:
        (row,) = rows(db, "SELECT versions, details FROM environments WHERE id = ?", [environment])
        known[environment] = {**json.loads(row["details"]), **json.loads(row["versions"])}
    return {**known[machine], **known[environment]}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """`power: mains → battery`, for every fact that both have and that differs, and for what came or went."""
    return tuple(
        f"{name.replace('_', ' ')}: {_short(old.get(name))} → {_short(new.get(name))}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    )


def _short(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"
