"""What a turn showed: who started first, who was fastest, tokens over time, and where the replies part.

Drawn from the raw token offsets of the runs, as HTML and inline SVG. Every line of the chart has a dash pattern and a
number besides its colour, and the table under it says the same in figures.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engines.protocol import Target
from ui import format as fmt
from ui.chat.conversations import TalkTurn
from ui.chat.run_view import RunView
from ui.compare.offer import sharing_panels
from ui.compare.panel_html import Naming

WIDTH, HEIGHT = 480, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 24, 34
MOST_POINTS = 160
MOST_DIFF_WORDS = 2_000


@dataclass(frozen=True)
class Line:
    """One panel's reply in the summary."""

    panel: int
    target: Target
    view: RunView


def lines(turn: TalkTurn) -> list[Line]:
    """One line per panel of the turn, newest attempts, in panel order."""
    return [Line(run.panel, run.target, run.view()) for run in sorted(turn.runs, key=lambda run: run.panel)]


def summary(turn: TalkTurn, naming: Naming) -> str:
    """The whole block under the panels; empty until the turn is done."""
    found = lines(turn)
    if not turn.done or not any(line.view.tokens or line.view.text for line in found):
        return ""
    if naming.hidden:
        return (
            '<section class="summary" aria-label="Comparison of the last turn"><h2>This turn</h2>'
            "<p>Vote first: names, speeds and the chart appear then.</p></section>"
        )
    return (
        '<section class="summary" aria-label="Comparison of the last turn">'
        f'<div class="summary-top"><h2>This turn</h2>{_stamps(turn, found)}</div>{_findings(found, naming)}'
        f'<div class="summary-body">{chart(found, naming)}{table(found, naming)}</div></section>'
    )


def _stamps(turn: TalkTurn, found: Sequence[Line]) -> str:
    stamps = []
    if contended := [line for line in found if line.view.contended]:
        why = _why_contended(turn, contended, len(found))
        stamps.append(
            f'<span class="stamp contended" title="{why}">contended</span><span class="stamp-why">{why}</span>'
        )
    if disturbed := [line for line in found if line.view.disturbed]:
        why = " ".join(
            f"Panel {line.panel}: {fmt.text(' '.join(line.view.other_load.reasons))}"
            for line in disturbed
            if line.view.other_load
        )
        stamps.append(f'<span class="stamp warn">disturbed</span><span class="stamp-why">{why}</span>')
    if misplaced := [line.panel for line in found if line.view.misplaced]:
        stamps.append(
            f'<span class="stamp bad">contradicted</span><span class="stamp-why">Panel {_listed(misplaced)} ran '
            "elsewhere than claimed; its numbers count nowhere.</span>"
        )
    if len(found) > 1 and all(line.view.alone for line in found):
        old = any(line.view.old_rule for line in found)
        words = "each alone when it began (older rule)" if old else "each alone on the machine"
        stamps.append(f'<span class="stamp fair">{words}</span>')
    for device, panels in (
        sharing_panels({line.panel: line.target for line in found}) if turn.mode == "together" else []
    ):
        numbers = ", ".join(map(str, panels))
        stamps.append(f'<span class="stamp shared">panels {numbers} share {fmt.text(device)}</span>')
    return f'<p class="stamps">{"".join(stamps)}</p>' if stamps else ""


def _why_contended(turn: TalkTurn, contended: Sequence[Line], panels: int) -> str:
    """Whether the panels ran together, or something else of ours joined in; and what."""
    if turn.mode == "together" and panels > 1:
        return (
            "These replies were written at the same time, so they took memory bandwidth and cores from each other. "
            "Good for watching; for a fair number choose “In turn”."
        )
    others = dict.fromkeys(
        what for line in contended if line.view.other_load for what in line.view.other_load.ours
    )
    named = fmt.text(", ".join(others)) or "other work"
    return f"Panel {_listed([line.panel for line in contended])} shared the machine with: {named}."


def _findings(found: Sequence[Line], naming: Naming) -> str:
    facts = [
        _best("Started first", found, naming, lambda v: v.ttft_s, fmt.seconds, smallest=True),
        _best("Fastest decode", found, naming, lambda v: v.decode_tok_s, fmt.tok_s, smallest=False),
        agreement(found, naming),
        prompt_agreement(found),
    ]
    return f'<ul class="findings">{"".join(f"<li>{fact}</li>" for fact in facts if fact)}</ul>'


def _best(
    what: str,
    found: Sequence[Line],
    naming: Naming,
    value: Callable[[RunView], float | None],
    spell: Callable[[float | None], str],
    smallest: bool,
) -> str:
    rated = sorted(
        ((rate, line) for line in found if (rate := value(line.view))),
        key=lambda pair: pair[0],
        reverse=not smallest,
    )
    if len(rated) < 2:
        return ""
    (best, winner), (other, _) = rated[0], rated[-1]
    times = max(best, other) / min(best, other)
    name = fmt.text(naming.full(winner.panel, winner.target))
    return (
        f'<span class="what">{what}</span> <span class="dot p{winner.panel}" aria-hidden="true"></span> '
        f"<strong>{name}</strong> {spell(best)} <em>{fmt.ratio(times)} the slowest</em>"
        if not smallest
        else f'<span class="what">{what}</span> <span class="dot p{winner.panel}" aria-hidden="true"></span> '
        f"<strong>{name}</strong> {spell(best)} <em>the last after {spell(other)}</em>"
    )


def agreement(found: Sequence[Line], naming: Naming) -> str:
    """Whether the replies are the same words, and where the first two that differ part."""
    replies = [line for line in found if line.view.text]
    if len(replies) < 2:
        return ""
    groups: dict[str, list[int]] = {}
    for line in replies:
        groups.setdefault(line.view.text.strip(), []).append(line.panel)
    if len(groups) == 1:
        return '<span class="what">Replies</span> <strong>identical, word for word</strong>'
    first, second = list(groups)[:2]
    at = first_difference(first, second)
    alike = [panels for panels in groups.values() if len(panels) > 1]
    same = "; ".join(f"{_listed(panels)} are identical" for panels in alike)
    return (
        f'<span class="what">Replies</span> <strong>{len(groups)} different</strong> '
        f"panels {groups[first][0]} and {groups[second][0]} part at word {at}"
        + (f"; panels {same}" if same else "")
    )


def _listed(panels: Sequence[int]) -> str:
    numbers = [str(panel) for panel in panels]
    return numbers[0] if len(numbers) == 1 else f"{', '.join(numbers[:-1])} and {numbers[-1]}"


def prompt_agreement(found: Sequence[Line]) -> str:
    """A warning when panels were not given the same tokens: then their numbers and words don't compare."""
    hashes: dict[str, list[int]] = {}
    for line in found:
        if line.view.prompt_sha256:
            hashes.setdefault(line.view.prompt_sha256, []).append(line.panel)
    elsewhere = [line.panel for line in found if line.view.metrics and line.view.metrics.clock != "worker"]
    if len(hashes) < 2 and elsewhere and len(found) > 1:
        panels = f"panel{'s' if len(elsewhere) > 1 else ''} {_listed(elsewhere)}"
        return (
            f'<span class="stamp warn">prompt tokens unknown</span> {panels}: a server made the '
            "tokens, so nobody here can say whether they were the same"
        )
    if len(hashes) < 2:
        return ""
    groups = " / ".join(_listed(panels) for panels in hashes.values())
    return (
        f'<span class="stamp warn">prompts differ</span> panels {groups} did not get the same tokens: '
        "another chat so far, or another tokenizer"
    )


# --- chart -------------------------------------------------------------------------------------------------


def chart(found: Sequence[Line], naming: Naming) -> str:
    """Tokens over time, one stepped line per panel."""
    drawn = [line for line in found if line.view.token_offsets_s]
    if not drawn:
        return ""
    end_s = max(line.view.token_offsets_s[-1] for line in drawn) or 1.0
    most = max(len(line.view.token_offsets_s) for line in drawn)
    x_ticks, y_ticks = ticks(end_s), [tick for tick in ticks(most) if tick == int(tick)]
    x_max, y_max = max(end_s, x_ticks[-1]), max(most, y_ticks[-1])

    def x(second: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * second / x_max

    def y(tokens: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * tokens / y_max

    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in y_ticks
    ) + "".join(
        f'<text class="tick" x="{x(t):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{t:g}</text>'
        for t in x_ticks
    )
    ends: list[tuple[float, float]] = []
    curves = "".join(_curve(line, x, y, ends) for line in drawn)
    names = "; ".join(
        f"panel {line.panel}, {naming.full(line.panel, line.target)}: {len(line.view.token_offsets_s)} tokens in "
        f"{fmt.seconds(line.view.token_offsets_s[-1])}"
        for line in drawn
    )
    return (
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{fmt.text("Tokens over time. " + names)}">{grid}{curves}'
        f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">seconds</text>'
        f'<text class="axis" x="4" y="11">tokens</text></svg></figure>'
    )


def _curve(
    line: Line,
    x: Callable[[float], float],
    y: Callable[[float], float],
    taken: list[tuple[float, float]],
) -> str:
    """A line with its number at its end; beside the numbers in `taken` where it would cover one of them."""
    points = thinned(line.view.token_offsets_s)
    path = " ".join(f"{x(second):.1f},{y(tokens):.1f}" for second, tokens in points)
    end_x, end_y = x(points[-1][0]), y(points[-1][1])
    while any(abs(end_x - other_x) < 17 and abs(end_y - other_y) < 17 for other_x, other_y in taken):
        end_x -= 17
    taken.append((end_x, end_y))
    return (
        f'<polyline class="curve p{line.panel}" points="{path}"/>'
        f'<circle class="end p{line.panel}" cx="{end_x:.1f}" cy="{end_y:.1f}" r="8"/>'
        f'<text class="end-label" x="{end_x:.1f}" y="{end_y + 4:.1f}" text-anchor="middle">{line.panel}</text>'
    )


def thinned(offsets_s: Sequence[float]) -> list[tuple[float, int]]:
    """(second, tokens so far), starting at the first token; at most MOST_POINTS of them, the last one kept."""
    step = max(1, -(-len(offsets_s) // MOST_POINTS))
    points = [(offset, index + 1) for index, offset in enumerate(offsets_s)]
    kept = points[::step]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def ticks(end: float) -> list[float]:
    """Round numbers from 0 to about `end`, four to six of them."""
    if end <= 0:
        return [0.0]
    power = 10.0 ** (len(str(int(end))) - 1) if end >= 1 else 10.0 ** (math.floor(math.log10(end)))
    step = next(power * part for part in (0.1, 0.2, 0.5, 1.0, 2.0) if end / (power * part) <= 6)
    return [
        round(step * index, 9) for index in itertools.takewhile(lambda i: step * i <= end * 1.0001, range(20))
    ]


# --- table -------------------------------------------------------------------------------------------------

_COLUMNS: tuple[tuple[str, Callable[[RunView], Any], Callable[[Any], str], bool | None], ...] = (
    ("TTFT", lambda v: v.ttft_s, fmt.seconds, True),
    ("tok/s", lambda v: v.decode_tok_s, fmt.rate, False),
    ("ITL p95", lambda v: v.metrics.itl_p95_s if v.metrics else None, fmt.seconds, True),
    ("tokens", lambda v: v.tokens, fmt.count, None),
    ("total", lambda v: v.elapsed_s, fmt.seconds, None),
    ("peak memory", lambda v: v.peak_rss_bytes, fmt.size, True),
)


_THINKING_COLUMNS: tuple[tuple[str, Callable[[RunView], Any], Callable[[Any], str], bool | None], ...] = (
    ("first answer", lambda v: v.first_answer_s, fmt.seconds, True),
    ("answer finished", lambda v: v.metrics.answer_s if v.metrics else None, fmt.seconds, True),
    ("thought tokens", lambda v: v.reasoning_tokens, fmt.count, None),
)
"""Where a model thought: tok/s alone says little then."""


def _columns(found: Sequence[Line]) -> Sequence[Any]:
    if not any(line.view.reasoning for line in found):
        return _COLUMNS
    return (_COLUMNS[0], *_THINKING_COLUMNS, *_COLUMNS[1:])


def table(found: Sequence[Line], naming: Naming) -> str:
    """All figures of the turn, the best of a column marked in words too."""
    head = "".join(f'<th scope="col">{name}</th>' for name, *_ in _columns(found))
    rows = "".join(_row(line, found, naming) for line in found)
    return (
        '<div class="md-table" tabindex="0" role="group" aria-label="Figures of this turn"><table class="results">'
        f'<thead><tr><th scope="col">Backend</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _row(line: Line, found: Sequence[Line], naming: Naming) -> str:
    cells = []
    for _, value, spell, smallest in _columns(found):
        own = value(line.view)
        best = _best_of(found, value, smallest)
        mark = own is not None and own == best and len(found) > 1
        cells.append(f'<td class="{"best" if mark else ""}">{spell(own)}{_BEST if mark else ""}</td>')
    state = "" if line.view.phase == "finished" else f' <span class="stamp">{line.view.phase}</span>'
    name = fmt.text(naming.full(line.panel, line.target))
    badge = f'<span class="badge p{line.panel}">{line.panel}</span>'
    return f'<tr><th scope="row">{badge}{name}{state}</th>{"".join(cells)}</tr>'


_BEST = '<span class="best-mark" aria-hidden="true">▲</span><span class="sr"> (best)</span>'


def _best_of(
    found: Sequence[Line], value: Callable[[RunView], float | None], smallest: bool | None
) -> float | None:
    values = [found_value for line in found if (found_value := value(line.view)) is not None]
    if smallest is None or len(values) < 2:
        return None
    if min(values) == max(values):  # then none is better than another
        return None
    return min(values) if smallest else max(values)


# --- differences -------------------------------------------------------------------------------------------


def pair_difference(found: Sequence[Line], one: int | None, other: int | None) -> str:
    """Difference of two panels' replies to one prompt, or what to do to see one."""
    texts = {line.panel: line.view.text for line in found}
    if len(texts) < 2:
        return '<p class="empty-line">After a turn with two replies, their differences stand here.</p>'
    if one not in texts or other not in texts or one == other:
        return '<p class="empty-line">Choose two different panels of the last turn.</p>'
    return difference(texts[one], texts[other])


def words(text: str) -> list[str]:
    """Words and the spaces between them, so that they join to the text again."""
    return re.findall(r"\s+|[^\s]+", text)


def first_difference(one: str, other: str) -> int:
    """Number of the first word that differs, counted from 1."""
    pairs = itertools.zip_longest(one.split(), other.split())
    return next((number for number, (a, b) in enumerate(pairs, start=1) if a != b), 1)


def difference(one: str, other: str) -> str:
    """Word-level difference as HTML: what only the first says is struck out, what only the second says underlined."""
    if one.strip() == other.strip():
        return '<p class="same">These two replies are identical, word for word.</p>'
    left, right = words(one)[:MOST_DIFF_WORDS], words(other)[:MOST_DIFF_WORDS]
    parts = []
    for kind, a0, a1, b0, b1 in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(fmt.text("".join(left[a0:a1])))
            continue
        if a1 > a0:
            parts.append(f"<del>{fmt.text(''.join(left[a0:a1]))}</del>")
        if b1 > b0:
            parts.append(f"<ins>{fmt.text(''.join(right[b0:b1]))}</ins>")
    cut = len(words(one)) > MOST_DIFF_WORDS or len(words(other)) > MOST_DIFF_WORDS
    note = f"<p>Only the first {MOST_DIFF_WORDS:,} words and spaces are compared.</p>" if cut else ""
    return f'<div class="diff">{"".join(parts)}</div>{note}'
