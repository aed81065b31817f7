"""Finished exchanges: a browser gets only what is new, and shows what one that asks for everything shows."""

import itertools

import pytest

from engines.models.library import ModelLibrary
from engines.protocol import Target
from ui.chat.settings import Settings
from ui.compare.actions import Actions, fields_of
from ui.compare.browser_tab import Desk, Page
from ui.compare.painter import Painter

FIELDS = fields_of(Settings())
_ticks = itertools.count()


class Tab:
    """Keeps slots as page.js does."""

    def __init__(self, painter: Painter, page: Page):
        self.painter, self.page = painter, page
        self.slots: dict[str, str] = {}
        self.came: dict[str, str] = {}

    def ask(self, everything: bool = False) -> None:
        self.came = self.painter.changes(self.page, everything)["slots"]
        for name, html in self.came.items():
            before = self.slots.get(name[:-1], "") if name.endswith("+") else ""
            self.slots[name.removesuffix("+")] = before + html

    def past(self) -> list[str]:
        return [self.slots.get(f"past{panel}", "") for panel in self.page.shown]


@pytest.fixture
def desk(arena, tmp_path):
    arena.forget()
    arena.manager.availability()
    return Desk(arena.manager, arena.store, arena.turns, ModelLibrary(tmp_path))


@pytest.fixture
def tab(desk):
    page = desk.fresh_page()
    page.targets |= {1: Target("echo", "CPU", "fast"), 2: Target("echo-two", "CPU", "fast")}
    page.shown = [1, 2]
    return Tab(Painter(desk, lambda: float(next(_ticks))), page)


def all_at_once(desk: Desk, tab: Tab) -> list[str]:
    """What a second tab on the same conversation shows."""
    page = desk.fresh_page()
    page.targets, page.shown = tab.page.targets, tab.page.shown
    page.conversation_id, page.blind = tab.page.conversation_id, tab.page.blind
    other = Tab(tab.painter, page)
    other.ask(everything=True)
    return other.past()


def send(desk: Desk, tab: Tab, prompt: str) -> None:
    assert Actions(desk).send(tab.page, prompt, None, "together", FIELDS)
    assert desk.talk(tab.page).latest().live.wait(30)
    tab.ask()


def test_a_long_conversation_is_sent_once(desk, tab):
    for number in range(4):
        send(desk, tab, f"prompt {number}")
        assert tab.past() == all_at_once(desk, tab)
    assert "past1" not in tab.came
    assert tab.came["past1+"].count("<article") == 1
    assert '<div class="bubble">prompt 2</div>' in tab.came["past1+"]
    tab.ask()
    assert not any(name.startswith("past") for name in tab.came)


@pytest.mark.parametrize("change", ["edit", "blind", "vote", "panel", "other", "everything", "fewer"])
def test_after_any_change_it_is_what_a_fresh_tab_shows(desk, tab, change):
    for number in range(3):
        send(desk, tab, f"prompt {number}")
    if change == "edit":
        assert Actions(desk).edit_last(tab.page) == "prompt 2"
        send(desk, tab, "another prompt")
    elif change == "blind":
        tab.page.blind = True
    elif change == "vote":
        Actions(desk).vote(tab.page, "1")
    elif change == "panel":
        tab.page.targets[3], tab.page.shown = Target("echo-three", "CPU", "fast"), [1, 2, 3]
    elif change == "other":
        first = tab.page.conversation_id
        Actions(desk).new_conversation(tab.page)
        send(desk, tab, "somewhere else")
        Actions(desk).open(tab.page, first)
    elif change == "everything":
        tab.ask(everything=True)
    elif change == "fewer":  # the same beginning, then again what stood there before the last one came
        Actions(desk).new_conversation(tab.page)
    tab.ask()
    assert tab.past() == all_at_once(desk, tab)
    send(desk, tab, "and on")
    assert tab.past() == all_at_once(desk, tab)


def test_a_head_never_shows_another_targets_figures(desk, tab):
    """Of what writes now until it is done; of what is chosen for the next prompt only what that has written."""
    fast, slow = Target("echo", "CPU", "fast"), Target("echo", "CPU", "5")
    send(desk, tab, "one two three")
    assert tab.slots["head1"].count("<dd>–</dd>") == 0
    tab.page.targets[1] = slow
    tab.ask()
    assert " · 5 · " in tab.slots["head1"]
    assert tab.slots["head1"].count("<dd>–</dd>") == 4
    assert Actions(desk).send(tab.page, "four five six", None, "together", FIELDS)
    tab.page.targets[1] = fast
    tab.ask()
    assert " · 5 · " in tab.slots["head1"]
    Actions(desk).stop(tab.page)
    assert desk.talk(tab.page).latest().live.wait(30)
    tab.ask()
    assert " · fast · " in tab.slots["head1"]
    assert tab.slots["head1"].count("<dd>–</dd>") == 4
