"""One model for all panels: the chooser above them, and the offer of a real model after the first comparison.

The chooser is a list to look at, in the page's flow, so it opens over nothing. The offer names the best real model
that fits this PC and what it costs; its button gets it for every backend, and when it is ready the first prompt runs
on it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import gradio as gr

from engines.models import catalogue
from engines.models.overview import Row, best_for, overview, row_for
from engines.models.plan import duration, size
from engines.models.together import Backend, JointPlan, backends, plan_together
from engines.protocol import DEMO_MODEL
from ui import format as fmt
from ui.compare.browser_tab import Desk, Notice, Page
from ui.models import html
from ui.models.background import ModelWork

_OFFERED = "compare.offered"
_FIRST_SETTINGS = (None, 256, 0, None, None, None, None)


class Compare(Protocol):
    """What is needed of the Compare tab."""

    desk: Desk
    actions: Any
    parts: Any

    def _layout(self, page: Page) -> list[Any]: ...

    def _layout_outputs(self) -> list[Any]: ...

    def _then_show(self, event: Any) -> Any: ...


def build(named: dict[str, Any]) -> None:
    """Lay out the chooser and the offer; call where they are to stand."""
    with gr.Row(elem_classes="bar", elem_id="model-bar"):
        named["model_button"] = gr.Button("Model for all panels", size="sm", elem_id="model-button")
    with gr.Column(visible=False, elem_id="model-list", elem_classes="card") as named["model_list"]:
        named["model_choices"] = gr.HTML("", elem_id="model-choices", js_on_load=html.PICK)
    with gr.Column(visible=False, elem_id="offer", elem_classes="card welcome") as named["offer"]:
        named["offer_text"] = gr.HTML("", elem_id="offer-text", js_on_load=None)
        with gr.Row(elem_classes="bar"):
            named["offer_get"] = gr.Button(
                "Get it for all my backends", variant="primary", size="md", elem_id="offer-get"
            )
            named["offer_no"] = gr.Button("Not now", size="md", elem_id="offer-no")
            named["offer_stop"] = gr.Button("Stop", size="md", elem_id="offer-stop", visible=False)
    named["offer_model"] = gr.State(None)  # stays on the server
    named["offer_timer"] = gr.Timer(0.7, active=False)


class ModelMenu:
    """Handlers and wiring of the chooser and the offer."""

    def __init__(self, compare: Compare, work: ModelWork, quiet: dict[str, Any]):
        self._compare, self._desk, self._work = compare, compare.desk, work
        self._wire(compare.parts, quiet)

    # --- the chooser ---------------------------------------------------------------------------------------

    def title(self, page: Page) -> str:
        """What the button says: the model of the panels, and how far it is."""
        models = {target.model for target in page.chosen().values()}
        if len(models) != 1:
            return "Model for all panels: several ▾"
        model = next(iter(models))
        row = row_for(self._desk.library, model, self._panel_backends(page))
        return f"Model for all panels: {row.title if model != DEMO_MODEL else 'Demo'} · {row.summary} ▾"

    def _models_changed(self, is_open: bool, request: gr.Request) -> list[Any]:
        """A download, conversion, import or removal has ended, on this page or elsewhere: say it anew."""
        page = self._desk.page(request)
        return [self._choices(page) if is_open else gr.skip(), *self._compare._layout(page)]

    def _choices(self, page: Page) -> str:
        rows = overview(self._desk.library, self._panel_backends(page))
        models = {target.model for target in page.chosen().values()}
        return html.choice_list(rows, next(iter(models)) if len(models) == 1 else None)

    def _panel_backends(self, page: Page) -> tuple[Backend, ...]:
        offer = self._desk.offer()
        found = [(t, spec) for t in page.chosen().values() if (spec := offer.spec(t.engine)) is not None]
        return tuple(Backend(target, spec) for target, spec in found if not spec.model_elsewhere)

    def _toggle(self, is_open: bool, request: gr.Request) -> list[Any]:
        page = self._desk.page(request)
        if is_open:
            return [gr.update(visible=False), gr.skip(), False]
        return [gr.update(visible=True), self._choices(page), True]

    def _pick(self, event: gr.EventData, request: gr.Request) -> list[Any]:
        page = self._desk.page(request)
        self.set_model(page, str(event._data.get("model") or DEMO_MODEL))
        return [gr.update(visible=False), False, *self._compare._layout(page)]

    def set_model(self, page: Page, model: str) -> None:
        """Every panel that loads models gets this one; a folder's own precision goes with it."""
        offer = self._desk.offer()
        for panel in page.targets:
            target = page.targets[panel]
            spec = offer.spec(target.engine)
            if spec is None or spec.model_elsewhere:
                continue
            wanted = dataclasses.replace(target, model=model)
            page.targets[panel] = self._desk.library.as_stated(wanted, spec)
        self._compare.actions.keep_panels(page)

    # --- the offer -----------------------------------------------------------------------------------------

    def _all_backends(self, model: str) -> tuple[Backend, ...]:
        offer = self._desk.offer()
        return backends(model, offer.specs, offer.availability)

    def after_turn(self, page: Page) -> list[Any]:
        """Updates of `after_turn_outputs`: the offer, its timer, the button (a reply may have got a model ready)."""
        return [*self._offer(page), self._timer_of(), gr.update(value=self.title(page))]

    def after_turn_outputs(self) -> list[Any]:
        parts = self._compare.parts
        return [*self._card(parts), parts.offer_timer, parts.model_button]

    def _offer(self, page: Page) -> list[Any]:
        """After the first comparison on the demo model; also for a page that comes back while it is being got."""
        if self._work.view().running and self._work.has_follow_up:
            return self._watching()
        if not self._is_due(page):
            return [gr.skip()] * 6
        row = best_for(self._desk.library, self._all_backends(DEMO_MODEL))
        if row is None:
            return [gr.skip()] * 6
        together = plan_together(self._desk.library, self._all_backends(row.model))
        if together.refusal is not None:
            return [gr.skip()] * 6
        return [
            gr.update(visible=True),
            offer_text(row, together),
            row.model,
            gr.update(visible=True),
            gr.update(visible=True),
            gr.update(visible=False),
        ]

    def _is_due(self, page: Page) -> bool:
        if page.blind or self._desk.setting(_OFFERED) or self._work.view().running:
            return False
        talk = self._desk.talk(page)
        runs = [run for turn in talk.turns for run in turn.runs] if talk else []
        return bool(runs) and all(run.target.model == DEMO_MODEL and run.view().done for run in runs)

    def _get(self, model: str | None, request: gr.Request) -> list[Any]:
        page = self._desk.page(request)
        talk = self._desk.talk(page)
        prompt = talk.turns[0].prompt if talk and talk.turns else None
        self._desk.keep(_OFFERED, True)
        if not model or not self._work.start(self._all_backends(model), follow_up=prompt):
            page.notice = Notice(
                "Something else is at work on the Models tab. Wait for it, or stop it there.", "warn"
            )
            return [gr.skip()] * 6
        return self._watching()

    def _watching(self) -> list[Any]:
        """Text, Get and Not now, Stop, timer while the model is on its way."""
        return [
            gr.update(visible=True),
            f"<h2>Getting {fmt.text(_title(self._work.view().model))}</h2>{html.progress(self._work.view())}",
            gr.skip(),
            gr.update(visible=False),
            gr.update(visible=False),
            gr.update(visible=True),
        ]

    def _timer_of(self) -> Any:
        return gr.Timer(active=self._work.view().running and self._work.has_follow_up)

    def _tick(self, request: gr.Request) -> list[Any]:
        view = self._work.view()
        layout: list[Any] = [gr.skip()] * len(self._compare._layout_outputs())
        if view.running:
            return [*self._watching(), gr.skip(), *layout]
        prompt = self._work.claim_follow_up()
        page = self._desk.page(request)
        stop = gr.Timer(active=False)
        if prompt is None or not view.ready or view.model is None:
            text = f"<h2>{fmt.text(_title(view.model))}</h2>{html.progress(view)}"
            gone = gr.update(visible=False)
            close = gr.update(visible=True, value="Close")
            return [gr.update(visible=bool(view.parts)), text, None, gone, close, gone, stop, *layout]
        self._run_on(page, view.model, prompt)
        hidden = gr.update(visible=False)
        return [hidden, "", None, gr.skip(), gr.skip(), gr.skip(), stop, *self._compare._layout(page)]

    def _run_on(self, page: Page, model: str, prompt: str) -> None:
        """The first prompt again, on the real model, in a conversation of its own."""
        ready = {part.target.spelling for part in self._work.view().ready}
        self._compare.actions.new_conversation(page)
        self.set_model(page, model)
        able = [panel for panel in page.shown if page.targets[panel].spelling in ready]
        page.shown = able or page.shown
        self._compare.actions.send(page, prompt, None, "together", _FIRST_SETTINGS)

    def _no(self) -> Any:
        self._desk.keep(_OFFERED, True)
        return gr.update(visible=False)

    @staticmethod
    def _card(parts: Any) -> list[Any]:
        return [
            *(parts.offer, parts.offer_text, parts.offer_model),
            *(parts.offer_get, parts.offer_no, parts.offer_stop),
        ]

    # --- wiring --------------------------------------------------------------------------------------------

    def _wire(self, parts: Any, quiet: dict[str, Any]) -> None:
        layout = self._compare._layout_outputs()
        is_open = gr.State(False)
        card = self._card(parts)
        parts.model_button.click(
            self._toggle, is_open, [parts.model_list, parts.model_choices, is_open], **quiet
        )
        picked = parts.model_choices.click(self._pick, None, [parts.model_list, is_open, *layout], **quiet)
        self._compare._then_show(picked)
        # Not `load`: that comes by itself with every page, which is told everything by its own load event.
        told = parts.live.select(self._models_changed, is_open, [parts.model_choices, *layout], **quiet)
        self._compare._then_show(told)
        got = parts.offer_get.click(self._get, parts.offer_model, card, **quiet)
        self._compare._then_show(got.then(self._timer_of, None, parts.offer_timer, **quiet))
        parts.offer_no.click(self._no, None, parts.offer, **quiet)
        parts.offer_stop.click(self._work.stop, None, None, queue=False, api_visibility="private")
        ticked = parts.offer_timer.tick(self._tick, None, [*card, parts.offer_timer, *layout], **quiet)
        self._compare._then_show(ticked)


def offer_text(row: Row, together: JointPlan) -> str:
    """What the best real model is, and what it costs."""
    count = f"{html.parameters(row)} parameters"
    return (
        f"<h2>Now a real model: {fmt.text(row.title)}</h2>"
        f"<p>That was the demo model. The best real one that fits this PC is <strong>{fmt.text(row.title)}</strong> "
        f"({count}; {fmt.text(row.note)}). It runs on {len(together.possible)} of {len(together.plans)} backends "
        "here.</p>"
        f"<p>It costs {size(together.download_bytes)} to download, {size(together.disk_bytes)} of disk, up to "
        f"{size(together.peak_bytes)} of memory while it is converted, and about "
        f"{duration(together.seconds)}. When it is ready, your prompt runs on it.</p>"
    )


def _title(model: str | None) -> str:
    entry = catalogue.find(model) if model else None
    return entry.title if entry else (model or "")
