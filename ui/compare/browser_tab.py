"""One browser tab's Compare page on the server.

A `Page` holds what this tab has chosen (panels, conversation, blind or not) and what its browser has been shown; what
was said lives in the shared `Talks`. The `Desk` is what all handlers work with.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from engines.models.library import ModelLibrary
from engines.protocol import DEMO_MODEL, ProtocolError, Target
from engines.runtime.manager import EngineManager, TargetState
from storage.measurements import Measurements
from storage.store import Store, StoreError
from ui.chat.conversations import Talk, Talks
from ui.chat.turns import PANELS, Turns
from ui.compare import panel_html as view
from ui.compare.offer import Offer
from ui.reply_html import GrowingMarkdown
from ui.strip_html import Strip

MOST_PAGES = 200


@dataclass(frozen=True)
class Notice:
    """One sentence for the person, above the prompt."""

    text: str
    kind: str = "info"
    """`info`, `warn` or `error`."""


@dataclass(frozen=True)
class Past:
    """Which finished exchanges a panel shows."""

    mark: tuple[str | None, int, bool]
    """Conversation, its version, and whether the names of the backends are hidden: while that stays, all stays."""
    runs: tuple[tuple[str, int], ...]
    """Id and version of each run, oldest first."""

    def continues(self, before: Past) -> bool:
        """Whether it is the same as `before`, with more at its end (or nothing)."""
        (conversation, _, hidden), (old_conversation, _, old_hidden) = self.mark, before.mark
        same = (conversation, hidden) == (old_conversation, old_hidden)
        return same and self.runs[: len(before.runs)] == before.runs


@dataclass
class Page:
    """What one browser tab shows. Changed by that tab's handlers only; `lock` orders painting."""

    targets: dict[int, Target]
    shown: list[int]
    conversation_id: str | None = None
    blind: bool = False
    """Names and figures are hidden; a vote ends it."""
    only: int | None = None
    """The one panel that prompts go to; None: all that are shown."""
    editing: str | None = None
    """Turn whose prompt is being edited: the next prompt replaces it."""
    unsent: str = ""
    """What stood in the box when the editing began."""
    notice: Notice | None = None
    is_guess: bool = False
    """The panels were chosen before the engines had said what they can use here."""
    key: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    """What the browser calls this page by when it asks what has changed."""
    painted: dict[str, str] = field(default_factory=dict)
    """Slot -> the HTML that the browser has."""
    past: dict[int, Past] = field(default_factory=dict)
    """Panel -> the finished exchanges that the browser has."""
    settled: str = ""
    """Mark of the turn that the menus under the panels are about."""
    models_seen: int | None = None
    """The library's stamp when the menus last said which models are here."""
    growing: dict[str, GrowingMarkdown] = field(default_factory=dict)
    drawn_long: dict[str, tuple[float, str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def chosen(self) -> dict[int, Target]:
        return {panel: self.targets[panel] for panel in sorted(self.shown)}


class Pages:
    """Page of each browser tab, by Gradio's session hash; the oldest are dropped."""

    def __init__(self) -> None:
        self._pages: OrderedDict[str, Page] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, session: str) -> Page | None:
        with self._lock:
            page = self._pages.get(session)
            if page is not None:
                self._pages.move_to_end(session)
            return page

    def put(self, session: str, page: Page) -> Page:
        with self._lock:
            self._pages[session] = page
            while len(self._pages) > MOST_PAGES:
                self._pages.popitem(last=False)
        return page

    def by_key(self, key: str) -> Page | None:
        with self._lock:
            return next((page for page in reversed(self._pages.values()) if page.key == key), None)

    def drop(self, session: str) -> None:
        with self._lock:
            self._pages.pop(session, None)


class Desk:
    """What every handler of the Compare tab works with: the app's parts, the tabs, and what this machine offers."""

    def __init__(self, manager: EngineManager, store: Store, turns: Turns, library: ModelLibrary):
        self.manager, self.store, self.turns, self.library = manager, store, turns, library
        self.talks = Talks(store, turns)
        self.pages = Pages()
        self.strip = Strip(manager.sampler)

    def offer(self) -> Offer:
        found = self.manager.known_availability
        return Offer(tuple(self.manager.specs.values()), found or {}, probing=found is None)

    def state(self, target: Target) -> TargetState:
        """What may be shown of a target's worker."""
        return self.manager.state(target)

    def trouble(self) -> str | None:
        """Why the history is not being written, in a sentence; None when all is well."""
        return self.store.trouble

    def page(self, request: gr.Request) -> Page:
        """This tab's page; a tab left over from an earlier start of the app gets a fresh one."""
        session = request.session_hash or "none"
        return self.pages.get(session) or self.pages.put(session, self.fresh_page())

    def fresh_page(self) -> Page:
        offer = self.offer()
        saved = panels_from_json(self.setting("compare.panels"), offer)
        shown = saved or dict(enumerate(self._first_targets(offer), start=1))
        return Page(fill_up(shown, offer), sorted(shown) or [1], is_guess=offer.probing)

    def _first_targets(self, offer: Offer) -> list[Target]:
        """One panel per engine; the lane that was chosen for the bundled model (Measure, “Use it”) first."""
        targets, chosen = list(offer.default_targets()), self.preferred(DEMO_MODEL)
        if chosen is None or offer.trouble(chosen):
            return targets
        return [chosen, *(target for target in targets if target.engine != chosen.engine)]

    def preferred(self, model: str) -> Target | None:
        """The lane that a person made this model's first panel on the Measure tab."""
        try:
            spelling = Measurements(self.store).preferred(model)
            return Target.parse(spelling, model) if spelling else None
        except (StoreError, ProtocolError):
            return None

    def model_choices(self) -> list[tuple[str, str]]:
        """(label, name) of the models a panel can be set to; any other Hugging Face id or folder may be typed."""
        return [(f"{m.title} — {m.note}" if m.note else m.title, m.name) for m in self.library.models()]

    def setting(self, key: str, default: Any = None) -> Any:
        try:
            return self.store.get_setting(key, default)
        except StoreError:
            return default

    def keep(self, key: str, value: Any) -> str | None:
        """Remember a setting; the sentence for the person when that is impossible."""
        try:
            self.store.set_setting(key, value)
        except StoreError as error:
            return str(error)
        return None

    def talk(self, page: Page) -> Talk | None:
        return self.talks.find(page.conversation_id)

    def naming(self, page: Page) -> view.Naming:
        return view.Naming(self.offer().title, hidden=page.blind)


def panels_to_json(targets: dict[int, Target]) -> list[list[Any]]:
    return [[panel, t.engine, t.device, t.precision, t.model] for panel, t in sorted(targets.items())]


def panels_from_json(value: Any, offer: Offer) -> dict[int, Target]:
    """Panels kept by an earlier start of the app; what cannot be read or no longer exists is left out."""
    targets: dict[int, Target] = {}
    for row in value if isinstance(value, list) else ():
        whole = isinstance(row, list) and len(row) == 5 and row[0] in PANELS
        if whole and all(isinstance(part, str) for part in row[1:]) and offer.spec(row[1]):
            targets[row[0]] = offer.settle(*row[1:])
    return targets


def fill_up(shown: dict[int, Target], offer: Offer) -> dict[int, Target]:
    """A target for each of the six panels, the hidden ones included, so that adding one shows something useful."""
    spare = [offer.best_target(spec) for spec in (offer.usable() or offer.specs)]
    unused = [target for target in spare if target not in shown.values()] or spare
    targets = dict(shown)
    for panel in PANELS:
        if panel not in targets:
            targets[panel] = unused.pop(0) if len(unused) > 1 else unused[0]
    return targets
