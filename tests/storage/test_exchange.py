"""What leaves the history can come back: on the same machine, on another, once only."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.protocol import Failed, Finished
from storage.exchange.documents import conversation_markdown
from storage.exchange.exports import (
    COLUMNS,
    conversation_document,
    export_database,
    export_selection,
)
from storage.exchange.imports import import_file
from storage.records import Conversation, Filter
from storage.store import Store, StoreError
from storage.trends import METRICS, trend
from tests.storage.filling import CPU, MACHINE, OTHER, metrics, run, turn
from ui.history.conversation_html import conversation_html, list_html
from ui.history.trends_svg import trend_html

ODD = "say \x00 \ud83d\ude00 \ud800 😀\n=1+1"
"""NUL, two surrogates that are not a pair, a lone one, a real emoji."""


@pytest.fixture
def filled(store: Store) -> tuple[Store, str]:
    conversation_id = store.start_conversation("Title, with a comma")
    turn_id = turn(store, conversation_id, ODD, system_prompt="Be \udfff brief.")
    run(store, turn_id, ODD, panel=2)
    run(
        store,
        turn_id,
        "=HYPERLINK(1)",
        panel=1,
        target=OTHER,
        contended=True,
        machine={"name": "lap", "power": "battery"},
    )
    store.vote(turn_id, 1, blind=True)
    second = turn(store, conversation_id, "and then?")
    run(store, second, "", panel=2, failed=Failed("crashed", "It ended.", "Retry.", "log", -9), offsets_s=())
    return store, conversation_id


@pytest.fixture
def elsewhere(tmp_path: Path):
    store = Store(tmp_path / "elsewhere" / "arena.sqlite3")
    yield store
    store.close()


def same(left: Conversation, right: Conversation) -> bool:
    return left.turns == right.turns and left.title == right.title and left.created_at == right.created_at


def test_csv_has_the_figures_and_no_formulas(filled, tmp_path):
    store, _ = filled
    assert export_selection(store.file, Filter(), tmp_path / "runs.csv", "csv") == 3
    with (tmp_path / "runs.csv").open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(line.replace("\x00", "") for line in lines))
    assert list(rows[0]) == list(COLUMNS)
    assert float(rows[0]["ttft_s"]) == 0.2
    assert float(rows[0]["decode_tok_s"]) == pytest.approx(3 / 0.2)
    assert rows[1]["text"] == "'=HYPERLINK(1)"
    assert rows[1]["vote"] == "1"
    assert rows[2]["error_message"] == "It ended."


def test_parquet_reads_back(filled, tmp_path):
    duckdb = pytest.importorskip("duckdb", reason="Parquet needs duckdb")
    store, _ = filled
    path = tmp_path / "it's.parquet"
    assert export_selection(store.file, Filter(), path, "parquet") == 3
    found = duckdb.sql("SELECT * FROM read_parquet($1) ORDER BY run_id", params=[str(path)])
    assert found.columns == list(COLUMNS)
    first, second, third = found.fetchall()
    column = {name: at for at, name in enumerate(COLUMNS)}
    assert first[column["decode_tok_s"]] == pytest.approx(15)
    assert (first[column["contended"]], second[column["contended"]]) == (False, True)
    assert second[column["text"]] == "=HYPERLINK(1)"
    assert third[column["ttft_s"]] is None
    assert first[column["started_at"]].tzinfo is not None


@pytest.mark.parametrize("kind", ["jsonl", "db", "json"])
def test_an_export_comes_back_exactly_and_once(filled, elsewhere, tmp_path, kind):
    store, conversation_id = filled
    path = tmp_path / f"export.{kind}"
    if kind == "db":
        export_database(store.file, path)
    elif kind == "json":
        path.write_text(json.dumps(conversation_document(store.file, conversation_id), indent=2))
    else:
        export_selection(store.file, Filter(), path, kind)
    imported = import_file(elsewhere.file, path)
    assert (imported.conversations, imported.runs, imported.already_here) == (1, 3, 0)
    assert imported.machines == ("desk", "lap")
    again = import_file(elsewhere.file, path)
    assert (again.conversations, again.runs, again.already_here) == (0, 0, 3)
    original, copy = store.conversation(conversation_id), elsewhere.conversation(conversation_id)
    assert same(original, copy)
    assert copy.imported_from == "desk"
    assert elsewhere.conversations(Filter(query="hyperlink")).total == 1
    assert elsewhere.peak_rss(CPU) is None, "another machine's memory says nothing about this one"
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 or kind == "json"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_what_powershell_made_of_an_export_comes_back(filled, elsewhere, tmp_path, kind, encoding):
    """Windows PowerShell's `>` and `Out-File` write UTF-16, `Set-Content -Encoding utf8` a byte order mark; CRLF."""
    store, conversation_id = filled
    path = tmp_path / f"export.{kind}"
    if kind == "json":
        text = json.dumps(conversation_document(store.file, conversation_id), indent=2, ensure_ascii=False)
    else:
        export_selection(store.file, Filter(), path, kind)
        text = path.read_text(encoding="utf-8")
    path.write_text(text, encoding=encoding, newline="\r\n")
    assert import_file(elsewhere.file, path).runs == 3
    assert same(store.conversation(conversation_id), elsewhere.conversation(conversation_id))


def test_an_import_can_be_named_and_adds_what_is_new(filled, elsewhere, tmp_path):
    store, conversation_id = filled
    export_database(store.file, tmp_path / "one.db")
    import_file(elsewhere.file, tmp_path / "one.db", name="the lab")
    run(store, turn(store, conversation_id, "more"), "again")
    export_database(store.file, tmp_path / "two.db")
    imported = import_file(elsewhere.file, tmp_path / "two.db")
    assert (imported.conversations, imported.runs, imported.already_here) == (0, 1, 3)
    copy = elsewhere.conversation(conversation_id)
    assert copy.imported_from == "the lab"
    assert [each.prompt for each in copy.turns] == [ODD, "and then?", "more"]


def test_a_selection_leaves_alone(filled, tmp_path):
    store, _ = filled
    assert export_selection(store.file, Filter(engine="transformers"), tmp_path / "a.jsonl", "jsonl") == 1
    assert export_selection(store.file, Filter(status="failed"), tmp_path / "b.jsonl", "jsonl") == 1
    assert export_selection(store.file, Filter(engine="none such"), tmp_path / "c.csv", "csv") == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b'{"format": "other"}\n',
        b'{"format": "backend-arena", "version": 1}\n',
        b'{"format": "backend-arena", "version": 99}\n',
        b"[" * 10**5,
        b"SQLite format 3\x00" + b"\x01" * 5000,
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_export_is_refused_in_one_sentence(store, tmp_path, content):
    path = tmp_path / "strange"
    path.write_bytes(content)
    with pytest.raises(StoreError) as refused:
        import_file(store.file, path)
    assert str(path) in str(refused.value)
    assert store.conversations().total == 0


def test_a_missing_file_and_an_unwritable_place_are_named(store, tmp_path):
    with pytest.raises(StoreError, match="cannot be read"):
        import_file(store.file, tmp_path / "none.jsonl")
    with pytest.raises(StoreError, match="could not be written"):
        export_selection(store.file, Filter(), tmp_path / "no" / "folder.csv", "csv")


def test_markdown_tells_it_all(filled):
    store, conversation_id = filled
    text = conversation_markdown(store.conversation(conversation_id))
    assert "# Title, with a comma" in text
    assert "> and then?" in text
    assert "transformers/CPU/fp32 answered best" in text
    assert "**It ended.** Retry." in text
    assert "15.0 tok/s" in text


JUNK = [
    "<script>alert(1)</script>",
    -1,
    10**30,
    1.5,
    None,
    [],
    {"a": [1]},
    [["x"]],
    True,
    "\x00",
    "{",
    ["NaN"],
    "9" * 400,
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_an_export_with_a_strange_value_is_refused_or_harmless(filled, tmp_path, data):
    store, conversation_id = filled
    document = json.loads(json.dumps(conversation_document(store.file, conversation_id)))
    part = data.draw(
        st.sampled_from(["conversation", "run", "turn", "target", "machine_facts", "environment"])
    )
    row = document["conversation"] if part == "conversation" else document["runs"][0][part]
    row[data.draw(st.sampled_from(sorted(row)))] = data.draw(st.sampled_from(JUNK))
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    (folder / "strange.json").write_text(json.dumps(document))
    other = Store(folder / "arena.sqlite3")
    with contextlib.suppress(StoreError):
        import_file(other.file, folder / "strange.json")
    page = other.conversations()
    assert "<script" not in list_html(page, "x")
    for summary in page.summaries:
        kept = other.conversation(summary.id)
        assert "<script" not in conversation_html(kept)
        conversation_markdown(kept)
    with other.file.reading() as db:
        for metric in METRICS:
            trend_html(trend(db, Filter(), metric), 1.0)
    other.close()


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_an_export_that_counted_panels_from_zero_counts_from_one(store, elsewhere, tmp_path, kind):
    """`app.py run` did so once: its exports are still about."""
    conversation_id = store.start_conversation("From the command line")
    turn_id = turn(store, conversation_id)
    for panel in range(3):
        run(store, turn_id, f"reply of {panel}", panel=panel)
    store.vote(turn_id, 2, blind=False)
    path = tmp_path / f"export.{kind}"
    if kind == "json":
        path.write_text(json.dumps(conversation_document(store.file, conversation_id), indent=2))
    else:
        export_selection(store.file, Filter(), path, kind)
    import_file(elsewhere.file, path)
    (brought,) = elsewhere.conversation(conversation_id).turns
    assert [(run.panel, run.text) for run in brought.runs] == [
        (1, "reply of 0"),
        (2, "reply of 1"),
        (3, "reply of 2"),
    ]
    assert brought.vote.winner == "3"


@pytest.mark.parametrize("kind", ["jsonl", "db"])
def test_what_was_deleted_a_moment_ago_is_back_after_an_import(filled, tmp_path, kind):
    """Else it would be “here already”, unseen, and gone for good ten minutes later."""
    store, conversation_id = filled
    path = tmp_path / f"export.{kind}"
    export_database(store.file, path) if kind == "db" else export_selection(store.file, Filter(), path, kind)
    store.delete([conversation_id])
    imported = import_file(store.file, path)
    assert (imported.brought_back, imported.already_here) == (1, 3)
    assert "1 deleted conversation was brought back" in str(imported)
    assert len(store.conversation(conversation_id).turns) == 2
    assert import_file(store.file, path).brought_back == 0


@pytest.mark.parametrize("kind", ["jsonl", "db"])
def test_a_reply_that_was_still_written_when_it_was_exported_is_completed_later(
    store, elsewhere, tmp_path, kind
):
    def export() -> Path:
        path = tmp_path / f"export.{kind}"
        export_database(store.file, path) if kind == "db" else export_selection(
            store.file, Filter(), path, kind
        )
        return path

    turn_id = turn(store, store.start_conversation())
    run_id = store.start_run(turn_id, 1, CPU, machine=MACHINE, contended=False)
    store.save_partial(run_id, "So f", (0.1, 0.2))
    import_file(elsewhere.file, export())
    numbers = metrics((0.1, 0.2, 0.3))
    store.finish_run(run_id, Finished(run_id, "stop", "So far.", numbers), text="So far.", metrics=numbers,
                     felt_ttft_s=None)  # fmt: skip
    import_file(elsewhere.file, export())
    (summary,) = elsewhere.conversations().summaries
    (copy,) = elsewhere.conversation(summary.id).turns[0].runs
    assert (copy.status, copy.text, copy.metrics.output_tokens) == ("finished", "So far.", 3)
    assert elsewhere.conversations(Filter(query="far")).total == 1


def test_what_was_deleted_there_takes_nothing_away_here(store, elsewhere, tmp_path):
    """A database brings no deleted conversation; so it must not make room for one either."""
    conversation_id = store.start_conversation()
    run_id = store.start_run(turn(store, conversation_id), 1, CPU, machine=MACHINE, contended=False)
    store.save_partial(run_id, "So f", (0.1, 0.2))
    export_database(store.file, tmp_path / "early.db")
    import_file(elsewhere.file, tmp_path / "early.db")
    numbers = metrics((0.1, 0.2, 0.3))
    outcome = Finished(run_id, "stop", "So far.", numbers)
    store.finish_run(run_id, outcome, text="So far.", metrics=numbers, felt_ttft_s=None)
    store.delete([conversation_id])
    export_database(store.file, tmp_path / "late.db")
    import_file(elsewhere.file, tmp_path / "late.db")
    (copy,) = elsewhere.conversation(conversation_id).turns[0].runs
    assert (copy.status, copy.text) == ("interrupted", "So f")
