"""A prompt's whole way, from Send to its rows in the log: real workers, a real SQLite file, no page."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from engines.protocol import Target
from engines.runtime.worker_process import PROJECT_ROOT
from storage import housekeeping
from storage.store import Store, StoreError
from tests.helpers.worlds import ECHO, SLOW_ECHO, bad, manager_on
from tests.storage.filling import run as log_run
from tests.storage.filling import turn as log_turn
from ui.chat.conversations import Talks
from ui.chat.settings import Settings
from ui.chat.turns import TurnError, Turns

MACHINE = {"name": "test machine", "processor": "x"}
LONG = Settings(max_new_tokens=400)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "arena.sqlite3")
    yield store
    store.close()


@pytest.fixture
def turns(tmp_path, store):
    manager = manager_on(tmp_path)
    turns = Turns(manager, store, lambda: MACHINE)
    yield turns
    turns.stop_everything()
    manager.shutdown()


def rows(store, sql, *values):
    connection = sqlite3.connect(store.path)
    connection.row_factory = sqlite3.Row
    with connection:
        found = [dict(row) for row in connection.execute(sql, values)]
    connection.close()
    return found


def until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_every_panel_answers_and_is_logged(turns, store):
    turn = turns.send("Hello there", [(1, ECHO), (3, SLOW_ECHO)], LONG, pressed_at=time.monotonic())
    assert turn.wait(30)
    for run in turn.runs:
        view = run.view()
        assert view.phase == "finished"
        assert "Hello there" in view.text
        assert view.felt_ttft_s > view.ttft_s
        row = rows(store, "SELECT * FROM run_metrics WHERE run_id = ?", run.run_id)[0]
        assert row["ttft_s"] == pytest.approx(view.metrics.ttft_s, abs=2e-6)
        assert row["decode_tok_s"] == pytest.approx(view.metrics.decode_tok_s, rel=0.01)
        assert row["status"] == "finished"
    assert len({run.view().prompt_sha256 for run in turn.runs}) == 1


def test_one_panel_alone_is_not_contended(turns):
    turn = turns.send("Hi", [(1, ECHO)], LONG)
    assert turn.wait(30)
    assert not turn.runs[0].view().contended


def test_in_turn_means_one_after_the_other(turns, store):
    turn = turns.send("a b c d e f g h", [(1, SLOW_ECHO), (2, ECHO)], LONG, mode="in-turn")
    assert turn.wait(30)
    first, second = rows(store, "SELECT * FROM runs ORDER BY panel")
    assert not first["contended"]
    assert not second["contended"]
    assert turn.runs[1].view().metrics.total_s < turn.runs[0].view().metrics.total_s
    assert first["finished_at"] <= second["finished_at"]


def test_nothing_is_added_to_a_conversation_that_was_deleted(turns, store):
    """What came to it would go with it, and nobody would know."""
    first = turns.send("Hello", [(1, ECHO)], LONG)
    assert first.wait(30)
    store.delete([first.conversation_id])
    for add in (
        lambda: turns.send("And now?", [(1, ECHO)], LONG, conversation_id=first.conversation_id),
        lambda: turns.retry(first, 1),
        lambda: turns.carry_on(first, 1),
    ):
        with pytest.raises(TurnError, match="was deleted"):
            add()
    store.undelete([first.conversation_id])
    assert turns.send("And now?", [(1, ECHO)], LONG, conversation_id=first.conversation_id).wait(30)
    store.delete_everything()
    with pytest.raises(TurnError, match="was deleted"):
        turns.send("And now?", [(1, ECHO)], LONG, conversation_id=first.conversation_id)


def test_a_second_turn_sees_the_first(turns):
    first = turns.send("My name is Ada.", [(1, ECHO)], LONG)
    assert first.wait(30)
    second = turns.send("What is my name?", [(1, ECHO)], LONG, conversation_id=first.conversation_id)
    assert second.wait(30)
    assert second.runs[0].view().text.count("My name is Ada.") == 2  # the prompt, and the echo of it


def test_panels_keep_their_own_chats(turns):
    first = turns.send("one", [(1, ECHO), (2, ECHO)], LONG)
    assert first.wait(30)
    conversation = first.conversation_id
    assert turns.send("only one", [(1, ECHO)], LONG, conversation_id=conversation).wait(30)
    both = turns.send("again", [(1, ECHO), (2, ECHO)], LONG, conversation_id=conversation)
    assert both.wait(30)
    zero, one = (run.view().text for run in both.runs)
    assert "only one" in zero
    assert "only one" not in one


@pytest.fixture
def earlier(tmp_path):
    """A conversation of an earlier start of the app: the path of its log, and its id."""
    path = tmp_path / "earlier.sqlite3"
    before = Store(path)
    conversation_id = before.start_conversation("Names")
    log_run(before, log_turn(before, conversation_id, "My name is Ada."), "Hello Ada.", panel=1)
    before.close()
    return path, conversation_id


@contextlib.contextmanager
def turns_on(path, keeps_text=True):
    store = Store(path)
    if not keeps_text:
        store.set_setting(housekeeping.KEEP_TEXT, False)
    manager = manager_on(path.parent)
    turns = Turns(manager, store, lambda: MACHINE)
    try:
        yield turns
    finally:
        turns.stop_everything()
        manager.shutdown()
        with contextlib.suppress(StoreError):
            store.close()


def test_no_prompt_goes_out_without_what_was_said_before(earlier):
    path, conversation_id = earlier
    content = path.read_bytes()
    with turns_on(path) as turns:
        path.write_bytes(b"\0" * len(content))  # the disk has lost it
        for send in (
            lambda: turns.send("What is my name?", [(1, ECHO)], LONG, conversation_id=conversation_id),
            lambda: turns.send("And mine?", [(2, ECHO), (1, ECHO)], LONG, conversation_id=conversation_id),
        ):
            with pytest.raises(TurnError, match="What was said before cannot be read"):
                send()
        assert turns.live_turns(conversation_id) == ()
    for left in path.parent.glob(f"{path.name}-*"):
        left.unlink()
    path.write_bytes(content)
    with turns_on(path) as turns:
        again = turns.send("What is my name?", [(1, ECHO)], LONG, conversation_id=conversation_id)
        assert again.wait(30)
        assert "My name is Ada." in again.runs[0].view().text
        assert again.notice is None


def test_a_conversation_that_was_kept_as_numbers_says_that_it_forgot(tmp_path):
    path = tmp_path / "numbers.sqlite3"
    with turns_on(path, keeps_text=False) as turns:
        first = turns.send("My name is Ada.", [(1, ECHO)], LONG)
        assert first.wait(30)
        second = turns.send("What is my name?", [(1, ECHO)], LONG, conversation_id=first.conversation_id)
        assert second.wait(30)
        assert "Ada" in second.runs[0].view().text  # this process still knows
        assert second.notice is None
    with turns_on(path) as turns:
        third = turns.send("And now?", [(1, ECHO)], LONG, conversation_id=first.conversation_id)
        assert third.wait(30)
        assert "Ada" not in third.runs[0].view().text
        assert "was not kept" in third.notice
        other = turns.send("Hello", [(2, ECHO)], LONG, conversation_id=first.conversation_id)
        assert other.wait(30)
        assert other.notice is None  # this panel has never heard anything


def test_a_chat_goes_on_with_all_that_was_said_when_there_is_no_log_at_all(tmp_path):
    with turns_on(tmp_path / "closed.sqlite3") as turns:
        turns._store.close()
        first = turns.send("My name is Ada.", [(1, ECHO)], LONG)
        assert first.wait(30)
        second = turns.send("What is my name?", [(1, ECHO)], LONG, conversation_id=first.conversation_id)
        assert second.wait(30)
        assert second.runs[0].view().text.count("My name is Ada.") == 2


def test_an_edited_prompt_replaces_what_followed(turns):
    first = turns.send("apples", [(1, ECHO)], LONG)
    assert first.wait(30)
    edited = turns.send(
        "pears", [(1, ECHO)], LONG, conversation_id=first.conversation_id, replaces_turn_id=first.turn_id
    )
    assert edited.wait(30)
    assert "apples" not in edited.runs[0].view().text
    assert turns.live_turns(first.conversation_id) == (edited,)
    with pytest.raises(TurnError, match="edited"):
        turns.retry(first, 1)


def test_a_retry_is_another_attempt_at_the_same_prompt(turns, store):
    turn = turns.send("Hello", [(1, bad("raise")), (2, ECHO)], LONG)
    assert turn.wait(30)
    assert turn.run_of(1).view().failure.message == "The library said no."
    turns.retry(turn, 1, target=ECHO)
    assert turn.wait(30)
    assert turn.run_of(1).view().phase == "finished"
    attempts = rows(store, "SELECT attempt, status FROM runs WHERE panel = 1 ORDER BY attempt")
    assert attempts == [{"attempt": 1, "status": "failed"}, {"attempt": 2, "status": "finished"}]


def test_a_reply_cut_by_the_limit_can_be_carried_on(turns):
    turn = turns.send("one two three four five six seven", [(1, ECHO)], Settings(max_new_tokens=6))
    assert turn.wait(30)
    cut = turn.runs[0].view().text
    turns.carry_on(turn, 1)
    assert turn.wait(30)
    view = turn.runs[0].view()
    assert view.text.startswith(cut)
    assert len(view.text) > len(cut)
    assert view.tokens == 6  # the numbers are those of the continuation


FIRST, SECOND = "Remember: my name is Ada.", "Tell me a story about a lighthouse, please."
SHORT = Settings(max_new_tokens=6)


def numbers_of(run):
    view = run.view()
    return view.prompt_sha256, view.prompt_tokens, view.text, view.phase


def hold(start, target):
    """A conversation whose last reply was cut, is answered again and carried on twice; `start`: what comes between.

    What each of those runs was asked and said.
    """
    turns = start(None)
    first = turns.send(FIRST, [(1, target)], SHORT)
    assert first.wait(60)
    second = turns.send(SECOND, [(1, target)], SHORT, conversation_id=first.conversation_id)
    assert second.wait(60)
    seen = []
    for act in (Turns.retry, Turns.carry_on, Turns.carry_on):
        turns = start(turns)
        run = act(turns, turns.known(second.conversation_id, second.turn_id), 1)
        assert run.done.wait(60)
        seen.append(numbers_of(run))
    (panels,) = ({run.panel for run in turn.runs} for turn in turns.live_turns(first.conversation_id)[-1:])
    assert panels == {1}
    return first.conversation_id, seen


def test_retry_and_continue_after_a_restart_are_as_if_there_had_been_none(tmp_path):
    with turns_on(tmp_path / "whole.sqlite3") as turns:
        _, whole = hold(lambda _: turns, ECHO)
    with contextlib.ExitStack() as apps:

        def restart(before):
            apps.close()
            return apps.enter_context(turns_on(tmp_path / "restarted.sqlite3"))

        conversation_id, restarted = hold(restart, ECHO)
        assert restarted == whole
        store = Store(tmp_path / "restarted.sqlite3")
        attempts = rows(store, "SELECT attempt FROM runs ORDER BY started_at")
        assert [row["attempt"] for row in attempts] == [1, 1, 2, 3, 4]
        last = store.conversation(conversation_id).turns[-1].latest_runs()[0]
        assert last.reply_ids
        housekeeping.remove_texts(store.file)
        assert store.conversation(conversation_id).turns[-1].latest_runs()[0].reply_ids == ()
        assert (last.text, last.metrics.prompt_sha256) == (whole[-1][2], whole[-1][0])
        store.close()


def test_a_real_backend_carries_on_after_a_restart_just_the_same(tmp_path, manager):
    target = Target("transformers", "CPU", "fp32")
    if not manager.availability()["transformers"].ok:
        pytest.skip("transformers cannot run here")

    def carried_on(path, between):
        with contextlib.closing(Store(path)) as store:
            turns = Turns(manager, store, lambda: MACHINE)
            turn = turns.send(SECOND, [(1, target)], SHORT)
            assert turn.wait(120)
        between()
        with contextlib.closing(Store(path)) as store:
            turns = Turns(manager, store, lambda: MACHINE)
            run = turns.carry_on(turns.known(turn.conversation_id, turn.turn_id), 1)
            assert run.done.wait(120)
            return turn.runs[0].view().text, numbers_of(run)

    def whole(path):
        with contextlib.closing(Store(path)) as store:
            turns = Turns(manager, store, lambda: MACHINE)
            turn = turns.send(SECOND, [(1, target)], SHORT)
            assert turn.wait(120)
            cut = turn.runs[0].view().text
            run = turns.carry_on(turn, 1)
            assert run.done.wait(120)
            return cut, numbers_of(run)

    expected = whole(tmp_path / "whole.sqlite3")
    assert expected[1][2].startswith(expected[0])
    assert len(expected[1][2]) > len(expected[0])
    # The worker goes between the two halves, too: nothing of the first is left but the file.
    assert carried_on(tmp_path / "halves.sqlite3", lambda: manager.unload(target)) == expected


def test_what_an_earlier_start_did_not_leave_enough_of_is_said_so(tmp_path):
    with turns_on(tmp_path / "log.sqlite3") as turns:
        store = turns._store
        conversation_id = store.start_conversation("Old")
        replaced = log_turn(store, conversation_id, "apples")
        log_run(store, replaced, "apples.", panel=1, target=ECHO)
        by_program = log_turn(store, conversation_id, "figs", replaces_turn_id=replaced, via="api")
        log_run(store, by_program, "figs.", panel=1, target=ECHO)
        elsewhere = log_turn(store, conversation_id, "plums")
        store.start_run(elsewhere, 1, ECHO, machine=MACHINE, contended=False)
        unreadable = log_turn(store, conversation_id, "pears", settings={"temperature": "warm"})
        log_run(store, unreadable, "pears.", panel=1, target=ECHO)
        for turn_id, words in (
            (replaced, "edited since"),
            (by_program, "A program sent this"),
            (elsewhere, "still writing"),
            (unreadable, "sent with cannot be read"),
        ):
            with pytest.raises(TurnError, match=words):
                turns.known(conversation_id, turn_id)
    with turns_on(tmp_path / "numbers.sqlite3", keeps_text=False) as turns:
        turn = turns.send("Hi", [(1, ECHO)], LONG)
        assert turn.wait(30)
        assert turn.runs[0].fold.token_ids()
        until(lambda: rows(turns._store, "SELECT status FROM runs") == [{"status": "finished"}])
        assert rows(turns._store, "SELECT reply_ids FROM runs") == [{"reply_ids": None}]
    with turns_on(tmp_path / "numbers.sqlite3") as turns, pytest.raises(TurnError, match="Only the numbers"):
        turns.known(turn.conversation_id, turn.turn_id)


def test_stop_ends_one_panel_and_leaves_the_other(turns, store):
    turn = turns.send("word " * 60, [(1, SLOW_ECHO), (2, Target("echo", "CPU", "100"))], LONG)
    until(lambda: all(run.view().tokens > 3 for run in turn.runs))
    pressed = time.monotonic()
    turn.stop(1)
    assert turn.run_of(1).done.wait(5)
    assert time.monotonic() - pressed < 1
    assert turn.wait(30)
    stopped, finished = (run.view() for run in turn.runs)
    assert (stopped.phase, finished.phase) == ("stopped", "finished")
    assert stopped.text
    assert rows(store, "SELECT status FROM runs WHERE panel = 1") == [{"status": "stopped"}]


def test_stop_works_while_the_model_is_still_loading(turns):
    turn = turns.send("hello", [(1, bad("hang-on-load")), (2, ECHO)], LONG)
    until(lambda: turn.run_of(1).view().phase == "loading")
    turn.stop(1)
    assert turn.wait(15)
    assert turn.run_of(1).view().phase == "stopped"
    assert turn.run_of(2).view().phase == "finished"


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_worker_leaves_its_text_and_disturbs_nobody(turns, store):
    others = set(psutil.Process().children())
    killed = Target("echo", "CPU", "20", "one")
    turn = turns.send("word " * 60, [(1, killed), (2, Target("echo", "CPU", "20", "two"))], LONG)
    until(lambda: all(run.view().tokens > 3 for run in turn.runs))
    pids = {p.pid: p.create_time() for p in set(psutil.Process().children()) - others}
    os.kill(min(pids, key=lambda pid: (pids[pid], pid)), signal.SIGKILL)
    assert turn.wait(30)
    phases = sorted(run.view().phase for run in turn.runs)
    assert phases == ["failed", "finished"]
    broken = next(run for run in turn.runs if run.view().phase == "failed")
    assert "SIGKILL" in broken.view().failure.message
    assert broken.view().text.strip()
    row = rows(store, "SELECT text, status, exit_code FROM runs WHERE id = ?", broken.run_id)[0]
    assert (row["text"], row["status"], row["exit_code"]) == (broken.view().text, "failed", -9)
    again = turns.send("hello", [(broken.panel, broken.target)], LONG, conversation_id=turn.conversation_id)
    assert again.wait(30)
    assert again.runs[0].view().phase == "finished"


APP = """
import sys, time
from pathlib import Path
from storage.store import Store
from tests.helpers.worlds import SLOW_ECHO, manager_on
from ui.chat.turns import Settings, Turns
data = Path(sys.argv[1])
turns = Turns(manager_on(data), Store(data / "arena.sqlite3"), lambda: {"name": "m"})
turn = turns.send("word " * 100, [(1, SLOW_ECHO)], Settings(max_new_tokens=400))
while True:
    view = turn.runs[0].view()
    print(view.tokens, flush=True)
    time.sleep(0.05)
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_app_loses_at_most_a_second_of_text(tmp_path):
    app = subprocess.Popen(
        [sys.executable, "-c", APP, str(tmp_path)], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True
    )
    for line in app.stdout:
        if int(line) >= 60:  # three seconds into the reply
            break
    workers = psutil.Process(app.pid).children(recursive=True)
    assert workers
    app.kill()
    app.wait()
    seen = int([*app.stdout.read().split(), line][0])
    psutil.wait_procs(workers, timeout=10)
    assert not any(worker.is_running() for worker in workers)
    store = Store(tmp_path / "arena.sqlite3")
    assert store.mark_interrupted() == 1
    row = rows(store, "SELECT status, output_tokens, text FROM runs")[0]
    store.close()
    assert row["status"] == "interrupted"
    assert seen - row["output_tokens"] <= 20 * 1.0 + 2  # 20 tokens a second
    assert row["text"].strip().startswith("word word")


@pytest.mark.parametrize(
    ("prompt", "panels", "mode", "words"),
    [
        ("", [(1, ECHO)], "together", "empty"),
        (" \n\t", [(1, ECHO)], "together", "empty"),
        ("x" * 4_000_001, [(1, ECHO)], "together", "4,000,001"),
        ("hi", [], "together", "No panel"),
        ("hi", [(1, ECHO), (1, ECHO)], "together", "different panels"),
        ("hi", [(0, ECHO), (1, ECHO)], "together", "numbered from 1"),
        ("hi", [(7, ECHO)], "together", "numbered from 1"),
        ("hi", [(1, ECHO)], "sideways", "not a way"),
    ],
)
def test_what_cannot_be_sent_is_said_so(turns, prompt, panels, mode, words):
    with pytest.raises(TurnError, match=words):
        turns.send(prompt, panels, LONG, mode=mode)


def test_a_busy_panel_takes_no_second_prompt(turns):
    turn = turns.send("word " * 50, [(1, SLOW_ECHO)], LONG)
    with pytest.raises(TurnError, match="still being written"):
        turns.send("more", [(1, ECHO)], LONG, conversation_id=turn.conversation_id)
    other = turns.send("more", [(2, ECHO)], LONG, conversation_id=turn.conversation_id)
    assert other.wait(30)
    assert other.runs[0].view().contended


class SlowDisk(Store):
    """A log that takes as long to take in a prompt as the test wants."""

    def __init__(self, path):
        super().__init__(path)
        self.at_work, self.goes_on = threading.Event(), threading.Event()
        self.goes_on.set()

    def start_turn(self, *arguments, **options):
        self.at_work.set()
        assert self.goes_on.wait(60)
        return super().start_turn(*arguments, **options)


def test_a_slow_disk_holds_up_the_prompt_it_is_slow_with_and_nothing_else(tmp_path):
    manager, store = manager_on(tmp_path), SlowDisk(tmp_path / "slow.sqlite3")
    turns = Turns(manager, store, lambda: MACHINE)
    talks = Talks(store, turns)
    try:
        running = turns.send("word " * 30, [(1, SLOW_ECHO)], LONG)
        talks.started(running)
        store.at_work.clear()
        store.goes_on.clear()
        with ThreadPoolExecutor() as pool:
            stuck = pool.submit(
                turns.send, "next", [(2, ECHO)], LONG, conversation_id=running.conversation_id
            )
            assert store.at_work.wait(60)
            # All that the page asks for while it paints, and all that ends the reply:
            assert pool.submit(turns.live, running.conversation_id).result(60) is running
            assert pool.submit(turns.live_turns, running.conversation_id).result(60) == (running,)
            talk = pool.submit(talks.find, running.conversation_id).result(60)
            assert [turn.turn_id for turn in talk.running()] == [running.turn_id]
            assert pool.submit(running.wait, 60).result(60)
            assert not stuck.done()
            store.goes_on.set()
            assert stuck.result(60).wait(60)
        assert [turn.prompt for turn in turns.live_turns(running.conversation_id)] == [running.prompt, "next"]
    finally:
        store.goes_on.set()
        turns.stop_everything()
        manager.shutdown()
        store.close()


def test_a_run_that_breaks_leaves_none_of_those_after_it_waiting(turns, store, monkeypatch):
    """In turn: one thread works all of them off."""
    describe, broken = store.describe_run, []

    def trip(run_id, **facts):
        if not broken:
            broken.append(run_id)
            raise RuntimeError("a bug of ours")
        describe(run_id, **facts)

    monkeypatch.setattr(store, "describe_run", trip)
    turn = turns.send("a b c", [(1, ECHO), (2, ECHO), (3, SLOW_ECHO)], LONG, mode="in-turn")
    assert turn.wait(60)
    assert [run.view().phase for run in turn.runs] == ["failed", "finished", "finished"]
    assert "a bug of ours" in turn.runs[0].view().failure.message
    assert [row["status"] for row in rows(store, "SELECT status FROM runs ORDER BY panel")] == [
        *("failed", "finished", "finished"),
    ]
