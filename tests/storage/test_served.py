"""Runs of servers and turns that came by the API: stored as what they are, and whole again elsewhere."""

import json

import pytest

from engines.protocol import Finished, Message, RunMetrics, Target
from storage.exchange import exports, imports
from storage.records import Filter
from storage.store import Store
from storage.trends import trend

MACHINE = {"name": "here"}
SERVED = Target("endpoint", "ollama", "served", "phi3:mini")
EARLIER = (Message("user", "My name is Ada."), Message("assistant", "Hello Ada \ud83d."))
PIECES = (0.5, 0.75, 1.0, 1.5)


def served_run(store: Store, **metrics) -> tuple[str, str]:
    conversation = store.start_conversation("by the API")
    turn = store.start_turn(
        conversation,
        "Who am I?",
        system_prompt=None,
        mode="together",
        settings={},
        via="api: laptop",
        earlier=EARLIER,
    )
    run_id = store.start_run(turn, 1, SERVED, machine=MACHINE, contended=False)
    measured = RunMetrics(
        **{"output_tokens": 41, "piece_offsets_s": PIECES, "clock": "client", "total_s": 1.6, **metrics}
    )
    outcome = Finished(run_id, "stop", "Ada.", measured)
    store.finish_run(run_id, outcome, text="Ada.", metrics=measured, felt_ttft_s=None)
    return conversation, run_id


def figures(store: Store, run_id: str) -> dict:
    with store.file.reading() as db:
        cursor = db.execute("SELECT * FROM run_metrics WHERE run_id = ?", [run_id])
        return dict(zip([column[0] for column in cursor.description], cursor.fetchone(), strict=True))


@pytest.mark.parametrize(
    ("metrics", "ttft_s", "decode_tok_s"),
    [
        ({}, 0.5, 40.0),
        ({"output_tokens": None}, 0.5, None),
        ({"output_tokens": 1}, 0.5, None),
        ({"piece_offsets_s": (0.5,)}, 0.5, None),
        ({"clock": "server", "token_offsets_s": (0.1, 0.2, 0.6), "output_tokens": 3}, 0.1, 4.0),
    ],
)
def test_the_view_gives_the_rates_that_the_metrics_give(store, metrics, ttft_s, decode_tok_s):
    conversation, run_id = served_run(store, **metrics)
    row = figures(store, run_id)
    assert row["ttft_s"] == ttft_s
    assert row["decode_tok_s"] == (None if decode_tok_s is None else pytest.approx(decode_tok_s))
    assert row["itl_median_s"] is None or metrics.get("token_offsets_s")
    (run,) = store.conversation(conversation).turns[0].runs
    assert run.metrics.decode_tok_s == row["decode_tok_s"]
    assert (row["clock"], row["via"]) == (metrics.get("clock", "client"), "api: laptop")
    drawn = store.read(lambda db: trend(db, Filter(engine="endpoint"), "decode_tok_s"))
    assert drawn.median == row["decode_tok_s"]


def test_what_the_server_said_and_the_chat_that_came_are_kept(store):
    conversation, _ = served_run(store, server={"load_duration_s": 1.25})
    turn = store.conversation(conversation).turns[0]
    assert (turn.via, turn.earlier) == ("api: laptop", EARLIER)
    assert turn.runs[0].metrics.server == {"load_duration_s": 1.25}
    assert turn.runs[0].metrics.piece_offsets_s == PIECES


@pytest.mark.parametrize("kind", ["json", "jsonl", "db"])
def test_it_travels_whole(store, tmp_path, kind):
    conversation, run_id = served_run(store, server={"load_duration_s": 1.25})
    path = tmp_path / f"out.{kind}"
    if kind == "json":
        exports.write_text(path, json.dumps(exports.conversation_document(store.file, conversation)))
    elif kind == "db":
        exports.export_database(store.file, path)
    else:
        exports.export_selection(store.file, Filter(), path, kind)
    other = Store(tmp_path / "other.sqlite3")
    try:
        assert imports.import_file(other.file, path).runs == 1
        assert figures(other, run_id)["decode_tok_s"] == pytest.approx(40.0)
        turn = other.conversation(conversation).turns[0]
        assert (turn.via, turn.earlier) == ("api: laptop", EARLIER)
        assert turn.runs[0].metrics.server == {"load_duration_s": 1.25}
        assert turn.runs[0].metrics.piece_offsets_s == PIECES
    finally:
        other.close()


def test_texts_can_be_removed_with_the_chat_that_came(store):
    conversation, _ = served_run(store)
    store.remove_texts()
    assert store.conversation(conversation).turns[0].earlier == ()
    assert b"Ada" not in store.path.read_bytes()


def test_without_texts_no_chat_is_kept(store):
    store.set_setting("keep_text", False)
    conversation, _ = served_run(store)
    assert store.conversation(conversation).turns[0].earlier == ()
