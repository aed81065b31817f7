"""The System tab: this machine, every engine with each device, and the environments engines need.

The same content as `doctor`, from the same sources. The engines are asked in the background, each in a process
of its own; the page is filled when the answers are there.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from engines.environments.environments import Environments
from engines.hardware import machine_facts
from engines.protocol import Availability, DeviceStatus, EngineSpec
from engines.runtime.manager import EngineManager
from engines.telemetry.sights import Sight, sights
from ui.doctor import machine_lines, versions_text
from ui.format import elapsed, percent, seconds, size, text
from ui.system.background import SetUpView, SystemWork
from ui.system.programs import Doors, Programs
from ui.system.servers import Servers

_POLL_S = 1.0
_SET_UP_LABELS = {"ready": "Check and repair", "broken": "Repair", "outdated": "Rebuild"}
_YES, _NO = '<span class="yes">● yes</span>', '<span class="no">○ no</span>'
_STATES = {
    "ready": ("ready", "ready"),
    "missing": ("", "not set up"),
    "outdated": ("loading", "outdated"),
    "broken": ("failed", "broken"),
    "impossible": ("failed", "not possible here"),
}


def build(manager: EngineManager, environments: Environments, doors: Doors | None = None) -> None:
    """Lay out and wire the tab; call inside the Blocks."""
    _Tab(SystemWork(manager, environments), environments.names(), manager, doors)


@dataclass
class _EnvironmentParts:
    """Components of one environment."""

    card: gr.HTML
    start: gr.Button
    cancel: gr.Button
    log: gr.Textbox


class _Tab:
    """Components, handlers and wiring."""

    def __init__(self, work: SystemWork, names: Sequence[str], manager: EngineManager, doors: Doors | None):
        self._work, self._names, self._specs = work, names, manager.specs
        self._changed: Sequence[Any] = ()
        """What tells that one engine has been asked again."""
        with gr.Column(elem_id="system"):
            self._lay_out()
            if doors is not None:
                self._changed = Servers(manager, doors.endpoints).changed
                Programs(doors.keys, doors.lanes)
        self._timer = gr.Timer(_POLL_S)  # fills the tab, then ticks only while something is going on
        self._wire()

    # --- components --------------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        gr.HTML("<h2>This computer</h2>")
        self._machine = gr.HTML(elem_id="system-machine")
        gr.HTML(
            '<h3>Live</h3><div class="slot" data-slot="strip"></div>', js_on_load=None, elem_id="system-strip"
        )
        self._seen = gr.HTML(elem_id="system-seen")
        gr.HTML("<h2>Engines</h2>")
        with gr.Row(elem_classes="bar"):
            self._refresh = gr.Button(
                "Ask again", size="md", elem_id="system-refresh", scale=0, min_width=110
            )
        self._engines = gr.HTML(elem_id="system-engines")
        gr.HTML(
            "<h2>Environments</h2><p>Some libraries cannot share an environment with the others. They get "
            "their own folder in the data directory.</p>"
        )
        self._environments = [_environment_parts(name) for name in self._names]

    # --- handlers ----------------------------------------------------------------------------------------------

    def _show(self) -> list[Any]:
        self._work.ask()
        views = [self._work.view(name) for name in self._names]
        answers, asking, trouble = self._work.answers()
        labels = [_SET_UP_LABELS.get(view.status.state, "Set up") for view in views]
        return [
            machine_html(machine_facts()),
            _seen_once(),
            engines_html(answers, self._specs, asking, trouble),
            *(environment_html(view) for view in views),
            *(
                gr.update(value=label, interactive=_can_start(view))
                for label, view in zip(labels, views, strict=True)
            ),
            *(gr.update(interactive=view.running) for view in views),
            *(self._work.log_tail(name) for name in self._names),
            gr.update(interactive=not asking),
            gr.Timer(active=self._work.busy()),
        ]

    def _ask_again(self) -> list[Any]:
        self._work.ask(refresh=True)
        return self._show()

    def _show_anew(self) -> list[Any]:
        self._work.renew()
        return self._show()

    def _start(self, name: str) -> Callable[[], list[Any]]:
        def handler() -> list[Any]:
            if _can_start(self._work.view(name)):
                self._work.start_set_up(name)
            return self._show()

        return handler

    def _cancel(self, name: str) -> Callable[[], list[Any]]:
        def handler() -> list[Any]:
            self._work.cancel_set_up(name)
            return self._show()

        return handler

    # --- wiring ------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        parts = self._environments
        columns = [[getattr(part, name) for part in parts] for name in ("card", "start", "cancel", "log")]
        outputs = [
            self._machine,
            self._seen,
            self._engines,
            *itertools.chain(*columns),
            self._refresh,
            self._timer,
        ]
        options: dict[str, Any] = {"outputs": outputs, "show_progress": "hidden", "queue": False}
        self._timer.tick(self._show, **options)
        self._refresh.click(self._ask_again, **options)
        for event in self._changed:
            event.then(self._show_anew, **options)
        for name, part in zip(self._names, parts, strict=True):
            part.start.click(self._start(name), **options)
            part.cancel.click(self._cancel(name), **options)


def _environment_parts(name: str) -> _EnvironmentParts:
    card = gr.HTML(elem_id=f"system-env-{name}")
    with gr.Row(elem_classes="bar"):
        start = gr.Button("Set up", variant="primary", size="md", elem_id=f"system-set-up-{name}", scale=0)
        cancel = gr.Button("Cancel", size="md", elem_id=f"system-cancel-{name}", scale=0, interactive=False)
    with gr.Accordion("Log of the last set-up", open=False):
        log = gr.Textbox(
            label=f"Log of the last set-up of {name}",
            lines=12,
            max_lines=12,
            interactive=False,
            elem_id=f"system-log-{name}",
            buttons=[],
        )
    return _EnvironmentParts(card, start, cancel, log)


def _can_start(view: SetUpView) -> bool:
    return not view.running and view.status.state != "impossible"


# --- HTML ------------------------------------------------------------------------------------------------------


def machine_html(facts: Mapping[str, Any]) -> str:
    """What this machine is, as a short list."""
    items = "".join(f"<li>{text(line)}</li>" for line in machine_lines(facts))
    return f'<ul class="machine">{items}</ul>'


@functools.cache
def _seen_once() -> str:
    """Drivers are asked for it, so once is enough."""
    return sights_html(sights())


def sights_html(seen: Sequence[Sight]) -> str:
    """What can be seen of this machine while something runs, and for the rest why not and what to do."""
    missing = sum(not sight.ok for sight in seen)
    rows = "".join(
        f'<tr><th scope="row">{text(sight.name)}</th>'
        f"<td>{_YES if sight.ok else _NO}</td><td>{text(sight.source if sight.ok else sight.reason or '')}"
        f"{'' if sight.ok else _remedy(sight.remedy)}</td></tr>"
        for sight in seen
    )
    return (
        f"<details class='sights'><summary>What can be seen here: {len(seen) - missing} of {len(seen)} kinds of "
        f"readings</summary><table><caption class='sr'>Kinds of readings</caption><thead class='sr'><tr><th>Reading"
        f"</th><th>State</th><th>Details</th></tr></thead><tbody>{rows}</tbody></table></details>"
    )


def engines_html(
    answers: Mapping[str, Availability] | None,
    specs: Mapping[str, EngineSpec],
    asking: bool,
    trouble: str | None,
) -> str:
    """One card per engine, in the order of the answers; what is being waited for is said above them."""
    notes = ""
    if trouble:
        notes += f'<p class="notice error" role="alert">{text(trouble)}</p>'
    if asking:
        notes += '<p class="notice info" role="status">Asking every engine which devices it can use …</p>'
    if not answers:
        return notes
    cards = "".join(_engine_card(name, found, specs.get(name)) for name, found in answers.items())
    return f'{notes}<div class="engines">{cards}</div>'


def _engine_card(name: str, found: Availability, spec: EngineSpec | None) -> str:
    chip = "ready" if found.ok else "unavailable"
    word = "available" if found.ok else "not available"
    parts = [
        f'<header><h3>{text(spec.title if spec else name)}</h3><span class="chip chip-{chip}">{word}</span></header>'
    ]
    if found.versions:
        parts.append(f'<p class="soft">{text(versions_text(found.versions))}</p>')
    if not found.ok:
        parts.append(f"<p>{text(found.reason)}</p>" if found.reason else "")
        parts.append(_remedy(found.remedy))
    if found.device_status:
        rows = "".join(_device_row(status) for status in found.device_status)
        parts.append(
            f"<table><caption class='sr'>Devices of {text(name)}</caption><thead class='sr'><tr>"
            f"<th>Device</th><th>State</th><th>Details</th></tr></thead><tbody>{rows}</tbody></table>"
        )
    if spec and spec.advice:
        parts.append(f'<p class="notice info">{text(spec.advice)}</p>')
    return f'<section class="card engine" aria-label="{text(name)}">{"".join(parts)}</section>'


def _device_row(status: DeviceStatus) -> str:
    state = _YES if status.ok else _NO
    details = (
        text(status.title or "") if status.ok else f"{text(status.reason or '')}{_remedy(status.remedy)}"
    )
    return f'<tr><th scope="row">{text(status.device)}</th><td>{state}</td><td>{details}</td></tr>'


def _remedy(remedy: str | None) -> str:
    return f'<p class="remedy"><span aria-hidden="true">→ </span>{text(remedy)}</p>' if remedy else ""


def environment_html(view: SetUpView) -> str:
    """One environment: state, what is in it, the set-up's progress or how it failed."""
    status = view.status
    kind, word = ("busy", "being set up") if view.running else _STATES[status.state]
    chip = f"chip chip-{kind}" if kind else "chip"
    parts = [f'<header><h3>{text(status.title)}</h3><span class="{chip}">{word}</span></header>']
    if view.running:
        parts.append(_progress(view))
    elif view.error:
        parts.append(f'<p class="notice error" role="alert">{text(view.error)}</p>{_remedy(view.remedy)}')
    elif status.reason:
        parts.append(f"<p>{text(status.reason)}</p>")
        parts.append(_remedy(status.remedy) if status.state == "impossible" else "")
    if status.ready:
        facts = (
            f"Python {status.python_version}",
            size(status.size_bytes),
            f"set up in {seconds(status.set_up_s)}" if status.set_up_s else "",
        )
        parts.append(f"<p>{text(', '.join(fact for fact in facts if fact))}</p>")
        parts.append(f'<p class="soft">{text(versions_text(status.versions))}</p>')
    elif not view.running and status.state != "impossible":
        parts.append(
            f'<p class="soft">About 2 GB of packages; a few minutes. Also: <code>python app.py setup '
            f"{text(status.name)}</code></p>"
        )
    return f'<section class="card engine" aria-label="Environment {text(status.name)}">{"".join(parts)}</section>'


def _progress(view: SetUpView) -> str:
    progress = view.progress
    fraction = progress.fraction if progress else None
    value = f' value="{fraction:.3f}"' if fraction is not None else ""
    words = f"{text(progress.text if progress else 'Working')} · {elapsed(view.elapsed_s)}"
    share = f" · {percent(fraction)}" if fraction is not None else ""
    return f'<progress max="1"{value} aria-label="Set-up"></progress><p role="status">{words}{share}</p>'
