"""What is said before a measurement starts, and what the painter hands to a browser."""

import dataclasses

import pytest

from engines.measure import suites
from engines.protocol import Target
from ui.measure.estimate import estimate, roughly
from ui.measure.painter import View

FAST, SLOW, NEW = (Target("echo", "CPU", name) for name in ("fast", "20", "100"))
RATES = {FAST: (2000.0, 100.0), SLOW: (100.0, 10.0)}
LONG = dataclasses.replace(suites.QUICK, target_s=None, passes=("speed",))


def test_a_lane_that_ran_before_is_estimated_by_its_rates():
    """5 repeats of 128 → 128 and 1024 → 64, each round loaded and warmed up anew."""
    work = 5 * (2 * (128 + 1024) / 2000 + (128 + 64 + 2 * 4) / 100)
    found = estimate([FAST], LONG, RATES.get)
    assert found.seconds == pytest.approx(work + 5 * 10 + 2 * 10 + 6, rel=0.02)
    assert found.unknown == ()
    assert "1 lane" in found.text


def test_a_lane_that_never_ran_is_named_and_taken_to_be_slow():
    found = estimate([FAST, NEW], LONG, RATES.get)
    assert found.unknown == (NEW.spelling,)
    assert NEW.spelling in found.text
    assert found.seconds - estimate([FAST], LONG, RATES.get).seconds == pytest.approx(
        estimate([SLOW], LONG, RATES.get).seconds
    )


def test_a_suite_with_a_limit_is_shortened_and_that_is_said():
    whole, limited = (estimate([SLOW], suite, RATES.get) for suite in (LONG, suites.QUICK))
    assert limited.note.startswith("Shortened to")
    assert limited.seconds < whole.seconds
    assert limited.note in limited.text


def test_more_lanes_and_more_repeats_take_longer():
    one = estimate([FAST], LONG, RATES.get).seconds
    assert estimate([FAST, SLOW], LONG, RATES.get).seconds > one
    assert estimate([FAST], suites.with_repeats(LONG, 10), RATES.get).seconds > 1.5 * one


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3, "10 s"), (44, "40 s"), (70, "1 min"), (725, "12 min"), (3600, "1 h"), (6100, "1 h 40 min")],
)
def test_an_estimate_is_no_more_precise_than_it_is(seconds, said):
    assert roughly(seconds) == said


@pytest.mark.parametrize(
    "sent", [None, "", "null", "[1]", "{", '{"shown": 5}', '{"asked": "x"}', 7, {"shown": "a"}]
)
def test_whatever_a_browser_sends_is_a_view(sent):
    view = View.of(sent)
    assert View.of(view.text()) == view
    assert view.asked == 0


def test_a_view_comes_back_as_it_was():
    assert View.of(View("a" * 32, "b", 3).text()) == View("a" * 32, "b", 3)
