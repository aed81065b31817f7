"""The visitors' page: the panels that the owner opened, a prompt, their own conversations, and nothing else.

A page and a server of its own, so that there is no handler of the owner's behind it that could be called, and no
path, log or setting in what is sent to the browser. What it shares with the Compare tab is what draws the panels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from engines.protocol import Target
from engines.runtime.manager import EngineManager, TargetState
from storage.store import Store
from ui import format as fmt
from ui.access import Login, NotAllowedError, authorise, who
from ui.chat.settings import Settings
from ui.chat.turns import TurnError, Turns
from ui.compare.actions import Actions, settings_from, told_by_browser
from ui.compare.browser_tab import Desk, Notice, Page, fill_up
from ui.compare.components import (
    ASK_NOW,
    ASK_ON_LOAD,
    LOADED,
    READ_ADDRESS,
    SENDING,
    TAKEN,
    WRITE_NOW,
    mode_choice,
    prompt_row,
)
from ui.compare.offer import Offer, Trouble
from ui.compare.painter import Painter
from ui.quiet_events import tell_no_progress
from ui.share.visitors import Visitor, Visitors

TITLE = "Backend Arena"
PANELS = (1, 2, 3, 4, 5, 6)
_HEADER = (
    '<div class="top"><h1>Backend Arena</h1><p>One prompt, several backends, side by side</p>'
    '<form method="post" action="/logout"><button type="submit">Log out</button></form>'
    '<button type="button" id="theme-switch">Light / dark</button></div>'
)
_QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "concurrency_limit": None,
    "trigger_mode": "multiple",
    "api_visibility": "private",
}
_AT_ONCE: dict[str, Any] = {**_QUIET, "queue": False}


class VisitorOffer(Offer):
    """What backends there are, without the reasons that tell about the machine."""

    def trouble(self, target: Target) -> Trouble | None:
        return Trouble("It cannot run on that PC just now.") if super().trouble(target) else None


class VisitorDesk(Desk):
    """The desk of visitors: no settings of the owner's, no state of the machine, only their own conversations."""

    def __init__(self, manager: EngineManager, store: Store, turns: Turns, library: Any, visitors: Visitors):
        super().__init__(manager, store, turns, library)
        self.visitors = visitors

    def offer(self) -> Offer:
        found = super().offer()
        return VisitorOffer(found.specs, found.availability, probing=found.probing)

    def fresh_page(self) -> Page:
        offer, opened = self.offer(), self.visitors.targets()
        shown = dict(enumerate(opened[: self.visitors.limits.panels], start=1))
        if not opened:
            return Page(fill_up({}, offer), [])
        return Page({panel: opened[(panel - 1) % len(opened)] for panel in PANELS}, sorted(shown))

    def setting(self, key: str, default: Any = None) -> Any:
        return default

    def keep(self, key: str, value: Any) -> str | None:
        return None

    def state(self, target: Target) -> TargetState:
        """Whether it is loaded; nothing of what it takes and where."""
        state = self.manager.state(target)
        return TargetState(target, "absent" if state.phase == "failed" else state.phase)

    def trouble(self) -> str | None:
        return None

    def visitor(self, request: Any) -> Visitor:
        login = who(request)
        if login is None:
            raise NotAllowedError("Log in again: this login has ended.")
        return self.visitors.of(login)

    def own_page(self, request: gr.Request) -> tuple[Page, Visitor]:
        """This tab's page, whose conversation is the visitor's own."""
        page, visitor = self.page(request), self.visitor(request)
        if page.conversation_id and page.conversation_id not in visitor.conversations:
            page.conversation_id = page.editing = None
        return page, visitor


class VisitorActions(Actions):
    """What a visitor's buttons do; every run goes through the visitor's gate."""

    def __init__(self, desk: VisitorDesk):
        super().__init__(desk)
        self._visitors = desk.visitors

    def send_as(
        self,
        visitor: Visitor,
        page: Page,
        prompt: str,
        mode: str,
        fields: tuple[Any, ...],
        pressed_at: float,
    ) -> bool:
        """Send a prompt; True when it is on its way."""
        page.notice = None
        try:
            settings = self._settings(fields)
            panels = self._open_panels(page)
            self._await_stopped(page, {panel for panel, _ in panels})
            turn = self._visitors.send(
                visitor,
                prompt or "",
                panels,
                settings,
                conversation_id=page.conversation_id,
                mode="in-turn" if mode == "in-turn" else "together",
                replaces_turn_id=page.editing,
                pressed_at=pressed_at,
            )
        except TurnError as error:
            page.notice = Notice(str(error), "warn")
            return False
        self._desk.talks.started(turn, page.editing)
        page.conversation_id, page.editing = turn.conversation_id, None
        return True

    def _settings(self, fields: tuple[Any, ...]) -> Settings:
        system_prompt, max_new_tokens, temperature = fields
        return settings_from(system_prompt, max_new_tokens, temperature, None, None, None, None)

    def _open_panels(self, page: Page) -> list[tuple[int, Target]]:
        opened = self._visitors.targets()
        panels = [(panel, page.targets[panel]) for panel in sorted(page.shown)]
        able = [(panel, target) for panel, target in panels if target in opened]
        if not able:
            raise TurnError("The owner of this PC has opened no backend that is shown here. Reload the page.")
        return able

    def again(self, visitor: Visitor, page: Page, panel: int, go_on: bool) -> None:
        """Retry a panel's last reply, or let it go on, within the limits."""
        turn = self._last_turn(page, panel)
        if turn is None:
            return
        run = turn.run_of(panel)
        try:
            self._visitors.may_run_again(visitor, turn, run.target if run else page.targets[panel])
        except TurnError as error:
            page.notice = Notice(str(error), "warn")
            return
        if go_on:
            self._attempt(page, lambda: self._desk.turns.carry_on(turn, panel))
        else:
            self._attempt(page, lambda: self._desk.turns.retry(turn, panel))

    def choose_opened(self, page: Page, panel: int, index: Any) -> None:
        opened = self._visitors.targets()
        if str(index).isdigit() and int(index) < len(opened) and panel in page.shown:
            page.targets[panel] = opened[int(index)]


class VisitorPage:
    """Components, handlers and wiring of the visitors' page."""

    def __init__(self, desk: VisitorDesk, machine_name: Callable[[], str]):
        self.desk, self._machine_name = desk, machine_name
        self.actions = VisitorActions(desk)
        self.painter = Painter(desk, time.monotonic)
        self.columns: dict[int, gr.Column] = {}
        self.backends: dict[int, gr.Dropdown] = {}
        self.buttons: dict[str, dict[int, gr.Button]] = {
            "stop": {},
            "retry": {},
            "continue": {},
            "remove": {},
        }
        self._build()
        self._wire()

    # --- components ------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.banner = gr.HTML("", elem_id="visitor-banner", js_on_load=None)
        with gr.Row(elem_classes="bar toolbar", elem_id="toolbar"):
            self.add = gr.Button("Add panel", size="sm", elem_id="add-panel")
            self.new = gr.Button("New conversation", size="sm", elem_id="new-conversation")
            self.edit = gr.Button("Edit last prompt", size="sm", elem_id="edit-last")
            self.mine = gr.Dropdown(
                [], label="My conversations", container=False, filterable=False, elem_id="my-conversations",
                min_width=300, scale=0,
            )  # fmt: skip
        with gr.Row(elem_classes="panels", elem_id="panels"):
            for panel in PANELS:
                self._build_panel(panel)
        self._build_composer()
        with gr.Column(elem_id="announce"):
            _slot("announce")
        self.conversation = gr.Textbox("", label="Conversation id", visible="hidden")
        self.live = gr.HTML(
            "",
            html_template="",
            js_on_load=ASK_ON_LOAD,
            server_functions=[_changes_of(self._changes)],
            elem_id="live",
            container=False,
        )

    def _build_panel(self, panel: int) -> None:
        with gr.Column(
            visible=False, min_width=0, elem_classes="lane", elem_id=f"panel-{panel}"
        ) as self.columns[panel]:
            _slot(f"head{panel}", "panel-head")
            self.backends[panel] = gr.Dropdown(
                [],
                label=f"Backend of panel {panel}",
                container=False,
                filterable=False,
                elem_id=f"backend-{panel}",
            )
            with gr.Column(elem_classes="panel-scroll", elem_id=f"scroll-{panel}"):
                _slot(f"past{panel}", "past")
                _slot(f"now{panel}", "now")
            with gr.Row(elem_classes="bar panel-actions"):
                for name, label, look in (
                    ("stop", "Stop", "when-running"),
                    ("retry", "Retry", "when-idle"),
                    ("continue", "Continue", "when-idle"),
                    ("remove", "Remove", "when-idle"),
                ):
                    self.buttons[name][panel] = gr.Button(
                        label,
                        size="sm",
                        variant="stop" if name == "stop" else "secondary",
                        elem_id=f"{name}-{panel}",
                        elem_classes=look,
                    )

    def _build_composer(self) -> None:
        with gr.Column(elem_classes="composer", elem_id="composer"):
            with gr.Column(elem_id="notices"):
                _slot("notices", "notices")
            self.prompt, self.send, self.stop_all = prompt_row()
            with gr.Row(elem_classes="bar options"):
                self.mode = mode_choice()
        with gr.Accordion(
            "Generation settings", open=False, elem_id="settings", elem_classes="card settings"
        ):
            self.system_prompt = gr.Textbox(
                label="System prompt",
                lines=2,
                max_lines=6,
                placeholder="Empty: none",
                elem_id="system-prompt",
            )
            with gr.Row(elem_classes="fields"):
                self.max_new_tokens = gr.Number(
                    256,
                    label="Max new tokens",
                    info="Per reply",
                    minimum=1,
                    precision=0,
                    elem_id="max-new-tokens",
                )
                self.temperature = gr.Number(
                    0, label="Temperature", info="0 is greedy", minimum=0, maximum=2, step=0.1
                )
        with gr.Column(elem_id="summary"):
            _slot("summary")

    # --- handlers --------------------------------------------------------------------------------------

    def _changes(self, asked: dict[str, Any], login: Login) -> dict[str, Any]:
        page = self.desk.pages.by_key(str(asked.get("key")))
        visitor = self.desk.visitors.of(login)
        if page is None or (page.conversation_id and page.conversation_id not in visitor.conversations):
            return {"slots": {}, "running": False, "gone": page is None}
        answer = self.painter.changes(page, everything=bool(asked.get("everything")))
        return {**answer, "settle": False}

    def _load(self, conversation_id: str, request: gr.Request) -> list[Any]:
        page = self.desk.pages.put(request.session_hash or "none", self.desk.fresh_page())
        self._show(page, conversation_id, self.desk.visitor(request))
        return [self._banner(), *self._layout(page), self._conversations(request), page.key]

    def _come_back(self, conversation_id: str, request: gr.Request) -> list[Any]:
        """For a tab whose page is not known (any more): what it showed, under a new key."""
        page, _ = self._page(request, conversation_id)
        return [*self._layout(page), self._conversations(request), page.key]

    def _page(self, request: gr.Request, conversation_id: str) -> tuple[Page, Visitor]:
        """This tab's page; where it is not known, a fresh one of the conversation that the tab shows."""
        is_known = self.desk.pages.get(request.session_hash or "none") is not None
        page, visitor = self.desk.own_page(request)
        if not is_known:
            self._show(page, conversation_id, visitor)
        return page, visitor

    def _show(self, page: Page, conversation_id: str, visitor: Visitor) -> None:
        """A conversation of the visitor's own; another one is not there for them."""
        if str(conversation_id) in visitor.conversations:
            self.actions.open(page, str(conversation_id))
            self._hold_to_limits(page)

    def _banner(self) -> str:
        limits = self.desk.visitors.limits
        kept = (
            "Prompts and replies are kept in the owner's history"
            if self.desk.visitors.keeps_text
            else "Of your prompts and replies only numbers are kept (times, token counts), not the words"
        )
        opened = (
            ""
            if self.desk.visitors.targets()
            else " <strong>No backend is open just now: reload this page when its owner has opened one.</strong>"
        )
        return (
            f'<p class="notice info" role="status">You are a visitor on <strong>{fmt.text(self._machine_name())}'
            f"</strong>: everything runs on its owner's computer. {kept}. Replies end after "
            f"{limits.run_s:.0f} s or {limits.output_tokens:,} tokens; your conversations are gone when you log out."
            f"{opened}</p>"
        )

    def _layout(self, page: Page) -> list[Any]:
        opened, naming = self.desk.visitors.targets(), self.desk.naming(page)
        choices = [(naming.full(1, target), str(index)) for index, target in enumerate(opened)]
        most = min(self.desk.visitors.limits.panels, len(PANELS))
        updates: list[Any] = [gr.update(visible=panel in page.shown) for panel in PANELS]
        for panel in PANELS:
            target = page.targets[panel]
            value = str(opened.index(target)) if target in opened else None
            updates.append(gr.update(choices=choices, value=value))
        return [*updates, gr.update(interactive=bool(opened) and len(page.shown) < most)]

    def _conversations(self, request: gr.Request) -> Any:
        page, visitor = self.desk.own_page(request)
        mine = [
            (fmt.shorten(title, 32) or "(empty)", key)
            for key, title in reversed(visitor.conversations.items())
        ]
        return gr.update(
            choices=[("My conversations", ""), *mine], value=page.conversation_id or "", visible=bool(mine)
        )

    def _send(self, request: gr.Request, prompt: str, mode: str, *fields: Any) -> list[Any]:
        *settings, sending = fields
        told = told_by_browser(sending)
        page, visitor = self._page(request, told.conversation_id)
        if not self.actions.send_as(
            visitor, page, str(prompt or ""), str(mode), tuple(settings), told.pressed_at
        ):
            return [gr.skip(), gr.skip()]
        return ["", self._conversations(request)]

    def _open(self, conversation_id: str, request: gr.Request) -> list[Any]:
        page, visitor = self.desk.own_page(request)
        self._show(page, conversation_id, visitor)
        return [*self._layout(page), self._conversations(request)]

    def _hold_to_limits(self, page: Page) -> None:
        page.shown = page.shown[: self.desk.visitors.limits.panels]

    def _new(self, request: gr.Request) -> Any:
        page, _ = self.desk.own_page(request)
        self.actions.new_conversation(page)
        return self._conversations(request)

    def _edit(self, typed: str, request: gr.Request) -> Any:
        page, _ = self.desk.own_page(request)
        text = self.actions.edit_last(page, str(typed or ""))
        return gr.skip() if text is None else text

    def _add(self, request: gr.Request) -> list[Any]:
        page, _ = self.desk.own_page(request)
        if len(page.shown) < self.desk.visitors.limits.panels and self.desk.visitors.targets():
            self.actions.add_panel(page)
        return self._layout(page)

    def _stop_all(self, request: gr.Request) -> None:
        self.actions.stop(self.desk.own_page(request)[0])

    def _chooser(self, panel: int) -> Callable[..., list[Any]]:
        def choose(index: Any, request: gr.Request) -> list[Any]:
            page, _ = self.desk.own_page(request)
            self.actions.choose_opened(page, panel, index)
            return self._layout(page)

        return choose

    def _stopper(self, panel: int) -> Callable[..., None]:
        def stop(request: gr.Request) -> None:
            self.actions.stop(self.desk.own_page(request)[0], panel)

        return stop

    def _repeater(self, panel: int, go_on: bool) -> Callable[..., None]:
        def again(request: gr.Request) -> None:
            page, visitor = self.desk.own_page(request)
            self.actions.again(visitor, page, panel, go_on)

        return again

    def _remover(self, panel: int) -> Callable[..., list[Any]]:
        def remove(request: gr.Request) -> list[Any]:
            page, _ = self.desk.own_page(request)
            self.actions.remove_panel(page, panel)
            return self._layout(page)

        return remove

    def _unload(self, request: gr.Request) -> None:
        self.desk.pages.drop(request.session_hash or "none")

    # --- wiring ----------------------------------------------------------------------------------------

    def _wire(self) -> None:
        layout = [*self.columns.values(), *self.backends.values(), self.add]
        fields = [self.system_prompt, self.max_new_tokens, self.temperature]
        sent = gr.on(
            [self.send.click, self.prompt.submit],
            self._send,
            [self.prompt, self.mode, *fields, self.conversation],
            [self.prompt, self.mine],
            js=SENDING,
            **_QUIET,
        )
        sent.then(None, None, None, js=TAKEN, api_visibility="private")
        self.stop_all.click(self._stop_all, None, None, **_AT_ONCE)
        _then_ask(self.new.click(self._new, None, self.mine, **_QUIET))
        edited = self.edit.click(self._edit, self.prompt, self.prompt, **_QUIET)
        edited.then(None, None, None, js=WRITE_NOW, api_visibility="private")
        _then_ask(self.add.click(self._add, None, layout, **_QUIET))
        _then_ask(self.mine.input(self._open, self.mine, [*layout, self.mine], **_QUIET))
        for panel in PANELS:
            _then_ask(
                self.backends[panel].input(self._chooser(panel), self.backends[panel], layout, **_QUIET)
            )
            self.buttons["stop"][panel].click(self._stopper(panel), None, None, **_AT_ONCE)
            for name, go_on in (("retry", False), ("continue", True)):
                _then_ask(self.buttons[name][panel].click(self._repeater(panel, go_on), None, None, **_QUIET))
            _then_ask(self.buttons["remove"][panel].click(self._remover(panel), None, layout, **_QUIET))
        shown = [*layout, self.mine, self.live]
        self.on_load = [self.banner, *shown]
        _then_ask(self.live.retry(self._come_back, self.conversation, shown, js=READ_ADDRESS, **_QUIET))

    def wire_load(self, demo: gr.Blocks) -> None:
        loaded = demo.load(self._load, self.conversation, self.on_load, js=READ_ADDRESS, **_QUIET)
        loaded.then(None, None, None, js=LOADED, api_visibility="private")
        demo.unload(self._unload)


def build(
    manager: EngineManager,
    store: Store,
    turns: Turns,
    library: Any,
    visitors: Visitors,
    machine_name: Callable[[], str],
) -> gr.Blocks:
    """The whole page of visitors."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as demo:
        gr.HTML(_HEADER, elem_id="header", js_on_load=None)
        with gr.Column(elem_id="tabs"):  # what the style sheet calls the part that the panels are in
            page = VisitorPage(VisitorDesk(manager, store, turns, library, visitors), machine_name)
        page.wire_load(demo)
        tell_no_progress(demo)
    authorise(demo)
    return demo


def _then_ask(event: Any) -> None:
    """Let the browser ask at once what an event has changed."""
    event.then(None, None, None, js=ASK_NOW, api_visibility="private")


def _slot(name: str, classes: str = "") -> gr.HTML:
    """A place that page.js draws into."""
    return gr.HTML(f'<div class="slot" data-slot="{name}"></div>', elem_classes=classes, js_on_load=None)


def _changes_of(
    answer: Callable[[dict[str, Any], Login], dict[str, Any]],
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What the browser may call, by the name that page.js knows."""

    def changes(asked: dict[str, Any]) -> dict[str, Any]:
        from gradio.context import LocalContext

        login = who(LocalContext.request.get(None))
        if login is None:
            return {"slots": {}, "running": False}
        return answer(asked if isinstance(asked, dict) else {}, login)

    return changes
