"""The sections about what is measured beside speed: getting ready, races, energy, limits, answers, others' rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter

from engines.measure import verdict
from engines.measure.records import Figure, ForeignRow
from engines.measure.spread import figure as figure_of
from engines.measure.tables import foreign_figure
from engines.measure.words import percent
from ui import format as fmt
from ui.measure.board import METRIC, Board, Column, ShownLane
from ui.measure.charts import bar, bars, is_sweep, struck
from ui.measure.section_html import bytes_a_second, section, table

_STEPS = (
    ("download_s", "Download"),
    ("convert_s", "Convert"),
    ("load_s", "Load"),
    ("warmup_s", "Warm-up"),
    ("first_token_s", "First token"),
)
_AGAIN = {"load_s": "again_load_s", "warmup_s": "again_warmup_s", "first_token_s": "first_token_s"}


def ledger(board: Board) -> str:
    """What stands between choosing a lane and its first token; a second row with what was compiled kept."""
    rows_of = [(lane, times) for lane in board.lanes for times in _ledger_rows(lane)]
    if not rows_of:
        return ""
    steps = [(name, title) for name, title in _STEPS if any(times[1].get(name) for _, times in rows_of)]
    whole = Column.of([sum(v for v in times.values() if v) for _, (_, times) in rows_of], "s")
    column = replace(whole, decimals=max(1, whole.decimals))
    top = max(sum(v for v in times.values() if v) for _, (_, times) in rows_of)
    rows = []
    for lane, (word, times) in rows_of:
        total = sum(value for value in times.values() if value)
        cells = "".join(f"<td>{column.spell(times.get(name))}</td>" for name, _ in steps)
        compiled = lane.result.ledger.compile_s if word == "first" else lane.result.ledger.again_compile_s
        rows.append(
            f'<tr><th scope="row">{lane.name} <span class="ms-soft">{word}</span></th>'
            f'<td class="ms-wide">{_stack(times, steps, top)}</td>{cells}'
            f"<td>{column.spell(compiled)}</td><td><b>{column.spell(total)}</b></td></tr>"
        )
    keys = [f'<span class="ms-step s{i}"></span>{title}' for i, (_, title) in enumerate(steps)]
    head = ["Lane", '<span class="sr">Drawn</span>', *keys, "of which compiling", f"Together, {column.unit}"]
    return section("Cold start", table("Cold start", head, rows) + _overtakes(board))


def _ledger_rows(lane: ShownLane) -> list[tuple[str, dict[str, float | None]]]:
    times = lane.result.ledger
    first = {name: getattr(times, name) for name, _ in _STEPS}
    rows = [("first", first)] if times.load_s is not None else []
    if times.again_load_s is not None:
        rows.append(("again", {name: getattr(times, other) for name, other in _AGAIN.items()}))
    return rows


def _stack(times: Mapping[str, float | None], steps: Sequence[tuple[str, str]], top: float) -> str:
    parts, start = [], 0.0
    for index, (name, title) in enumerate(steps):
        share = 100 * (times.get(name) or 0.0) / (top or 1.0)
        if share:
            parts.append(
                f'<rect class="ms-step-fill s{index}" x="{start:.2f}%" y="2" width="{share:.2f}%" height="14">'
                f"<title>{title}</title></rect>"
            )
        start += share
    return f'<svg class="ms-bar" width="100%" height="18" aria-hidden="true">{"".join(parts)}</svg>'


def _overtakes(board: Board) -> str:
    """After how many prompts a lane that starts slowly has made up for it."""
    finished = [case for case in board.cases if not is_sweep(board.cases)] or list(board.cases)
    if not finished:
        return ""
    case = min(finished, key=attrgetter("prompt_tokens"))
    sentences = []
    for fast, soon in itertools.permutations([lane for lane in board.lanes if not lane.excluded], 2):
        after = verdict.overtakes_after(fast.result, soon.result, case)
        if after is not None and after > 1:
            sentences.append(
                f"<li>{fast.badge} starts later than {soon.badge} and has overtaken it after {after:,} prompts "
                f"({fmt.text(case.title.lower())}).</li>"
            )
    return f'<ul class="ms-list">{"".join(sentences)}</ul>' if sentences else ""


def race_tax(board: Board) -> str:
    """What is left of a lane's decode rate beside each other lane."""
    found = {(t.lane, t.beside): t for t in board.measurement.together}
    shown = [lane for lane in board.lanes if any(lane.key in pair for pair in found)]
    if not shown:
        return ""
    rows = []
    for lane in shown:
        cells = []
        for beside in shown:
            together = found.get((lane.key, beside.key))
            kept = together.kept_share if together else None
            if together is None or kept is None:
                cells.append(f"<td>{fmt.MISSING}</td>")
                continue
            shade = min(10, max(0, round(10 * kept)))
            cells.append(
                f'<td class="ms-heat h{shade}">{percent(kept)}'
                f'<span class="ms-ci">{fmt.rate(together.decode_tok_s)}</span></td>'
            )
        rows.append(f'<tr><th scope="row">{lane.name}</th>{"".join(cells)}</tr>')
    head = ["Lane", *(f'<span class="ms-soft">beside</span> {lane.badge}' for lane in shown)]
    note = "Two lanes at once: share of the lone decode rate that is left, and the rate in tok/s."
    return section("Race tax", table("Race tax", head, rows, "ms-matrix"), note)


def foreground_tax(board: Board) -> str:
    found = [
        (lane, figure)
        for lane in board.lanes
        if lane.result.foreground and (figure := figure_of(lane.result.foreground.taxes))
    ]
    rows = "".join(
        f'<li class="{_bar_classes(lane)}">{lane.name}{bar(figure, 1.0)}'
        f'<span class="ms-value">{struck(percent(figure.median), bool(lane.excluded))}</span></li>'
        for lane, figure in found
    )
    note = "How much a fixed task of one processor thread slows down while the lane generates: 0 % is free."
    return section("Foreground tax", rows and f'<ul class="ms-bars">{rows}</ul>', note)


def energy(board: Board) -> str:
    drawn = bars(board, METRIC["joules_per_token"])
    source = board.measurement.environment.get("energy")
    if drawn:
        return section("Energy", f'<div class="ms-figures">{drawn}</div>', fmt.text(source) if source else "")
    if not board.cases:
        return ""
    return section(
        "Energy", '<p class="ms-note">Absent: this machine tells no energy (RAPL, NVML, battery).</p>'
    )


def limit(board: Board) -> str:
    """Decode against what the memory can deliver."""
    shares = [(lane, verdict.share_of_limit(lane.result, board.measurement)) for lane in board.lanes]
    known = [(lane, share) for lane, share in shares if share is not None]
    top = max((1.2, *(share for _, share in known)))
    rows = "".join(_limit_row(lane, share, top) for lane, share in known)
    note = (
        "Weight bytes that one token reads × decode rate ÷ the read bandwidth measured on this machine over a "
        "working set of that size. The line is 100 %; beyond 120 % a figure is refused as impossible."
    )
    return section("Share of the memory's limit", rows and f'<ul class="ms-bars">{rows}</ul>', note)


def _limit_row(lane: ShownLane, share: float, top: float) -> str:
    drawn = bar(Figure(share, share, share, share, share, 1), top, 1.0)
    said = f"{fmt.size(lane.result.read_bytes_per_token)} a token, {bytes_a_second(lane.result.bandwidth_bytes_s)}"
    value = struck(percent(share), bool(lane.excluded))
    return (
        f'<li class="{_bar_classes(lane)}">{lane.name}{drawn}'
        f'<span class="ms-value">{value} <span class="ms-ci">{said}</span></span></li>'
    )


def _bar_classes(lane: ShownLane) -> str:
    return f"{lane.colour} ms-out" if lane.excluded else lane.colour


_QUALITY = (
    *("Gate", "Instructions", "Garbage", "First other<br>token", "Other<br>tokens", "Same next<br>token"),
    *("KL,<br>nats", "Perplexity", "Tokens to<br>an answer", "Seconds to<br>an answer"),
)


def quality(board: Board) -> str:
    """How each lane answers, against the reference lane."""
    found = [(lane, lane.result.quality) for lane in board.lanes if lane.result.quality]
    if not found:
        return ""
    head = ("Lane", *_QUALITY)
    rows = []
    for lane, gate in found:
        why = "".join(f'<p class="ms-why">{fmt.text(reason)}</p>' for reason in gate.reasons)
        why += "".join(f'<p class="ms-ci ms-told">{fmt.text(note)}</p>' for note in gate.notes)
        cells = (
            '<span class="ms-good">passed</span>' if gate.passed else '<span class="ms-bad">failed</span>',
            f"{gate.instructions_passed} of {gate.instructions_total}",
            f"{gate.garbage}",
            _plain(gate.first_divergent_token, 0),
            _share(gate.divergent_share),
            _share(gate.next_token_agreement),
            _plain(gate.kl_divergence, 4),
            _plain(gate.perplexity, 2),
            _plain(gate.answer_tokens, 0),
            _plain(gate.answer_s, 2),
        )
        body = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{lane.name}{why}</th>{body}</tr>')
    reference = next((gate.reference for _, gate in found if gate.reference), None)
    note = (
        f"Held against {fmt.text(reference)} on the same prompts."
        if reference
        else "Without a reference lane."
    )
    return section("Answers", table("Answers", head, rows), note + " Not every library tells its logits (–).")


def _plain(value: float | None, decimals: int) -> str:
    return fmt.MISSING if value is None else f"{value:,.{decimals}f}"


def _share(value: float | None) -> str:
    return fmt.MISSING if value is None else percent(value, digits=1)


def foreign(rows: Sequence[ForeignRow]) -> str:
    """Other benchmarks' figures, under their own contracts' names and never beside ours."""
    parts = []
    for contract, found in itertools.groupby(
        sorted(rows, key=lambda row: row.contract), lambda row: row.contract
    ):
        body = [
            f'<tr><th scope="row">{fmt.text(row.label)}</th><td>{fmt.text(row.test)}</td>'
            f"<td>{fmt.text(title)}</td><td>{fmt.text(figure)}</td></tr>"
            for row in found
            for title, figure in (foreign_figure(row),)
        ]
        head = ("Row", "Test", "Figure", "Value")
        parts.append(f'<h4 class="ms-case">{fmt.text(contract)}</h4>{table(contract, head, body)}')
    return section(
        "Other benchmarks", "".join(parts), "Measured by another contract: not comparable with the above."
    )
