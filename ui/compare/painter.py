"""Paints a tab: every slot of the page as HTML, and of those only what the browser does not have yet.

The browser asks (assets/page.js), some fifteen times a second while replies grow and every few seconds otherwise, and
asks again only when it has drawn the last answer. So a slow or busy computer draws less often but never falls behind,
and a closed tab costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from ui import format as fmt
from ui.chat.conversations import Run, Talk, TalkTurn
from ui.chat.run_view import RunView
from ui.compare import panel_html as view
from ui.compare.browser_tab import PANELS, Desk, Notice, Page, Past
from ui.compare.summary_html import lines, pair_difference, summary
from ui.reply_html import GrowingMarkdown

LONG_TEXT_CHARS = 12_000
"""Beyond this a growing reply is drawn twice a second instead of fifteen times."""


_EDITING = (
    '<p class="notice info">You are editing the last prompt: Send replaces it and its replies. '
    '<button type="button" class="in-text" data-press="edit-last">Leave it as it is</button></p>'
)


class Painter:
    """Works out what a tab has to show."""

    def __init__(self, desk: Desk, clock: Callable[[], float]):
        self._desk, self._clock = desk, clock

    def changes(self, page: Page, everything: bool = False) -> dict[str, Any]:
        """For the browser: HTML of the slots that changed since it asked last, and whether replies are growing."""
        with page.lock:
            if everything:
                page.painted.clear()
                page.past.clear()
            talk = self._desk.talk(page)
            running = bool(talk and talk.running())
            slots = {
                name: html for name, html in self._slots(page, talk).items() if page.painted.get(name) != html
            }
            page.painted.update(slots)
            return {
                "slots": slots,
                "running": running,
                "live": bool(self._desk.manager.activity.now()),
                "settle": not running and page.settled != _mark(page, talk),
                "models": not running and page.models_seen != self._desk.library.stamp(),
            }

    def settle(self, page: Page) -> list[Any]:
        """Updates for the vote, the two menus of the comparison and its text, once a turn has ended."""
        talk = self._desk.talk(page)
        page.settled = _mark(page, talk)
        latest = talk.latest() if talk else None
        naming = self._desk.naming(page)
        return [gr.update(**vote_choices(latest, naming)), *self._diff(latest, naming)]

    def _slots(self, page: Page, talk: Talk | None) -> dict[str, str]:
        naming = self._desk.naming(page)
        current = _current_runs(talk)
        slots = self._heads(page, current)
        for panel in page.shown:
            slots |= self._past(page, talk, panel, naming)
            slots[f"now{panel}"] = self._now(page, panel, current.get(panel), naming)
        latest = talk.latest() if talk else None
        slots["notices"] = self._notices(page)
        slots["summary"] = summary(latest, naming) if latest and latest.done else ""
        slots["announce"] = self._announcement(page, current, naming)
        slots["conversation"] = page.conversation_id or ""
        slots["strip"] = self._desk.strip.html(hide_workers=page.blind)
        return slots

    def _heads(self, page: Page, current: dict[int, tuple[TalkTurn, Run, RunView]]) -> dict[str, Any]:
        offer, naming = self._desk.offer(), self._desk.naming(page)
        slots = {}
        for panel in page.shown:
            target, active, seen = page.targets[panel], None, None
            if panel in current:
                _, run, seen = current[panel]
                if not seen.done:  # what is at work, whatever has been chosen for the next prompt
                    target, active = run.target, seen
                elif run.target != target:  # its figures would be read as those of what is chosen now
                    seen = None
            state = view.panel_state(self._desk.state(target), active, offer.trouble(target))
            if offer.probing and state.phase == "absent":
                state = replace(state, label="Checking", detail="Asking the engine what it can use here")
            slots[f"head{panel}"] = view.head(panel, target, naming, state, seen)
        return slots

    def _past(self, page: Page, talk: Talk | None, panel: int, naming: view.Naming) -> dict[str, str]:
        """Finished exchanges; nothing when nothing about them can have changed, only what is new when they are more.

        A slot whose name ends with `+` goes behind what the browser has already: a long conversation is not sent,
        read and laid out again at every prompt.
        """
        mark, known = (page.conversation_id, talk.version if talk else 0, naming.hidden), page.past.get(panel)
        if known is not None and known.mark == mark:
            return {}
        earlier = [(turn, run, run.view()) for turn, run in (talk.of_panel(panel)[:-1] if talk else [])]
        shown = Past(mark, tuple((run.run_id, seen.version) for _, run, seen in earlier))
        page.past[panel] = shown
        slot = f"past{panel}"
        if known is None or not shown.continues(known):
            return {slot: "".join(view.exchange(*each, naming) for each in earlier)}
        for stale in (slot, f"{slot}+"):  # no longer what the browser has
            page.painted.pop(stale, None)
        more = "".join(view.exchange(*each, naming) for each in earlier[len(known.runs) :])
        return {f"{slot}+": more} if more else {}

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

    def _notices(self, page: Page) -> str:
        notices = [page.notice] if page.notice else []
        trouble = self._desk.trouble()
        if trouble:
            notices.append(Notice(f"The history is not being written: {trouble}", "error"))
        notices += [Notice(text, "warn") for text in self._sharing(page)] if not page.blind else []
        said = [f'<p class="notice {n.kind}">{fmt.text(n.text)}</p>' for n in notices]
        return "".join([*said, _EDITING] if page.editing else said)

    def _sharing(self, page: Page) -> list[str]:
        offer = self._desk.offer()
        usable = {panel: target for panel, target in page.chosen().items() if not offer.trouble(target)}
        same = [(t, [p for p in usable if usable[p] == t]) for t in dict.fromkeys(usable.values())]
        return [
            f"Panels {' and '.join(map(str, panels))} are the same target: one worker serves them by turns."
            for _, panels in same
            if len(panels) > 1
        ]

    def _diff(self, turn: TalkTurn | None, naming: view.Naming) -> list[Any]:
        """Two menus and the difference of the first two replies."""
        found = lines(turn) if turn and turn.done else []
        choices = [(f"{line.panel} · {naming.full(line.panel, line.target)}", line.panel) for line in found]
        first, second = [line.panel for line in found[:2]] if len(found) > 1 else (None, None)
        return [
            gr.update(choices=choices, value=first),
            gr.update(choices=choices, value=second),
            pair_difference(found, first, second),
        ]

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
                said.append(f"Panel {panel}, {name}: {seen.phase}{_tokens(seen)}.")
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
    if turn is None or len(answered) < 2:
        return {"visible": False, "choices": [], "value": None}
    choices = [(f"{run.panel} · {naming.full(run.panel, run.target)}", str(run.panel)) for run in answered]
    choices += [("Tie", "tie"), ("None is good", "none")]
    return {"visible": True, "choices": choices, "value": turn.vote}


def _mark(page: Page, talk: Talk | None) -> str:
    """Changes whenever the menus under the panels have to."""
    latest = talk.latest() if talk else None
    versions = [run.view().version for run in latest.runs] if latest else []
    return f"{page.conversation_id} {talk.version if talk else 0} {page.blind} {versions}"


def _tokens(seen: RunView) -> str:
    return "" if seen.tokens is None else f", {fmt.counted(seen.tokens, 'token')}"
