"""Charts of a measurement: bars with intervals, tokens over time, rates over the prompt's length.

Inline SVG written here; colours come from the style sheet, so that a chart follows light, dark and paper. Bars are
drawn in percent of their cell and lines in a view box; every figure of a chart stands in a table as well.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engines.measure.records import Case, Figure, Repeat
from engines.measure.spread import counted
from ui import format as fmt
from ui.compare.summary_html import thinned, ticks
from ui.measure.board import Board, Column, Metric, ShownLane

WIDTH, HEIGHT = 480, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 24, 34


# --- bars --------------------------------------------------------------------------------------------------


def bar(figure: Figure, top: float, limit: float | None = None) -> str:
    """A median as a bar from 0 to `top`, its 95 % interval as a whisker; `limit`: a mark across."""

    def at(value: float) -> str:
        return f"{100 * min(max(value / top, 0.0), 1.0) if top > 0 else 0:.2f}%"

    low, high = at(figure.low), at(figure.high)
    mark = f'<line class="ms-limit" x1="{at(limit)}" x2="{at(limit)}" y1="0" y2="18"/>' if limit else ""
    caps = "".join(f'<line class="ms-whisker" x1="{x}" x2="{x}" y1="5" y2="13"/>' for x in (low, high))
    return (
        f'<svg class="ms-bar" width="100%" height="18" aria-hidden="true">'
        f'<rect class="ms-fill" x="0" y="3" width="{at(figure.median)}" height="12" rx="2"/>'
        f'<line class="ms-whisker" x1="{low}" x2="{high}" y1="9" y2="9"/>{caps}{mark}</svg>'
    )


def bars(board: Board, metric: Metric) -> str:
    """One metric of every case: a group of bars per case, a bar per lane; empty when nobody measured it."""
    groups = [_bar_group(board, case, metric) for case in board.cases]
    if not any(groups):
        return ""
    return (
        f'<figure class="ms-figure"><figcaption>{metric.title} <span class="ms-soft">{metric.unit}, median with '
        f"95 % interval; {metric.better}</span></figcaption>{''.join(groups)}</figure>"
    )


def _bar_group(board: Board, case: Case, metric: Metric) -> str:
    found = [(lane, board.figure(lane, case, metric.name)) for lane in board.lanes]
    top = max((figure.high for _, figure in found if figure), default=0.0)
    if top <= 0:
        return ""
    column, best = board.column(case, metric), board.clearly_best(case, metric.name)
    rows = "".join(_bar_row(lane, figure, top, column, lane is best) for lane, figure in found)
    return f'<p class="ms-case">{board.case_line(case)}</p><ul class="ms-bars">{rows}</ul>'


def _bar_row(lane: ShownLane, figure: Figure | None, top: float, column: Column, best: bool) -> str:
    drawn = bar(figure, top) if figure else '<span class="ms-soft ms-none">no figure</span>'
    value = f"{column.spell(figure.median)} {column.unit}" if figure else fmt.MISSING
    out = " ms-out" if lane.excluded else ""
    return (
        f'<li class="{lane.colour}{out}">{lane.name}{drawn}'
        f'<span class="ms-value">{struck(value, bool(lane.excluded))}{BEST if best else ""}</span></li>'
    )


BEST = '<span class="best-mark" aria-hidden="true">▲</span><span class="sr"> (best)</span>'


def struck(value: str, out: bool) -> str:
    """A figure of a lane that cannot win is crossed out."""
    return (
        f'<s><span class="sr">does not count: </span>{value}</s>' if out and value != fmt.MISSING else value
    )


# --- lines -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """Points of one lane, and where it has none because it failed."""

    lane: ShownLane
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float, float], ...] = ()
    """(x, low, high)."""
    failed_at: tuple[float, ...] = ()


@dataclass(frozen=True)
class Axis:
    """From a value to a place between two ends; logarithmic where lengths double from point to point."""

    least: float
    most: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        if self.logarithmic:
            share = math.log(max(value, self.least) / self.least) / (math.log(self.most / self.least) or 1.0)
        else:
            share = (value - self.least) / ((self.most - self.least) or 1.0)
        return self.start + (self.end - self.start) * share


def linear(top: float, start: float, end: float) -> Axis:
    """From 0 to a round number at or above `top`."""
    marks = ticks(top)
    if len(marks) > 1 and marks[-1] < top:
        marks = [*marks, round(marks[-1] + marks[1], 9)]
    return Axis(0.0, marks[-1] or 1.0, start, end, tuple(marks))


def tokens_over_time(board: Board, case: Case) -> str:
    """Each lane's repeat that took the median time, token by token; excluded lanes are left out."""
    lines = []
    for lane in board.lanes:
        repeat = None if lane.excluded else typical(lane, case)
        if repeat is not None:
            points = tuple((second, float(n)) for second, n in thinned(repeat.token_offsets_s))
            lines.append(Line(lane, points))
    if not lines:
        return ""
    x = linear(max(line.points[-1][0] for line in lines), LEFT, WIDTH - RIGHT)
    y = linear(max(line.points[-1][1] for line in lines), HEIGHT - BOTTOM, TOP)
    said = "; ".join(
        f"lane {line.lane.number}: {line.points[-1][1]:.0f} tokens in {fmt.seconds(line.points[-1][0])}"
        for line in lines
    )
    return _chart(
        lines,
        x,
        y,
        "seconds",
        "tokens",
        f"{board.case_line(case)}: tokens over time. {said}",
        board.case_line(case),
    )


def typical(lane: ShownLane, case: Case) -> Repeat | None:
    """The counted repeat in the middle by its time to the whole answer."""
    repeats = sorted(counted(lane.result.repeats, case.name), key=lambda repeat: repeat.answer_s or 0.0)
    with_tokens = [repeat for repeat in repeats if repeat.token_offsets_s]
    return with_tokens[(len(with_tokens) - 1) // 2] if with_tokens else None


def is_sweep(cases: Sequence[Case]) -> bool:
    """Whether the cases differ in depth alone, so that a line may join them."""
    depths = {case.prompt_tokens for case in cases}
    return len(depths) >= 3 and len(depths) == len(cases) and len({case.category for case in cases}) == 1


def sweep(board: Board, metric: Metric) -> str:
    """A metric over the prompt's length, with the places where lanes cross and where one fails."""
    cases = sorted(board.measurement.suite.cases, key=lambda case: case.prompt_tokens)
    lines = [
        line
        for lane in board.lanes
        if (line := _sweep_line(board, lane, cases, metric)).points or line.failed_at
    ]
    if not is_sweep(cases) or not any(line.points for line in lines):
        return ""
    column = Column.of([y for line in lines for _, y in line.points], metric.unit)
    scaled = [_scaled(line, column.scale) for line in lines]
    highest = max(y for line in scaled for y in (*(p[1] for p in line.points), *(b[2] for b in line.band)))
    depths = tuple(float(case.prompt_tokens) for case in cases)
    x = Axis(depths[0], depths[-1], LEFT, WIDTH - RIGHT, depths, logarithmic=True)
    y = linear(highest, HEIGHT - BOTTOM, TOP)
    crossings = [found for pair in itertools.combinations(scaled, 2) for found in crossings_of(*pair)]
    label = f"{metric.title}, {column.unit}, over the prompt's length in tokens."
    chart = _chart(
        scaled, x, y, "prompt tokens", column.unit, label, f"{metric.title} over the prompt's length",
        marks=[depth for _, _, depth in crossings],
    )  # fmt: skip
    said = [
        f"{one.badge} and {other.badge} cross at about {depth:,.0f} tokens" for one, other, depth in crossings
    ]
    said += [
        f"{line.lane.badge} fails at {', '.join(f'{depth:,.0f}' for depth in line.failed_at)} tokens"
        for line in scaled
        if line.failed_at
    ]
    notes = "".join(f"<li>{sentence}</li>" for sentence in said)
    return f'<div>{chart}<ul class="ms-crossings">{notes}</ul></div>' if notes else chart


def _sweep_line(board: Board, lane: ShownLane, cases: Sequence[Case], metric: Metric) -> Line:
    points, band, failed = [], [], []
    for case in cases:
        figure = board.figure(lane, case, metric.name)
        depth = float(case.prompt_tokens)
        if figure is not None:
            points.append((depth, figure.median))
            band.append((depth, figure.low, figure.high))
        elif any(
            repeat.case == case.name and (repeat.failure or repeat.refused) for repeat in lane.result.repeats
        ):
            failed.append(depth)
    return Line(lane, tuple(points), tuple(band), tuple(failed))


def _scaled(line: Line, scale: float) -> Line:
    points = tuple((x, y * scale) for x, y in line.points)
    return Line(line.lane, points, tuple((x, a * scale, b * scale) for x, a, b in line.band), line.failed_at)


def crossings_of(one: Line, other: Line) -> list[tuple[ShownLane, ShownLane, float]]:
    """(lane, lane, x): where the order of two lanes turns, between two depths that both have; x is logarithmic."""
    mine, theirs = dict(one.points), dict(other.points)
    shared = [x for x in mine if x in theirs]
    found = []
    for x0, x1 in itertools.pairwise(shared):
        before, after = mine[x0] - theirs[x0], mine[x1] - theirs[x1]
        if before * after < 0:
            share = before / (before - after)
            found.append((one.lane, other.lane, math.exp(math.log(x0) + share * math.log(x1 / x0))))
    return found


def _chart(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    x_name: str,
    y_name: str,
    label: str,
    caption: str,
    marks: Sequence[float] = (),
) -> str:
    ends = _ends(lines, x, y)
    drawn = "".join(_curve(line, x, y, ends.get(line.lane.number, (0.0, 0.0))) for line in lines)
    crossed = "".join(
        f'<line class="ms-mark" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        for mark in marks
    )
    return (
        f'<figure class="ms-figure"><figcaption>{caption}</figcaption>'
        f'<svg class="ms-lines" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{fmt.text(label)}">'
        f"{_grid(x, y)}{crossed}{drawn}"
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{x_name}</text>'
        f'<text x="4" y="12">{y_name}</text></svg></figure>'
    )


def _grid(x: Axis, y: Axis) -> str:
    rows = "".join(
        f'<line class="ms-grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in y.ticks
    )
    last = -math.inf
    columns = []
    for tick in x.ticks:
        if x(tick) - last < 34:  # numbers would touch
            continue
        last = x(tick)
        columns.append(
            f'<text x="{last:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_short(tick)}</text>'
        )
    return rows + "".join(columns)


def _short(value: float) -> str:
    """`512`, `4k`: depths double, so the thousands are round."""
    return f"{value / 1024:g}k" if value >= 1024 and value % 1024 == 0 else f"{value:g}"


def _ends(
    lines: Sequence[Line], x: Callable[[float], float], y: Callable[[float], float]
) -> dict[int, tuple[float, float]]:
    """Lane -> where its number stands: at the end of its line, moved down where it would cover another's."""
    placed: dict[int, tuple[float, float]] = {}
    for line in sorted((each for each in lines if each.points), key=lambda each: y(each.points[-1][1])):
        at_x, at_y = x(line.points[-1][0]), y(line.points[-1][1])
        for other_x, other_y in placed.values():
            if abs(other_x - at_x) < 16 and abs(other_y - at_y) < 16:
                at_y = other_y + 16
        placed[line.lane.number] = (at_x, at_y)
    return placed


def _curve(
    line: Line, x: Callable[[float], float], y: Callable[[float], float], end: tuple[float, float]
) -> str:
    colour = line.lane.colour
    failed = "".join(
        f'<text class="ms-failed" x="{x(depth):.1f}" y="{HEIGHT - BOTTOM - 4 - 12 * (line.lane.number % 3)}" '
        f'text-anchor="middle">✕{line.lane.number}</text>'
        for depth in line.failed_at
    )
    if not line.points:
        return failed
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line.points)
    band = ""
    if line.band:
        upper = [f"{x(a):.1f},{y(high):.1f}" for a, _, high in line.band]
        lower = [f"{x(a):.1f},{y(low):.1f}" for a, low, _ in reversed(line.band)]
        band = f'<polygon class="ms-band {colour}" points="{" ".join(upper + lower)}"/>'
    end_x, end_y = end
    return (
        f'{band}<polyline class="ms-curve {colour}" points="{path}"/>'
        f'<circle class="ms-end {colour}" cx="{end_x:.1f}" cy="{end_y:.1f}" r="8"/>'
        f'<text class="ms-end-label" x="{end_x:.1f}" y="{end_y + 4:.1f}" text-anchor="middle">'
        f"{line.lane.number}</text>"
        f"{failed}"
    )
