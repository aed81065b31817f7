"""Files that somebody made to do harm: refused with a sentence, quickly, and nothing of them stays."""

import json
import sqlite3
import threading
import time

import pytest

from storage.codec import now
from storage.database import StoreBusyError
from storage.exchange.exports import export_database, export_selection
from storage.exchange.imports import import_file, known_schema
from storage.records import Filter
from storage.store import Store, StoreError
from storage.trends import METRICS, trend
from tests.storage.filling import CPU, run, turn

ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"


@pytest.fixture
def foreign(tmp_path):
    """A whole database of another machine, to be spoilt: (path, run SQL on it)."""
    store = Store(tmp_path / "there" / "arena.sqlite3")
    for number in range(3):
        run(store, turn(store, store.start_conversation(f"Number {number}")), panel=1)
    path = tmp_path / "export.sqlite3"
    export_database(store.file, path)
    store.close()

    def spoil(sql: str) -> None:
        connection = sqlite3.connect(path)
        connection.executescript(sql)
        connection.commit()
        connection.close()

    return path, spoil


def refused(store: Store, path) -> str:
    before = store.conversations().total
    started = time.monotonic()
    with pytest.raises(StoreError) as error:
        import_file(store.file, path)
    assert time.monotonic() - started < 60
    assert store.conversations().total == before
    store.start_conversation("the history can still be written")
    return str(error.value)


def test_an_honest_copy_is_taken(store, foreign):
    assert import_file(store.file, foreign[0]).runs == 3


@pytest.mark.parametrize(
    "sql",
    [
        f"ALTER TABLE votes RENAME TO old; CREATE VIEW votes AS {ENDLESS} SELECT i AS turn_id, 'tie' AS winner, "
        "NULL AS winner_run_id, 0 AS blind, '2026-01-01T00:00:00.000Z' AS created_at FROM n;",
        f"DROP VIEW median_metrics; CREATE VIEW median_metrics AS {ENDLESS} SELECT i FROM n;",
        f"CREATE VIEW more AS {ENDLESS} SELECT i FROM n;",
        "CREATE TRIGGER t AFTER UPDATE ON runs BEGIN DELETE FROM conversations; END;",
        "DROP TRIGGER runs_fts_add; CREATE TRIGGER runs_fts_add AFTER UPDATE OF text, status ON runs "
        "BEGIN DELETE FROM turns; END;",
        "CREATE VIRTUAL TABLE more USING fts5(text);",
        "DROP TABLE votes; CREATE VIRTUAL TABLE votes USING fts5(turn_id, winner);",
        "ALTER TABLE conversations ADD COLUMN big TEXT AS (hex(zeroblob(100000)));",
    ],
)
def test_what_is_no_plain_table_is_refused(store, foreign, sql):
    path, spoil = foreign
    spoil(sql)
    assert "nothing was imported" in refused(store, path)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE runs SET total_s = 9e999",
        "UPDATE runs SET felt_ttft_s = -9e999",
        "UPDATE runs SET load_s = 1e300",
        "UPDATE runs SET first_token_us = 9223372036854775807",
        "UPDATE runs SET panel = -9223372036854775808",
        "UPDATE runs SET peak_rss_bytes = 9e18",
        "UPDATE runs SET started_at = '0000-01-01T00:00:00.000Z'",
        "UPDATE runs SET started_at = '9999-12-31T23:59:59.999Z'",
        "UPDATE conversations SET created_at = '0001-01-01T00:00:00.000Z'",
        "UPDATE conversations SET updated_at = '2026-13-45T00:00:00.000Z'",
        "UPDATE turns SET settings = '{\"temperature\": 1e999}'",
        "UPDATE machines SET facts = '{\"memory_bytes\": 1e300}'",
    ],
)
def test_numbers_and_dates_out_of_range_are_refused(store, foreign, sql):
    path, spoil = foreign
    spoil(sql)
    refused(store, path)
    for metric in METRICS:
        with store.file.reading() as db:
            trend(db, Filter(engine=CPU.engine), metric)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE runs SET text = CAST(x'ff41' AS TEXT)",
        "UPDATE turns SET prompt = CAST(x'eda080' AS TEXT)",
        "UPDATE conversations SET title = CAST(x'c3' AS TEXT)",
        "UPDATE targets SET engine = CAST(x'41ff' AS TEXT)",
        "UPDATE turns SET earlier = '[1, 2]'",
        "UPDATE turns SET earlier = '[[\"user\", 5]]'",
        'UPDATE turns SET earlier = \'[{"role": "user", "content": "x", "more": 1}]\'',
        'UPDATE turns SET earlier = \'[["user", "x", "more"]]\'',
    ],
)
def test_what_no_page_could_read_is_refused(store, foreign, sql):
    path, spoil = foreign
    spoil(sql)
    assert "that no history would have" in refused(store, path)
    for summary in store.conversations().summaries:
        assert store.conversation(summary.id)


def test_a_chat_that_came_with_a_prompt_is_taken(store, foreign):
    path, spoil = foreign
    spoil('UPDATE turns SET earlier = \'[["user", "x"], ["assistant", ""]]\'')
    assert import_file(store.file, path).runs == 3
    summary = store.conversations().summaries[0]
    assert store.conversation(summary.id).turns[0].earlier[0].content == "x"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("total_s", float("inf")),
        ("load_s", float("-inf")),
        ("felt_ttft_s", 1e200),
        ("started_at", "9999-12-31T23:59:59.999Z"),
        ("token_offsets_s", [float("nan")]),
        ("token_offsets_s", [float("inf")]),
    ],
)
def test_the_same_in_json_lines_is_refused(store, tmp_path, foreign, column, value):
    there = Store(tmp_path / "there" / "arena.sqlite3")
    export_selection(there.file, Filter(), tmp_path / "runs.jsonl", "jsonl")
    there.close()
    records = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    records[0]["run"][column] = value
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, records)))
    refused(store, tmp_path / "runs.jsonl")


def test_an_import_past_its_deadline_is_given_up(store, foreign, monkeypatch):
    monkeypatch.setattr("storage.exchange.imports.DEADLINE_S", -1.0)
    path, spoil = foreign
    spoil(f"INSERT INTO settings {ENDLESS} SELECT 'k' || i, hex(zeroblob(200)) FROM n LIMIT 20000;")
    assert "too long" in refused(store, path)


def test_a_history_that_somebody_writes_to_for_ever_can_still_be_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("storage.database.CLOSE_PATIENCE_S", 0.3)
    store = Store(tmp_path / "arena.sqlite3")
    inside, ended = threading.Event(), []

    def write() -> None:
        try:
            with store.file.writing() as db:
                inside.set()
                db.execute(f"{ENDLESS} SELECT count(*) FROM n").fetchone()
        except StoreError as error:
            ended.append(error)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    assert inside.wait(10)
    started = time.monotonic()
    store.close()
    assert time.monotonic() - started < 30
    writer.join(10)
    assert ended
    assert not isinstance(ended[0], StoreBusyError)


def test_our_own_schema_is_known_in_every_version():
    names = {name for _, name in known_schema()}
    assert {"runs", "run_metrics", "runs_fts_add"} <= names
    assert now()
