"""The Compare tab: one prompt, every backend, side by side.

Components come from components, what the buttons do from actions, what is shown from painter and panel_html; here
they are wired. Every action is a short handler, after which the browser asks what has changed. Replies belong to the
conversation, not to the tab: a reload finds them again by the id in the address.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from engines.hardware import machine_facts
from engines.models.library import ModelLibrary
from engines.protocol import Target
from engines.runtime.manager import EngineManager
from storage.store import Store
from ui import format as fmt
from ui.chat.turns import Turns
from ui.compare.actions import Actions, fields_of, read_attachment, told_by_browser
from ui.compare.browser_tab import PANELS, Desk, Notice, Page, fill_up
from ui.compare.components import (
    ALL_PANELS,
    ASK_NOW,
    EXAMPLES,
    LOADED,
    READ_ADDRESS,
    SAMPLING,
    SENDING,
    TAKEN,
    WRITE_NOW,
    PanelParts,
    Parts,
    build_parts,
)
from ui.compare.model_menu import ModelMenu
from ui.compare.offer import ignored_settings
from ui.compare.painter import Painter
from ui.compare.summary_html import lines, pair_difference
from ui.compare.welcome import welcome_text
from ui.models.background import ModelWork


def build(
    manager: EngineManager, store: Store, turns: Turns, library: ModelLibrary, work: ModelWork | None = None
) -> Compare:
    """Build the tab inside the Blocks; its `load` is to be wired to the Blocks' load."""
    return Compare(Desk(manager, store, turns, library), work or ModelWork(library))


class Compare:
    """Components, handlers and wiring of one Compare tab."""

    def __init__(self, desk: Desk, work: ModelWork):
        self.desk = desk
        self.actions = Actions(desk)
        self.painter = Painter(desk, time.monotonic)
        self.parts: Parts = build_parts(desk, _rpc(self._changes))
        self._wire_prompt()
        self._wire_panels()
        self._wire_toolbar()
        self.models = ModelMenu(self, work, _QUIET)
        self._wire_after_turn()
        self._wire_welcome()

    # --- helpers ---------------------------------------------------------------------------------------

    def _then_show(self, event: Any) -> Any:
        """Let the browser ask at once what an event has changed; returns the event after it was told to."""
        return event.then(None, None, None, js=ASK_NOW, api_visibility="private")

    def _changes(self, asked: dict[str, Any]) -> dict[str, Any]:
        """For the browser's questions (page.js): what is new for the page of this key."""
        page = self.desk.pages.by_key(str(asked.get("key")))
        if page is None:
            return {"slots": {}, "running": False, "gone": True}
        changes = self.painter.changes(page, everything=bool(asked.get("everything")))
        return {**changes, "now": time.monotonic()}

    def _settle(self, request: gr.Request) -> list[Any]:
        """A turn has ended: the vote and the comparison under the panels."""
        return self.painter.settle(self.desk.page(request))

    def _offer_after_turn(self, request: gr.Request) -> list[Any]:
        """And what may have to ask the Hub, seconds long: the offer of a real model, the model's button."""
        return self.models.after_turn(self.desk.page(request))

    def _settled(self) -> list[Any]:
        """What is about the newest turn."""
        parts = self.parts
        return [parts.vote, parts.diff_one, parts.diff_other, parts.diff_text]

    def _menus(self, page: Page, panel: int, models: list[tuple[str, str]]) -> list[Any]:
        """Updates for one panel's four menus and its notice."""
        offer, target = self.desk.offer(), page.targets[panel]
        if served := offer.models_of(target.engine, target.device):
            models = [(name, name) for name in served]
        trouble = offer.trouble(target)
        why = ""
        if trouble:
            why = f'<p class="notice warn">{fmt.text(trouble.reason)} {fmt.text(trouble.remedy or "")}</p>'
        elif (spec := offer.spec(target.engine)) and (brief := self.desk.library.brief(target, spec)):
            why = f'<p class="notice">{fmt.text(brief)}</p>'
        menus = (
            (offer.engine_choices(), target.engine),
            (offer.device_choices(target.engine), target.device),
            (offer.precision_choices(target.engine, target.device), target.precision),
        )
        return [
            *(gr.update(choices=offer.holding(choices, chosen), value=chosen) for choices, chosen in menus),
            gr.update(choices=models, value=target.model),
            why,
        ]

    def _menu_outputs(self, panel: int) -> list[Any]:
        return [*self.parts.panels[panel].menus, self.parts.panels[panel].why]

    def _layout_outputs(self) -> list[Any]:
        """What changes with the set of panels: columns, menus, recipients, settings, buttons."""
        parts, panels = self.parts, self.parts.panels.values()
        menus = [output for panel in PANELS for output in self._menu_outputs(panel)]
        return [
            *(panel.column for panel in panels),
            *(panel.setup for panel in panels),
            *menus,
            *(parts.to_panel, parts.add, parts.blind, *parts.sampling(), parts.ignored, parts.model_button),
        ]

    def _layout(self, page: Page) -> list[Any]:
        page.models_seen = self.desk.library.stamp()
        offer = self.desk.offer()
        models = self.desk.model_choices()
        menus = (
            [] if page.blind else [update for panel in PANELS for update in self._menus(page, panel, models)]
        )
        specs = [spec for t in page.chosen().values() if (spec := offer.spec(t.engine))]
        ignored = ignored_settings(specs)
        naming = self.desk.naming(page)
        to = [(f"Only {panel} · {naming.engine(panel, t)}", str(panel)) for panel, t in page.chosen().items()]
        return [
            *(gr.update(visible=panel in page.shown) for panel in PANELS),
            *(gr.update(visible=not page.blind) for _ in PANELS),
            *(menus or [gr.skip()] * (5 * len(PANELS))),
            gr.update(
                choices=[("All panels", ALL_PANELS), *to],
                value=str(page.only) if page.only in page.shown else ALL_PANELS,
            ),
            gr.update(interactive=len(page.shown) < len(PANELS)),
            gr.update(value=page.blind),
            *(gr.update(interactive=len(ignored.get(name, ())) < max(1, len(specs))) for name in SAMPLING),
            _ignored_text(ignored),
            gr.update(value=self.models.title(page)),
        ]

    # --- loading ---------------------------------------------------------------------------------------

    def wire_load(self, demo: gr.Blocks) -> None:
        """On every page load: show what is there at once, then what the engines say, then what runs."""
        parts = self.parts
        outputs = [*self._layout_outputs(), parts.live]
        # Few events with many outputs: each one costs the browser a walk over everything it shows.
        loaded = [*outputs, *parts.settings(), *self._settled()]
        first = demo.load(self._load, parts.conversation, loaded, js=READ_ADDRESS, **_QUIET)
        welcome = [parts.welcome, parts.welcome_text]
        known = [*self._layout_outputs(), *welcome, *self.models.after_turn_outputs()]
        probed = first.then(self._probe, None, known, **_QUIET)
        probed.then(None, None, None, js=LOADED, api_visibility="private")
        demo.unload(self._unload)
        back = parts.live.retry(self._come_back, parts.conversation, outputs, js=READ_ADDRESS, **_QUIET)
        self._then_show(back)
        self._then_show(back.then(self._probe, None, known, **_QUIET))

    def _load(self, conversation_id: str, request: gr.Request) -> list[Any]:
        page = self.desk.pages.put(request.session_hash or "none", self.desk.fresh_page())
        if conversation_id:
            self.actions.open(page, str(conversation_id)[:64])
        return [*self._layout(page), page.key, *self._settings_shown(page), *self.painter.settle(page)]

    def _settings_shown(self, page: Page) -> list[Any]:
        """Updates of the settings: those that the conversation went on with last, the system prompt above all."""
        talk = self.desk.talk(page)
        latest = talk.latest() if talk else None
        if latest is None or latest.settings is None:
            return [gr.skip()] * len(self.parts.settings())
        return [gr.update(value=value) for value in fields_of(latest.settings)]

    def _come_back(self, conversation_id: str, request: gr.Request) -> list[Any]:
        """For a tab whose page is not known (any more): what it showed, under a new key."""
        page = self._page(request, conversation_id)
        return [*self._layout(page), page.key]

    def _page(self, request: gr.Request, conversation_id: str) -> Page:
        """This tab's page; where it is not known, a fresh one of the conversation that the tab shows."""
        session = request.session_hash or "none"
        page = self.desk.pages.get(session)
        if page is None:
            page = self.desk.pages.put(session, self.desk.fresh_page())
            if conversation_id:
                self.actions.open(page, str(conversation_id)[:64])
        return page

    def _probe(self, request: gr.Request) -> list[Any]:
        """What the engines say, once they have; the welcome, and the offer of a real model where it is due."""
        self.desk.manager.availability()
        page = self.desk.page(request)
        was_unknown, page.is_guess = page.is_guess, False
        if was_unknown and page.conversation_id is None and not self.desk.setting("compare.panels"):
            fresh = self.desk.fresh_page()
            page.targets, page.shown = fresh.targets, fresh.shown
        elif was_unknown:
            offer = self.desk.offer()
            settled = {
                p: offer.settle(t.engine, t.device, t.precision, t.model) for p, t in page.chosen().items()
            }
            page.targets = fill_up(settled, offer)
        # What was known when the page was loaded stands there already.
        layout = self._layout(page) if was_unknown else [gr.skip()] * len(self._layout_outputs())
        return [*layout, *self._welcome(page), *self.models.after_turn(page)]

    def _unload(self, request: gr.Request) -> None:
        self.desk.pages.drop(request.session_hash or "none")

    def open_conversation(self, conversation_id: str, request: gr.Request) -> list[Any]:
        """For the History tab: show a conversation here, with the settings it went on with last."""
        page = self.desk.page(request)
        if conversation_id:
            self.actions.open(page, str(conversation_id)[:64])
        return [*self._layout(page), *self._settings_shown(page)]

    def shown_targets(self, request: gr.Request) -> list[Target]:
        """The targets that this tab's panels are set to, and that can run here."""
        offer = self.desk.offer()
        return [target for target in self.desk.page(request).chosen().values() if not offer.trouble(target)]

    def wire_open(self, conversation: gr.State) -> Any:
        """Show a conversation here whenever `conversation` changes; returns the event after it is shown."""
        return self._then_show(
            conversation.change(
                self.open_conversation,
                conversation,
                [*self._layout_outputs(), *self.parts.settings()],
                **_QUIET,
            )
        )

    def use_lane(self, lane: list[str] | None, request: gr.Request) -> list[Any]:
        """For the Measure tab: a lane as the first panel, here and on every later start."""
        page = self.desk.page(request)
        if lane:
            self.actions.choose(page, page.shown[0], *lane)
        return self._layout(page)

    def wire_use(self, lane: gr.State) -> Any:
        """Make a lane the first panel whenever `lane` changes; returns the event after it is shown."""
        return self._then_show(lane.change(self.use_lane, lane, self._layout_outputs(), **_QUIET))

    # --- prompt ----------------------------------------------------------------------------------------

    def _wire_prompt(self) -> None:
        parts = self.parts
        inputs = [parts.prompt, parts.attachment, parts.mode, *parts.settings(), parts.conversation]
        outputs = [parts.prompt, parts.attachment, parts.detach, parts.welcome]
        sent = gr.on(
            [parts.send.click, parts.prompt.submit], self._send, inputs, outputs, js=SENDING, **_AT_ONCE
        )
        sent.then(None, None, None, js=TAKEN, api_visibility="private")
        parts.to_panel.input(self._send_to, parts.to_panel, None, **_QUIET)
        parts.stop_all.click(self._stop_all, None, None, **_AT_ONCE)
        attached = parts.attach.upload(self._attach, parts.attach, [parts.attachment, parts.detach], **_QUIET)
        self._then_show(attached)
        parts.detach.click(
            lambda: (None, gr.update(visible=False)), None, [parts.attachment, parts.detach], **_QUIET
        )
        for button, (_, text) in zip(parts.examples, EXAMPLES, strict=True):
            button.click(
                None,
                None,
                parts.prompt,
                js=f"() => {{ document.querySelector('#prompt textarea')?.focus(); return {text!r}; }}",
                show_progress="hidden",
                api_visibility="private",
            )

    def _send(
        self, request: gr.Request, prompt: str, attachment: str | None, mode: str, *fields: Any
    ) -> list[Any]:
        *settings, sending = fields
        told = told_by_browser(sending)
        page = self._page(request, told.conversation_id)
        if not self.actions.send(page, prompt, attachment, mode, tuple(settings), told.pressed_at):
            return [gr.skip()] * 4
        self.desk.keep("compare.welcomed", True)
        return ["", None, gr.update(visible=False), gr.update(visible=False)]

    def _send_to(self, choice: Any, request: gr.Request) -> None:
        self.desk.page(request).only = int(choice) if str(choice).isdigit() else None

    def _stop_all(self, request: gr.Request) -> None:
        self.actions.stop(self.desk.page(request))

    def _attach(self, path: str | None, request: gr.Request) -> list[Any]:
        page = self.desk.page(request)
        text, problem = read_attachment(path)
        page.notice = Notice(problem, "warn") if problem else None
        name = fmt.shorten(text.partition("\n")[0], 30) if text else ""
        return [text, gr.update(visible=bool(text), value=f"Remove {name}")]

    # --- panels ----------------------------------------------------------------------------------------

    def _wire_panels(self) -> None:
        for panel, parts in self.parts.panels.items():
            chosen = gr.on(
                [menu.input for menu in parts.menus],
                self._chooser(panel),
                parts.menus,
                self._layout_outputs(),
                **_QUIET,
            )
            self._then_show(chosen)
            self._wire_panel_buttons(panel, parts)

    def _wire_panel_buttons(self, panel: int, parts: PanelParts) -> None:
        actions = self.actions
        parts.stop.click(self._doing(lambda page: actions.stop(page, panel)), None, None, **_AT_ONCE)
        for button, act in (
            (parts.retry, lambda page: actions.retry(page, panel)),
            (parts.carry_on, lambda page: actions.carry_on(page, panel)),
            (parts.unload, lambda page: actions.unload(page, panel)),
        ):
            self._then_show(button.click(self._doing(act), None, None, **_QUIET))
        removed = parts.remove.click(
            self._relaying(lambda page: actions.remove_panel(page, panel)),
            None,
            self._layout_outputs(),
            **_QUIET,
        )
        self._then_show(removed)
        parts.show_log.click(self._log_shower(panel), None, parts.log, **_QUIET)

    def _chooser(self, panel: int) -> Callable[..., list[Any]]:
        def choose(engine: str, device: str, precision: str, model: str, request: gr.Request) -> list[Any]:
            page = self.desk.page(request)
            self.actions.choose(page, panel, engine, device, precision, model)
            return self._layout(page)

        return choose

    def _doing(self, act: Callable[[Page], Any]) -> Callable[..., None]:
        def do(request: gr.Request) -> None:
            act(self.desk.page(request))

        return do

    def _relaying(self, act: Callable[[Page], Any]) -> Callable[..., list[Any]]:
        def do(request: gr.Request) -> list[Any]:
            page = self.desk.page(request)
            act(page)
            return self._layout(page)

        return do

    def _log_shower(self, panel: int) -> Callable[..., Any]:
        def show(request: gr.Request) -> Any:
            return gr.update(value=self.actions.log_of(self.desk.page(request), panel), visible=True)

        return show

    # --- toolbar ---------------------------------------------------------------------------------------

    def _wire_toolbar(self) -> None:
        parts, actions, layout = self.parts, self.actions, self._layout_outputs()
        self._then_show(parts.add.click(self._relaying(actions.add_panel), None, layout, **_QUIET))
        self._then_show(parts.new.click(self._relaying(actions.new_conversation), None, layout, **_QUIET))
        edited = parts.edit.click(self._edit, parts.prompt, parts.prompt, **_QUIET)
        edited.then(None, None, None, js=WRITE_NOW, api_visibility="private")
        self._then_show(parts.blind.input(self._set_blind, parts.blind, layout, **_QUIET))
        parts.sets_button.click(self._toggle_sets, parts.set_name, [parts.sets, parts.set_name], **_QUIET)
        self._then_show(parts.save_set.click(self._save_set, parts.set_name, parts.set_name, **_QUIET))
        self._then_show(parts.delete_set.click(self._delete_set, parts.set_name, parts.set_name, **_QUIET))
        used = parts.use_set.click(self._use_set, parts.set_name, layout, **_QUIET)
        self._then_show(used)

    def _edit(self, typed: str, request: gr.Request) -> Any:
        text = self.actions.edit_last(self.desk.page(request), typed or "")
        return gr.skip() if text is None else text

    def _set_blind(self, blind: bool, request: gr.Request) -> list[Any]:
        page = self.desk.page(request)
        if blind:
            self.actions.new_conversation(page)
        self.actions.set_blind(page, bool(blind))
        if blind:
            page.notice = Notice("Blind: the backends are shuffled and stay hidden until you vote on a turn.")
        else:
            page.notice = None
        return self._layout(page)

    def _toggle_sets(self, name: str | None) -> list[Any]:
        return [gr.update(visible=True), gr.update(choices=self.actions.set_names())]

    def _save_set(self, name: str, request: gr.Request) -> Any:
        saved = self.actions.save_set(self.desk.page(request), name)
        return gr.update(choices=self.actions.set_names(), value=saved) if saved else gr.skip()

    def _delete_set(self, name: str, request: gr.Request) -> Any:
        self.actions.delete_set(self.desk.page(request), name)
        return gr.update(choices=self.actions.set_names(), value=None)

    def _use_set(self, name: str, request: gr.Request) -> list[Any]:
        page = self.desk.page(request)
        self.actions.use_set(page, name)
        return self._layout(page)

    # --- after a turn ----------------------------------------------------------------------------------

    def _wire_after_turn(self) -> None:
        parts = self.parts
        self._then_show(parts.vote.input(self._vote, parts.vote, self._layout_outputs(), **_QUIET))
        pair = [parts.diff_one, parts.diff_other]
        settled = parts.live.submit(self._settle, None, self._settled(), **_QUIET)
        settled.then(self._offer_after_turn, None, self.models.after_turn_outputs(), **_QUIET)
        gr.on([part.input for part in pair], self._difference, pair, parts.diff_text, **_QUIET)

    def _vote(self, winner: str, request: gr.Request) -> list[Any]:
        page = self.desk.page(request)
        self.actions.vote(page, str(winner))
        return self._layout(page)

    def _difference(self, one: Any, other: Any, request: gr.Request) -> str:
        talk = self.desk.talk(self.desk.page(request))
        latest = talk.latest() if talk else None
        return pair_difference(lines(latest) if latest else [], one, other)

    # --- welcome ---------------------------------------------------------------------------------------

    def _wire_welcome(self) -> None:
        parts = self.parts
        self._then_show(parts.first_run.click(self._first_run, None, [parts.welcome], **_QUIET))
        parts.dismiss.click(self._dismiss, None, parts.welcome, **_QUIET)

    def _welcome(self, page: Page) -> list[Any]:
        if self.desk.setting("compare.welcomed") or page.conversation_id:
            return [gr.update(visible=False), ""]
        return [gr.update(visible=True), welcome_text(self.desk.offer(), machine_facts())]

    def _first_run(self, request: gr.Request) -> Any:
        page = self.desk.page(request)
        fields = (None, 256, 0, None, None, None, None)
        sent = self.actions.send(page, EXAMPLES[-1][1], None, "together", fields)
        if sent:
            self.desk.keep("compare.welcomed", True)
        return gr.update(visible=not sent)

    def _dismiss(self) -> Any:
        self.desk.keep("compare.welcomed", True)
        return gr.update(visible=False)


def _rpc(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A plain function, as Gradio wants to mark those that a browser may call."""

    def changes(asked: dict[str, Any]) -> dict[str, Any]:
        return answer(asked if isinstance(asked, dict) else {})

    return changes


def _ignored_text(ignored: dict[str, list[str]]) -> str:
    names = {"top_p": "Top-p", "top_k": "Top-k", "repetition_penalty": "Repetition penalty"}
    said = [
        f"{names.get(name, name.capitalize())} is not honoured by {', '.join(dict.fromkeys(titles))}."
        for name, titles in ignored.items()
    ]
    return "".join(f'<p class="notice info">{fmt.text(text)}</p>' for text in said)


_QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "concurrency_limit": None,
    "trigger_mode": "multiple",
    "api_visibility": "private",
}
"""Handlers of the page itself: no spinners over the panels, tabs never wait for each other, no public API."""
_AT_ONCE: dict[str, Any] = {**_QUIET, "queue": False}
"""Send and Stop do not stand in any line."""
