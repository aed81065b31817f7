"""Finding, filtering, arranging and forgetting what is kept."""

from __future__ import annotations

import json
import re
import time
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.protocol import Failed
from storage import housekeeping
from storage.codec import timestamp
from storage.filters import VOTES
from storage.records import Filter
from storage.store import FILE_NAME, Store
from storage.trends import trend
from tests.storage.filling import CPU, MACHINE, OTHER, run, turn


def titles(store: Store, **where) -> list[str]:
    return [summary.title for summary in store.conversations(Filter(**where)).summaries]


@pytest.fixture
def library(store: Store) -> Store:
    """Four conversations: plain, voted, failed on another target, Chinese with an emoji."""
    first = store.start_conversation("plain")
    run(store, turn(store, first, "What is Llama.cpp?"), "A C++ library, naïvely put.")
    second = store.start_conversation("voted")
    voted = turn(store, second, "Which one?")
    run(store, voted, "this", panel=1)
    run(store, voted, "that", panel=2, target=OTHER, contended=True)
    store.vote(voted, 2, blind=True)
    third = store.start_conversation("failed")
    run(store, turn(store, third, "break"), "", target=OTHER, failed=Failed("memory", "No."), offsets_s=())
    fourth = store.start_conversation("中文")
    run(store, turn(store, fourth, "世界你好 🦙"), "你好")
    return store


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("llama", ["plain"]),
        ("LLAMA.CPP", ["plain"]),
        ("lib nai", ["plain"]),
        ("naive", ["plain"]),
        ("C++", ["plain"]),
        ("llama that", []),
        ("你好", ["中文"]),
        ("🦙", ["中文"]),
        ("", ["中文", "failed", "voted", "plain"]),
        ("th", ["voted"]),
        ("%", []),
        ("voted", ["voted"]),
        ("PLA", ["plain"]),
        ("中", ["中文"]),
        ("llama plain", []),  # all words in one text, or all in the title
    ],
)
def test_search(library, query, found):
    assert titles(library, query=query) == found


def test_a_search_asks_for_no_case_and_no_form_of_unicode(store):
    first = store.start_conversation("Ämter")
    run(store, turn(store, first, "Der neue iPhone 价格 ist da"), "Mein R\u00e9sum\u00e9 dazu")
    second = store.start_conversation()
    run(store, turn(store, second, "Un re\u0301sume\u0301, s'il vous plai\u0302t"))
    assert titles(store, query="iphone 价") == ["Ämter"]
    assert titles(store, query="A\u0308MTER") == ["Ämter"]
    assert store.conversations(Filter(query="re\u0301sume\u0301")).total == 2
    assert store.conversations(Filter(query="r\u00e9sum")).total == 2


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "UTC", "Pacific/Pago_Pago"])
def test_the_calendars_ends_are_days_too(library, monkeypatch, zone):
    """`--until 9999-12-31` is how people say “no end”."""
    monkeypatch.setenv("TZ", zone)
    if hasattr(time, "tzset"):
        time.tzset()
    assert len(titles(library, since="0001-01-01", until="9999-12-31")) == 4
    assert titles(library, until="0001-01-01") == []
    monkeypatch.undo()
    if hasattr(time, "tzset"):
        time.tzset()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.text(st.characters(exclude_categories=())) | st.text('"*()^:+-{}NEAR AND OR NOT ', max_size=30))
def test_no_search_is_an_error(library, query):
    library.conversations(Filter(query=query))


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({"engine": "transformers"}, ["failed", "voted"]),
        ({"device": "CPU", "precision": "fp32"}, ["failed", "voted"]),
        ({"model": "other"}, []),
        ({"machine": "desk", "status": "failed"}, ["failed"]),
        ({"contended": True}, ["voted"]),
        ({"vote": "voted"}, ["voted"]),
        ({"vote": "won", "engine": "transformers"}, ["voted"]),
        ({"vote": "won", "engine": "openvino-genai"}, []),
        ({"vote": "missing", "engine": "transformers"}, ["failed"]),
        ({"since": date.today().isoformat()}, ["中文", "failed", "voted", "plain"]),
        ({"until": (date.today() - timedelta(days=1)).isoformat()}, []),
        ({"query": "this", "engine": "transformers"}, ["voted"]),
    ],
)
def test_filters(library, where, found):
    assert titles(library, **where) == found


def test_every_vote_filter_is_valid_sql(library):
    for vote in VOTES:
        library.conversations(Filter(vote=vote))


def test_pages_and_pins(store):
    ids = [store.start_conversation(str(number)) for number in range(25)]
    store.pin(ids[3], True)
    page = store.conversations(limit=10)
    assert page.total == 25
    assert [summary.title for summary in page.summaries][:3] == ["3", "24", "23"]
    last = store.conversations(limit=10, offset=20)
    assert ([summary.title for summary in last.summaries], last.total_text) == (
        ["5", "4", "2", "1", "0"],
        "25",
    )


def test_rename(store):
    conversation_id = store.start_conversation("old")
    store.rename(conversation_id, "  new \ud800 ")
    assert store.conversation(conversation_id).title == "new \ud800"
    store.rename(conversation_id, "")
    assert store.conversation(conversation_id).title is None


def test_delete_can_be_undone_for_a_while(library):
    (found,) = library.conversations(Filter(query="llama")).summaries
    assert library.delete([found.id, "no such"]) == 1
    assert library.conversation(found.id) is None
    assert library.conversations().total == 3
    assert library.undelete([found.id]) == 1
    assert titles(library, query="llama") == ["plain"]
    library.delete([found.id])
    assert housekeeping.remove_deleted(library.file) == 1
    assert library.undelete([found.id]) == 0


def test_a_deleted_conversation_leaves_the_figures_too(library):
    library.delete([library.conversations(Filter(query="llama")).summaries[0].id])
    with library.file.reading() as db:
        assert db.execute("SELECT count(*) FROM run_metrics").fetchone() == (4,)


def test_numbers_without_text(store):
    """Off: nothing of what was said is in the file, and the chat still works."""
    store.set_setting(housekeeping.KEEP_TEXT, False)
    conversation_id = store.start_conversation("secret title")
    run(store, turn(store, conversation_id, "secret prompt", system_prompt="secret system"), "secret reply")
    assert [message.content for message in store.panel_messages(conversation_id, 0)] == [
        "secret prompt",
        "secret reply",
    ]
    kept = store.conversation(conversation_id)
    assert (kept.title, kept.turns[0].prompt, kept.turns[0].system_prompt) == (None, None, None)
    assert kept.turns[0].runs[0].text is None
    assert kept.turns[0].runs[0].metrics.ttft_s == 0.2
    assert not traces(store, b"secret")


def traces(store: Store, text: bytes) -> list[str]:
    folder = store.path.parent
    return [path.name for path in folder.rglob("*") if path.is_file() and text in path.read_bytes().lower()]


def test_removed_texts_leave_no_trace(store):
    for number in range(20):
        run(store, turn(store, store.start_conversation("Zanzibar"), f"zanzibar {number}"), "zanzibar " * 300)
    assert traces(store, b"zanzibar")
    assert store.remove_texts() == 20
    assert not traces(store, b"zanzibar")
    assert store.conversations().total == 20
    assert store.conversations(Filter(query="zanzibar")).total == 0
    run(store, turn(store, store.start_conversation(), "kept"), "kept again")
    assert store.conversations(Filter(query="kept")).total == 1


def test_delete_everything_leaves_no_trace(library):
    library.set_setting("panels", [1])
    assert library.delete_everything() == 4
    assert library.conversations().total == 0
    assert not traces(library, b"llama")
    assert library.get_setting("panels") == [1]
    run(library, turn(library, library.start_conversation(), "afresh"), "reply")
    assert library.conversations(Filter(query="afresh")).total == 1


def test_old_conversations_go_unless_pinned(store):
    old, pinned, young = (store.start_conversation(title) for title in ("old", "pinned", "young"))
    store.pin(pinned, True)
    moment = timestamp(datetime.now(timezone.utc) - timedelta(days=40))
    with store.file.writing() as db:
        db.execute("UPDATE conversations SET updated_at = ? WHERE id <> ?", [moment, young])
    store.set_setting(housekeeping.RETENTION_DAYS, 30)
    again = Store(store.path)
    assert again.conversation(old) is None
    assert {summary.title for summary in again.conversations().summaries} == {"pinned", "young"}
    again.close()


# --- trends and views --------------------------------------------------------------------------------------


def trend_of(store: Store, metric: str = "decode_tok_s"):
    with store.file.reading() as db:
        return trend(db, Filter(engine=CPU.engine), metric)


def test_a_trend_tells_medians_spread_and_changes(store):
    turn_id = turn(store, store.start_conversation())
    for gap in (0.1, 0.05, 0.2):
        run(store, turn_id, offsets_s=(0.5, 0.5 + gap, 0.5 + 2 * gap))
        time.sleep(0.002)
    run(store, turn_id, offsets_s=(0.5, 0.75), contended=True, versions={"openvino": "2026.5"})
    time.sleep(0.002)
    run(store, turn_id, machine={**MACHINE, "power": "battery"}, failed=Failed("crashed", "x"))
    found = trend_of(store)
    assert [bucket.median for bucket in found.alone] == pytest.approx([10, 20, 5])
    assert (found.median, found.median_contended, found.runs) == (pytest.approx(10), pytest.approx(4), 4)
    assert [mark.changes for mark in found.marks] == [("openvino: 2026.4 → 2026.5",)]
    assert trend_of(store, "ttft_s").median == 0.5


def test_a_long_trend_is_grouped(store):
    turn_id = turn(store, store.start_conversation())
    for number in range(30):
        run(store, turn_id, offsets_s=(0.1, 0.2 + number / 100))
    with store.file.reading() as db:
        found = trend(db, Filter(), "decode_tok_s", buckets=3)
    assert [bucket.runs for bucket in found.alone] == [10, 10, 10]
    for bucket in found.alone:
        assert bucket.low < bucket.median < bucket.high


def test_views_answer_the_common_questions(store):
    turn_id = turn(store, store.start_conversation())
    for ttft in (0.1, 0.3, 0.2):
        run(store, turn_id, offsets_s=(ttft, ttft + 0.1))
    run(store, turn_id, offsets_s=(0.9, 1.0), contended=True)
    with store.file.reading() as db:
        latest = db.execute("SELECT contended, ttft_s FROM latest_runs ORDER BY contended").fetchall()
        medians = db.execute(
            "SELECT contended, runs, ttft_s, ttft_s_max FROM median_metrics ORDER BY 1"
        ).fetchall()
    assert latest == [(0, 0.2), (1, 0.9)]
    assert medians == [(0, 3, 0.2, 0.3), (1, 1, 0.9, 0.9)]


ROOT = Path(__file__).parents[2]
DATASETTE = json.loads((ROOT / "storage" / "datasette.json").read_text(encoding="utf-8"))
SHIPPED = DATASETTE["databases"][Path(FILE_NAME).stem]


@pytest.mark.parametrize("name", sorted(SHIPPED["queries"]))
def test_the_shipped_queries_run(library, name):
    with library.file.reading() as db:
        db.execute(SHIPPED["queries"][name]["sql"], {"run_id": "x"}).fetchall()


def test_the_shipped_descriptions_are_of_this_schema(store):
    with store.file.reading() as db:
        known = {name for name in (*db.table_names(), *db.view_names()) if not name.startswith("_")}
        described = set(SHIPPED["tables"])
        assert described <= known
        assert not {name for name in known - described if "_fts" not in name}
        for name, table in SHIPPED["tables"].items():
            named = {
                *table.get("facets", ()),
                *(table[key] for key in ("sort_desc", "label_column") if key in table),
            }
            assert named <= {column.name for column in db[name].columns}
            if name in ("runs", "turns"):
                assert db[name].detect_fts() == f"{name}_fts", "Datasette finds the index by the same rule"


DOCUMENTED = [
    statement.strip()
    for page in ("README.md", "docs/history.md")
    for block in re.findall(r"```sql\n(.+?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    for statement in block.split(";")
    if statement.strip()
]


@pytest.mark.parametrize("query", DOCUMENTED)
def test_the_documented_questions_have_answers(library, query):
    turn_id = turn(library, library.start_conversation())
    run(library, turn_id)
    run(library, turn_id, contended=True)
    library.vote(turn_id, 0, blind=True)
    with library.file.reading() as db:
        assert db.execute(query).fetchall()
