"""One browser tab's Compare page on the server, and how it is painted.

A `Page` holds what this tab has chosen (panels, conversation, blind or not); what was said lives in the shared
`Talks`. `Painter.paint` works out every slot of the page and hands over only those that changed since this tab was
painted last, so a streaming reply costs one small update and nothing else moves.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from engines.manager import EngineManager
from engines.protocol import Target
from storage.store import Store, StoreError
from ui import compare_view as view
from ui import format as fmt
from ui.compare_markdown import GrowingMarkdown
from ui.compare_summary import lines, pair_difference, summary
from ui.compare_talk import Run, Talk, Talks, TalkTurn
from ui.compare_targets import MAX_PANELS, Offer
from ui.live import RunView

PANELS = tuple(range(1, MAX_PANELS + 1))
MOST_PAGES = 200
LONG_TEXT_CHARS = 12_000
"""Beyond this a growing reply is drawn twice a second instead of ten times."""

SLOTS = (
    *(f"head{panel}" for panel in PANELS),
    *(f"past{panel}" for panel in PANELS),
    *(f"now{panel}" for panel in PANELS),
    *("notice", "summary", "vote", "diff_one", "diff_other", "diff_text", "announce", "conversation"),
)
"""The outputs of a whole painting, in order."""
STREAMED = tuple(name for name in SLOTS if name.startswith(("head", "now")))
"""The outputs that change while replies grow."""


@dataclass(frozen=True)
class Notice:
    """One sentence for the person, above the prompt."""

    text: str
    kind: str = "info"
    """`info`, `warn` or `error`."""


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
    notice: Notice | None = None
    stream: int = 0
    """Number of the one stream that may paint this page; a newer one takes over."""
    reserved: int | None = None
    """Number of a stream that is about to start."""
    stream_ended: asyncio.Event | None = None
    """Set when the newest stream has ended; None before the first."""
    painted: dict[str, str] = field(default_factory=dict)
    growing: dict[str, GrowingMarkdown] = field(default_factory=dict)
    drawn_long: dict[str, tuple[float, str]] = field(default_factory=dict)
    announced: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def chosen(self) -> dict[int, Target]:
        return {panel: self.targets[panel] for panel in sorted(self.shown)}

    @property
    def streams(self) -> bool:
        """A stream paints this page, or is about to."""
        return self.stream_ended is not None and not self.stream_ended.is_set()

    def forget_painting(self) -> None:
        """The browser has an empty page again: paint everything."""
        self.painted.clear()


class Pages:
    """Page of each browser tab, by Gradio's session hash; the oldest are dropped."""

    _streams = itertools.count(1)

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

    def drop(self, session: str) -> None:
        with self._lock:
            self._pages.pop(session, None)

    def next_stream(self) -> int:
        return next(self._streams)


class Desk:
    """What every handler of the Compare tab works with: the app's parts, the tabs, and what this machine offers."""

    def __init__(self, manager: EngineManager, store: Store, turns: Any, library: Any):
        self.manager, self.store, self.turns, self.library = manager, store, turns, library
        self.talks = Talks(store, turns)
        self.pages = Pages()

    def offer(self) -> Offer:
        found = self.manager.known_availability
        return Offer(tuple(self.manager.specs.values()), found or {}, probing=found is None)

    def page(self, request: gr.Request) -> Page:
        """This tab's page; a tab left over from an earlier start of the app gets a fresh one."""
        session = request.session_hash or "none"
        return self.pages.get(session) or self.pages.put(session, self.fresh_page())

    def fresh_page(self) -> Page:
        offer = self.offer()
        saved = panels_from_json(self.setting("compare.panels"), offer)
        shown = saved or dict(enumerate(offer.default_targets(), start=1))
        return Page(fill_up(shown, offer), sorted(shown) or [1])

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


# --- painting ----------------------------------------------------------------------------------------------


class Painter:
    """Turns a page into updates for SLOTS."""

    def __init__(self, desk: Desk, clock: Any):
        self._desk, self._clock = desk, clock

    def paint(self, page: Page, names: Sequence[str]) -> list[Any]:
        """Updates in the order of `names`; `gr.skip()` where this tab already shows the same."""
        with page.lock:
            slots = self._slots(page) if names is SLOTS else self._streamed(page)
            return [self._update(page, name, slots.get(name)) for name in names]

    def paint_heads(self, page: Page) -> list[Any]:
        """Only the heads: for the slow timer that keeps idle panels' state and memory fresh."""
        if page.streams:
            return [gr.skip()] * len(PANELS)
        with page.lock:
            slots = self._heads(page, _current_runs(self._desk.talk(page)))
            return [self._update(page, name, slots.get(name)) for name in SLOTS[: len(PANELS)]]

    def _update(self, page: Page, name: str, value: Any) -> Any:
        if value is None:
            return gr.skip()
        spelled = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        if page.painted.get(name) == spelled:
            return gr.skip()
        page.painted[name] = spelled
        return value if isinstance(value, str) else gr.update(**value)

    def _streamed(self, page: Page) -> dict[str, Any]:
        current = _current_runs(self._desk.talk(page))
        naming = self._desk.naming(page)
        slots = self._heads(page, current)
        for panel in page.shown:
            slots[f"now{panel}"] = self._now(page, panel, current.get(panel), naming)
        return slots

    def _slots(self, page: Page) -> dict[str, Any]:
        talk = self._desk.talk(page)
        naming = self._desk.naming(page)
        current = _current_runs(talk)
        slots = self._heads(page, current)
        for panel in PANELS:
            slots[f"past{panel}"] = self._past(page, talk, panel, naming)
            slots[f"now{panel}"] = self._now(page, panel, current.get(panel), naming)
        latest = talk.latest() if talk else None
        slots["notice"] = self._notice(page, talk)
        slots["summary"] = summary(latest, naming) if latest and latest.done else ""
        slots["vote"] = vote_choices(latest, naming)
        slots |= self._diff(page, latest, naming)
        slots["announce"] = self._announcement(page, current, naming)
        slots["conversation"] = page.conversation_id or ""
        return slots

    def _heads(self, page: Page, current: dict[int, tuple[TalkTurn, Run, RunView]]) -> dict[str, Any]:
        offer, naming = self._desk.offer(), self._desk.naming(page)
        slots = {}
        for panel in page.shown:
            target = page.targets[panel]
            seen = current[panel][2] if panel in current else None
            active = seen if seen is not None and not seen.done else None
            state = view.panel_state(self._desk.manager.state(target), active, offer.trouble(target))
            if offer.probing and state.phase == "absent":
                state = replace(state, label="Checking", detail="Asking the engine what it can use here")
            slots[f"head{panel}"] = view.head(panel, target, naming, state, seen)
        return slots

    def _past(self, page: Page, talk: Talk | None, panel: int, naming: view.Naming) -> str | None:
        """Finished exchanges; None (no change) when nothing about them can have changed."""
        mark = f"{page.conversation_id}/{talk.version if talk else 0}/{naming.hidden}"
        key = f"past-mark{panel}"
        if page.painted.get(key) == mark:
            return None
        page.painted[key] = mark
        earlier = talk.of_panel(panel)[:-1] if talk else []
        return "".join(view.exchange(turn, run, run.view(), naming) for turn, run in earlier)

    def _now(
        self, page: Page, panel: int, current: tuple[TalkTurn, Run, RunView] | None, naming: view.Naming
    ) -> str:
        """The newest exchange of a panel, growing or done; an empty state before the first."""
        if current is None:
            trouble = self._desk.offer().trouble(page.targets[panel])
            return view.empty_panel(panel, page.targets[panel], naming, trouble)
        turn, run, seen = current
        if seen.done:
            page.growing.pop(run.run_id, None)
            page.drawn_long.pop(run.run_id, None)
            return view.exchange(turn, run, seen, naming)
        return view.exchange(turn, run, seen, naming, body=self._growing_body(page, run, seen))

    def _growing_body(self, page: Page, run: Run, seen: RunView) -> str:
        text = seen.text
        now = self._clock()
        drawn_at, body = page.drawn_long.get(run.run_id, (0.0, ""))
        if len(text) > LONG_TEXT_CHARS and now - drawn_at < 0.5:
            return body
        body = page.growing.setdefault(run.run_id, GrowingMarkdown()).render(text)
        page.drawn_long[run.run_id] = (now, body)
        return body

    def _notice(self, page: Page, talk: Talk | None) -> str:
        notices = [page.notice] if page.notice else []
        trouble = self._desk.store.trouble
        if trouble:
            notices.append(Notice(f"The history is not being written: {trouble}", "error"))
        if page.editing:
            notices.append(
                Notice("You are editing the last prompt: Send replaces it and its replies.", "info")
            )
        notices += [Notice(text, "warn") for text in self._sharing(page)] if not page.blind else []
        return "".join(f'<p class="notice {n.kind}">{fmt.text(n.text)}</p>' for n in notices)

    def _sharing(self, page: Page) -> list[str]:
        offer = self._desk.offer()
        usable = {panel: target for panel, target in page.chosen().items() if not offer.trouble(target)}
        same = [(t, [p for p in usable if usable[p] == t]) for t in dict.fromkeys(usable.values())]
        return [
            f"Panels {' and '.join(map(str, panels))} are the same target: one worker serves them by turns."
            for _, panels in same
            if len(panels) > 1
        ]

    def _diff(self, page: Page, turn: TalkTurn | None, naming: view.Naming) -> dict[str, Any]:
        """The two menus and the difference of the first two replies, when a turn has ended."""
        found = lines(turn) if turn and turn.done else []
        choices = [[f"{line.panel} · {naming.full(line.panel, line.target)}", line.panel] for line in found]
        menu = {"choices": choices, "value": None}
        first, second = [line.panel for line in found[:2]] if len(found) > 1 else (None, None)
        mark = f"{turn.turn_id if turn else None} {[line.view.version for line in found]}"
        if page.painted.get("diff-mark") == mark:
            return {"diff_one": None, "diff_other": None, "diff_text": None}
        page.painted["diff-mark"] = mark
        return {
            "diff_one": {**menu, "value": first},
            "diff_other": {**menu, "value": second},
            "diff_text": pair_difference(found, first, second),
        }

    def _announcement(
        self, page: Page, current: dict[int, tuple[TalkTurn, Run, RunView]], naming: view.Naming
    ) -> str:
        """For screen readers: one short sentence when a reply ends, nothing while it grows."""
        said = []
        for panel, (_, run, seen) in current.items():
            if panel not in page.shown or not seen.done:
                continue
            name = naming.full(panel, run.target)
            if seen.phase == "failed":
                said.append(f"Panel {panel}, {name}: failed.")
            else:
                said.append(f"Panel {panel}, {name}: {seen.phase}, {fmt.counted(seen.tokens, 'token')}.")
        return f"<p>{fmt.text(' '.join(said))}</p>"


def _current_runs(talk: Talk | None) -> dict[int, tuple[TalkTurn, Run, RunView]]:
    """The newest exchange of each panel that has one."""
    newest: dict[int, tuple[TalkTurn, Run, RunView]] = {}
    for turn in reversed(talk.turns if talk else []):
        for run in turn.runs:
            if run.panel not in newest:
                newest[run.panel] = (turn, run, run.view())
        if len(newest) == len(PANELS):
            break
    return newest


def vote_choices(turn: TalkTurn | None, naming: view.Naming) -> dict[str, Any]:
    """The vote under a finished turn with at least two replies."""
    runs = sorted(turn.runs, key=lambda run: run.panel) if turn and turn.done else []
    answered = [run for run in runs if run.view().text]
    if len(answered) < 2:
        return {"visible": False, "choices": [], "value": None}
    choices = [[f"{run.panel} · {naming.full(run.panel, run.target)}", str(run.panel)] for run in answered]
    choices += [["Tie", "tie"], ["None is good", "none"]]
    return {"visible": True, "choices": choices, "value": turn.vote}
