"""Trends as SVG written here: no chart library, no request to anywhere, and the colours follow the page's theme.

A line of medians with a band from the 10th to the 90th percentile; contended runs dashed and apart; numbered
dotted lines where the machine or the environment changed, explained below the chart. The same figures are in a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from storage.trends import Bucket, Mark, Trend
from ui import format as fmt
from ui.history.conversation_html import when

WIDTH, HEIGHT = 640, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 22, 26
MARKS_SHOWN = 12
NAMES = {"decode_tok_s": "Decode rate, tok/s", "ttft_s": "Time to first token (TTFT), s"}
_TEXTS = {"decode_tok_s": fmt.tok_s, "ttft_s": fmt.seconds}


def top_value(trends: Sequence[Trend]) -> float:
    """The highest value in any of them, so that charts side by side share one scale."""
    return max((bucket.high for trend in trends for bucket in (*trend.alone, *trend.contended)), default=0.0)


def trend_html(trend: Trend, top: float) -> str:
    """One card: heading, legend, chart, marks, table."""
    name = NAMES[trend.metric]
    if not trend.runs:
        return f'<div class="trend-card"><h3>{name}</h3><p class="hist-empty">No finished run fits.</p></div>'
    text = _TEXTS[trend.metric]
    alone, shared = text(trend.median), text(trend.median_contended)
    label = (
        f"{name} over time. Alone on the machine: median {alone}. Contended or disturbed: median {shared}."
    )
    return (
        f'<div class="trend-card"><h3>{name}</h3><p class="trend-legend">'
        f'<span><span class="swatch"></span>alone: median <b>{alone}</b> of {_runs(trend.alone)}</span>'
        f'<span><span class="swatch shared"></span>contended or disturbed: median <b>{shared}</b> '
        f"of {_runs(trend.contended)}</span></p>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{fmt.text(label)}">{_chart(trend, top)}</svg>'
        f"{_notes(trend)}{_marks(trend.marks)}{_table(trend)}</div>"
    )


def _notes(trend: Trend) -> str:
    """What must be known about the runs that count as alone, and about those left out."""
    notes = []
    if trend.old_rule:
        notes.append(
            f"{fmt.counted(trend.old_rule, 'run')} of those alone are stamped by the older rule, which knew only "
            "what went on when a run began."
        )
    if trend.misplaced:
        notes.append(f"{fmt.counted(trend.misplaced, 'run')} left out: they ran elsewhere than they claim.")
    return f'<p class="hist-soft">{" ".join(notes)}</p>' if notes else ""


def _runs(buckets: Sequence[Bucket]) -> str:
    return fmt.counted(sum(bucket.runs for bucket in buckets), "run")


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()


def _middle(bucket: Bucket) -> float:
    return (_seconds(bucket.start) + _seconds(bucket.end)) / 2


class _Scale:
    """From time and value to the chart's coordinates."""

    def __init__(self, trend: Trend, top: float):
        moments = [_seconds(at) for b in (*trend.alone, *trend.contended) for at in (b.start, b.end)]
        self.first, self.last = min(moments), max(moments)
        if self.last - self.first < 60:
            self.first, self.last = self.first - 30, self.last + 30
        self.step = _nice(top / 4)
        self.top = max(self.step * math.ceil(top / self.step - 1e-9), self.step)

    def x(self, moment_s: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (moment_s - self.first) / (self.last - self.first)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.top


def _nice(step: float) -> float:
    """1, 2 or 5 times a power of ten, at least `step`."""
    if step <= 0:
        return 1.0
    power = 10 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


def _chart(trend: Trend, top: float) -> str:
    scale = _Scale(trend, top)
    shared = _series(trend.contended, scale, "shared", trend.metric)
    alone = _series(trend.alone, scale, "alone", trend.metric)
    return _grid(scale) + _mark_lines(trend.marks[-MARKS_SHOWN:], scale) + shared + alone


def _mark_lines(marks: Sequence[Mark], scale: _Scale) -> str:
    """Dotted lines with their numbers; numbers that would cover each other share one place."""
    lines: list[str] = []
    labels: list[tuple[float, int, int]] = []
    for number, mark in enumerate(marks, 1):
        x = scale.x(_seconds(mark.at))
        lines.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        if labels and x - labels[-1][0] < 16:
            labels[-1] = (labels[-1][0], labels[-1][1], number)
        else:
            labels.append((x, number, number))
    return "".join(lines) + "".join(
        f'<text class="mark-label" x="{x:.1f}" y="{TOP - 5}">{first if first == last else f"{first}–{last}"}</text>'
        for x, first, last in labels
    )


def _grid(scale: _Scale) -> str:
    lines = []
    for at in range(round(scale.top / scale.step) + 1):
        value = at * scale.step
        y = scale.y(value)
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        moment = scale.first + share * (scale.last - scale.first)
        place = f'x="{scale.x(moment):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}"'
        lines.append(f"<text {place}>{_day(moment, scale.last - scale.first)}</text>")
    return "".join(lines)


def _day(moment_s: float, span_s: float) -> str:
    moment = datetime.fromtimestamp(moment_s)
    if span_s < 86400:
        return f"{moment:%H:%M}"
    return f"{moment.day} {moment:%b %Y}" if span_s > 300 * 86400 else f"{moment.day} {moment:%b}"


def _series(buckets: Sequence[Bucket], scale: _Scale, kind: str, metric: str) -> str:
    if not buckets:
        return ""
    at = [(scale.x(_middle(bucket)), bucket) for bucket in buckets]
    upper = [f"{x:.1f},{scale.y(bucket.high):.1f}" for x, bucket in at]
    lower = [f"{x:.1f},{scale.y(bucket.low):.1f}" for x, bucket in reversed(at)]
    line = " ".join(f"{x:.1f},{scale.y(bucket.median):.1f}" for x, bucket in at)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{scale.y(bucket.median):.1f}" r="{3 if len(at) <= 40 else 2}">'
        f"<title>{fmt.text(_told(bucket, metric))}</title></circle>"
        for x, bucket in at
    )
    return (
        f'<g class="{kind}"><polygon class="band" points="{" ".join(upper + lower)}"/>'
        f'<polyline class="line" points="{line}"/>{dots}</g>'
    )


def _told(bucket: Bucket, metric: str) -> str:
    text = _TEXTS[metric]
    spread = "" if bucket.runs == 1 else f", {text(bucket.low)} to {text(bucket.high)}, {bucket.runs} runs"
    return f"{when(bucket.start)}: {text(bucket.median)}{spread}"


def _marks(marks: Sequence[Mark]) -> str:
    if not marks:
        return ""
    shown = marks[-MARKS_SHOWN:]
    items = "".join(
        f"<li><b>{when(mark.at)}</b> {fmt.text('; '.join(mark.changes[:6]))}</li>" for mark in shown
    )
    hidden = len(marks) - len(shown)
    more = f"<p class='hist-meta'>{hidden} earlier changes are not marked.</p>" if hidden else ""
    return f'<ol class="trend-marks">{items}</ol>{more}'


def _table(trend: Trend) -> str:
    text = _TEXTS[trend.metric]
    rows = "".join(
        f"<tr><td>{when(bucket.start)}</td><td>{kind}</td><td>{text(bucket.median)}</td>"
        f"<td>{text(bucket.low)}</td><td>{text(bucket.high)}</td><td>{bucket.runs}</td></tr>"
        for kind, buckets in (("alone", trend.alone), ("contended", trend.contended))
        for bucket in buckets
    )
    heads = "".join(
        f"<th scope='col'>{head}</th>" for head in ("From", "", "Median", "Low (p10)", "High (p90)", "Runs")
    )
    heads = heads.replace("<th scope='col'></th>", "<th scope='col'><span class='sr'>Kind</span></th>")
    return (
        "<details><summary>The same as a table</summary><div class='scroll' tabindex='0' role='group' "
        f"aria-label='{NAMES[trend.metric]}, as a table'><table><tr>{heads}</tr>{rows}</table></div></details>"
    )
