"""The Measure tab: choose lanes and a suite, start, watch, read the verdict, use it; reports out, measurements in.

A measurement belongs to the app: this tab only looks at it, so it may be closed and opened again at any moment. What
changes by itself is painted into slots (painter.py); what a person does is one short handler each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from engines.measure import suites
from engines.measure.records import Suite
from engines.protocol import DEMO_MODEL, ProtocolError
from storage.database import StoreError
from storage.store import Store
from ui import format as fmt
from ui.measure.actions import Actions, Refused
from ui.measure.desk import Desk, DeskError
from ui.measure.files import FORMATS
from ui.measure.painter import Painter, View
from ui.tabs import tab_around

ATTEND = """
const start = () => window.backendArena?.attend
  ? window.backendArena.attend('measure', props, server, trigger, watch)
  : setTimeout(start, 30);
start();
"""
_DOWNLOAD_JS = """
() => {
  let tries = 30;
  const press = () => {
    const link = document.querySelector('#measure-download a[href], a#measure-download[href], #measure-download');
    if (link && link.offsetParent !== null) link.click();
    else if (tries-- > 0) setTimeout(press, 100);
  };
  setTimeout(press, 50);
}
"""
Chosen = Sequence[str] | None
SUITES = (("Quick", "quick"), ("Standard", "standard"), ("Sweep", "sweep"), ("Own file", "own"))
_QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "concurrency_limit": None,
    "trigger_mode": "multiple",
    "api_visibility": "private",
}


def build(desk: Desk, store: Store, library: Any) -> _Tab:
    """Lay out and wire the tab; call inside a Tab of the Blocks. Its `used` changes when a lane is to be used."""
    actions = Actions(desk, store, library)
    return _Tab(actions, Painter(desk, actions.tuning))


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose refusal reaches the person as a sentence and changes nothing else."""

    @wraps(function)
    def handler(*values: Any) -> Any:
        try:
            return function(*values)
        except (DeskError, StoreError, Refused, ProtocolError, suites.SuiteError) as error:
            raise gr.Error(fmt.text(error), title="Measure", print_exception=False) from error

    return handler


class _Tab:
    def __init__(self, actions: Actions, painter: Painter):
        self.actions, self.painter = actions, painter
        self.used = gr.State(None)
        """[engine, device, precision, model] that a person wants to use from now on."""
        with gr.Column(elem_id="measure"):
            self._build_setup()
            for name in ("progress", "verdicts", "lanes", "figures", "charts", "passes"):
                _slot(name)
            self._build_files()
            for name in ("beside", "where", "contract"):
                _slot(name)
            gr.HTML("<h2>All measurements</h2>", js_on_load=None)
            _slot("list")
            self.live = gr.HTML(
                View().text(),
                html_template="",
                js_on_load=ATTEND,
                server_functions=[_rpc(painter.changes)],
                elem_id="measure-live",
                container=False,
            )
        self._wire()

    # --- components ------------------------------------------------------------------------------------

    def _build_setup(self) -> None:
        self.own = gr.State(None)
        gr.HTML(
            "<h2>Which backend should run my model on this PC?</h2><p>Every lane gets the same tokens, the machine "
            "to itself and several turns, and its answers are checked before its speed is believed.</p>",
            js_on_load=None,
        )
        with gr.Column(elem_classes="card ms-setup"):
            with gr.Row(elem_classes="fields"):
                self.model = gr.Dropdown(
                    [], value=DEMO_MODEL, label="Model (or a Hugging Face id, or a folder)", allow_custom_value=True,
                    elem_id="measure-model", scale=3, min_width=260,
                )  # fmt: skip
                self.repeats = gr.Number(
                    5,
                    label="Repeats",
                    minimum=1,
                    maximum=50,
                    precision=0,
                    elem_id="measure-repeats",
                    min_width=90,
                )
            with gr.Row(elem_classes="bar"):
                self.suite = gr.Radio(
                    list(SUITES), value="quick", label="Suite", container=False, elem_id="measure-suite",
                    elem_classes="segmented",
                )  # fmt: skip
                self.file = gr.UploadButton(
                    "Choose the file of an own suite", size="sm", file_count="single", visible=False,
                    elem_id="measure-suite-file",
                )  # fmt: skip
            self.about = gr.HTML("", elem_id="measure-about", js_on_load=None)
            self.lanes = gr.CheckboxGroup(
                [], label="Lanes", elem_id="measure-lanes",
                info="Without AUTO, which is one of the others, and without servers, whose tokens cannot be known.",
            )  # fmt: skip
            with gr.Row(elem_classes="bar"):
                self.all = gr.Button("All lanes", size="sm", elem_id="measure-all")
                self.none = gr.Button("None", size="sm", elem_id="measure-none")
                self.keep = gr.Checkbox(
                    False, label="Let other lanes stay in memory", container=False, elem_id="measure-keep",
                    elem_classes="inline-check", min_width=80,
                )  # fmt: skip
            with gr.Accordion("Other weights", open=False, elem_id="measure-weights"):
                self.other = gr.CheckboxGroup(
                    [], label="Lanes of their own, converted when first measured", elem_id="measure-other",
                )  # fmt: skip
            self.estimate = gr.HTML("", elem_id="measure-estimate", js_on_load=None)
            with gr.Row(elem_classes="bar"):
                self.start = gr.Button(
                    "Start measuring", variant="primary", size="md", elem_id="measure-start"
                )

    def _build_files(self) -> None:
        with gr.Accordion("Report, comparison, import", open=False, elem_id="measure-files"):
            with gr.Row(elem_classes="hist-actions"):
                self.format = gr.Dropdown(list(FORMATS), value="html", label="Report as", filterable=False)
                self.private = gr.Checkbox(
                    False, label="With this PC's name, folders and own prompts", elem_id="measure-private"
                )
                self.save = gr.Button("Make the report", size="sm", elem_id="measure-save")
                self.download = gr.DownloadButton(
                    "Download", size="sm", visible=False, elem_id="measure-download"
                )
            with gr.Row(elem_classes="hist-actions"):
                self.beside = gr.Dropdown(
                    [], label="Compare with", filterable=False, elem_id="measure-beside-choice"
                )
                self.bring_in = gr.UploadButton(
                    "Import a measurement, or another benchmark's file", size="sm", file_count="single",
                    elem_id="measure-import",
                )  # fmt: skip

    # --- handlers --------------------------------------------------------------------------------------

    def _open(
        self, model: str, chosen: Chosen, other: Chosen, suite: str, own: Suite | None, repeats: float
    ) -> list[Any]:
        """The tab comes into sight: what can be measured now."""
        models = self.actions.models()
        return [gr.update(choices=models), *self._lanes_of(model, chosen, other, suite, own, repeats)]

    def _lanes_of(
        self, model: str, chosen: Chosen, other: Chosen, suite: str, own: Suite | None, repeats: float
    ) -> list[Any]:
        offered = self.actions.offered(model)
        kept = [spelling for spelling in chosen or () if spelling in offered] or self.actions.usual(offered)
        choices = [(self.actions.label(spelling, model), spelling) for spelling in offered]
        others = self.actions.variants(model)
        kept_others = [spelling for _, spelling in others if spelling in (other or ())]
        return [
            gr.update(choices=choices, value=kept),
            gr.update(choices=others, value=kept_others, visible=bool(others)),
            *self._said(model, kept, kept_others, suite, own, repeats),
        ]

    def _said(
        self, model: str, chosen: Chosen, other: Chosen, suite: str, own: Suite | None, repeats: float
    ) -> list[Any]:
        """What the suite is, and how long it will take."""
        try:
            picked = self.actions.suite(suite, own, repeats)
        except Refused as error:
            return [f'<p class="ms-note">{fmt.text(error)}</p>', "", gr.update(visible=suite == "own")]
        said = self.actions.estimate(model, (*(chosen or ()), *(other or ())), picked)
        return [
            f'<p class="ms-note">{fmt.text(self.actions.about(picked))}</p>',
            f'<p class="notice info" role="status">{fmt.text(said)}</p>',
            gr.update(visible=suite == "own"),
        ]

    def _all(self, model: str, other: Chosen, suite: str, own: Suite | None, repeats: float) -> list[Any]:
        offered = self.actions.offered(model)
        return [gr.update(value=offered), *self._said(model, offered, other, suite, own, repeats)]

    def _none(self, model: str, suite: str, own: Suite | None, repeats: float) -> list[Any]:
        cleared = [gr.update(value=[]) for _ in range(2)]  # an update each: Gradio takes them apart
        return [*cleared, *self._said(model, [], [], suite, own, repeats)]

    def _take_suite(
        self, path: str | None, model: str, chosen: Chosen, other: Chosen, suite: str, repeats: float
    ) -> list[Any]:
        own = self.actions.read_suite(path)
        return [own, *self._said(model, chosen, other, suite, own, repeats)]

    def _start(
        self,
        view: str,
        model: str,
        chosen: Chosen,
        other: Chosen,
        suite: str,
        own: Suite | None,
        repeats: float,
        keep: bool,
    ) -> str:
        picked = self.actions.suite(suite, own, repeats)
        self.actions.start(model, (*(chosen or ()), *(other or ())), picked, bool(keep))
        return self._looks_at(view, shown="")

    def _act(self, view: str, event: gr.EventData) -> list[Any]:
        """A button in a slot."""
        found = event._data if isinstance(event._data, dict) else {}
        act, value = (str(found.get(name) or "")[:400] for name in ("act", "value"))
        looked_at = self.painter.shown(View.of(view))
        if act == "use":
            target = self.actions.use(looked_at, value)
            used = [target.engine, target.device, target.precision, target.model]
            return [self._looks_at(view), gr.skip(), used]
        if act in ("ask-delete", "keep"):
            return [self._looks_at(view, deleting=value), gr.skip(), gr.skip()]
        shown = self.actions.do(act, value, looked_at)
        changes = {} if shown is None else {"shown": shown}
        return [self._looks_at(view, **changes), self._comparable(), gr.skip()]

    def _compare(self, view: str, beside: str | None) -> str:
        return self._looks_at(view, beside=beside or "")

    def _comparable(self) -> Any:
        return gr.update(choices=[("nothing", ""), *self.actions.comparable()])

    def _save(self, view: str, kind: str, private: bool) -> Any:
        looked_at = View.of(view)
        beside = self.actions.found(looked_at.beside) if looked_at.beside else None
        path = self.actions.report(self.painter.shown(looked_at), kind, bool(private), beside)
        return gr.update(
            value=str(path), label=f"Download {path.name} ({fmt.size(path.stat().st_size)})", visible=True
        )

    def _import(self, view: str, path: str | None) -> list[Any]:
        try:
            said, shown = self.actions.bring_in(path, self.painter.shown(View.of(view)))
        finally:
            if path:
                Path(path).unlink(missing_ok=True)
        gr.Info(fmt.text(said), title="Measure")
        return [self._looks_at(view, **({} if shown is None else {"shown": shown})), self._comparable()]

    def _looks_at(self, view: str, **changes: str) -> str:
        """What the browser tab looks at from now on; counted on, so that it asks at once."""
        old = View.of(view)
        return replace(
            old,
            shown=changes.get("shown", old.shown),
            beside=changes.get("beside", old.beside),
            deleting=changes.get("deleting", ""),
            asked=old.asked + 1,
        ).text()

    # --- wiring ----------------------------------------------------------------------------------------

    def _wire(self) -> None:
        choice = [self.model, self.lanes, self.other, self.suite, self.own, self.repeats]
        both = [self.lanes, self.other]
        said = [self.about, self.estimate, self.file]
        rest = [self.suite, self.own, self.repeats]
        opened = told(self._open)
        tab = tab_around()
        if tab is not None:
            tab.select(opened, choice, [self.model, *both, *said], **_QUIET)
            tab.select(self._comparable, None, self.beside, **_QUIET)
        self.model.change(told(self._lanes_of), choice, [*both, *said], **_QUIET)
        gr.on(
            [self.lanes.input, self.other.input, self.suite.input, self.repeats.change],
            told(self._said), choice, said, **_QUIET,
        )  # fmt: skip
        self.all.click(told(self._all), [self.model, self.other, *rest], [self.lanes, *said], **_QUIET)
        self.none.click(told(self._none), [self.model, *rest], [*both, *said], **_QUIET)
        taken = [self.file, self.model, self.lanes, self.other, self.suite, self.repeats]
        self.file.upload(told(self._take_suite), taken, [self.own, *said], **_QUIET)
        self.start.click(told(self._start), [self.live, *choice, self.keep], self.live, **_QUIET)
        self.live.click(_with_event(self._act), self.live, [self.live, self.beside, self.used], **_QUIET)
        self.beside.input(told(self._compare), [self.live, self.beside], self.live, **_QUIET)
        saved = self.save.click(
            told(self._save), [self.live, self.format, self.private], self.download, **_QUIET
        )
        saved.success(None, None, None, js=_DOWNLOAD_JS, api_visibility="private")
        self.bring_in.upload(
            told(self._import), [self.live, self.bring_in], [self.live, self.beside], **_QUIET
        )


def _with_event(function: Callable[[str, gr.EventData], Any]) -> Callable[[str, gr.EventData], Any]:
    """`told` hides the annotation by which Gradio hands over the event, so this one spells it out."""

    def handler(view: str, event: gr.EventData) -> Any:
        return told(function)(view, event)

    return handler


def _rpc(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A plain function, as Gradio wants to mark those that a browser may call."""

    def changes(asked: dict[str, Any]) -> dict[str, Any]:
        return answer(asked if isinstance(asked, dict) else {})

    return changes


def _slot(name: str) -> gr.HTML:
    """A place that page.js draws into; Gradio itself never changes it."""
    return gr.HTML(f'<div class="slot" data-slot="measure-{name}"></div>', js_on_load=None)
