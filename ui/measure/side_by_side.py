"""Two measurements next to each other: another machine's, or an earlier one of this machine.

Lanes are matched by their key and cases by their work; the figures stand side by side with their quotient, and what
differs in machine and packages is listed. What only one of them has is named, never dropped.
"""

from __future__ import annotations

from engines.measure.comparison import Comparison, compare
from engines.measure.records import HIGHER_IS_BETTER, Case, Figure, Measurement
from engines.measure.spread import apart, case_figures
from engines.measure.words import percent
from ui import format as fmt
from ui.measure.board import METRIC, Board, Column, Metric
from ui.measure.section_html import section, table

SHOWN = ("decode_tok_s", "ttft_s", "answer_s")


def side_by_side(measurement: Measurement, other: Measurement) -> str:
    """A section: what changed from the other to this measurement, and the figures of both, lane by lane."""
    board = Board(measurement)
    tables = "".join(_case(board, other, case, found) for case, found in _matched_cases(measurement, other))
    note = "" if tables else "No case has the same lengths in both, so no figure can be set beside."
    changed = _changed(compare(other, measurement))
    return section(f"Beside {fmt.text(label(other))}", changed + tables, note)


_LEVELS = {"alarm": ("ms-bad", "alarm"), "note": ("ms-warn", "slower"), "better": ("ms-good", "better")}


def _changed(found: Comparison) -> str:
    """The alarming first: what fails now, what became slower or faster, what differs around it."""
    items = [f'<li class="ms-bad">{fmt.text(found.why_not)}</li>'] if found.why_not else []
    items += [
        f'<li><span class="ms-bad">alarm</span> fails now: {fmt.text(key)}</li>' for key in found.failed
    ]
    for level, (css, word) in _LEVELS.items():
        items += [
            f'<li><span class="{css}">{word}</span> {fmt.text(each.lane)}, {fmt.text(each.case)}: '
            f"{METRIC[each.metric].title} {percent(each.of_figure, signed=True)}</li>"
            for each in found.differences
            if each.level == level
        ]
    items += [f"<li>Only here: {fmt.text(key)}</li>" for key in found.new]
    items += [f"<li>Only beside: {fmt.text(key)}</li>" for key in found.removed]
    items += [f"<li>{fmt.text(change)}</li>" for change in found.changes]
    return (
        f'<ul class="ms-list">{"".join(items)}</ul>'
        if items
        else "<p>Nothing has changed beyond the intervals.</p>"
    )


def label(measurement: Measurement) -> str:
    """What a measurement is called next to another: processor and day."""
    processor = measurement.machine.get("processor") or "another machine"
    return f"{processor}, {measurement.created_at[:10]}"


def _matched_cases(measurement: Measurement, other: Measurement) -> list[tuple[Case, Case]]:
    """Cases of the same work: category, prompt and reply lengths; each once, in their order, those named alike first.

    The lengths of prompts that are taken whole are not known, so they are all alike.
    """

    def work(case: Case) -> tuple[str, int, int]:
        return (case.category, case.prompt_tokens, case.new_tokens)

    left, pairs = list(other.suite.cases), {}
    for alike in (lambda a, b: a.name == b.name, lambda a, b: True):
        for case in measurement.suite.cases:
            fitting = [theirs for theirs in left if work(theirs) == work(case) and alike(case, theirs)]
            if fitting and case.name not in pairs:
                pairs[case.name] = fitting[0]
                left.remove(fitting[0])
    return [(case, pairs[case.name]) for case in measurement.suite.cases if case.name in pairs]


def _case(board: Board, other: Measurement, mine: Case, theirs: Case) -> str:
    rows = []
    columns = {name: _column(board, other, mine, theirs, METRIC[name]) for name in SHOWN}
    for lane in board.lanes:
        beside = other.lane(lane.key)
        figures = case_figures(beside.repeats, theirs.name) if beside else {}
        cells = [
            _pair(board.figure(lane, mine, name), figures.get(name), columns[name], METRIC[name])
            for name in SHOWN
        ]
        if any(board.figure(lane, mine, name) or figures.get(name) for name in SHOWN):
            rows.append(f'<tr><th scope="row">{lane.name}</th>{"".join(cells)}</tr>')
    if not rows:
        return ""
    head = ["Lane"]
    for name in SHOWN:
        head += [f"{METRIC[name].title}<br><small>{columns[name].unit}</small>", "beside", "change"]
    return (
        f'<h4 class="ms-case">{board.case_line(mine)}</h4>{table(f"{mine.title}, side by side", head, rows)}'
    )


def _column(board: Board, other: Measurement, mine: Case, theirs: Case, metric: Metric) -> Column:
    values = [figure.median for lane in board.lanes if (figure := board.figure(lane, mine, metric.name))]
    for result in other.measured:
        if figure := case_figures(result.repeats, theirs.name).get(metric.name):
            values.append(figure.median)
    return Column.of(values, metric.unit)


def _pair(mine: Figure | None, theirs: Figure | None, column: Column, metric: Metric) -> str:
    first, second = (column.spell(figure.median if figure else None) for figure in (mine, theirs))
    return f"<td>{first}</td><td>{second}</td><td>{_change(mine, theirs, metric)}</td>"


def _change(mine: Figure | None, theirs: Figure | None, metric: Metric) -> str:
    """This one against the one beside; in colour only where the intervals are apart."""
    if mine is None or theirs is None or not theirs.median:
        return fmt.MISSING
    change = mine.median / theirs.median - 1
    text = percent(change, signed=True)
    if not apart(mine, theirs):
        return f'<span class="ms-soft">{text}</span>'
    better = (change > 0) == (metric.name in HIGHER_IS_BETTER)
    return f'<span class="{"ms-good" if better else "ms-bad"}">{text}</span>'
