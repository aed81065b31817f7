"""What the log knows of how fast targets are and which were used: questions of those who choose one."""

from __future__ import annotations

from engines.protocol import Target
from storage.store import Store

_RECENT_RUNS = 500


def fastest_first(store: Store, machine: str) -> list[Target]:
    """Targets that ran alone on a machine, by their median decode rate. Raises StoreError."""
    with store.file.reading() as db:
        found = db.execute(
            "SELECT engine, device, precision, model FROM median_metrics "
            "WHERE NOT contended AND machine IS ? AND decode_tok_s IS NOT NULL ORDER BY decode_tok_s DESC",
            [machine],
        ).fetchall()
    return [Target(*row) for row in found]


def used_last(store: Store, machine: str) -> list[Target]:
    """Targets of the newest finished runs on a machine, newest first. Raises StoreError."""
    with store.file.reading() as db:
        found = db.execute(
            "SELECT engine, device, precision, model FROM run_metrics "
            "WHERE status = 'finished' AND machine IS ? ORDER BY n DESC LIMIT ?",
            [machine, _RECENT_RUNS],
        ).fetchall()
    return [Target(*row) for row in found]


def rates_of(store: Store, target: Target, machine: str) -> tuple[float, float] | None:
    """Median prefill and decode rate (tokens a second) of a target's runs alone on a machine. Raises StoreError."""
    with store.file.reading() as db:
        row = db.execute(
            "SELECT prefill_tok_s, decode_tok_s FROM median_metrics WHERE engine = ? AND device = ? "
            "AND precision = ? AND model = ? AND machine IS ? AND NOT contended "
            "AND prefill_tok_s > 0 AND decode_tok_s > 0 ORDER BY last_run_at DESC LIMIT 1",
            [target.engine, target.device, target.precision, target.model, machine],
        ).fetchone()
    return (row[0], row[1]) if row else None
