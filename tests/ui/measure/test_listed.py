"""The list of measurements says how each one stands."""

import pytest

from storage.measurements import Listed
from ui.measure.progress_html import listed

NOON = "2026-11-25T12:00:00Z"


def row(status: str, resumable: bool) -> Listed:
    return Listed("m1", None, NOON, NOON, "contract", "quick", "demo", status, resumable, None)


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
