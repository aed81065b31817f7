"""The parts of the tab that change while a measurement runs: how far it is, what it left, the list of all.

Buttons in here say what they do in `data-act` and with what in `data-value`; the tab's script hands that on.
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.measure.records import Watch
from engines.measure.tuner import spelled
from storage.measurements import Listed, Tuning
from ui import format as fmt
from ui.measure.board import UNDER_WAY
from ui.measure.estimate import roughly
from ui.measure.tuning import SECONDS, TuningView

_STATES = {
    "waiting": ("busy", "starting"),
    "running": ("busy", "measuring"),
    "pausing": ("loading", "pausing"),
    "paused": ("loading", "paused"),
    "stopping": ("loading", "stopping"),
    "finished": ("ready", "finished"),
    "stopped": ("loading", "stopped"),
    "failed": ("failed", "failed"),
}
LEFT_SHOWN = 12


def button(act: str, label: str, value: str = "", *, kind: str = "", describes: str = "") -> str:
    """A button of the tab; `describes` is what a screen reader hears instead of a label that many buttons share."""
    spoken = f' aria-label="{fmt.text(describes)}"' if describes else ""
    return (
        f'<button type="button" class="ms-button {kind}" data-act="{fmt.text(act)}" '
        f'data-value="{fmt.text(value)}"{spoken}>{fmt.text(label)}</button>'
    )


def progress(watch: Watch) -> str:
    """What runs now, what is left, how long, and what can be done about it."""
    measurement = watch.measurement
    share = watch.done / watch.total if watch.total else 0.0
    facts = [f"{watch.done} of {fmt.counted(watch.total, 'step')} done"]
    facts.append("time left not known yet" if watch.left_s is None else f"about {roughly(watch.left_s)} left")
    if watch.tokens:
        facts.append(f"{fmt.counted(watch.tokens, 'token')} of this reply")
    now = "Paused: others may use the machine." if watch.state == "paused" else watch.now
    return (
        '<section class="card ms-progress" aria-label="Progress">'
        f"{_head(watch)}"
        f'<progress max="1" value="{share:.3f}" aria-label="Measurement"></progress>'
        f'<p class="ms-now">{fmt.text(now)}</p><p class="ms-soft">{" · ".join(facts)}</p>'
        f'<p class="ms-buttons">{_controls(watch.state)}</p>{_left(watch.left)}'
        f"{_said(measurement.suite.note)}</section>"
    )


def _head(watch: Watch) -> str:
    css, word = _STATES.get(watch.state, ("", watch.state))
    name = f"{fmt.text(watch.measurement.suite.title)} · {fmt.text(watch.measurement.model)}"
    return f'<header><h3>{name}</h3><span class="chip chip-{css}" role="status">{word}</span></header>'


def _controls(state: str) -> str:
    if state in ("paused", "pausing"):
        return button("go-on", "Go on", kind="primary") + button("stop", "Stop and keep what is done")
    if state == "stopping":
        return ""
    return button("pause", "Pause") + button("stop", "Stop and keep what is done")


def _left(left: Sequence[str]) -> str:
    if not left:
        return ""
    items = "".join(f"<li>{fmt.text(title)}</li>" for title in left[:LEFT_SHOWN])
    more = f"<li>and {len(left) - LEFT_SHOWN} more</li>" if len(left) > LEFT_SHOWN else ""
    title = f"Still to do: {fmt.counted(len(left), 'step')}"
    return f"<details><summary>{title}</summary><ol>{items}{more}</ol></details>"


def _said(note: str | None) -> str:
    return f'<p class="ms-soft">{fmt.text(note)}</p>' if note else ""


def ended(watch: Watch) -> str:
    """How the last measurement ended; one that was stopped can go on."""
    resume = button("resume", "Go on with it", watch.measurement.id, kind="primary") if watch.left else ""
    left = f'<p class="ms-soft">{fmt.counted(len(watch.left), "step")} left undone.</p>' if watch.left else ""
    return (
        '<section class="card ms-progress" aria-label="Progress">'
        f"{_head(watch)}"
        f'{left}<p class="ms-buttons">{resume}</p>{_said(watch.measurement.suite.note)}</section>'
    )


# --- all measurements --------------------------------------------------------------------------------------


def listed(rows: Sequence[Listed], shown: str, running: str | None, deleting: str = "") -> str:
    """Every measurement with what can be done with it; `deleting`: the one whose deletion has been asked for."""
    if not rows:
        return '<p class="hist-empty">No measurement yet. Choose lanes above and start one.</p>'
    lines = "".join(_line(row, row.id == shown, row.id == running, row.id == deleting) for row in rows)
    head = "".join(
        f'<th scope="col">{title}</th>' for title in ("Started", "Model", "Suite", "State", "From")
    )
    return (
        '<div class="ms-scroll" tabindex="0" role="group" aria-label="All measurements">'
        '<table class="ms-table ms-words">'
        f'<thead><tr>{head}<th scope="col"><span class="sr">Actions</span></th></tr></thead><tbody>{lines}</tbody>'
        "</table></div>"
    )


def _line(row: Listed, shown: bool, running: bool, deleting: bool) -> str:
    when = fmt.when(row.created_at)
    name = f"{row.model}, {when}"
    acts = [] if shown else [button("show", "Show", row.id, describes=f"Show {name}")]
    if row.resumable and not running:
        acts.append(button("resume", "Go on", row.id, describes=f"Go on with {name}"))
    if not running:
        acts += _deleting(row.id, name) if deleting else [_delete(row.id, name)]
    state = "running" if running else row.status
    if row.resumable and not running and state in UNDER_WAY:
        state = "interrupted"  # the app that ran it is gone
    cells = (row.model, row.suite, state, row.imported_from or "this computer")
    current = ' aria-current="true"' if shown else ""
    return (
        f'<tr{current}><th scope="row">{fmt.text(when)}</th>{"".join(f"<td>{fmt.text(cell)}</td>" for cell in cells)}'
        f'<td class="ms-acts">{"".join(acts)}</td></tr>'
    )


def _delete(measurement_id: str, name: str) -> str:
    return button("ask-delete", "Delete…", measurement_id, describes=f"Delete {name}")


def _deleting(measurement_id: str, name: str) -> list[str]:
    """What took an hour is not gone by one click."""
    return [
        '<span role="alert">Delete it for good?</span>',
        button("delete", "Yes, delete", measurement_id, kind="danger", describes=f"Yes, delete {name}"),
        button("keep", "Keep", describes=f"Keep {name}"),
    ]


# --- use it ------------------------------------------------------------------------------------------------


def use_button(key: str, in_use: bool) -> str:
    """Makes a lane the default panel of its model, or says that it is."""
    if in_use:
        return '<span class="stamp fair">in use: this model\'s first panel</span>'
    return button("use", "Use it", key, kind="primary", describes=f"Use {key}")


_JOBS = {"decode": "long answers", "prefill": "long prompts"}


def tuner(key: str, view: TuningView | None, tunings: Sequence[Tuning], can_start: bool) -> str:
    """What the tuner does for a lane or has kept, what of it is in use, and what can be done about it."""
    if view is not None and view.running:
        stop = "" if view.stopping else button("stop-tuning", "Stop", key, describes=f"Stop tuning {key}")
        now = f'<p class="ms-soft ms-told">{fmt.text(view.now)}</p>'
        return f'<span class="chip chip-busy">tuning</span> {stop}{now}'
    said = ""
    if view is not None and (why := view.error or (view.found.why if view.found else None)):
        said = f'<p class="ms-told {"ms-why" if view.error else "ms-soft"}">{fmt.text(why)}</p>'
    parts = [_kept(key, kept) for kept in tunings]
    if can_start:
        for job, purpose in _JOBS.items():
            label = f"Tune for {purpose}"
            parts.append(button(f"tune-{job}", label, key, describes=f"{label}, {roughly(SECONDS)}: {key}"))
    return "".join(parts) + said


def _kept(key: str, kept: Tuning) -> str:
    """One tuning of a lane: in use, or kept for when it is wanted."""
    purpose = f"for {_JOBS[kept.job]}" if kept.job in _JOBS else "as measured"
    settings = fmt.text(spelled(kept.settings))
    if kept.in_use:
        said = f'<span class="stamp fair">in use: tuned {purpose}: {settings}</span>'
        use = ""
    else:
        said = f'<span class="stamp">kept, tuned {purpose}: {settings}</span>'
        use = button(f"use-tuning-{kept.job}", "Use this", key, describes=f"Use {key} tuned {purpose}")
    back = button(f"untune-{kept.job}", "Take back", key, describes=f"Take back {key} tuned {purpose}")
    return f'<p class="ms-kept">{said} {use}{back}</p>'
