"""A measurement before anything is done: which lanes, which suite, and whose answers the others' are held to."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from engines.measure.records import Lane, LaneResult, Measurement, Suite, utc_now


def plan(
    model: str,
    lanes: Sequence[Lane],
    suite: Suite,
    *,
    reference: Lane | None = None,
    machine_facts: Mapping[str, Any] | None = None,
) -> Measurement:
    """A measurement to be done. `reference`: the lane whose answers the others' are held against."""
    unique = {lane.key: lane for lane in lanes}
    results = [LaneResult(lane) for lane in unique.values()]
    if reference is not None and reference.key not in unique:
        results.append(LaneResult(reference, reference_only=True))
    first = reference or (results[0].lane if results else None)
    return Measurement(
        id=uuid.uuid4().hex,
        model=model,
        suite=suite,
        created_at=utc_now(),
        lanes=tuple(results),
        reference=first.key if first else None,
        machine=dict(machine_facts or {}),
    )
