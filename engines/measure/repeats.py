"""One generation as a repeat: what is kept of it, and whether it is a measurement at all."""

from __future__ import annotations

from dataclasses import replace

from engines.measure import limit
from engines.measure.records import Case, LaneResult, Measurement, Repeat, utc_now
from engines.protocol import Failed, Finished, Loaded
from engines.telemetry.placement import CONTRADICTED, Placement


def repeat_of(
    case: Case, number: int, attempt: int, outcome: Finished | Failed, at: str | None = None
) -> Repeat:
    """What is kept of a generation that began `at`; a failure is told without the log, which names folders."""
    if isinstance(outcome, Failed):
        failure = replace(outcome, details=None)
        return Repeat(case.name, number, attempt, "failed", at or utc_now(), failure=failure)
    metrics = outcome.metrics
    return Repeat(
        case.name,
        number,
        attempt,
        "finished",
        at or utc_now(),
        prompt_tokens=metrics.prompt_tokens,
        cached_prompt_tokens=metrics.cached_prompt_tokens,
        prompt_sha256=metrics.prompt_sha256,
        token_offsets_s=tuple(round(offset, 6) for offset in metrics.token_offsets_s),
        total_s=None if metrics.total_s is None else round(metrics.total_s, 6),
        peak_rss_bytes=metrics.peak_rss_bytes,
    )


def changed_since(result: LaneResult, loaded: Loaded) -> Failed | None:
    """Why a lane that is gone on with is not what was measured before: repeats of two kinds make no median."""
    changes = [
        f"{name} {result.versions.get(name)} → {loaded.versions.get(name)}"
        for name in sorted({*result.versions, *loaded.versions})
        if result.versions.get(name) != loaded.versions.get(name)
    ]
    if not changes:
        return None
    message = f"Its packages changed since this measurement began ({', '.join(changes)})."
    return Failed("changed", message, "Start a new measurement; the two can stand side by side.")


def refusal(
    measurement: Measurement,
    result: LaneResult,
    case: Case,
    repeat: Repeat,
    placement: Placement | None = None,
) -> str | None:
    """Why a finished repeat is no measurement; None when it is one. `placement`: where it ran."""
    if repeat.failure is not None:
        return None
    if placement is not None and placement.badge == CONTRADICTED:
        return f"did not run where it claims: {placement.evidence[-1].rstrip('.')}"
    if len(repeat.token_offsets_s) != case.new_tokens:
        return f"ended after {len(repeat.token_offsets_s):,} of {case.new_tokens:,} tokens"
    if case.prompt_tokens and repeat.prompt_tokens != case.prompt_tokens:
        return f"its prompt had {repeat.prompt_tokens} of {case.prompt_tokens:,} tokens"
    if repeat.cached_prompt_tokens:
        return f"{repeat.cached_prompt_tokens:,} tokens of its prompt came from a kept cache"
    return _other_prompt(measurement, repeat) or limit.impossible(result, repeat)


def _other_prompt(measurement: Measurement, repeat: Repeat) -> str | None:
    place = (repeat.case, repeat.number, repeat.attempt)
    for known in measurement.measured:
        for theirs in known.repeats:
            same = (theirs.case, theirs.number, theirs.attempt) == place
            if same and theirs.prompt_sha256 and theirs.prompt_sha256 != repeat.prompt_sha256:
                return f"its prompt's token ids are not those of {known.lane.key}"
    return None
