"""Stamps and placement in the history: migration, medians, trends, exports and imports."""

import json
import sqlite3

import pytest
from sqlite_utils import Database

from engines.protocol import Finished
from engines.telemetry.disturbance import Conditions, OtherLoad
from engines.telemetry.observer import Observed
from engines.telemetry.placement import Placement
from storage.exchange.documents import conversation_markdown
from storage.exchange.exports import conversation_text, export_selection
from storage.exchange.imports import import_file
from storage.migrations import migrations
from storage.records import Filter
from storage.store import Store, StoreError
from storage.trends import trend
from tests.storage.filling import CPU, MACHINE, metrics, turn


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "arena.sqlite3")
    yield store
    store.close()


def observed(contended=False, disturbed=False, badge="proven"):
    load = OtherLoad(
        2.0, 0.3, 0.6, 0.25, ("chrome 0.60 cores",), ours=("load x",) if contended else (), reasons=("Why.",)
    )
    return Observed(
        Conditions(contended, disturbed, load), Placement("CPU", "CPU", "CPU", badge, ("Asked for CPU.",))
    )


def run(store, turn_id, gap_s=0.1, seen=None):
    """A finished run of 1 / `gap_s` tokens a second."""
    run_id = store.start_run(turn_id, 0, CPU, machine=MACHINE, contended=False)
    numbers = metrics((0.5, 0.5 + gap_s, 0.5 + 2 * gap_s))
    store.finish_run(
        run_id,
        Finished(run_id, "stop", "Hi.", numbers),
        text="Hi.",
        metrics=numbers,
        felt_ttft_s=None,
        observed=seen,
    )
    return run_id


@pytest.fixture
def mixed(store):
    """Ten tokens a second alone; whatever else ran was slower or faster. Returns the conversation's id."""
    conversation_id = store.start_conversation()
    turn_id = turn(store, conversation_id)
    run(store, turn_id, 0.1, observed())
    run(store, turn_id, 0.1, observed(badge="claimed"))
    run(store, turn_id, 0.5, observed(contended=True))
    run(store, turn_id, 1.0, observed(disturbed=True))
    run(store, turn_id, 2.0, observed(contended=True, disturbed=True))
    run(store, turn_id, 0.01, observed(badge="contradicted"))
    return conversation_id


def fetched(store, sql, *values):
    with store.file.reading() as db:
        return db.execute(sql, values).fetchall()


def test_only_runs_that_were_neither_make_the_medians(store, mixed):
    medians = (
        "SELECT contended, stamp_rule, runs, round(decode_tok_s, 3) FROM median_metrics ORDER BY contended"
    )
    assert fetched(store, medians) == [(0, "end", 2, 10.0), (1, "end", 1, 2.0)]
    alone = "SELECT round(decode_tok_s, 1) FROM run_metrics WHERE alone"
    assert fetched(store, alone) == [(10.0,), (10.0,)]


def test_older_runs_keep_their_stamp_and_stand_apart(store, mixed):
    turn_id = turn(store, mixed)
    run(store, turn_id, 0.2)  # nobody watched it: as before
    medians = (
        "SELECT stamp_rule, runs, round(decode_tok_s, 3) FROM median_metrics WHERE NOT contended ORDER BY 1"
    )
    assert fetched(store, medians) == [("end", 2, 10.0), ("start", 1, 5.0)]
    old = store.conversation(mixed).turns[1].runs[0]
    assert (old.contended, old.disturbed, old.stamp_rule, old.placement) == (False, None, "start", None)
    with store.file.reading() as db:
        found = trend(db, Filter(), "decode_tok_s")
    assert found.old_rule == 1


def test_a_trend_draws_apart_what_was_not_alone_and_leaves_out_what_ran_elsewhere(store, mixed):
    with store.file.reading() as db:
        found = trend(db, Filter(), "decode_tok_s")
    assert found.median == pytest.approx(10)
    assert sum(bucket.runs for bucket in found.alone) == 2
    assert sum(bucket.runs for bucket in found.contended) == 3
    assert (found.misplaced, found.old_rule, found.runs) == (1, 0, 5)


def test_what_was_seen_comes_back_as_it_was(store, mixed):
    runs = store.conversation(mixed).turns[0].runs
    assert runs[2].other_load == observed(contended=True).conditions.other_load
    assert runs[0].placement == observed().placement
    assert [run.disturbed for run in runs] == [False, False, False, True, True, False]
    text = conversation_markdown(store.conversation(mixed))
    assert "disturbed by other programs" in text
    assert "contradicted on CPU" in text


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_stamps_survive_an_export_and_an_import(store, mixed, tmp_path, kind):
    path = tmp_path / f"out.{kind}"
    if kind == "json":
        path.write_text(conversation_text(store.file, store.conversation(mixed), "json"), encoding="utf-8")
    else:
        export_selection(store.file, Filter(), path, "jsonl")
    other = Store(tmp_path / "other.sqlite3")
    assert import_file(other.file, path).runs == 6
    columns = "id, contended, disturbed, stamp_rule, placement_badge, other_load, placement"
    query = f"SELECT {columns} FROM runs ORDER BY id"
    theirs, ours = fetched(other, query), fetched(store, query)
    other.close()
    assert [row[:5] for row in theirs] == [row[:5] for row in ours]
    assert [json.loads(row[5]) for row in theirs] == [json.loads(row[5]) for row in ours]
    assert [json.loads(row[6]) for row in theirs] == [json.loads(row[6]) for row in ours]


def test_a_table_of_runs_has_the_stamps(store, mixed, tmp_path):
    path = tmp_path / "out.csv"
    export_selection(store.file, Filter(), path, "csv")
    head, *lines = path.read_text(encoding="utf-8-sig").splitlines()
    column = {name: at for at, name in enumerate(head.split(","))}
    cells = [line.split(",") for line in lines]
    assert [row[column["disturbed"]] for row in cells] == ["False", "False", "False", "True", "True", "False"]
    assert [row[column["alone"]] for row in cells] == ["True", "True", "False", "False", "False", "False"]
    assert cells[5][column["placement_badge"]] == "contradicted"


@pytest.mark.parametrize(
    "change",
    [
        "disturbed = 7",
        "stamp_rule = 'never'",
        "other_load = '[]'",
        "placement = 'x'",
        "placement_badge = 'surely'",
        "disturbed = 'no'",
    ],
)
def test_an_import_with_a_strange_stamp_is_refused(store, mixed, tmp_path, change):
    copy = tmp_path / "copy.sqlite3"
    store.file.copy_to(copy)
    connection = sqlite3.connect(copy)
    connection.execute(f"UPDATE runs SET {change} WHERE n = 1")
    connection.commit()
    connection.close()
    other = Store(tmp_path / "other.sqlite3")
    with pytest.raises(StoreError):
        import_file(other.file, copy)
    assert fetched(other, "SELECT count(*) FROM runs") == [(0,)]
    other.close()


def test_the_step_marks_what_was_there_as_of_the_old_rule(tmp_path):
    path = tmp_path / "arena.sqlite3"
    older = Database(path)
    migrations.apply(older, stop_before="007_disturbance_and_placement")
    older.conn.executescript(
        """
        INSERT INTO machines (id, name, facts, first_seen_at) VALUES ('m', 'desk', '{}', '2026-01-01');
        INSERT INTO targets (id, engine, device, precision, model) VALUES ('t', 'e', 'CPU', 'int4', 'demo');
        INSERT INTO conversations (id, title, created_at, updated_at) VALUES ('c', 'Old', '2026-01-01', '2026-01-01');
        INSERT INTO turns (id, conversation_id, created_at, mode, settings, prompt)
            VALUES ('u', 'c', '2026-01-01', 'together', '{}', 'an old prompt');
        INSERT INTO runs (id, turn_id, panel, attempt, target_id, machine_id, contended, status, started_at,
            token_offsets, first_token_us, last_token_us, output_tokens)
            VALUES
            ('r', 'u', 0, 1, 't', 'm', 0, 'finished', '2026-01-01', x'00000186A00000030D40', 100000, 200000, 2),
            ('s', 'u', 1, 1, 't', 'm', 1, 'finished', '2026-01-01', x'00000186A00000030D40', 100000, 200000, 2);
        """
    )
    older.close()
    store = Store(path)
    assert fetched(
        store, "SELECT contended, alone, stamp_rule, disturbed FROM run_metrics ORDER BY run_id"
    ) == [
        (0, 1, "start", None),
        (1, 0, "start", None),
    ]
    assert fetched(store, "SELECT contended, stamp_rule, runs FROM median_metrics ORDER BY 1") == [
        (0, "start", 1),
        (1, "start", 1),
    ]
    store.close()
