"""Two measurements side by side: what changed around them, and lane by lane what became of the figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.measure.privacy import last_part, without_private
from engines.measure.records import HIGHER_IS_BETTER, Figure, LaneResult, Measurement
from engines.measure.spread import apart, case_figures

NOTED, ALARMED = -0.05, -0.15
"""A lane this much slower than before is noted, or alarmed."""
_METRICS = ("decode_tok_s", "ttft_s", "answer_s")
_IGNORED_FACTS = frozenset({"name"})


@dataclass(frozen=True)
class Difference:
    """One figure of one lane, before and now."""

    lane: str
    case: str
    metric: str
    before: float
    now: float
    change: float
    """Of the speed, whatever the figure: 0.1 is 10 % faster, −0.2 a fifth slower."""
    beyond_intervals: bool
    """Whether the two 95 % intervals lie apart."""

    @property
    def of_figure(self) -> float:
        """Of the figure itself, as anyone would compute it: of a time, 0.25 is a quarter longer."""
        return self.now / self.before - 1

    @property
    def level(self) -> str:
        """`alarm`, `note`, `better` or `same`; within the intervals nothing has changed."""
        if not self.beyond_intervals:
            return "same"
        if self.change <= ALARMED:
            return "alarm"
        if self.change <= NOTED:
            return "note"
        return "better" if self.change >= -NOTED else "same"


@dataclass(frozen=True)
class Comparison:
    """What is between two measurements."""

    comparable: bool
    """Same contract and model, and cases in common; else the figures are not to be held against each other."""
    why_not: str | None
    changes: tuple[str, ...]
    """`power: mains → battery`, `transformers/CPU/bf16: torch: 2.12 → 2.13`."""
    matched: tuple[str, ...]
    new: tuple[str, ...]
    removed: tuple[str, ...]
    failed: tuple[str, ...]
    """Lanes that ran before and fail now."""
    differences: tuple[Difference, ...]


def compare(before: Measurement, now: Measurement) -> Comparison:
    """`now` against an earlier, or another machine's, measurement.

    A file that was made to be published has a person's own prompts numbered: then the other's are numbered as well.
    """
    if not _common_cases(before, now):
        before, now = without_private(before), without_private(now)
    old = {result.lane.key: result for result in before.measured}
    new = {result.lane.key: result for result in now.measured}
    both = [key for key in new if key in old]
    cases = _common_cases(before, now)
    why_not = _why_not(before, now, cases)
    return Comparison(
        comparable=why_not is None,
        why_not=why_not,
        changes=_changes(before, now, both),
        matched=tuple(key for key in both if new[key].failure is None and old[key].failure is None),
        new=tuple(key for key in new if key not in old),
        removed=tuple(key for key in old if key not in new),
        failed=tuple(key for key in both if new[key].failure is not None and old[key].failure is None),
        differences=()
        if why_not
        else tuple(d for key in both for d in _differences(old[key], new[key], cases)),
    )


def _common_cases(before: Measurement, now: Measurement) -> tuple[str, ...]:
    known = {(case.name, case.prompt_tokens, case.new_tokens) for case in before.suite.cases}
    return tuple(
        case.name for case in now.suite.cases if (case.name, case.prompt_tokens, case.new_tokens) in known
    )


def _why_not(before: Measurement, now: Measurement, cases: tuple[str, ...]) -> str | None:
    if before.contract != now.contract:
        return f"They follow different contracts: {before.contract} and {now.contract}."
    if last_part(before.model) != last_part(now.model):
        return f"They measured different models: {before.model} and {now.model}."
    return None if cases else "They have no case of the same lengths in common."


def _differences(old: LaneResult, new: LaneResult, cases: tuple[str, ...]) -> list[Difference]:
    found = []
    for case in cases:
        before, now = case_figures(old.repeats, case), case_figures(new.repeats, case)
        for metric in _METRICS:
            if metric in before and metric in now:
                found.append(_difference(new.lane.key, case, metric, before[metric], now[metric]))
    return found


def _difference(lane: str, case: str, metric: str, before: Figure, now: Figure) -> Difference:
    ratio = now.median / before.median if metric in HIGHER_IS_BETTER else before.median / now.median
    return Difference(lane, case, metric, before.median, now.median, ratio - 1, apart(before, now))


def _changes(before: Measurement, now: Measurement, both: list[str]) -> tuple[str, ...]:
    found = _facts("", before.machine, now.machine)
    found += _facts("", _told(before.environment), _told(now.environment))
    for key in both:
        old, new = before.lane(key), now.lane(key)
        if old is not None and new is not None:
            found += _facts(f"{key}: ", old.versions, new.versions)
            found += _facts(f"{key}: ", _told(old.details), _told(new.details))
            found += _facts(f"{key}: ", _made(old), _made(new))
    return tuple(dict.fromkeys(found))


def _made(result: LaneResult) -> dict[str, Any]:
    return {"runs on": result.device, "revision": result.revision, "weight bytes": result.weight_bytes}


def _told(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Without readings that differ every time."""
    moving = ("other_load_cores", "other_programs", "temperature_c", "clock_mhz", "idle_w")
    return {name: value for name, value in facts.items() if name not in moving}


def _facts(prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{prefix}{name.replace('_', ' ')}: {_short(old.get(name))} → {_short(new.get(name))}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name) and name not in _IGNORED_FACTS
    ]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
