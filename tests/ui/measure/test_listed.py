"""The list of measurements says how each one stands."""

from dataclasses import replace

import pytest

from storage.measurements import Listed
from ui.measure.progress_html import listed

NOON = "2026-11-25T12:00:00Z"


def row(status: str, resumable: bool) -> Listed:
    return Listed("m1", None, NOON, NOON, "contract", "quick", "demo", status, resumable, None)


def test_a_measurement_is_not_deleted_by_one_click():
    rows = [row("finished", False), replace(row("finished", False), id="m2")]
    assert 'data-act="delete"' not in listed(rows, "", None)
    asked = listed(rows, "", None, deleting="m2")
    assert asked.count('data-act="delete" data-value="m2"') == 1
    assert asked.count('data-act="ask-delete" data-value="m1"') == 1
    assert "for good?" in asked
    assert 'data-act="delete"' not in listed(rows, "", "m2", deleting="m2")  # it runs


@pytest.mark.parametrize(
    ("status", "resumable", "running", "said"),
    [
        ("running", True, None, "interrupted"),  # its app was killed
        ("paused", True, None, "interrupted"),
        ("running", False, None, "running"),  # in another app
        ("running", True, "m1", "running"),
        ("stopped", True, None, "stopped"),
        ("finished", False, None, "finished"),
    ],
)
def test_a_measurement_whose_app_is_gone_is_interrupted(status, resumable, running, said):
    assert f"<td>{said}</td>" in listed([row(status, resumable)], "", running)
