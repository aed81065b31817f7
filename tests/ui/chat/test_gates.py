"""The visitors' line and limits, on real echo workers."""

import threading

import pytest

from engines.hardware import machine_facts
from storage.store import Store
from tests.helpers.worlds import ECHO, SLOW_ECHO, bad, manager_on
from ui.chat.gates import FairLine, Limits, VisitorGate
from ui.chat.settings import Settings
from ui.chat.turns import Turns

LONG = " ".join(f"word{n}" for n in range(200))


@pytest.fixture(scope="module")
def turns(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gates")
    manager, store = manager_on(folder), Store(folder / "arena.sqlite3")
    turns = Turns(manager, store, machine_facts)
    yield turns
    turns.stop_everything()
    manager.shutdown()
    store.close()


def send(turns, gate, prompt=LONG, target=ECHO, **settings):
    return turns.send(prompt, [(1, target)], Settings(**settings), owner="visitor:a", gate=gate)


# --- the line ----------------------------------------------------------------------------------------------


def test_lines_take_turns_so_a_hundred_prompts_make_another_wait_for_one():
    line = FairLine(1)
    inside = line.join("busy")
    waiting = [line.join("busy") for _ in range(100)]
    late = line.join("late")
    assert inside.let_in.is_set()
    assert line.position(late) == 2
    line.leave(inside)
    assert waiting[0].let_in.is_set()
    line.leave(waiting[0])
    assert late.let_in.is_set()
    assert not waiting[1].let_in.is_set()


def test_every_place_is_let_in_once_and_in_the_order_that_was_shown():
    line = FairLine(2)
    tickets = [line.join(name) for name in "aaabbcaab"]
    order = sorted((t for t in tickets if not t.let_in.is_set()), key=line.position)
    assert [line.position(t) for t in order] == list(range(1, len(order) + 1))
    inside = [t for t in tickets if t.let_in.is_set()]
    seen = []
    while inside:
        line.leave(inside.pop(0))
        new = [t for t in order if t.let_in.is_set() and t not in seen]
        seen += new
        inside += new
    assert seen == order
    assert line.waiting() == 0
    assert line.join("z").let_in.is_set()
    assert line.join("z").let_in.is_set()


def test_who_gives_up_waiting_leaves_no_gap():
    line = FairLine(1)
    first, second, third = (line.join(name) for name in "abc")
    line.leave(second)
    assert line.position(third) == 1
    line.leave(first)
    assert third.let_in.is_set()
    line.leave(third)
    assert line.join("d").let_in.is_set()


def test_the_longest_wait_is_said_before():
    line = FairLine(2)
    assert line.most_wait_s(1, 60) == line.most_wait_s(2, 60) == 60
    assert line.most_wait_s(3, 60) == 120


# --- on workers --------------------------------------------------------------------------------------------


def test_one_run_at_a_time_the_other_sees_its_place(turns):
    line = FairLine(1)
    first = send(turns, VisitorGate("a", line, Limits()), target=SLOW_ECHO, max_new_tokens=400)
    second = send(turns, VisitorGate("b", line, Limits()), "Hello there", target=SLOW_ECHO)
    seen = threading.Event()
    for _ in range(300):
        progress = second.runs[0].view().progress
        if progress is not None and "in line" in progress.text:
            break
        seen.wait(0.1)
    assert progress.text == "Number 1 in line, at most 2 min"
    assert not second.done
    first.stop()
    assert second.wait(60)
    assert second.runs[0].view().phase == "finished"


def test_a_run_that_waits_can_be_stopped_and_leaves_the_line(turns):
    line = FairLine(1)
    blocking = line.join("a")
    turn = send(turns, VisitorGate("b", line, Limits()))
    turn.stop()
    assert turn.wait(30)
    assert turn.runs[0].view().phase == "stopped"
    assert line.waiting() == 0
    line.leave(blocking)


def test_a_reply_that_takes_too_long_is_stopped_and_says_so(turns):
    turn = send(
        turns, VisitorGate("a", FairLine(1), Limits(run_s=1.0)), target=SLOW_ECHO, max_new_tokens=4000
    )
    assert turn.wait(60)
    view = turn.runs[0].view()
    assert view.phase == "stopped"
    assert "Stopped after 1 s" in view.warning


def test_a_prompt_with_too_many_tokens_is_stopped_and_says_both_numbers(turns):
    turn = send(
        turns, VisitorGate("a", FairLine(1), Limits(prompt_tokens=50)), target=SLOW_ECHO, max_new_tokens=4000
    )
    assert turn.wait(60)
    warning = turn.runs[0].view().warning
    assert "at most 50" in warning


def test_a_failure_shows_a_visitor_nothing_of_the_machine(turns):
    turn = send(turns, VisitorGate("a", FairLine(1), Limits()), target=bad("crash-on-load"))
    assert turn.wait(60)
    shown, real = turn.runs[0].view(), turn.runs[0].fold.view()
    assert real.failure is not None
    assert "could not answer" in shown.failure.message
    for secret in (real.failure.message, real.failure.details):
        assert not secret or secret not in repr(shown)
    assert shown.loaded is None
    assert shown.peak_rss_bytes is None


def test_the_owner_passes_at_once_whatever_the_line(turns):
    line = FairLine(1)
    line.join("a")
    turn = turns.send("Hello", [(1, ECHO)], Settings())
    assert turn.wait(60)
    assert turn.runs[0].view().phase == "finished"
