"""What the Compare tab's buttons do: check what came in, hand it to Turns, leave a notice where it cannot be done.

No painting here: every action changes the page or the conversation, and the painter (painter.py) shows it.
An action never raises at the person: what cannot be done becomes one sentence above the prompt.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.models.model_names import entered
from engines.protocol import Target
from engines.toolkit import text_files
from storage.codec import readable
from ui import format as fmt
from ui.chat.live_turn import LiveTurn
from ui.chat.settings import BOUNDS, Settings
from ui.chat.turns import TurnError
from ui.compare.browser_tab import PANELS, Desk, Notice, Page, panels_from_json, panels_to_json

STOP_PATIENCE_S = 3.0
"""A prompt sent right after Stop waits this long for the last words of the reply before it."""
LONGEST_WAY_S = 60.0
"""A key press longer ago than this is a mistake of some clock."""
MOST_FILE_BYTES = 2_000_000
MOST_NAME_CHARS = 60


def settings_from(
    system_prompt: Any,
    max_new_tokens: Any,
    temperature: Any,
    top_p: Any,
    top_k: Any,
    repetition_penalty: Any,
    seed: Any,
    thinking: Any = None,
) -> Settings:
    """Settings from the fields of the page; raises TurnError naming the field that makes no sense."""
    return Settings(
        system_prompt=(str(system_prompt).strip() or None) if system_prompt else None,
        max_new_tokens=BOUNDS["max_new_tokens"].whole_number(max_new_tokens) or 256,
        temperature=BOUNDS["temperature"].number(temperature) or 0.0,
        top_p=_neutral(BOUNDS["top_p"].number(top_p), 1.0),
        top_k=BOUNDS["top_k"].whole_number(top_k) or None,
        repetition_penalty=_neutral(BOUNDS["repetition_penalty"].number(repetition_penalty), 1.0),
        seed=BOUNDS["seed"].whole_number(seed),
        thinking={"on": True, "off": False}.get(str(thinking)),
    )


def fields_of(settings: Settings) -> tuple[Any, ...]:
    """What the fields of the page show for these settings, in the order of `settings_from`."""
    thinking = {True: "on", False: "off"}.get(settings.thinking, "model")  # type: ignore[arg-type]
    return (
        settings.system_prompt or "",
        settings.max_new_tokens,
        settings.temperature,
        1 if settings.top_p is None else settings.top_p,
        settings.top_k or 0,
        1 if settings.repetition_penalty is None else settings.repetition_penalty,
        "" if settings.seed is None else str(settings.seed),
        thinking,
    )


def _neutral(value: float | None, neutral: float) -> float | None:
    return None if value == neutral else value


@dataclass(frozen=True)
class Told:
    """What the browser alone knows about a prompt that it sends."""

    pressed_at: float
    """Reading of this process's monotonic clock when the key was pressed."""
    conversation_id: str
    """The conversation that the tab shows; empty: none."""


def told_by_browser(sending: Any) -> Told:
    """Read what page.js sends along. A time that cannot be is not taken: then it counts from now."""
    now = time.monotonic()
    try:
        told = json.loads(sending)
        pressed_at, conversation_id = told["pressed"], told["conversation"]
    except (TypeError, ValueError, KeyError):
        return Told(now, "")
    real = isinstance(pressed_at, (int, float)) and now - LONGEST_WAY_S <= pressed_at <= now
    return Told(pressed_at if real else now, conversation_id if isinstance(conversation_id, str) else "")


class Actions:
    """One method per thing a person can do."""

    def __init__(self, desk: Desk):
        self._desk = desk

    # --- sending ---------------------------------------------------------------------------------------

    def send(
        self,
        page: Page,
        prompt: str,
        attachment: str | None,
        mode: str,
        fields: tuple[Any, ...],
        pressed_at: float | None = None,
    ) -> bool:
        """Send a prompt; True when it is on its way. The text stays in the box when it is not.

        `pressed_at`: reading of the monotonic clock when the key was pressed; None: now.
        """
        pressed_at = time.monotonic() if pressed_at is None else pressed_at
        page.notice = None
        try:
            panels = self._recipients(page)
            settings = settings_from(*fields)
            self._await_stopped(page, set(panels))
            self._shuffle_if_blind(page)
            targets = [(panel, page.targets[panel]) for panel in panels]
            text = with_attachment(prompt or "", attachment)
            turn = self._desk.turns.send(
                text,
                targets,
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
        self.set_blind(page, page.blind)
        page.notice = Notice(turn.notice, "warn") if turn.notice else None
        return True

    def _recipients(self, page: Page) -> list[int]:
        """Panels that get the prompt: the ones that can run, or the one that was chosen."""
        offer = self._desk.offer()
        if page.only in page.shown:
            trouble = offer.trouble(page.targets[page.only])
            if trouble:
                raise TurnError(f"Panel {page.only} cannot run: {trouble.reason}")
            return [page.only]
        able = [panel for panel in sorted(page.shown) if not offer.trouble(page.targets[panel])]
        if page.shown and not able:
            raise TurnError("None of these panels can run on this PC. Choose other engines or devices.")
        return able

    def _await_stopped(self, page: Page, panels: set[int]) -> None:
        """Give replies that were told to stop a moment to end; a reply that still runs is not touched."""
        talk = self._desk.talk(page)
        for turn in talk.running() if talk else ():
            live = turn.live.runs if turn.live else ()
            ending = [run for run in live if run.panel in panels and run.cancelled.is_set()]
            deadline = time.monotonic() + STOP_PATIENCE_S
            for run in ending:
                run.done.wait(max(0.0, deadline - time.monotonic()))

    def _shuffle_if_blind(self, page: Page) -> None:
        """A blind comparison deals the backends to the panels anew, once, before its first prompt."""
        if page.blind and page.conversation_id is None:
            dealt = [page.targets[panel] for panel in page.shown]
            random.shuffle(dealt)
            page.targets.update(zip(page.shown, dealt, strict=True))

    # --- while it runs ---------------------------------------------------------------------------------

    def stop(self, page: Page, panel: int | None = None) -> None:
        talk = self._desk.talk(page)
        for turn in talk.running() if talk else ():
            if turn.live is not None:
                turn.live.stop(panel)

    def retry(self, page: Page, panel: int) -> None:
        """Answer the panel's last prompt again, on the target the panel is set to now."""
        turn = self._last_turn(page, panel)
        if turn is not None:
            target = self._other_target(page, turn, panel)
            self._attempt(page, lambda: self._desk.turns.retry(turn, panel, target=target))

    def carry_on(self, page: Page, panel: int) -> None:
        """Let a reply that was stopped or cut go on."""
        turn = self._last_turn(page, panel)
        if turn is not None:
            self._attempt(page, lambda: self._desk.turns.carry_on(turn, panel))

    def _other_target(self, page: Page, turn: LiveTurn, panel: int) -> Target | None:
        chosen, before = page.targets[panel], turn.run_of(panel)
        return None if before is not None and before.target == chosen else chosen

    def _attempt(self, page: Page, start: Callable[[], object]) -> None:
        page.notice = None
        try:
            start()
        except TurnError as error:
            page.notice = Notice(str(error), "warn")
            return
        talk = self._desk.talk(page)
        if talk:
            talk.touched()

    def _last_turn(self, page: Page, panel: int) -> LiveTurn | None:
        """The newest turn of a panel, out of the log if an earlier start of the app held it."""
        talk = self._desk.talk(page)
        exchanges = talk.of_panel(panel) if talk else []
        if talk is None or not exchanges:
            page.notice = Notice(f"Panel {panel} has no reply yet. Send a prompt first.", "info")
            return None
        newest = exchanges[-1][0]
        try:
            newest.live = self._desk.turns.known(talk.conversation_id, newest.turn_id)
        except TurnError as error:
            page.notice = Notice(str(error), "warn")
            return None
        return newest.live

    # --- conversation ----------------------------------------------------------------------------------

    def new_conversation(self, page: Page) -> None:
        """An empty page; replies still running go on and are in the history."""
        page.conversation_id = page.editing = page.notice = None
        page.growing.clear()
        page.drawn_long.clear()

    def open(self, page: Page, conversation_id: str) -> bool:
        """Show a conversation, with the panels it was held with."""
        talk = self._desk.talks.opened(conversation_id)
        if talk is None:
            page.notice = Notice("That conversation is not in the history of this PC.", "warn")
            return False
        self.new_conversation(page)
        page.conversation_id, page.blind = conversation_id, talk.blind
        panels = sorted({run.panel for turn in talk.turns for run in turn.runs})
        for turn in talk.turns:
            page.targets.update({run.panel: run.target for run in turn.runs if run.panel in PANELS})
        page.shown = [panel for panel in panels if panel in PANELS] or page.shown
        return True

    def edit_last(self, page: Page, typed: str = "") -> str | None:
        """Text of the last prompt, to be changed and sent again; None when there is none.

        While it is being edited: leave it as it is; what was `typed` before the editing began.
        """
        if page.editing:
            page.editing = None
            return page.unsent
        talk = self._desk.talk(page)
        latest = talk.latest() if talk else None
        if latest is None:
            page.notice = Notice("There is no prompt to edit yet.")
            return None
        page.notice = None
        page.editing, page.unsent = latest.turn_id, typed
        return latest.prompt

    def set_blind(self, page: Page, blind: bool) -> None:
        """Hide the names here and wherever the conversation is opened, a reload included; or show them."""
        page.blind = blind
        if talk := self._desk.talk(page):
            talk.blind = blind

    def vote(self, page: Page, winner: str) -> None:
        talk = self._desk.talk(page)
        latest = talk.latest() if talk else None
        if latest is None or winner not in {"tie", "none", *map(str, latest.panels())}:
            return
        was_blind = page.blind
        self.set_blind(page, False)
        latest.vote = winner
        if talk is not None:
            talk.touched()
        try:
            self._desk.store.vote(latest.turn_id, int(winner) if winner.isdigit() else winner, was_blind)
        except Exception as error:  # noqa: BLE001 - a vote that cannot be kept must not lose the page
            page.notice = Notice(f"The vote could not be kept: {error}", "error")

    # --- panels ----------------------------------------------------------------------------------------

    def choose(self, page: Page, panel: int, engine: str, device: str, precision: str, model: str) -> Target:
        """Set a panel's target; a reply that runs in it goes on, the next prompt uses the new one.

        Another model in the first panel brings the lane that was chosen for that model on the Measure tab.
        """
        before, offer = page.targets[panel], self._desk.offer()
        target = offer.settle(engine or "", device or "", precision or "", entered(model or ""))
        if target.model != before.model and panel == page.shown[0]:
            chosen = self._desk.preferred(target.model)
            target = chosen if chosen and not offer.trouble(chosen) else target
        page.targets[panel] = target
        self.keep_panels(page)
        return page.targets[panel]

    def add_panel(self, page: Page) -> None:
        hidden = [panel for panel in PANELS if panel not in page.shown]
        if hidden:
            page.shown = sorted([*page.shown, hidden[0]])
            self.keep_panels(page)

    def remove_panel(self, page: Page, panel: int) -> None:
        """Hide a panel; its conversation stays and comes back with it. A reply running in it is stopped."""
        if panel not in page.shown:
            return
        if len(page.shown) == 1:
            page.notice = Notice("One panel has to stay.")
            return
        self.stop(page, panel)
        page.shown = [other for other in page.shown if other != panel]
        self.keep_panels(page)

    def keep_panels(self, page: Page) -> None:
        if not page.blind:
            problem = self._desk.keep("compare.panels", panels_to_json(page.chosen()))
            page.notice = (
                Notice(f"The panels could not be remembered: {problem}", "warn") if problem else page.notice
            )

    def unload(self, page: Page, panel: int) -> None:
        target = page.targets[panel]
        unloaded = self._desk.manager.unload(target)
        text = "Unloaded: its memory is free again." if unloaded else "It is in use. Stop its reply first."
        page.notice = Notice(f"Panel {panel}, {target.spelling}: {text}", "info" if unloaded else "warn")

    def log_of(self, page: Page, panel: int) -> str:
        """Tail of the worker's log, for the person who wants to know."""
        state = self._desk.manager.state(page.targets[panel])
        path = state.log_path
        if path is None or not Path(path).exists():
            return "This target has not been loaded since the app started, so there is no log yet."
        with Path(path).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 20_000))
            tail = file.read().decode("utf-8", errors="replace")
        return tail.strip() or "The log is empty."

    # --- named sets ------------------------------------------------------------------------------------

    def set_names(self) -> list[str]:
        return sorted(self._sets())

    def _sets(self) -> dict[str, Any]:
        value = self._desk.setting("compare.sets", {})
        found = value if isinstance(value, dict) else {}
        return {str(readable(name)): panels for name, panels in found.items()}

    def save_set(self, page: Page, name: str) -> str | None:
        """Keep the panels under a name; the name, or None when it could not be done."""
        name = " ".join((name or "").split())[:MOST_NAME_CHARS]
        if not name:
            page.notice = Notice("Give the set a name first.", "warn")
            return None
        problem = self._desk.keep("compare.sets", {**self._sets(), name: panels_to_json(page.chosen())})
        page.notice = Notice(problem, "error") if problem else Notice(f"Panel set “{name}” is saved.")
        return None if problem else name

    def use_set(self, page: Page, name: str) -> bool:
        targets = panels_from_json(self._sets().get(name), self._desk.offer())
        if not targets:
            page.notice = Notice(f"There is no panel set “{fmt.shorten(str(name))}”.", "warn")
            return False
        page.targets.update(targets)
        page.shown = sorted(targets)
        page.notice = None
        self.keep_panels(page)
        return True

    def delete_set(self, page: Page, name: str) -> None:
        sets = self._sets()
        if sets.pop(name, None) is not None:
            problem = self._desk.keep("compare.sets", sets)
            page.notice = Notice(problem, "error") if problem else Notice(f"Panel set “{name}” is deleted.")


# --- context from a file -----------------------------------------------------------------------------------


def read_attachment(path: str | None) -> tuple[str | None, str | None]:
    """Text of a dropped file and None, or None and why not."""
    if not path:
        return None, None
    file = Path(path)
    size = file.stat().st_size
    if size > MOST_FILE_BYTES:
        return (
            None,
            f"{file.name} has {fmt.size(size)}; at most {fmt.size(MOST_FILE_BYTES)} of text can be added.",
        )
    try:
        text = text_files.read(file)
    except UnicodeError:
        text = file.read_text(encoding="latin-1")
    if "\0" in text:
        return None, f"{file.name} is not a text file."
    return f"{file.name}\n{text}", None


def with_attachment(prompt: str, attachment: str | None) -> str:
    """The prompt with a file's text before it, fenced so that the model sees where it ends."""
    if not attachment or not prompt.strip():
        return prompt
    name, _, text = attachment.partition("\n")
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{name}:\n{fence}\n{text.rstrip()}\n{fence}\n\n{prompt}"
