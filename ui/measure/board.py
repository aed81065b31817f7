"""A measurement made ready for showing: lanes numbered, figures computed once, columns of one unit each.

The tab and the report draw the same board, so that what is published is what was seen. No Gradio in here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engines.measure import verdict
from engines.measure.records import HIGHER_IS_BETTER, Case, Figure, LaneResult, Measurement, Verdict
from engines.measure.spread import LEAST_REPEATS, apart, case_figures
from ui import format as fmt

UNDER_WAY = ("running", "paused")
COLOURS = 6
"""The page has six colours, each with a dash pattern; a lane's number is always beside its colour."""


@dataclass(frozen=True)
class Metric:
    """How one figure of a case is called and spelled."""

    name: str
    title: str
    unit: str
    """`tok/s`, `s` (then shown in ms where all are short) or `J`."""

    @property
    def better(self) -> str:
        return "more is better" if self.name in HIGHER_IS_BETTER else "less is better"


METRICS = (
    Metric("decode_tok_s", "Decode", "tok/s"),
    Metric("ttft_s", "TTFT", "s"),
    Metric("prefill_tok_s", "Prefill", "tok/s"),
    Metric("answer_s", "Whole answer", "s"),
    Metric("itl_p95_s", "ITL p95", "s"),
    Metric("joules_per_token", "Energy", "J/token"),
)
METRIC = {metric.name: metric for metric in METRICS}


@dataclass(frozen=True)
class Column:
    """Numbers under each other: one unit and one count of decimals, so that their points are aligned."""

    unit: str
    scale: float
    decimals: int

    @classmethod
    def of(cls, values: Sequence[float | None], unit: str) -> Column:
        """The unit and the decimals that give the greatest value three figures or so."""
        known = [abs(value) for value in values if value is not None]
        top = max(known, default=0.0)
        scale = 1.0
        if unit == "s" and known and top < 1:
            unit, scale = "ms", 1000.0
        digits = 0 if top == 0 else math.floor(math.log10(top * scale)) + 1
        return cls(unit, scale, max(0, min(3, 3 - digits)))

    def spell(self, value: float | None) -> str:
        """Without the unit, which stands in the column's head."""
        return fmt.MISSING if value is None else f"{value * self.scale:,.{self.decimals}f}"

    def range(self, low: float, high: float) -> str:
        return f"{self.spell(low)}–{self.spell(high)}"


@dataclass(frozen=True)
class ShownLane:
    """One lane with its number and why it cannot win."""

    number: int
    """From 1, in the order of the measurement."""
    result: LaneResult
    excluded: str | None
    """None too while it has not been measured yet."""

    @property
    def key(self) -> str:
        return self.result.lane.key

    @property
    def colour(self) -> str:
        return f"p{(self.number - 1) % COLOURS + 1}"

    @property
    def badge(self) -> str:
        return f'<span class="badge {self.colour}">{self.number}</span>'

    @property
    def name(self) -> str:
        """Badge, target, and its settings behind."""
        spelled = ", ".join(f"{name}={value}" for name, value in sorted(self.result.lane.settings.items()))
        settings = f' <span class="ms-soft">{fmt.text(spelled)}</span>' if spelled else ""
        return (
            f'{self.badge}<span class="ms-name">{fmt.text(self.result.lane.target.spelling)}{settings}</span>'
        )


class Board:
    """A measurement and everything derived from it, each derived once."""

    def __init__(self, measurement: Measurement):
        self.measurement = measurement
        self.lanes = tuple(
            ShownLane(number, result, _excluded(result, measurement))
            for number, result in enumerate(measurement.measured, 1)
        )
        self._by_key = {lane.key: lane for lane in self.lanes}
        self._figures: Mapping[tuple[str, str], Mapping[str, Figure]] = {
            (lane.key, case.name): case_figures(lane.result.repeats, case.name)
            for lane in self.lanes
            for case in measurement.suite.cases
        }

    @functools.cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        return verdict.verdicts(self.measurement)

    @property
    def cases(self) -> tuple[Case, ...]:
        """Cases that any lane has figures of."""
        return tuple(
            case
            for case in self.measurement.suite.cases
            if any(self._figures[lane.key, case.name] for lane in self.lanes)
        )

    def lane(self, key: str | None) -> ShownLane | None:
        return self._by_key.get(key or "")

    def figure(self, lane: ShownLane, case: Case, metric: str) -> Figure | None:
        return self._figures[lane.key, case.name].get(metric)

    def case_line(self, case: Case) -> str:
        """`Short chat · 128 → 128 tokens`, as HTML; of a prompt that is taken whole, as the lanes counted it."""
        return (
            f"{fmt.text(case.title)} · {lengths(case, verdict.prompt_length(case, self.measurement))} tokens"
        )

    def column(self, case: Case, metric: Metric) -> Column:
        """How a case's figures of one metric are spelled, in all lanes alike."""
        figures = [self.figure(lane, case, metric.name) for lane in self.lanes]
        return Column.of([figure.median for figure in figures if figure], metric.unit)

    def clearly_best(self, case: Case, metric: str) -> ShownLane | None:
        """The lane whose interval is apart from everybody's, of those that can win; None: there is none."""
        found = [
            (figure, lane)
            for lane in self.lanes
            if not lane.excluded and (figure := self.figure(lane, case, metric)) is not None
        ]
        if len(found) < 2:
            return None
        sign = -1 if metric in HIGHER_IS_BETTER else 1
        (best, leader), *others = sorted(found, key=lambda pair: sign * pair[0].median)
        enough = all(figure.n >= LEAST_REPEATS for figure, _ in found)
        return leader if enough and all(apart(best, other) for other, _ in others) else None


def _excluded(result: LaneResult, measurement: Measurement) -> str | None:
    """Why the lane cannot win; while it is still being measured, only what is final already."""
    if result.failure is None and measurement.status in UNDER_WAY and result.status in ("waiting", "partly"):
        final = not result.asked_device or any(repeat.refused for repeat in result.repeats)
        failed = result.quality is not None and not result.quality.passed
        return verdict.excluded(result, measurement) if final or failed else None
    return verdict.excluded(result, measurement)


def lengths(case: Case, counted: int = 0) -> str:
    """`128 → 64`: tokens of a case's prompt (of one taken whole as they were `counted`) and of its reply."""
    prompt = case.prompt_tokens or counted
    return f"{f'{prompt:,}' if prompt else 'whole prompt'} → {case.new_tokens:,}"
