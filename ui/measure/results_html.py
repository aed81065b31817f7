"""What a measurement found, section by section, as HTML: the same on the tab and in the report.

Verdicts first, then the figures they were made from, then everything that helps to doubt them. A section that has
nothing to say says why, or is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from engines.measure.records import Case, Figure, Quality, Repeat, Verdict
from ui import format as fmt
from ui.doctor import machine_lines, versions_text
from ui.measure.board import METRIC, METRICS, UNDER_WAY, Board, Column, Metric, ShownLane
from ui.measure.charts import BEST, bars, is_sweep, struck, sweep, tokens_over_time
from ui.measure.contract import POINTS
from ui.measure.passes_html import energy, foreground_tax, foreign, ledger, limit, quality, race_tax
from ui.measure.section_html import bytes_a_second, section, table

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
    head = f'<tr class="ms-group"><th scope="rowgroup">{board.case_line(case)}</th>{units}<td></td></tr>'
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


_DEPTH = attrgetter("prompt_tokens")


def over_time(board: Board) -> str:
    cases = board.cases
    if is_sweep(cases):
        cases = (min(cases, key=_DEPTH), max(cases, key=_DEPTH))
    drawn = "".join(tokens_over_time(board, case) for case in cases)
    note = "Each lane's repeat that took the median time. The line starts at the first token."
    return section("Tokens over time", drawn and f'<div class="ms-figures">{drawn}</div>', note)


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
        return ", ".join(
            f"{bytes_a_second(float(at))} over {fmt.size(float(size))}" for size, at in value.items()
        )
    return bytes_a_second(float(value))


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
        sent: dict[tuple[int, int], set[str]] = {}  # a repeat that is done again gets another prompt
        for lane in board.lanes:
            for repeat in lane.result.repeats:
                if repeat.case == case.name and repeat.prompt_sha256:
                    sent.setdefault((repeat.number, repeat.attempt), set()).add(repeat.prompt_sha256)
        same = all(len(found) == 1 for found in sent.values())
        shown = ", ".join(f"{sorted(found)[0][:12]}…" for _, found in sorted(sent.items()))
        rows.append(
            f'<tr><th scope="row">{board.case_line(case)}</th>'
            f"<td>{'the same on all lanes' if same else 'differ'}</td>"
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
