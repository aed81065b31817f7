"""Measurements as rows of the history: saved as they go, found again, deleted, taken away and brought in."""

import json
import sqlite3
from dataclasses import replace

import pytest
from sqlite_utils import Database

from engines.measure import document
from engines.measure.journal import Ran
from engines.measure.records import LaneResult, Measurement, Repeat
from engines.protocol import Finished, Loaded, PreparedModel, RunMetrics, Target
from storage.exchange.exports import conversation_document, export_database, export_selection
from storage.exchange.imports import import_file
from storage.measurements import Measurements
from storage.migrations import migrations
from storage.records import Filter
from storage.speeds import rates_of
from storage.store import Store, StoreError
from storage.trends import trend
from tests.helpers.measuring import SHORT, TINY, lane

ECHO, SLOW = lane("echo", "100"), lane("echo", "20")
OFFSETS = (0.1, 0.15, 0.2, 0.26)


def planned(**fields) -> Measurement:
    lanes = (LaneResult(ECHO), LaneResult(SLOW))
    moment = "2026-11-20T10:00:00.000Z"
    return Measurement("m1", "demo", TINY, moment, lanes, machine={"name": "box", "processor": "P"}, **fields)


def ran(repeat: Repeat) -> Ran:
    metrics = RunMetrics(64, 0, len(repeat.token_offsets_s), repeat.prompt_sha256, repeat.token_offsets_s)
    loaded = Loaded(1.5, 0.1, None, None, None, "CPU", {"echo": "1.0"})
    return Ran(
        Finished("r", "length", "words", metrics), loaded, PreparedModel("/x", "demo", "100", "safetensors")
    )


@pytest.fixture
def filled(store):
    """Two repeats of one lane and one of another, and the measurement they belong to."""
    journal = Measurements(store)
    measurement = planned()
    for one, number in ((ECHO, 1), (ECHO, 2), (SLOW, 1)):
        repeat = Repeat(
            "short",
            number,
            token_offsets_s=OFFSETS,
            prompt_tokens=64,
            prompt_sha256=f"h{number}",
            started_at="2026-11-20T10:00:01.000Z",
            disturbed=number == 2,
        )
        lanes = tuple(
            replace(r, repeats=(*r.repeats, repeat)) if r.lane == one else r for r in measurement.lanes
        )
        measurement = replace(measurement, lanes=lanes, updated_at="2026-11-20T10:00:02.000Z")
        journal.repeated(measurement, one, SHORT, repeat, ran(repeat))
        journal.saved(measurement)
    return journal, measurement


def test_what_was_saved_is_what_is_found(store, filled):
    journal, measurement = filled
    assert journal.measurement("m1") == measurement
    (listed,) = journal.listed()
    assert (listed.model, listed.suite, listed.status) == ("demo", "own", "running")
    assert not listed.resumable  # this very process writes it
    assert Measurements(store).listed(model="other") == ()


def test_repeats_are_runs_in_history_trends_and_the_view(store, filled):
    (summary,) = store.conversations(Filter(engine="echo", precision="20")).summaries
    assert "Measurement" in summary.title
    with store.file.reading() as db:
        rows = db.execute(
            "SELECT case_name, round, precision, decode_tok_s FROM measured_runs ORDER BY precision, round"
        ).fetchall()
    rate = 3 / (OFFSETS[-1] - OFFSETS[0])
    assert rows == [
        ("short", 1, "100", pytest.approx(rate)),
        ("short", 2, "100", pytest.approx(rate)),
        ("short", 1, "20", pytest.approx(rate)),
    ]
    conversation = store.conversation(summary.id)
    assert {turn.prompt for turn in conversation.turns} == {
        "Measure: Short, round 1",
        "Measure: Short, round 2",
    }


def test_after_the_app_was_closed_it_can_be_gone_on_with(tmp_path):
    first = Store(tmp_path / "a.sqlite3")
    Measurements(first).saved(planned(status="running"))
    with first.file.writing() as db:
        db.execute("UPDATE measurements SET writer = '999999:1.00'")  # an app that is gone
    first.close()
    again = Store(tmp_path / "a.sqlite3")
    journal = Measurements(again)
    assert [listed.resumable for listed in journal.listed()] == [True]
    journal.saved(planned(status="finished"))
    assert [(listed.status, listed.resumable) for listed in journal.listed()] == [("finished", False)]
    assert again.conversations().total == 1  # the same conversation as before
    again.close()


def test_deleting_the_conversation_deletes_the_measurement(store, filled):
    journal, measurement = filled
    (summary,) = store.conversations().summaries
    store.delete([summary.id])
    assert journal.listed() == ()
    store.undelete([summary.id])
    assert len(journal.listed()) == 1
    journal.delete("m1")
    assert (journal.listed(), store.conversations().total) == ((), 0)
    journal.saved(measurement)  # a session that still runs must not fail


def test_removing_texts_leaves_the_figures_only(store):
    own = replace(planned(), suite=replace(TINY, cases=(replace(SHORT, text="my secret"),)))
    journal = Measurements(store)
    journal.saved(own)
    store.remove_texts()
    assert b"my secret" not in store.path.read_bytes()
    assert journal.measurement("m1").suite.cases[0].text is None
    store.set_setting("keep_text", False)
    journal.saved(replace(own, id="m2"))
    assert journal.measurement("m2").suite.cases[0].text is None


@pytest.mark.parametrize("kind", ["jsonl", "json", "db"])
def test_exports_take_it_along_and_imports_bring_it_in_once(tmp_path, store, filled, kind):
    path = tmp_path / f"out.{kind}"
    if kind == "jsonl":
        assert export_selection(store.file, Filter(), path, "jsonl") == 3
    elif kind == "json":
        (summary,) = store.conversations().summaries
        path.write_text(json.dumps(conversation_document(store.file, summary.id)))
    else:
        export_database(store.file, path)
    other = Store(tmp_path / "other.sqlite3")
    for _ in range(2):
        import_file(other.file, path, name="the other PC")
    (listed,) = Measurements(other).listed()
    assert (listed.imported_from, listed.status) == ("the other PC", "stopped")
    assert Measurements(other).measurement("m1").lanes == filled[1].lanes
    with other.file.reading() as db:
        assert db.execute("SELECT count(*) FROM measured_runs").fetchone()[0] == 3
    other.close()


def test_another_machines_report_is_brought_in_once(store):
    journal = Measurements(store)
    assert journal.bring_in(planned(status="running"), "a friend")
    assert not journal.bring_in(planned(), "a friend")
    (listed,) = journal.listed()
    assert (listed.imported_from, listed.status, listed.conversation_id) == ("a friend", "stopped", None)
    store.delete_everything()
    assert journal.listed() == ()


def test_a_tuning_is_kept_used_shown_and_taken_back(store):
    journal = Measurements(store)
    target = Target("echo", "CPU", "100", "demo")
    assert journal.tuned(target) == {}
    journal.keep_tuning(target, {"pace": "20", "threads": 2}, "it was faster")
    assert journal.tuned(target) == {"pace": "20", "threads": 2}
    assert journal.tuned(replace(target, model="other")) == {}
    (kept,) = journal.tunings()
    assert (kept.target, kept.job, kept.why, kept.in_use) == (target, "decode", "it was faster", True)
    journal.take_back_tuning(target)
    assert (journal.tuned(target), journal.tunings()) == ({}, ())


def test_a_tuning_is_kept_for_each_job_and_one_of_them_is_in_use(store):
    journal, target = Measurements(store), Target("echo", "CPU", "100", "demo")

    def in_use():
        return [(kept.job, kept.in_use) for kept in journal.tunings(target)]

    journal.keep_tuning(target, {"pace": "1"}, job="prefill")
    assert journal.tuned(target) == {"pace": "1"}
    journal.keep_tuning(target, {"pace": "2"}, job="decode")
    assert journal.tuned(target) == {"pace": "2"}
    journal.keep_tuning(target, {"pace": "3"}, job="prefill")
    assert (journal.tuned(target), in_use()) == ({"pace": "2"}, [("decode", True), ("prefill", False)])
    journal.use_tuning(target, "prefill")
    assert journal.tuned(target) == {"pace": "3"}
    journal.take_back_tuning(target, "prefill")
    assert (journal.tuned(target), in_use()) == ({}, [("decode", False)])
    journal.use_settings(target, {"pace": "2"})
    assert in_use() == [("decode", True)]
    journal.use_settings(target, {})
    assert (journal.tuned(target), in_use()) == ({}, [("decode", False)])
    journal.use_settings(target, {"pace": "9"})
    assert (journal.tuned(target), in_use()) == ({"pace": "9"}, [("measured", True), ("decode", False)])
    journal.take_back_tuning(target)
    assert journal.tunings() == ()


def test_a_tuning_for_one_job_leaves_what_a_person_chose_for_another_in_use(store):
    journal, target = Measurements(store), Target("echo", "CPU", "100", "demo")

    def tune(job, pace):
        journal.keep_tuning(target, {"pace": pace}, job=job)
        return journal.tuned(target)["pace"]

    assert (tune("prefill", "1"), tune("decode", "2")) == ("1", "2")
    journal.use_tuning(target, "prefill")
    assert (tune("decode", "3"), tune("prefill", "4"), tune("decode", "5")) == ("1", "4", "4")
    journal.use_settings(target, {"pace": "5"})
    assert (tune("prefill", "6"), tune("decode", "7")) == ("5", "7")
    journal.use_settings(target, {"pace": "9"})  # as a measurement had it
    assert (tune("decode", "8"), tune("prefill", "6")) == ("9", "9")
    journal.take_back_tuning(target, "measured")
    assert tune("decode", "8") == "8"


def test_the_chosen_lane_is_remembered_for_its_model(store):
    journal = Measurements(store)
    journal.prefer(Target("echo", "CPU", "100", "demo"))
    journal.prefer(Target("echo", "CPU", "20", "big"))
    assert (journal.preferred("demo"), journal.preferred("big"), journal.preferred("x")) == (
        "echo/CPU/100",
        "echo/CPU/20",
        None,
    )


def test_the_version_before_gets_the_tables(tmp_path):
    path = tmp_path / "old.sqlite3"
    db = Database(sqlite3.connect(path))
    migrations.apply(db, stop_before="008_measurements")
    assert "measurements" not in db.table_names()
    db.conn.commit()
    db.conn.close()
    store = Store(path)
    journal = Measurements(store)
    journal.saved(planned())
    assert document.loads(document.dumps(journal.measurement("m1"))) == planned(reference=None)
    store.close()


def test_tunings_of_the_version_before_stay_in_use(tmp_path):
    path = tmp_path / "old.sqlite3"
    db = Database(sqlite3.connect(path))
    migrations.apply(db, stop_before="012_tunings_per_job")
    for precision, why in (("100", "faster"), ("20", "as measured")):
        values = ["echo", "CPU", precision, "demo", '{"pace": "7"}', "2026-01-01T00:00:00Z", why]
        db.conn.execute("INSERT INTO tunings VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    db.conn.commit()
    db.conn.close()
    store = Store(path)
    journal = Measurements(store)
    assert journal.tuned(Target("echo", "CPU", "100", "demo")) == {"pace": "7"}
    assert {(kept.target.precision, kept.job) for kept in journal.tunings()} == {
        ("100", "decode"),
        ("20", "measured"),
    }
    store.close()


def test_a_choice_made_in_the_version_before_stays_a_choice(tmp_path):
    path = tmp_path / "old.sqlite3"
    db = Database(sqlite3.connect(path))
    migrations.apply(db, stop_before="013_tunings_chosen")
    for precision, job, in_use in (("1", "decode", 0), ("1", "prefill", 1), ("2", "prefill", 1)):
        values = [
            "echo",
            "CPU",
            precision,
            "demo",
            job,
            '{"pace": "7"}',
            "2026-01-01T00:00:00Z",
            None,
            in_use,
        ]
        db.conn.execute("INSERT INTO tunings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    db.conn.commit()
    db.conn.close()
    store = Store(path)
    journal = Measurements(store)
    found = {}
    for precision in ("1", "2"):
        target = Target("echo", "CPU", precision, "demo")
        journal.keep_tuning(target, {"pace": "8"})
        found[precision] = journal.tuned(target)["pace"]
    assert found == {"1": "7", "2": "8"}
    store.close()


def test_another_machines_measurement_that_went_on_is_brought_up_to_date(store):
    journal = Measurements(store)
    early = planned(status="stopped", updated_at="2026-11-20T10:00:00.000Z")
    later = replace(early, status="finished", updated_at="2026-11-20T11:00:00.000Z", notes=("more",))
    assert [journal.bring_in(each) for each in (early, early, later, early)] == [True, False, True, False]
    assert journal.measurement("m1").notes == ("more",)
    assert [(each.status, each.imported_from) for each in journal.listed()] == [("finished", "P")]


def test_what_is_this_computers_own_is_never_replaced_by_what_comes(store):
    journal = Measurements(store)
    own = planned(status="finished", updated_at="2026-11-20T10:00:00.000Z")
    journal.saved(own)
    assert not journal.bring_in(replace(own, notes=("forged",), updated_at="2099-01-01T00:00:00.000Z"))
    assert journal.measurement("m1").notes == ()


def test_what_another_computer_began_cannot_be_gone_on_with_here(store):
    journal = Measurements(store)
    journal.bring_in(planned(status="stopped"))
    assert [each.resumable for each in journal.listed()] == [False]
    assert journal.origin("m1") == "P"


def test_an_ending_that_fits_several_measurements_finds_none_of_them(store):
    journal = Measurements(store)
    for each in ("a17", "b17", "17"):
        journal.saved(replace(planned(), id=each))
    assert journal.measurement("17").id == "17"
    assert journal.measurement("a17").id == "a17"
    assert [journal.measurement(wild) for wild in ("%", "_", "", "a_7")] == [None] * 4
    with pytest.raises(StoreError, match="Several measurements"):
        journal.measurement("7")


def test_a_refused_repeat_makes_no_median_no_trend_and_no_fastest_lane(store):
    """An impossible rate, or a reply that stopped early, once counted like any run of the history."""
    journal = Measurements(store)
    for number, refused in ((1, None), (2, "impossible: 9,000 tok/s")):
        offsets = tuple(0.1 + at * (0.001 if refused else 0.1) for at in range(5))
        repeat = Repeat(
            "short",
            number,
            token_offsets_s=offsets,
            prompt_tokens=64,
            cached_prompt_tokens=0,
            refused=refused,
        )
        journal.repeated(planned(), ECHO, SHORT, repeat, ran(repeat))
    drawn = store.read(lambda db: trend(db, Filter(engine="echo"), "decode_tok_s"))
    assert (drawn.runs, drawn.median) == (1, pytest.approx(10))
    assert rates_of(store, ECHO.target, "box")[1] == pytest.approx(10)
    (failed,) = store.conversations(Filter(status="failed")).summaries
    refused_run = store.conversation(failed.id).turns[1].runs[0]
    assert refused_run.error_message == "Refused: impossible: 9,000 tok/s."
