"""What goes into the store comes out of it, exactly."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.protocol import Failed, Message
from storage.codec import new_id, pack_offsets, unpack_offsets
from storage.store import Store
from tests.storage.filling import CPU, OTHER, metrics, run, turn

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=200)
"""Every code point: NUL and lone surrogates too."""
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def rows(store: Store, sql: str) -> list[sqlite3.Row]:
    """What another program sees in the file."""
    connection = sqlite3.connect(store.path)
    connection.row_factory = sqlite3.Row
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


@SHARED
@given(prompt=ANY_TEXT, system=st.none() | ANY_TEXT, reply=ANY_TEXT, title=st.none() | ANY_TEXT)
def test_any_text_comes_back_exactly(store, prompt, system, reply, title):
    conversation_id = store.start_conversation(title)
    turn_id = turn(store, conversation_id, prompt, system_prompt=system)
    run(store, turn_id, reply)
    kept = store.conversation(conversation_id)
    assert kept.title == title
    assert (kept.turns[0].prompt, kept.turns[0].system_prompt) == (prompt, system)
    assert (kept.turns[0].runs[0].text or "") == reply
    assert rows(store, "SELECT title, prompt, text FROM conversations, turns, runs LIMIT 1")  # readable UTF-8


@pytest.mark.parametrize("text", ["x" * 2**20, "\x00" * 2**18, "😀\ud800" * 2**17])
def test_a_reply_of_a_megabyte(store, text):
    conversation_id = store.start_conversation()
    run(store, turn(store, conversation_id), text)
    assert store.conversation(conversation_id).turns[0].runs[0].text == text


@given(st.lists(st.floats(0, 10**6), max_size=50).map(sorted))
def test_offsets_are_kept_to_a_microsecond(offsets_s):
    assert unpack_offsets(pack_offsets(offsets_s)) == pytest.approx(offsets_s, abs=0.6e-6)


def test_thousand_tokens_take_five_kilobytes():
    assert len(pack_offsets([0.01 * n for n in range(1000)])) == 5000


def test_ids_ascend():
    ids = [new_id() for _ in range(5000)]
    assert ids == sorted(set(ids))


@settings(SHARED, max_examples=20)  # each unpacks through a view of 65,536 places
@given(st.lists(st.floats(0.001, 5), min_size=1, max_size=40).map(sorted).map(tuple))
def test_the_view_agrees_with_the_metrics(store, offsets_s):
    conversation_id = store.start_conversation()
    run_id = run(store, turn(store, conversation_id), offsets_s=offsets_s)
    (row,) = rows(store, f"SELECT * FROM run_metrics WHERE run_id = '{run_id}'")
    kept = store.conversation(conversation_id).turns[0].runs[0].metrics
    for name in ("ttft_s", "decode_tok_s", "prefill_tok_s", "itl_median_s", "itl_p95_s"):
        expected = getattr(kept, name)
        assert row[name] == (expected if expected is None else pytest.approx(expected, abs=1e-9)), name
    times = rows(store, f"SELECT offset_s FROM token_times WHERE run_id = '{run_id}' ORDER BY token")
    assert [time["offset_s"] for time in times] == list(kept.token_offsets_s)


def test_everything_a_run_depends_on_is_kept_once(store):
    conversation_id = store.start_conversation("Two runs")
    turn_id = turn(store, conversation_id)
    run(store, turn_id, panel=0)
    run(store, turn_id, panel=1)
    for table, versions in (("machines", None), ("environments", {"openvino": "2026.4"}), ("targets", None)):
        found = rows(store, f"SELECT DISTINCT x.* FROM {table} x JOIN runs ON {table[:-1]}_id = x.id")
        assert len(found) == 1, table
        if versions:
            assert json.loads(found[0]["versions"]) == versions
    kept = store.conversation(conversation_id).turns[0]
    assert [(kept_run.panel, kept_run.revision) for kept_run in kept.runs] == [(0, "rev1"), (1, "rev1")]
    assert kept.runs[0].metrics.load_s == 1.5
    assert kept.runs[0].felt_ttft_s == 0.21


def test_failed_and_stopped_runs_are_rows_too(store):
    conversation_id = store.start_conversation()
    turn_id = turn(store, conversation_id)
    run(store, turn_id, "part", failed=Failed("crashed", "It ended.", "Try again.", "log", -11), panel=0)
    run(store, turn_id, "half", finish_reason="cancelled", panel=1)
    crashed, stopped = store.conversation(conversation_id).turns[0].runs
    assert (crashed.status, crashed.text, crashed.error_kind) == ("failed", "part", "crashed")
    assert (crashed.error_message, crashed.error_remedy, crashed.exit_code) == (
        "It ended.",
        "Try again.",
        -11,
    )
    assert (stopped.status, stopped.text, stopped.finish_reason) == ("stopped", "half", "cancelled")


def test_a_growing_reply_is_kept_as_it_grows(store):
    conversation_id = store.start_conversation()
    run_id = store.start_run(turn(store, conversation_id), 0, CPU, machine={}, contended=True)
    store.save_partial(run_id, "One two", (0.1, 0.2))
    growing = store.conversation(conversation_id).turns[0].runs[0]
    assert (growing.status, growing.text, growing.metrics.token_offsets_s) == (
        "running",
        "One two",
        (0.1, 0.2),
    )
    store.finish_run(run_id, Failed("crashed", "x"), text="One two", metrics=metrics(()), felt_ttft_s=None)
    assert store.conversation(conversation_id).turns[0].runs[0].metrics.token_offsets_s == (0.1, 0.2)


# --- the chat a panel has seen -----------------------------------------------------------------------------


def texts(messages: tuple[Message, ...]) -> list[str]:
    return [message.content for message in messages]


def test_panel_messages_follow_the_panel(store):
    conversation_id = store.start_conversation()
    first, second = (turn(store, conversation_id, prompt) for prompt in ("one", "two"))
    run(store, first, "A1", panel=0)
    run(store, first, "B1", panel=1)
    run(store, second, "", panel=0, failed=Failed("crashed", "gone"), offsets_s=())
    run(store, second, "B2", panel=1)
    assert texts(store.panel_messages(conversation_id, 0)) == ["one", "A1"]
    assert texts(store.panel_messages(conversation_id, 1)) == ["one", "B1", "two", "B2"]
    assert texts(store.panel_messages(conversation_id, 1, before_turn_id=second)) == ["one", "B1"]
    assert store.panel_messages(conversation_id, 2) == ()
    run(store, second, "A2", panel=0, attempt=2)
    assert texts(store.panel_messages(conversation_id, 0)) == ["one", "A1", "two", "A2"]


def test_a_replaced_turn_is_gone_with_what_followed_it(store):
    conversation_id = store.start_conversation()
    turns = [turn(store, conversation_id, prompt) for prompt in ("one", "two", "three")]
    for turn_id in turns:
        run(store, turn_id, "reply")
    again = turn(store, conversation_id, "two again", replaces_turn_id=turns[1])
    assert texts(store.panel_messages(conversation_id, 0, before_turn_id=again)) == ["one", "reply"]
    run(store, again, "other reply")
    assert texts(store.panel_messages(conversation_id, 0)) == ["one", "reply", "two again", "other reply"]
    kept = store.conversation(conversation_id)
    assert [kept_turn.prompt for kept_turn in kept.current_turns()] == ["one", "two again"]
    assert len(kept.turns) == 4
    assert kept.panels == ((0, CPU),)


def test_a_new_store_sees_the_same_chat(store):
    conversation_id = store.start_conversation()
    run(store, turn(store, conversation_id, "one \ud800"), "A1")
    other = Store(store.path)
    assert other.panel_messages(conversation_id, 0) == store.panel_messages(conversation_id, 0)
    other.close()


# --- votes, settings, memory -------------------------------------------------------------------------------


def test_a_later_vote_replaces_an_earlier_one(store):
    conversation_id = store.start_conversation()
    turn_id = turn(store, conversation_id)
    winner = run(store, turn_id, panel=1)
    store.vote(turn_id, "tie", blind=True)
    store.vote(turn_id, 1, blind=False)
    vote = store.conversation(conversation_id).turns[0].vote
    assert (vote.winner, vote.winner_run_id, vote.blind) == ("1", winner, False)


def test_settings_keep_json(store):
    assert store.get_setting("panels") is None
    store.set_setting("panels", [{"engine": "x"}, 1, None, "\ud800"])
    assert store.get_setting("panels") == [{"engine": "x"}, 1, None, "\ud800"]


def test_peak_memory_is_the_last_measured(store):
    assert store.peak_rss(CPU) is None
    run(store, turn(store, store.start_conversation()))
    assert store.peak_rss(CPU) == 10**8
    assert store.peak_rss(OTHER) is None


# --- the file ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="on Windows the profile folder keeps other users out")
def test_only_its_user_can_read_the_file(store):
    run(store, turn(store, store.start_conversation()))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in store.path.parent.iterdir()}
    assert set(modes.values()) == {0o600}, modes


def test_runs_of_a_dead_app_are_marked_and_those_of_a_living_one_are_not(store):
    conversation_id = store.start_conversation()
    mine = store.start_run(turn(store, conversation_id), 0, CPU, machine={}, contended=False)
    script = (
        "import os; from pathlib import Path; from storage.store import Store\n"
        "from engines.protocol import Target\n"
        f"store = Store(Path({str(store.path)!r}))\n"
        f"turn = store.start_turn({conversation_id!r}, 'x', system_prompt=None, mode='together', settings={{}})\n"
        "run = store.start_run(turn, 0, Target('e', 'CPU', 'int4'), machine={}, contended=False)\n"
        "store.save_partial(run, 'so far', (0.5,)); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False)
    assert store.mark_interrupted() == 1
    mine_now, others = (turn.runs[0] for turn in store.conversation(conversation_id).turns)
    assert (mine_now.id, mine_now.status) == (mine, "running")
    assert (others.status, others.text) == ("interrupted", "so far")


def test_a_turn_follows_the_one_before_it_though_the_clock_was_set_back(store):
    """Two systems on one PC disagree about what its clock means, and a dead battery puts it back by years."""
    conversation_id = store.start_conversation()
    for prompt in ("first", "second"):
        run(store, turn(store, conversation_id, prompt), f"to {prompt}", panel=1)
    late = "7ZZZZZZZZ0" + "0" * 16
    with store.file.writing() as db:  # as an app wrote it whose clock was ahead
        db.execute("PRAGMA defer_foreign_keys = 1")
        (last,) = db.execute("SELECT max(id) FROM turns").fetchone()
        db.execute("UPDATE turns SET id = ? WHERE id = ?", [late, last])
        db.execute("UPDATE runs SET turn_id = ? WHERE turn_id = ?", [late, last])
    store.close()
    again = Store(store.path)
    new = turn(again, conversation_id, "third")
    run(again, new, "to third", panel=1)
    assert [each.prompt for each in again.conversation(conversation_id).turns] == ["first", "second", "third"]
    said = [message.content for message in again.panel_messages(conversation_id, 1)]
    assert said == ["first", "to first", "second", "to second", "third", "to third"]
    assert new_id() < new  # the clock of this conversation alone
    again.close()


@pytest.mark.parametrize("after", ["", "no id", "7ZZZZZZZZZ" + "Z" * 16, "0" * 26, "\ud800" * 26])
def test_an_id_that_nothing_can_follow_does_no_harm(after):
    assert len(new_id(after)) == 26
