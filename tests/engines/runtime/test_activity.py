"""What of ours uses the machine: overlaps are known afterwards, and a measurement has it to itself."""

import threading

import pytest

from engines.runtime.activity import Activity, GaveUpError


def test_what_overlapped_is_known_afterwards():
    now = [0.0]
    activity = Activity(clock=lambda: now[0])
    with activity.doing("load", "before"):
        now[0] = 1.0
    now[0] = 2.0
    with activity.doing("generate", "mine") as mine:
        now[0] = 3.0
        with activity.doing("convert", "joined later"):
            now[0] = 4.0
        assert [doing.what for doing in activity.now()] == ["mine"]
    found = activity.overlapping(2.0, 4.0, besides=mine)
    assert [(doing.kind, doing.what) for doing in found] == [("convert", "joined later")]
    assert activity.overlapping(5.0, 6.0) == ()


def test_a_measurement_waits_for_what_is_going_on_and_everything_new_waits_for_it():
    activity = Activity()
    waits, order = [], []
    running, may_end, measuring = threading.Event(), threading.Event(), threading.Event()

    def run() -> None:
        with activity.doing("generate", "a run"):
            running.set()
            may_end.wait(30)
            order.append("run ended")

    def measure() -> None:
        with activity.exclusive("a measurement", on_wait=heard_by_measurement) as hold:
            order.append("measuring")
            measuring.set()
            with activity.doing("generate", "the measurement's own"):
                pass
            helper = threading.Thread(target=work_for, args=(hold,))
            helper.start()
            helper.join(30)
            late_waits.wait(30)
            order.append("measured")

    def work_for(hold) -> None:
        with hold.in_this_thread(), activity.doing("generate", "one of two lanes together"):
            order.append("helped")

    def heard_by_measurement(what: str) -> None:
        waits.append(what)
        may_end.set()

    def late() -> None:
        with activity.doing("load", "late", on_wait=lambda what: late_waits.set()):
            order.append("late")

    late_waits = threading.Event()
    first = threading.Thread(target=run)
    first.start()
    assert running.wait(30)
    measurement = threading.Thread(target=measure)
    measurement.start()
    assert may_end.wait(30)
    last = threading.Thread(target=late)
    assert measuring.wait(30)
    last.start()
    for thread in (first, measurement, last):
        thread.join(30)
    assert order == ["run ended", "measuring", "helped", "measured", "late"]
    assert waits[0] == "a run"


def test_waiting_can_be_given_up_on_either_side():
    activity = Activity()
    outcome: list[str] = []

    def try_exclusive() -> None:
        with pytest.raises(GaveUpError), activity.exclusive("second", cancelled=lambda: True):
            outcome.append("never")
        outcome.append("gave up")

    def try_doing() -> None:
        with pytest.raises(GaveUpError), activity.doing("load", "x", cancelled=lambda: True):
            outcome.append("never")
        outcome.append("gave up")

    with activity.exclusive("first"):
        for attempt in (try_exclusive, try_doing):
            thread = threading.Thread(target=attempt)
            thread.start()
            thread.join(30)
    assert outcome == ["gave up", "gave up"]
    with activity.doing("load", "free again"):
        assert len(activity.now()) == 1
