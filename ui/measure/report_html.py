"""A measurement as one HTML page: no script, no other file, no other host. It opens anywhere and prints well.

The sections are the tab's own (results_html.py), the colours the page's own variables: light or dark as the reader's
system says, always light on paper. Every token's time is in it, so that anyone can compute the figures again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from engines.measure.privacy import without_private
from engines.measure.records import LaneResult, Measurement, Repeat
from ui import format as fmt
from ui.measure import results_html as parts
from ui.measure.board import Board
from ui.measure.contract import DEFINITIONS
from ui.measure.section_html import section, table
from ui.measure.side_by_side import side_by_side

ASSETS = Path(__file__).parents[1] / "assets"
STATES = {
    "running": "still running when this was written",
    "paused": "paused when this was written",
    "stopped": "stopped before the end",
    "failed": "ended by a failure",
    "finished": "finished",
}


def report(measurement: Measurement, *, beside: Sequence[Measurement] = (), private: bool = False) -> str:
    """The whole page. `beside`: measurements of other machines or days, set next to this one.

    Paths, this computer's name and the person's own prompts are left out unless `private`.
    """
    shown = measurement if private else without_private(measurement)
    others = [other if private else without_private(other) for other in beside]
    board = Board(shown)
    body = "".join(
        (
            _head(board),
            parts.results(board),
            "".join(side_by_side(shown, other) for other in others),
            parts.fingerprint(board),
            parts.contract(board),
            _definitions(),
            parts.notes(board),
            _repeats(board),
        )
    )
    title = fmt.text(f"Measurement of {shown.model}")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{style()}</style></head>\n"
        f'<body><main class="ms-report">{body}</main></body></html>\n'
    )


def _head(board: Board) -> str:
    measurement = board.measurement
    suite = measurement.suite
    facts = (
        f"Suite {fmt.text(suite.title)}, {fmt.counted(suite.repeats, 'repeat')}",
        f"{fmt.text(measurement.created_at[:16].replace('T', ' '))} UTC",
        STATES.get(measurement.status, fmt.text(measurement.status)),
        fmt.text(measurement.contract),
    )
    processor = measurement.machine.get("processor")
    machine = f"<p>{fmt.text(processor)}</p>" if processor else ""
    note = f'<p class="ms-note">{fmt.text(suite.note)}</p>' if suite.note else ""
    return (
        '<header class="ms-top"><p class="ms-soft">Backend Arena</p>'
        f"<h1>Which backend should run {fmt.text(measurement.model)}?</h1>{machine}"
        f'<p class="ms-soft">{" · ".join(facts)}</p>{note}</header>'
    )


def _definitions() -> str:
    rows = [f'<tr><th scope="row">{name}</th><td>{how}</td></tr>' for name, how in DEFINITIONS]
    return section("How the figures are made", table("Definitions", ("Figure", "From"), rows, "ms-words"))


def _repeats(board: Board) -> str:
    """Every repeat with every token's time: what all figures above are made of."""
    blocks = "".join(
        f"<details><summary>{lane.badge} {fmt.text(lane.key)}: "
        f"{fmt.counted(len(lane.result.repeats), 'repeat')}</summary>{_raw(lane.result)}</details>"
        for lane in board.lanes
        if lane.result.repeats
    )
    note = "Milliseconds from the request to each token, by the worker's clock, as they were stored."
    return section("Every token's time", blocks, note)


def _raw(result: LaneResult) -> str:
    rows = [
        f'<tr><th scope="row">{fmt.text(repeat.case)}</th><td>{_which(repeat)}</td><td>{_state(repeat)}</td>'
        f"<td>{fmt.count(repeat.prompt_tokens)}</td>"
        f"<td><code>{fmt.text((repeat.prompt_sha256 or '')[:16])}</code></td>"
        f'<td class="ms-offsets">{" ".join(f"{1000 * second:.3f}" for second in repeat.token_offsets_s)}</td></tr>'
        for repeat in result.repeats
    ]
    head = ("Case", "Repeat", "State", "Prompt tokens", "SHA-256", "Offsets, ms")
    return table("Token times", head, rows, "ms-raw")


def _which(repeat: Repeat) -> str:
    return f"{repeat.number}" if repeat.attempt == 1 else f"{repeat.number}, attempt {repeat.attempt}"


def _state(repeat: Repeat) -> str:
    if repeat.failure:
        return f"failed: {fmt.text(repeat.failure.message)}"
    if repeat.refused:
        return f"refused: {fmt.text(repeat.refused)}"
    if repeat.disturbed:
        return f"disturbed: {fmt.text(repeat.disturbance or 'other programs worked')}"
    return "counts"


# --- the look ----------------------------------------------------------------------------------------------


def style() -> str:
    """The page's own variables for light and dark, what the report shares with the tab, and what only paper needs."""
    page = (ASSETS / "page.css").read_text(encoding="utf-8")
    light, dark = _block(page, ":root, .gradio-container"), _block(page, ".dark, .dark .gradio-container")
    lanes = "\n".join(re.findall(r"^\.p[1-6] \{.*\}$", page, re.MULTILINE))
    shared, own = ((ASSETS / name).read_text(encoding="utf-8") for name in ("measure.css", "report.css"))
    return (
        f":root {{{light}}}\n@media screen and (prefers-color-scheme: dark) {{ :root {{{dark}}} }}\n"
        f"{lanes}\n{shared}\n{own}"
    )


def _block(css: str, selector: str) -> str:
    """What stands between the braces behind a selector of the page's style sheet."""
    return css.partition(f"{selector} {{")[2].partition("}")[0]
