"""What a measurement found, section by section, as HTML: the same on the tab and in the report.

Verdicts first, then the figures they were made from, then everything that helps to doubt them. A section that has
nothing to say says why, or is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from engines.measure import verdict
from engines.measure.records import Case, Figure, ForeignRow, Quality, Repeat, Verdict
from engines.measure.spread import figure as figure_of
from engines.measure.words import percent
from ui import format as fmt
from ui.doctor import machine_lines, versions_text
from ui.measure.board import METRIC, METRICS, UNDER_WAY, Board, Column, Metric, ShownLane, case_line
from ui.measure.charts import BEST, bar, bars, is_sweep, struck, sweep, tokens_over_time
from ui.measure.contract import POINTS

Buttons = Callable[[str, str], str]
"""(what to do, with what) -> a button as HTML; the report has none."""


def no_buttons(_act: str, _value: str) -> str:
    return ""


def results(board: Board, buttons: Buttons = no_buttons) -> str:
    """Everything found so far, most important first."""
    parts = (
        verdicts(board, buttons),
        lanes(board, buttons),
        figures(board),
        sweeps(board),
        over_time(board),
        ledger(board),
        race_tax(board),
        foreground_tax(board),
        energy(board),
        limit(board),
        quality(board),
        foreign(board.measurement.foreign),
    )
    return "".join(parts)


def section(title: str, body: str, note: str = "") -> str:
    """A titled part of the page; nothing when there is nothing in it."""
    if not body:
        return ""
    said = f'<p class="ms-note">{note}</p>' if note else ""
    return (
        f'<section class="ms-section" aria-label="{fmt.text(title)}"><h3>{title}</h3>{said}{body}</section>'
    )


def table(label: str, head: Sequence[str], rows: Sequence[str], classes: str = "") -> str:
    """A table that scrolls in itself where it is too wide; `head` and `rows` are HTML."""
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    return (
        f'<div class="ms-scroll" tabindex="0" role="group" aria-label="{fmt.text(label)}">'
        f'<table class="ms-table {classes}">'
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


# --- verdicts ----------------------------------------------------------------------------------------------

_CONFIDENCE = {
    "clear": ("good", "clear winner"),
    "unclear": ("warn", "no clear winner"),
    "only": ("warn", "only one can win"),
    "none": ("bad", "no recommendation"),
}


def verdicts(board: Board, buttons: Buttons = no_buttons) -> str:
    """A card per job; while nothing can be said yet, nothing, or why that is."""
    repeats = [repeat for lane in board.lanes for repeat in lane.result.repeats]
    if not any(repeat.counts for repeat in repeats):
        return _all_disturbed(repeats)
    cards = "".join(_verdict(board, found, buttons) for found in board.verdicts)
    running = board.measurement.status in UNDER_WAY
    note = "So far; it may change until the measurement is finished." if running else ""
    return section("Verdict", f'<div class="ms-cards">{cards}</div>', note)


def _all_disturbed(repeats: Sequence[Repeat]) -> str:
    """Why there is no verdict where all that was done was done beside others' work; else nothing."""
    count = sum(repeat.disturbed for repeat in repeats)
    if not count:
        return ""
    said = (
        f"None yet: other programs disturbed {fmt.counted(count, 'repeat')}, and no other is finished. "
        "Close what else is running, then measure again."
    )
    return section("Verdict", f'<p class="notice warn">{said}</p>')


def _verdict(board: Board, found: Verdict, buttons: Buttons) -> str:
    kind, word = _CONFIDENCE[found.confidence]
    winner, runner_up = board.lane(found.winner), board.lane(found.runner_up)
    left_out = [
        said
        for key, reason in found.excluded.items()
        if (said := f"{key} cannot win: {reason}.") in found.because
    ]
    parts = [
        f'<header><h4>{fmt.text(found.title)}</h4><span class="ms-verdict {kind}">{word}</span></header>',
        f'<p class="ms-winner">{winner.name}{_by(found)}</p>' if winner else "",
        f'<p class="ms-soft">Runner-up: {runner_up.name}</p>' if winner and runner_up else "",
        "".join(f"<p>{fmt.text(sentence)}</p>" for sentence in found.because if sentence not in left_out),
        _folded(fmt.counted(len(left_out), "lane") + " left out", left_out),
        _folded("What would change it", found.would_change),
        f'<p class="ms-buttons">{buttons("use", found.winner)}</p>' if winner and found.winner else "",
    ]
    return f'<article class="card ms-card" aria-label="{fmt.text(found.title)}">{"".join(parts)}</article>'


def _by(found: Verdict) -> str:
    if found.by is None or found.confidence != "clear":
        return ""
    points = found.metric == "foreground_tax"
    return f' <b class="ms-by">{100 * found.by:.0f} {"points less" if points else "% better"}</b>'


def _folded(title: str, sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{fmt.text(sentence)}</li>" for sentence in sentences)
    return f"<details><summary>{title}</summary><ul>{items}</ul></details>"


# --- lanes and their figures -------------------------------------------------------------------------------

_STATES = {
    "waiting": ("", "waiting"),
    "measured": ("chip-ready", "measured"),
    "partly": ("chip-loading", "stopped before the end"),
    "failed": ("chip-failed", "failed"),
}


def lanes(board: Board, buttons: Buttons = no_buttons) -> str:
    """Each lane: how far it is, what it weighs, and why it cannot win."""
    acts = any(buttons("tune", lane.key) for lane in board.lanes)
    head = ["Lane", "State", "Repeats", "Peak memory", "Weights", "Answers", *(["Tuner"] if acts else [])]
    rows = []
    for lane in board.lanes:
        result = lane.result
        css, word = _STATES.get(result.status, ("", result.status))
        if result.status == "partly" and board.measurement.status in UNDER_WAY:
            css, word = "chip-busy", "under way"
        cells = [
            f'<span class="chip {css}">{word}</span>',
            _repeats(result.repeats),
            fmt.size(result.peak_rss_bytes),
            fmt.size(result.weight_bytes),
            _answers(result.quality),
        ]
        why = f'<p class="ms-why">{fmt.text(_sentence(lane.excluded))}</p>' if lane.excluded else ""
        tuner = f"<td>{buttons('tune', lane.key)}</td>" if acts else ""
        body = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{lane.name}{why}{_remedy(lane)}</th>{body}{tuner}</tr>')
    return section("Lanes", table("Lanes", head, rows, "ms-lanes"))


def _sentence(reason: str | None) -> str:
    return f"Cannot win: {reason}" if reason else ""


def _remedy(lane: ShownLane) -> str:
    failure = lane.result.failure
    return f'<p class="ms-soft">→ {fmt.text(failure.remedy)}</p>' if failure and failure.remedy else ""


def _repeats(repeats: Sequence[Repeat]) -> str:
    good, disturbed = sum(r.counts for r in repeats), sum(r.disturbed for r in repeats)
    bad = len(repeats) - good - disturbed
    parts = [f"{good}"]
    parts += [f'<span class="ms-warn">+ {disturbed} disturbed</span>'] if disturbed else []
    parts += [f'<span class="ms-bad">+ {bad} void</span>'] if bad else []
    return " ".join(parts)


def _answers(found: Quality | None) -> str:
    if found is None:
        return fmt.MISSING
    word = "passed" if found.passed else '<span class="ms-bad">failed</span>'
    return f"{word}, {found.instructions_passed} of {found.instructions_total}"


def figures(board: Board) -> str:
    """Bars of the two figures a person feels, then every figure of every case."""
    if not board.cases:
        return ""
    swept = is_sweep(board.measurement.suite.cases)
    drawn = "" if swept else "".join(bars(board, METRIC[name]) for name in ("decode_tok_s", "answer_s"))
    shown = [
        m for m in METRICS if any(board.figure(lane, c, m.name) for lane in board.lanes for c in board.cases)
    ]
    heads = "".join(f'<th scope="col">{title}</th>' for title in ("Lane", *(m.title for m in shown), "n"))
    groups = "".join(_case_rows(board, case, shown) for case in board.cases)
    note = (
        "Median of the undisturbed repeats (n) with its 95 % bootstrap interval. ▲: best, and its interval is apart "
        "from all others. Crossed out: cannot win."
    )
    whole = (
        '<div class="ms-scroll" tabindex="0" role="group" aria-label="Figures"><table class="ms-table ms-grouped">'
        f"<thead><tr>{heads}</tr></thead>{groups}</table></div>"
    )
    return section("Figures", f'<div class="ms-figures">{drawn}</div>{whole}' if drawn else whole, note)


def _case_rows(board: Board, case: Case, shown: Sequence[Metric]) -> str:
    """One case: a row that names it and its units, then a row per lane."""
    columns = [
        (metric, board.column(case, metric), board.clearly_best(case, metric.name)) for metric in shown
    ]
    units = "".join(f"<td>{_unit(metric, column)}</td>" for metric, column, _ in columns)
    rows = []
    for lane in board.lanes:
        cells = "".join(
            _figure_cell(board.figure(lane, case, metric.name), column, lane, best is lane)
            for metric, column, best in columns
        )
        counts = max((f.n for m in shown if (f := board.figure(lane, case, m.name))), default=0)
        rows.append(f'<tr><th scope="row">{lane.name}</th>{cells}<td>{counts or fmt.MISSING}</td></tr>')
    head = f'<tr class="ms-group"><th scope="rowgroup">{case_line(case)}</th>{units}<td></td></tr>'
    return f"<tbody>{head}{''.join(rows)}</tbody>"


def _unit(metric: Metric, column: Column) -> str:
    return metric.unit if metric.unit != "s" else column.unit


def _figure_cell(figure: Figure | None, column: Column, lane: ShownLane, best: bool) -> str:
    if figure is None:
        return f"<td>{fmt.MISSING}</td>"
    value = struck(column.spell(figure.median), bool(lane.excluded))
    return (
        f'<td class="{"best" if best else ""}">{value}{BEST if best else ""}'
        f'<span class="ms-ci">{column.range(figure.low, figure.high)}</span></td>'
    )


def sweeps(board: Board) -> str:
    if not is_sweep(board.measurement.suite.cases):
        return ""
    drawn = "".join(sweep(board, METRIC[name]) for name in ("decode_tok_s", "ttft_s"))
    note = "Bands are 95 % intervals; dotted where two lanes cross; ✕ where a lane fails."
    return section("Over the prompt's length", drawn and f'<div class="ms-figures">{drawn}</div>', note)


def over_time(board: Board) -> str:
    cases = board.cases
    if is_sweep(cases):
        cases = (min(cases, key=_depth), max(cases, key=_depth))
    drawn = "".join(tokens_over_time(board, case) for case in cases)
    note = "Each lane's repeat that took the median time. The line starts at the first token."
    return section("Tokens over time", drawn and f'<div class="ms-figures">{drawn}</div>', note)


def _depth(case: Case) -> int:
    return case.prompt_tokens


# --- the passes beside speed -------------------------------------------------------------------------------

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
    case = min(finished, key=_depth)
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
    said = f"{fmt.size(lane.result.read_bytes_per_token)} a token, {_giga(lane.result.bandwidth_bytes_s)}"
    value = struck(percent(share), bool(lane.excluded))
    return (
        f'<li class="{_bar_classes(lane)}">{lane.name}{drawn}'
        f'<span class="ms-value">{value} <span class="ms-ci">{said}</span></span></li>'
    )


def _bar_classes(lane: ShownLane) -> str:
    return f"{lane.colour} ms-out" if lane.excluded else lane.colour


def _giga(bytes_s: float | None) -> str:
    return fmt.MISSING if bytes_s is None else f"{bytes_s / 1e9:,.1f} GB/s"


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
            f"<td>{METRIC[row.metric].title if row.metric in METRIC else fmt.text(row.metric)}</td>"
            f"<td>{fmt.rate(row.value)}{_plus_minus(row)}</td></tr>"
            for row in found
        ]
        head = ("Row", "Test", "Figure", "tok/s")
        parts.append(f'<h4 class="ms-case">{fmt.text(contract)}</h4>{table(contract, head, body)}')
    return section(
        "Other benchmarks", "".join(parts), "Measured by another contract: not comparable with the above."
    )


def _plus_minus(row: ForeignRow) -> str:
    return "" if row.deviation is None else f" ± {fmt.rate(row.deviation)}"


# --- where and how -----------------------------------------------------------------------------------------


def fingerprint(board: Board) -> str:
    """Machine, environment, and what each lane ran on."""
    measurement = board.measurement
    facts = [fmt.text(line) for line in machine_lines(measurement.machine)]
    facts += [f"{fmt.text(name)}: {fmt.text(value)}" for name, value in _environment(measurement.environment)]
    rows = []
    for lane in board.lanes:
        result = lane.result
        where = result.device or fmt.MISSING
        cells = (where, _placement(result.placement), versions_text(result.versions) or fmt.MISSING)
        rows.append(
            f'<tr><th scope="row">{lane.name}</th>{"".join(f"<td>{fmt.text(c)}</td>" for c in cells)}</tr>'
        )
    items = "".join(f"<li>{fact}</li>" for fact in facts)
    return section(
        "Machine and environment",
        f'<ul class="ms-list ms-facts">{items}</ul>'
        + table("What each lane ran on", ("Lane", "Runs on", "Placement", "Packages"), rows, "ms-words"),
    )


_ENVIRONMENT: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "power": ("Power", str),
    "power_mode": ("Power mode", str),
    "other_load_cores": ("Other programs before", lambda v: f"{v:.2f} cores"),
    "temperature_c": ("Temperature", lambda v: f"{v:.0f} °C"),
    "clock_mhz": ("Clock", lambda v: f"{v:,.0f} MHz"),
    "bandwidth": ("Memory reads", lambda v: _bandwidth(v)),
    "energy": ("Energy from", str),
    "other_programs": ("Busiest other programs before", lambda v: ", ".join(map(str, v)) or "none"),
    "disturbing_cores": ("A repeat is disturbed from", lambda v: f"{v:.2f} cores of other programs"),
    "idle_w": ("Power at rest", lambda v: f"{v:.1f} W"),
    "keep_loaded": ("Other lanes in memory meanwhile", lambda v: "yes" if v else "no"),
    "cooldown_s": ("Pause after each step", lambda v: f"{v:g} s"),
    "python": ("Python", str),
}


def _environment(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of the moment; what cannot be read here is said to be so."""
    told = []
    for name, value in found.items():
        title, spell = _ENVIRONMENT.get(name, (name.replace("_", " "), str))
        if value is None:
            told.append((title, "not readable here"))
        elif name in _ENVIRONMENT or isinstance(value, (str, int, float)):
            told.append((title, _spelled(spell, value)))
    return told


def _spelled(spell: Callable[[Any], str], value: Any) -> str:
    try:
        return spell(value)
    except (TypeError, ValueError):
        return str(value)


def _bandwidth(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_giga(float(rate))} over {fmt.size(float(size))}" for size, rate in value.items())
    return _giga(float(value))


def _placement(found: Mapping[str, Any] | None) -> str:
    """`proven: CPU`: whether the lane was seen at work where its library says it is."""
    if not found:
        return fmt.MISSING
    where = found.get("observed") or found.get("claimed")
    said = [str(part) for part in (found.get("badge"), where) if part]
    return str(found.get("summary") or ": ".join(said) or fmt.MISSING)


def contract(board: Board) -> str:
    """The rules this was measured by."""
    points = "".join(f"<li><b>{title}</b>: {text}</li>" for title, text in POINTS)
    hashes = prompt_hashes(board)
    return section(
        f"The contract: {fmt.text(board.measurement.contract)}",
        f'<ol class="ms-contract">{points}</ol>{hashes}',
    )


def prompt_hashes(board: Board) -> str:
    """Which prompts were sent: the hash of their token ids, and whether all lanes got the same."""
    rows = []
    for case in board.cases:
        by_number: dict[int, set[str]] = {}
        for lane in board.lanes:
            for repeat in lane.result.repeats:
                if repeat.case == case.name and repeat.prompt_sha256:
                    by_number.setdefault(repeat.number, set()).add(repeat.prompt_sha256)
        same = all(len(found) == 1 for found in by_number.values())
        shown = ", ".join(f"{sorted(found)[0][:12]}…" for _, found in sorted(by_number.items()))
        rows.append(
            f'<tr><th scope="row">{case_line(case)}</th><td>{"the same on all lanes" if same else "differ"}</td>'
            f"<td><code>{fmt.text(shown) if shown else fmt.MISSING}</code></td></tr>"
        )
    if not rows:
        return ""
    inner = table("Prompts", ("Case", "Token ids", "SHA-256, repeat by repeat"), rows, "ms-words")
    return f"<details><summary>Prompts: the hashes of their token ids</summary>{inner}</details>"


def notes(board: Board) -> str:
    """What was noticed on the way, and every repeat that does not count because of other load."""
    items = "".join(f"<li>{fmt.text(note)}</li>" for note in board.measurement.notes)
    noted = f'<ul class="ms-list">{items}</ul>' if items else ""
    return section("Notes", noted + disturbances(board))


def disturbances(board: Board) -> str:
    """Repeats that something else disturbed, with what was seen."""
    items = [
        f"<li>{lane.badge} {fmt.text(repeat.case)}, repeat {repeat.number}: "
        f"{fmt.text(repeat.disturbance or 'other programs worked')}</li>"
        for lane in board.lanes
        for repeat in lane.result.repeats
        if repeat.disturbed
    ]
    if not items:
        return ""
    count = fmt.counted(len(items), "repeat")
    inner = f'<ul class="ms-list">{"".join(items)}</ul>'
    return f"<details><summary>{count} disturbed by other load, and not counted</summary>{inner}</details>"
