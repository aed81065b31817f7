"""What the history keeps of the app's objects, as columns of its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from engines.protocol import Failed, Finished, PreparedModel, RunMetrics, Target
from engines.telemetry.observer import Observed
from storage.codec import content_id, now, pack_offsets, readable, to_json, unpack_offsets_us


def machine_as_row(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `machines`: equal facts make one row."""
    name = facts.get("name") or facts.get("hostname")
    return {
        "id": content_id(dict(facts)),
        "name": readable(str(name)) if name else None,
        "facts": to_json(dict(facts)),
        "first_seen_at": now(),
    }


def target_as_row(target: Target, model: PreparedModel | None = None) -> dict[str, Any]:
    """A row of `targets`: engine, device, precision and model, and how the model was made once that is known."""
    named = [readable(text) for text in (target.engine, target.device, target.precision, target.model)]
    revision = model.revision if model else None
    recipe_sha256 = model.recipe_sha256 if model else None
    return {
        "id": content_id(*named, revision, recipe_sha256),
        **dict(zip(("engine", "device", "precision", "model"), named, strict=True)),
        "revision": revision,
        "recipe_sha256": recipe_sha256,
        "recipe": to_json(model.recipe) if model and model.recipe is not None else None,
    }


def outcome_columns(outcome: Finished | Failed) -> dict[str, Any]:
    """How a run ended, as columns of `runs`."""
    if isinstance(outcome, Finished):
        stopped = outcome.finish_reason == "cancelled"
        return {
            "status": "stopped" if stopped else "finished",
            "finish_reason": outcome.finish_reason,
            "warning": readable(outcome.warning),
        }
    return {
        "status": "stopped" if outcome.kind == "cancelled" else "failed",
        "error_kind": outcome.kind,
        "error_message": readable(outcome.message),
        "error_remedy": readable(outcome.remedy),
        "error_details": readable(outcome.details),
        "exit_code": outcome.exit_code,
    }


def observed_columns(observed: Observed | None) -> dict[str, Any]:
    """The stamps of a run that was watched to its end, and where it ran."""
    if observed is None:
        return {}
    conditions, placement = observed.conditions, observed.placement
    return {
        "stamp_rule": "end",
        "contended": int(conditions.contended),
        "disturbed": int(conditions.disturbed),
        "other_load": to_json(asdict(conditions.other_load)),
        "placement": to_json(asdict(placement)),
        "placement_badge": placement.badge,
    }


def metric_columns(metrics: RunMetrics) -> dict[str, Any]:
    """What was measured of a run, as columns of `runs`; what is missing is left out."""
    measured = {
        "prompt_tokens": metrics.prompt_tokens,
        "cached_prompt_tokens": metrics.cached_prompt_tokens,
        "output_tokens": metrics.output_tokens,
        "prompt_sha256": metrics.prompt_sha256,
        "reasoning_tokens": metrics.reasoning_tokens,
        "answer_tokens": metrics.answer_tokens,
        "first_reasoning_us": _microseconds(metrics.first_reasoning_s),
        "first_answer_us": _microseconds(metrics.first_answer_s),
        "total_s": metrics.total_s,
        "load_s": metrics.load_s,
        "compile_s": metrics.compile_s,
        "warmup_s": metrics.warmup_s,
        "peak_rss_bytes": metrics.peak_rss_bytes,
        "clock": None if metrics.clock == "worker" else metrics.clock,
        "server": to_json(metrics.server) if metrics.server else None,
    }
    # What a failed run cannot tell must not wipe out what `describe_run` or `save_partial` told.
    told = {name: value for name, value in measured.items() if value is not None}
    return told | _piece_columns(metrics) | offset_columns(metrics.token_offsets_s)


def _piece_columns(metrics: RunMetrics) -> dict[str, Any]:
    """When each piece of text arrived, where no tokens are seen; the first and the last are kept apart for SQL."""
    if not metrics.piece_offsets_s:
        return {}
    packed = pack_offsets(metrics.piece_offsets_s)
    offsets_us = unpack_offsets_us(packed)
    return {"piece_offsets": packed, "first_token_us": offsets_us[0], "last_token_us": offsets_us[-1]}


def ids_column(reply_ids: Sequence[int]) -> str | None:
    return to_json(reply_ids) if reply_ids else None


def _microseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e6)


def offset_columns(offsets_s: Sequence[float]) -> dict[str, Any]:
    """The packed offsets, and the four numbers that views need of them.

    The two ITL percentiles are kept as columns because SQL would have to unpack and sort every token of every
    run to find them; first and last spare it the unpacking.
    """
    if not offsets_s:
        return {}
    packed = pack_offsets(offsets_s)
    offsets_us = unpack_offsets_us(packed)
    exact_metrics = RunMetrics(token_offsets_s=offsets_us)  # the same formulas, in microseconds
    return {
        "token_offsets": packed,
        "first_token_us": offsets_us[0],
        "last_token_us": offsets_us[-1],
        "itl_median_us": exact_metrics.itl_median_s,
        "itl_p95_us": exact_metrics.itl_p95_s,
    }
