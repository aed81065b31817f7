"""The Models tab's HTML: the table of models times backends, plans, progress, and what is on this computer."""

from __future__ import annotations

from collections.abc import Sequence

from engines.models.inventory import Installed
from engines.models.overview import CONVERT, DOWNLOAD, HERE, READY_MADE, UNFIT, Cell, Row
from engines.models.plan import Plan, duration
from engines.models.plan import size as plan_size
from engines.models.together import READY, JointPlan
from engines.protocol import EngineSpec
from ui import format as show
from ui.models.background import WorkView, as_rows

_KINDS = {
    "bundled": "comes with the app",
    "downloaded": "downloaded, original weights",
    "converted": "converted here",
    "ready-made": "downloaded, ready-made",
    "imported": "your folder",
}
_WORDS = {HERE: "Here", READY_MADE: "Ready-made", DOWNLOAD: "Original weights", CONVERT: "Converts here"}
PICK = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-model]');
  if (button) trigger('click', {model: button.dataset.model, on: button.dataset.on || ''});
});
element.addEventListener('input', event => {
  if (!event.target.matches('input[type=search]')) return;
  const words = event.target.value.toLowerCase().split(/\\s+/);
  for (const row of element.querySelectorAll('[data-words]'))
    row.hidden = !words.every(word => row.dataset.words.includes(word));
});
"""
"""A click on a button names its model (and backend); typing into the search field hides the rows that do not fit."""


def grid(rows: Sequence[Row], specs: Sequence[EngineSpec]) -> str:
    """Models times backends, one action in each cell."""
    if not rows or not rows[0].cells:
        return "<p>No engine can run here yet; the System tab says what to install.</p>"
    titles = {spec.name: spec.title for spec in specs}
    heads = "".join(
        f'<th scope="col">{show.text(titles.get(cell.backend.target.engine, cell.backend.target.engine))}'
        f"<small>{show.text(cell.backend.target.device)} {show.text(cell.backend.target.precision)}</small></th>"
        for cell in rows[0].cells
    )
    body = "".join(_grid_row(row) for row in rows)
    return (
        f'{_search("models-search")}<div class="md-table" tabindex="0" role="group" aria-label="Models and backends">'
        f'<table class="results models-grid"><thead><tr><th scope="col">Model</th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _search(element_id: str) -> str:
    return (
        f'<input type="search" class="models-search" id="{element_id}" placeholder="Search models" '
        'aria-label="Search models" autocomplete="off">'
    )


def parameters(row: Row) -> str:
    """`3.8 B`, `494 M`, or nothing where it is not known."""
    if not row.parameters:
        return ""
    return f"{row.parameters / 1e9:.1f} B" if row.parameters >= 999.5e6 else f"{row.parameters / 1e6:.0f} M"


def _words(row: Row) -> str:
    return show.text(f"{row.title} {row.model} {row.note}".lower())


def _grid_row(row: Row) -> str:
    many = f"{parameters(row)} · " if row.parameters else ""
    return (
        f'<tr data-words="{_words(row)}"><th scope="row">'
        f'<button type="button" class="link" data-model="{show.text(row.model)}">{show.text(row.title)}</button>'
        f"<small>{many}{show.text(row.note)}</small></th>{''.join(_grid_cell(cell) for cell in row.cells)}</tr>"
    )


def _grid_cell(cell: Cell) -> str:
    plan, target = cell.plan, cell.backend.target
    if cell.state == HERE:
        size = f" <small>{show.size(plan.load_bytes)} loaded</small>" if plan.load_bytes else ""
        return f'<td class="is-here"><span>Here</span>{size}</td>'
    if cell.state == UNFIT:
        words = "Does not fit" if plan.can_override else "Not possible"
        why = show.text(plan.refusal or "")
        return f'<td class="is-unfit"><details><summary>{words}</summary>{why}</details></td>'
    cost = show.size(plan.download_bytes) if plan.download_bytes else ""
    if cell.state == CONVERT:
        minutes = f"{duration(plan.seconds)}, {plan_size(plan.peak_bytes)} memory"
        cost = f"{cost}, then {minutes}" if cost else minutes
    return (
        f"<td><span>{_WORDS[cell.state]}</span><small>{show.text(cost)}</small>"
        f'<button type="button" class="get" data-model="{show.text(target.model)}" '
        f'data-on="{show.text(target.spelling)}" '
        f'aria-label="Get {show.text(target.model)} for {show.text(target.spelling)}">Get</button></td>'
    )


def choice_list(rows: Sequence[Row], chosen: str | None) -> str:
    """The Compare tab's list of models to look at: name, size, what for, and how it gets onto the panels."""
    items = "".join(
        f'<li data-words="{_words(row)}"><button type="button" class="choice" data-model="{show.text(row.model)}" '
        f'aria-pressed="{"true" if row.model == chosen else "false"}">'
        f'<span class="choice-name">{show.text(row.title)}</span>'
        f'<span class="choice-size">{parameters(row)}</span>'
        f'<span class="choice-note">{show.text(row.note)}</span>'
        f'<span class="choice-cost">{show.text(row.summary)}</span></button></li>'
        for row in rows
    )
    return f'{_search("choice-search")}<ul class="choices" aria-label="Models">{items}</ul>'


def joint_plan(together: JointPlan) -> str:
    """One plan for all backends, with the sums."""
    lines = "".join(
        f"<tr><th scope='row'>{show.text(plan.target.spelling)}</th><td>{show.text(_how(plan))}</td>"
        f"<td>{_bytes(plan.download_bytes)}</td><td>{_bytes(plan.peak_bytes)}</td></tr>"
        for plan in together.plans
    )
    table = (
        '<table class="results"><thead><tr><th scope="col">Backend</th><th scope="col">How</th>'
        f'<th scope="col">Download</th><th scope="col">Memory</th></tr></thead><tbody>{lines}</tbody></table>'
    )
    if together.ready:
        total = "Everything that can be had is ready."
    elif together.possible:
        total = (
            f"Together: download {plan_size(together.download_bytes)} · disk {plan_size(together.disk_bytes)} of "
            f"{plan_size(together.disk_free_bytes)} free · memory up to {plan_size(together.peak_bytes)} · at most "
            f"about {duration(together.seconds)}. What backends share is counted once."
        )
    else:
        total = ""
    refused = "".join(
        f"<li><strong>{show.text(plan.target.spelling)}</strong>: {show.text(plan.refusal)} "
        f"{show.text(plan.remedy or '')}</li>"
        for plan in together.plans
        if plan.refusal
    )
    problem = failure(together.refusal) if together.refusal and together.possible else ""
    return (
        f'<div class="card plan"><p><strong>{show.text(together.model)}</strong></p>'
        f'<div class="md-table" tabindex="0" role="group" aria-label="Plan">{table}</div><p>{show.text(total)}</p>'
        f"{f'<ul>{refused}</ul>' if refused else ''}{problem}</div>"
    )


def _bytes(count: int | None) -> str:
    return plan_size(count) if count else "–"


def _how(plan: Plan) -> str:
    if plan.ready:
        return "ready"
    if not plan.steps:
        return "not possible"
    words = {"download": "download", "convert": "convert here", "use": "use"}
    how = " + ".join(dict.fromkeys(words[step.kind] for step in plan.steps))
    return f"does not fit ({how})" if plan.refusal else how


def progress(view: WorkView) -> str:
    """One view of all that is at work, one line for each backend."""
    if not view.parts:
        return ""
    lines = "".join(
        f'<li class="part"><span class="part-name">{show.text(row["target"])}</span>{_bar(row["fraction"])}'
        f'<span class="part-text">{show.text(row["text"])}{_percent(row["fraction"])}</span></li>'
        for row in as_rows(view)
    )
    ready = "".join(f"<p>Ready: {show.text(part.target)}</p>" for part in view.parts if part.state == READY)
    if not view.running:
        lost = "".join(
            failure(part.problem or "", part.remedy, part.target.spelling) for part in view.troubles
        )
        kept = (
            "<p>Stopped. What was downloaded is kept; getting it again carries on there.</p>"
            if view.stopped
            else ""
        )
        return f"{ready}{kept}{lost}"
    head = f"<p><strong>{show.text(view.model)}</strong> · {show.elapsed(view.elapsed_s)}</p>"
    return f'{head}<ul class="parts">{lines}</ul>'


def _bar(fraction: float | None) -> str:
    value = "" if fraction is None else f' value="{fraction:.3f}"'
    return f'<progress max="1"{value} aria-label="Progress"></progress>'


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f" · {show.percent(fraction)}"


def failure(problem: str, remedy: str | None = None, where: str | None = None) -> str:
    more = f"<p>{show.text(remedy)}</p>" if remedy else ""
    place = f"{show.text(where)}: " if where else ""
    return (
        f'<div class="failure" role="alert"><p><strong>{place}{show.text(problem)}</strong></p>{more}</div>'
    )


def entry_label(entry: Installed) -> str:
    parts = [entry.model, entry.format, entry.precision, entry.device and f"for {entry.device}"]
    return " · ".join(part for part in parts if part)


def installed(entries: Sequence[Installed]) -> str:
    heads = ("Model", "Format", "Precision", "For", "What", "Size", "Where")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    rows = "".join(_installed_row(entry) for entry in entries)
    total = show.size(sum(entry.bytes for entry in entries))
    return (
        '<div class="md-table" tabindex="0" role="group" aria-label="Models on this computer">'
        f'<table class="results installed"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f"<p>Together {total}.</p>"
    )


def _installed_row(entry: Installed) -> str:
    cells = (entry.format, entry.precision, entry.device, _KINDS.get(entry.kind, entry.kind))
    problem = f'<br><span class="note warn">{show.text(entry.problem)}</span>' if entry.problem else ""
    middle = "".join(f"<td>{show.text(cell)}</td>" for cell in cells)
    return (
        f'<tr><th scope="row">{show.text(entry.model)}{problem}</th>{middle}'
        f"<td>{show.size(entry.bytes)}</td><td>{show.text(entry.path)}</td></tr>"
    )
