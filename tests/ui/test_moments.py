"""Stored moments are UTC; people are told them by their own clock, everywhere alike."""

import time

import pytest

from storage.measurements import Listed
from storage.records import Summary
from ui.api.keys import ApiKey
from ui.cli.history import _line
from ui.history.conversation_html import when
from ui.measure.progress_html import listed
from ui.system.programs import keys_html

STORED, TOLD = "2026-11-28T23:30:00.000Z", "29 Nov 2026, 08:30"


@pytest.fixture(autouse=True)
def tokyo(monkeypatch):
    """Nine hours ahead: another hour and another day."""
    if not hasattr(time, "tzset"):
        pytest.skip("only Unix lets a process choose its time zone")
    monkeypatch.setenv("TZ", "JST-9")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def told() -> dict[str, str]:
    """Each place that names a moment."""
    summary = Summary("c1", "A title", None, None, STORED, STORED, False, None, 1, 1, 0)
    key = ApiKey("k", "hash", "abcd", STORED, STORED)
    return {
        "history": when(STORED),
        "terminal": _line(summary),
        "measurements": listed(
            [Listed("m", None, STORED, STORED, "c", "quick", "demo", "finished", False, None)], "", None
        ),
        "keys": keys_html((key,)),
    }


@pytest.mark.parametrize("place", ["history", "terminal", "measurements", "keys"])
def test_a_moment_is_told_by_the_persons_clock(place):
    said = told()[place]
    assert TOLD in said
    assert "23:30" not in said
    assert "28" not in said


def test_what_is_no_moment_stays_as_it_is():
    assert when("<b>never") == "&lt;b&gt;never"
    assert when(None) == "–"
