"""What the tab's import makes of a file, without a page."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from engines.measure import document
from storage.measurements import Measurements
from storage.store import Store
from tests.ui.measure import samples
from ui.measure.actions import Actions, Refused

ROWS = """model,n_prompt,n_gen,n_depth,avg_ts,stddev_ts
"qwen","512","0","0","310.5","1.5"
"qwen","0","128","0","17.25","0.25"
"""


@pytest.fixture
def actions(tmp_path):
    store = Store(tmp_path / "arena.sqlite3")
    desk = SimpleNamespace(measurements=Measurements(store), session=None, busy=False)
    yield Actions(desk, store, None)
    store.close()


def test_rows_beside_another_computers_measurement_change_nothing_else(actions, tmp_path):
    """An empty conversation appeared in the history, and the measurement went with it when that was deleted."""
    theirs, rows = tmp_path / "theirs.json", tmp_path / "llama.csv"
    running = replace(samples.clear(), status="running", updated_at="2026-11-25T11:00:00.000Z")
    theirs.write_text(document.dumps(running))
    rows.write_text(ROWS)
    said, measurement_id = actions.bring_in(str(theirs), None)
    assert "brought in" in said
    before = actions.desk.measurements.listed()
    said, _ = actions.bring_in(str(rows), actions.found(measurement_id))
    assert said == "2 rows added, under llama-bench."
    assert actions.desk.measurements.listed() == before
    assert actions.store.conversations().total == 0
    assert [row.value for row in actions.found(measurement_id).foreign] == [310.5, 17.25]


def test_the_same_rows_stand_there_once(actions, tmp_path):
    theirs, rows = tmp_path / "theirs.json", tmp_path / "llama.csv"
    theirs.write_text(document.dumps(samples.clear()))
    rows.write_text(ROWS)
    _, measurement_id = actions.bring_in(str(theirs), None)
    actions.bring_in(str(rows), actions.found(measurement_id))
    said, _ = actions.bring_in(str(rows), actions.found(measurement_id))
    assert said == "These rows stand beside it already."
    assert len(actions.found(measurement_id).foreign) == 2


def test_a_file_that_is_neither_says_what_would_be_read(actions, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(Refused, match="llama-bench's JSON, JSON Lines, CSV, Markdown or SQL"):
        actions.bring_in(str(path), samples.clear())


@pytest.mark.parametrize(
    ("created_at", "name"),
    [
        ("2026-11-25T12:00:00.000Z", "backend-arena-measurement-2026-11-25.csv"),
        ("../../../x/y", "backend-arena-measurement-.csv"),
    ],
)
def test_a_report_is_named_by_its_day_and_by_nothing_else(actions, created_at, name):
    path = actions.report(replace(samples.clear(), created_at=created_at), "csv", False, None)
    assert path.name == name
    assert path.exists()
