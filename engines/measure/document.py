"""A measurement as one JSON document, and back: what `--json` writes, the database keeps and reports are made from.

Everything is in it raw; medians, intervals and verdicts are written beside for readers, and made anew on reading.
docs/measure.md describes the keys.
"""

from __future__ import annotations

import itertools
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from engines.measure import verdict
from engines.measure.records import METRICS, Figure, Lane, LaneResult, Measurement
from engines.measure.spread import case_figures, geometric_mean

FORMAT = "backend-arena-measurement"
VERSION = 1
LARGEST = 1e15
"""No figure of a measurement is larger: beyond it sums and quotients are no numbers any more."""
LEAST_S = 1e-9
"""No first token comes sooner."""


class DocumentError(ValueError):
    """A file that is no measurement of ours; the message says what is wrong."""


def to_document(measurement: Measurement, job: str | None = None) -> dict[str, Any]:
    """The JSON document; `verdict` is the one for `job`, by default the first of all."""
    verdicts = verdict.verdicts(measurement)
    chosen = next((v for v in verdicts if v.job == job), verdicts[0])
    plain = to_plain(measurement)
    lanes = [_lane_document(result, measurement) for result in measurement.lanes]
    return {
        "format": FORMAT,
        "version": VERSION,
        **{
            name: plain[name]
            for name in (
                "contract",
                "id",
                "model",
                "reference",
                "created_at",
                "updated_at",
                "status",
                "fitted",
            )
        },
        **{name: plain[name] for name in ("suite", "machine", "environment")},
        "lanes": lanes,
        "verdict": to_plain(chosen),
        "verdicts": [to_plain(v) for v in verdicts],
        **{name: plain[name] for name in ("together", "notes", "foreign")},
    }


def _lane_document(result: LaneResult, measurement: Measurement) -> dict[str, Any]:
    target = result.lane.target
    figures = {case.name: case_figures(result.repeats, case.name) for case in measurement.suite.cases}
    figures = {case: made for case, made in figures.items() if made}
    plain = to_plain(result)
    del plain["lane"]
    return {
        "lane": result.lane.key,
        "target": target.spelling,
        **{name: getattr(target, name) for name in ("engine", "device", "precision", "model")},
        "settings": to_plain(result.lane.settings),
        "runs_on": plain.pop("device"),
        **plain,
        "medians": _of(figures, lambda f: f.median),
        "intervals": _of(figures, lambda f: [f.low, f.high]),
        "iqr": _of(figures, lambda f: [f.q1, f.q3]),
        "geometric_means": _joined(figures, measurement),
        "excluded": verdict.excluded(result, measurement),
        "share_of_limit": verdict.share_of_limit(result, measurement),
    }


def _of(figures: Mapping[str, Mapping[str, Any]], part: Any) -> dict[str, dict[str, Any]]:
    return {case: {metric: part(f) for metric, f in made.items()} for case, made in figures.items()}


def _joined(figures: Mapping[str, Mapping[str, Figure]], measurement: Measurement) -> dict[str, float]:
    """Each metric's geometric mean over the cases, as MLPerf Client joins its categories; with none missing."""
    found = {}
    for metric in METRICS:
        medians = [figures.get(case.name, {}).get(metric) for case in measurement.suite.cases]
        mean = geometric_mean([made.median for made in medians if made is not None])
        if mean is not None and None not in medians:
            found[metric] = mean
    return found


def from_document(document: Any) -> Measurement:
    """The measurement in a document; raises DocumentError. What is derived is not read."""
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise DocumentError("This is not a measurement of Backend Arena.")
    if not isinstance(document.get("version"), int) or document["version"] > VERSION:
        raise DocumentError("This measurement was written by a newer version; update the app.")
    try:
        lanes = [_lane_from(lane) for lane in document["lanes"]]
        rest = {
            f.name: document[f.name] for f in fields(Measurement) if f.name in document and f.name != "lanes"
        }
        measurement: Measurement = from_plain(Measurement, {**rest, "lanes": lanes})
        _check(measurement)
        return measurement
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DocumentError(
            f"The measurement is incomplete or damaged ({type(error).__name__}: {error})."
        ) from error


def _check(measurement: Measurement) -> None:
    """Raise ValueError for times that no clock would give, and for lanes or cases that share a name."""
    for names in ([r.lane.key for r in measurement.lanes], [case.name for case in measurement.suite.cases]):
        if len(set(names)) != len(names):
            raise ValueError("two lanes or cases are named alike")
    for result in measurement.lanes:
        if result.bandwidth_bytes_s is not None and result.bandwidth_bytes_s < 1:
            raise ValueError(f"the memory bandwidth of {result.lane.key} is none")
        for repeat in result.repeats:
            offsets = repeat.token_offsets_s
            if offsets and (offsets[0] < LEAST_S or any(b < a for a, b in itertools.pairwise(offsets))):
                raise ValueError(f"times of {result.lane.key} run backwards or begin at once")


def _lane_from(lane: Mapping[str, Any]) -> dict[str, Any]:
    target = {name: lane[name] for name in ("engine", "device", "precision", "model")}
    kept = {f.name: lane[f.name] for f in fields(LaneResult) if f.name in lane}
    return {**kept, "lane": {"target": target, "settings": lane["settings"]}, "device": lane["runs_on"]}


def dumps(measurement: Measurement, job: str | None = None, indent: int | None = 1) -> str:
    """The document as ASCII text; no NaN ever."""
    return json.dumps(to_document(measurement, job), indent=indent, allow_nan=False)


def loads(text: str) -> Measurement:
    """Raises DocumentError."""
    try:
        return from_document(json.loads(text))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(f"This is not a JSON document ({error}).") from error


# --- dataclasses as plain values ---------------------------------------------------------------------------


def to_plain(value: Any) -> Any:
    """Dataclasses become objects, tuples lists; numbers that JSON cannot hold become null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and value not in (float("inf"), float("-inf")) and value == value:
        return value
    return value if value is None or isinstance(value, (str, int, bool)) else None


def from_plain(kind: Any, value: Any) -> Any:
    """A value of type `kind` from plain ones, checked; raises TypeError or ValueError for what does not fit."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return from_plain(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"a list was expected, not {type(value).__name__}")
        return tuple(from_plain(arguments[0], item) for item in value)
    if origin is not None:  # Mapping[str, X]
        if not isinstance(value, Mapping):
            raise TypeError(f"an object was expected, not {type(value).__name__}")
        return {str(key): from_plain(arguments[1], item) for key, item in value.items()}
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise TypeError(f"an object was expected, not {type(value).__name__}")
        hints = typing.get_type_hints(kind)
        known = {f.name for f in fields(kind)}
        make: Any = kind
        return make(**{name: from_plain(hints[name], item) for name, item in value.items() if name in known})
    if isinstance(value, (int, float)) and not abs(value) <= LARGEST:
        raise ValueError("a number is not finite, or larger than any measurement has")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{kind.__name__} was expected, not {type(value).__name__}")
    return value


def lane_of(document: Mapping[str, Any]) -> Lane:
    """The lane (target and settings) in a lane's document."""
    return from_plain(Lane, _lane_from(document)["lane"])


def line(row: Mapping[str, Any]) -> str:
    """One object on one line, ASCII."""
    return json.dumps(to_plain(row), allow_nan=False)
