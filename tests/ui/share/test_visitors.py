"""What a visitor may have: opened backends, limits, their own conversations; and what is kept of them."""

from dataclasses import asdict

import pytest

from engines.hardware import machine_facts
from storage.store import Store
from tests.helpers.worlds import ECHO, SLOW_ECHO, manager_on
from ui.access import Role
from ui.chat.gates import Limits
from ui.chat.settings import Settings
from ui.chat.turns import TurnError, Turns
from ui.share.door import Door
from ui.share.visitors import Visitors


class World:
    def __init__(self, folder):
        self.manager, self.store = manager_on(folder), Store(folder / "arena.sqlite3")
        self.turns = Turns(self.manager, self.store, machine_facts)
        self.door = Door(locked=True)
        self.now = 0.0
        self.visitors = Visitors(self.door, self.store, self.turns, clock=lambda: self.now)

    def fresh(self):
        """Defaults again, and somebody who has just come."""
        self.door.visitors_welcome = True
        self.now += 3600
        self.visitors.open_targets([ECHO, SLOW_ECHO])
        self.visitors.set_limits(**asdict(Limits()))
        self.visitors.keep_text(False)
        return self.visitors.of(self.door.logins.open("visitor", Role.VISITOR)[1])

    def send(self, visitor, prompt="Hello there", target=ECHO, **more):
        return self.visitors.send(
            visitor, prompt, [(1, target)], Settings(**more.pop("settings", {})), **more
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("visitors"))
    yield world
    world.visitors.close()
    world.turns.stop_everything()
    world.manager.shutdown()
    world.store.close()


def test_a_visitor_chats_and_the_history_keeps_the_numbers_without_the_words(world):
    visitor = world.fresh()
    turn = world.send(visitor, "secret words")
    assert turn.wait(60)
    assert "secret" in turn.runs[0].view().text
    logged = world.store.conversation(turn.conversation_id)
    assert logged.owner == f"visitor:{visitor.login.id}"
    assert logged.turns[0].prompt is None
    run = logged.turns[0].runs[0]
    assert run.text is None
    assert run.metrics.output_tokens > 0
    assert b"secret words" not in world.store.path.read_bytes()


def test_without_kept_words_the_chat_still_knows_what_was_said(world):
    visitor = world.fresh()
    first = world.send(visitor, "alpha beta")
    assert first.wait(60)
    second = world.send(visitor, "gamma", conversation_id=first.conversation_id)
    assert second.wait(60)
    assert "alpha beta" in second.runs[0].view().text


def test_the_owner_can_have_the_words_kept(world):
    visitor = world.fresh()
    world.visitors.keep_text(True)
    turn = world.send(visitor, "kept words")
    assert turn.wait(60)
    assert world.store.conversation(turn.conversation_id).turns[0].prompt == "kept words"


def test_the_owners_own_words_are_kept_all_the_same(world):
    world.fresh()
    turn = world.turns.send("mine", [(1, ECHO)], Settings())
    assert turn.wait(60)
    assert world.store.conversation(turn.conversation_id).turns[0].prompt == "mine"


def test_only_opened_backends_answer(world):
    visitor = world.fresh()
    world.visitors.open_targets([SLOW_ECHO])
    with pytest.raises(TurnError, match="closed"):
        world.send(visitor)
    world.visitors.open_targets([])
    with pytest.raises(TurnError, match="closed"):
        world.send(visitor, target=SLOW_ECHO)


def test_another_visitors_conversation_is_not_here(world):
    one, other = world.fresh(), world.fresh()
    turn = world.send(one)
    assert turn.wait(60)
    with pytest.raises(TurnError, match="not here"):
        world.send(other, conversation_id=turn.conversation_id)
    with pytest.raises(TurnError, match="not here"):
        world.visitors.may_run_again(other, turn, ECHO)


@pytest.mark.parametrize(
    ("limits", "panels", "prompt", "said"),
    [
        ({"panels": 1}, [(1, ECHO), (2, SLOW_ECHO)], "Hi", "At most 1 panels"),
        ({"prompt_tokens": 16}, [(1, ECHO)], "x" * 1000, "more than 16 tokens"),
        ({"waiting_runs": 1}, [(1, ECHO), (2, SLOW_ECHO)], "Hi", "at most 1"),
        ({"runs_per_minute": 1}, [(1, ECHO), (2, SLOW_ECHO)], "Hi", "a minute"),
    ],
)
def test_beyond_a_limit_there_is_a_sentence_with_the_number(world, limits, panels, prompt, said):
    visitor = world.fresh()
    world.visitors.set_limits(**limits)
    with pytest.raises(TurnError, match=said):
        world.visitors.send(visitor, prompt, panels, Settings())


def test_the_pace_is_per_minute_and_recovers(world):
    visitor = world.fresh()
    world.visitors.set_limits(runs_per_minute=2)
    for _ in range(2):
        assert world.send(visitor).wait(60)
    with pytest.raises(TurnError, match="Try again in"):
        world.send(visitor)
    world.now += 61
    assert world.send(visitor).wait(60)


def test_a_longer_reply_than_allowed_is_shortened(world):
    visitor = world.fresh()
    world.visitors.set_limits(output_tokens=3)
    turn = world.send(visitor, "one two three four five six seven", settings={"max_new_tokens": 4000})
    assert turn.wait(60)
    assert turn.runs[0].view().tokens == 3


def test_runs_end_when_the_visitor_leaves_falls_silent_or_sharing_ends(world):
    for leave in ("logout", "silence"):
        visitor = world.fresh()
        turn = world.send(visitor, "word " * 50, SLOW_ECHO, settings={"max_new_tokens": 500})
        if leave == "logout":
            world.door.logins.close_visitors()
        else:
            world.door.logins.silent_s = lambda login: 1e9
            world.visitors.stop_the_gone()
            del world.door.logins.silent_s
        assert turn.wait(60)
        assert turn.runs[0].view().phase == "stopped"
    visitor = world.fresh()
    world.door.visitors_welcome = False
    with pytest.raises(TurnError, match="ended"):
        world.send(visitor)


@pytest.mark.parametrize("kept", [None, [], "x", {"panels": 99}, {"panels": "two"}, {"unknown": 1}])
def test_limits_that_make_no_sense_are_not_taken_from_the_file(world, kept):
    world.store.set_setting("share.limits", kept)
    assert Visitors(world.door, world.store, world.turns).limits.panels == 2


def test_a_limit_out_of_range_is_refused(world):
    with pytest.raises(ValueError, match="between"):
        world.visitors.set_limits(panels=0)
