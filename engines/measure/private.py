"""What of a measurement may leave this computer: no path, no name, no prompt of the person's, unless asked."""

from __future__ import annotations

import re
from dataclasses import replace

from engines.measure.records import Lane, LaneResult, Measurement

_PATH = re.compile(r"(?:[A-Za-z]:)?[\\/](?:[^\\/\s\"']+[\\/])+[^\\/\s\"']*")
_NAMING_FACTS = ("name", "hostname", "user")


def model_name(model: str) -> str:
    """The name of a model; of a folder on disk its last part only. A hub's `owner/model` stays."""
    parts = [part for part in re.split(r"[\\/]", model) if part]
    is_path = model.startswith(("/", "\\", "~", ".")) or re.match(r"[A-Za-z]:[\\/]", model) or len(parts) > 2
    return parts[-1] if is_path and parts else model


def shareable(measurement: Measurement) -> Measurement:
    """The same figures without machine name, paths and own texts."""
    name = model_name(measurement.model)
    cases = tuple(replace(case, text=None) for case in measurement.suite.cases)
    suite = replace(measurement.suite, cases=cases)
    if suite.name == "own":
        suite = replace(suite, title="Own")
    return replace(
        measurement,
        model=name,
        suite=suite,
        reference=_key(measurement.reference, measurement),
        machine={key: value for key, value in measurement.machine.items() if key not in _NAMING_FACTS},
        environment={key: value for key, value in measurement.environment.items() if key != "other_programs"},
        lanes=tuple(_lane(result, name) for result in measurement.lanes),
        notes=tuple(without_paths(note) for note in measurement.notes),
    )


def without_texts(measurement: Measurement) -> Measurement:
    """The same figures without any prompt of the person's or reply of a model."""
    cases = tuple(replace(case, text=None) for case in measurement.suite.cases)
    lanes = tuple(
        replace(
            result,
            quality=replace(
                result.quality,
                answers=tuple(replace(a, text=None, token_ids=()) for a in result.quality.answers),
            ),
        )
        if result.quality
        else result
        for result in measurement.lanes
    )
    return replace(measurement, suite=replace(measurement.suite, cases=cases), lanes=lanes)


def without_paths(text: str) -> str:
    """Folders and files named in a text, taken out."""
    return _PATH.sub("…", text)


def _key(reference: str | None, measurement: Measurement) -> str | None:
    return reference if reference is None or measurement.lane(reference) else None


def _lane(result: LaneResult, model: str) -> LaneResult:
    lane = Lane(replace(result.lane.target, model=model), result.lane.settings)
    failure = result.failure
    if failure is not None:
        failure = replace(
            failure,
            message=without_paths(failure.message),
            remedy=without_paths(failure.remedy) if failure.remedy else None,
            details=None,
        )
    repeats = tuple(
        replace(r, disturbance="Other work on this machine." if r.disturbed else None) if r.disturbance else r
        for r in result.repeats
    )
    return replace(result, lane=lane, failure=failure, repeats=repeats)
