"""Two measurements next to each other: another machine's, or an earlier one of this machine.

Lanes are matched by their key and cases by their work; the figures stand side by side with their quotient, and what
differs in machine and packages is listed. What only one of them has is named, never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.measure.records import HIGHER_IS_BETTER, Case, Figure, Measurement
from engines.measure.spread import apart, case_figures
from ui import format as fmt
from ui.doctor import machine_lines
from ui.measure.board import METRIC, Board, Column, Metric, ShownLane, case_line
from ui.measure.results_html import section, table

SHOWN = ("decode_tok_s", "ttft_s", "answer_s")


def side_by_side(measurement: Measurement, other: Measurement) -> str:
    """A section: this measurement's lanes against the other's."""
    board = Board(measurement)
    tables = "".join(_case(board, other, case, found) for case, found in _matched_cases(measurement, other))
    note = (
        ""
        if tables
        else "No case has the same prompt and reply lengths in both, so no figure can be set beside."
    )
    contract = (
        ""
        if measurement.contract == other.contract
        else f'<p class="ms-why">Contracts differ ({fmt.text(measurement.contract)} and '
        f"{fmt.text(other.contract)}): the figures are not comparable.</p>"
    )
    return section(
        f"Beside {fmt.text(label(other))}",
        contract + _differences(board, other) + tables + _unmatched(board, other),
        note,
    )


def label(measurement: Measurement) -> str:
    """What a measurement is called next to another: processor and day."""
    processor = measurement.machine.get("processor") or "another machine"
    return f"{processor}, {measurement.created_at[:10]}"


def _matched_cases(measurement: Measurement, other: Measurement) -> list[tuple[Case, Case]]:
    """Cases of the same work: category, prompt and reply lengths."""

    def work(case: Case) -> tuple[str, int, int]:
        return (case.category, case.prompt_tokens, case.new_tokens)

    theirs = {work(case): case for case in other.suite.cases}
    return [(case, theirs[work(case)]) for case in measurement.suite.cases if work(case) in theirs]


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
    return f'<h4 class="ms-case">{case_line(mine)}</h4>{table(f"{mine.title}, side by side", head, rows)}'


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
    text = f"{100 * change:+.0f} %"
    if not apart(mine, theirs):
        return f'<span class="ms-soft">{text}</span>'
    better = (change > 0) == (metric.name in HIGHER_IS_BETTER)
    return f'<span class="{"ms-good" if better else "ms-bad"}">{text}</span>'


def _differences(board: Board, other: Measurement) -> str:
    mine, theirs = (", ".join(machine_lines(m.machine)) for m in (board.measurement, other))
    items = [f"<li>Machine: {fmt.text(mine)}; beside: {fmt.text(theirs)}</li>"] if mine != theirs else []
    items += [
        f"<li>{lane.badge} {fmt.text(change)}</li>"
        for lane in board.lanes
        if (beside := other.lane(lane.key)) is not None
        for change in _changed(lane, beside.versions)
    ]
    if board.measurement.model != other.model:
        items.insert(
            0, f"<li>Model: {fmt.text(board.measurement.model)}; beside: {fmt.text(other.model)}</li>"
        )
    return f'<ul class="ms-list">{"".join(items)}</ul>' if items else ""


def _changed(lane: ShownLane, versions: Mapping[str, Any]) -> list[str]:
    mine = lane.result.versions
    return [
        f"{name} {mine.get(name, 'absent')}; beside: {versions.get(name, 'absent')}"
        for name in sorted({*mine, *versions})
        if mine.get(name) != versions.get(name)
    ]


def _unmatched(board: Board, other: Measurement) -> str:
    keys, theirs = {lane.key for lane in board.lanes}, {result.lane.key for result in other.measured}
    only = [("Only here", sorted(keys - theirs)), ("Only beside", sorted(theirs - keys))]
    items = "".join(f"<li>{word}: {fmt.text(', '.join(found))}</li>" for word, found in only if found)
    return f'<ul class="ms-list">{items}</ul>' if items else ""
