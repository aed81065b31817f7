"""When the file cannot be used: one clear sentence, nothing harmed, and the chat goes on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from sqlite_utils import Database

from storage.database import uri
from storage.migrations import migrations
from storage.recorder import Recorder
from storage.records import Filter
from storage.store import Store, StoreError
from tests.storage.filling import run, turn

ROOT = Path(__file__).parents[2]


def wait_until(condition, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def integrity(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchone()[0]


def chat_goes_on(store: Store) -> tuple[str, str]:
    """A whole turn, as the page does it, while the file cannot be written."""
    conversation_id = store.start_conversation()
    run(store, turn(store, conversation_id, "while in trouble"), "still answered")
    messages = store.panel_messages(conversation_id, 0)
    assert [message.content for message in messages] == ["while in trouble", "still answered"]
    return conversation_id, store.trouble


# --- disk full ---------------------------------------------------------------------------------------------


def test_a_full_disk_stops_no_chat_and_nothing_is_lost(store):
    """The page limit makes SQLite report exactly what a full disk makes it report."""
    before = store.start_conversation("before")
    run(store, turn(store, before))
    with store.file.maintaining() as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
    long_prompt = "x" * 50_000
    conversation_id = store.start_conversation("full")
    run(store, turn(store, conversation_id, long_prompt), "reply while full")
    assert "disk is full" in store.trouble
    assert "wait in memory" in store.trouble
    assert store.panel_messages(conversation_id, 0)[1].content == "reply while full"
    with store.file.maintaining() as db:
        db.execute("PRAGMA max_page_count = 1000000")
    wait_until(lambda: store.trouble is None)
    kept = store.conversation(conversation_id)
    assert kept.turns[0].prompt == long_prompt
    assert (kept.turns[0].runs[0].text, kept.turns[0].runs[0].status) == ("reply while full", "finished")
    assert integrity(store.path) == "ok"


@pytest.fixture
def tiny_disk(tmp_path):
    """A real file system of 1 MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = sys.platform == "linux" and shutil.which("mount")
    if mounted:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        )
        mounted = done.returncode == 0
    if not mounted:
        pytest.skip("a small file system can only be mounted by root on Linux")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_really_full_disk(tiny_disk):
    store = Store(tiny_disk / "arena.sqlite3")
    first = store.start_conversation("first")
    run(store, turn(store, first), "kept before")
    ballast = tiny_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as out:
        while True:
            out.write(b"x" * 4096)
    for _ in range(40):
        conversation_id, trouble = chat_goes_on(store)
        if trouble:
            break
    assert "disk is full" in trouble or "disk reported an error" in trouble
    ballast.unlink()
    wait_until(lambda: store.trouble is None)
    assert store.conversation(conversation_id).turns[0].runs[0].text == "still answered"
    store.close()
    assert integrity(tiny_disk / "arena.sqlite3") == "ok"
    reopened = Store(tiny_disk / "arena.sqlite3")
    assert reopened.conversation(first).turns[0].runs[0].text == "kept before"
    reopened.close()


# --- locked, read-only, corrupt ----------------------------------------------------------------------------


def test_a_locked_database_stops_no_chat(store):
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    conversation_id, trouble = chat_goes_on(store)
    assert "locked" in trouble
    with pytest.raises(StoreError, match="locked"):
        store.rename(conversation_id, "not now")
    other.execute("ROLLBACK")
    other.close()
    wait_until(lambda: store.trouble is None)
    assert store.conversation(conversation_id).turns[0].runs[0].text == "still answered"


def test_memory_for_waiting_writes_is_limited(store, monkeypatch):
    monkeypatch.setattr("storage.recorder.MAX_WAITING_BYTES", 1000)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    conversation_id = store.start_conversation()
    turn_id = turn(store, conversation_id, "short")
    first = run(store, turn_id, "a" * 900)
    run(store, turn_id, "b" * 900, panel=1)
    assert "did not fit there and are lost" in store.trouble
    other.execute("ROLLBACK")
    other.close()
    wait_until(lambda: store.trouble is None)
    assert [each.text for each in store.conversation(conversation_id).turns[0].runs if each.id == first] == [
        "a" * 900
    ]


def test_what_waits_is_saved_at_the_end(tmp_path):
    store = Store(tmp_path / "arena.sqlite3")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    conversation_id, _ = chat_goes_on(store)
    other.execute("ROLLBACK")
    other.close()
    store.close()
    reopened = Store(tmp_path / "arena.sqlite3")
    assert reopened.conversation(conversation_id).turns[0].runs[0].text == "still answered"
    reopened.close()


@pytest.fixture
def without_rights(tmp_path):
    """Root may write anything: become somebody else for a while."""
    if os.name != "posix":
        pytest.skip("Windows has no modes")
    root = os.getuid() == 0
    if root:
        for folder in [tmp_path, *tmp_path.parents[:-1]]:
            folder.chmod(folder.stat().st_mode | 0o055)
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


def read_only(path: Path, store_mode: int, folder_mode: int) -> None:
    Store(path).close()
    if os.getuid() == 0:
        os.chown(path, 65534, 65534)
        os.chown(path.parent, 65534, 65534)
    path.chmod(store_mode)
    path.parent.chmod(folder_mode)


@pytest.mark.parametrize(("store_mode", "folder_mode"), [(0o400, 0o700), (0o600, 0o500), (0o000, 0o700)])
def test_a_read_only_database_is_named(tmp_path, store_mode, folder_mode, request):
    path = tmp_path / "data" / "arena.sqlite3"
    if os.name == "posix":
        read_only(path, store_mode, folder_mode)
    request.getfixturevalue("without_rights")
    content = path.read_bytes() if store_mode else None
    with pytest.raises(StoreError) as refused:
        Store(path)
    assert "read-only" in str(refused.value) or "cannot be opened" in str(refused.value)
    assert "--data-dir" in str(refused.value) or "writable" in str(refused.value)
    assert content is None or path.read_bytes() == content


@pytest.mark.parametrize("damage", ["not a database", "torn header", "torn page"])
def test_a_corrupt_file_is_named_and_kept(tmp_path, damage):
    path = tmp_path / "arena.sqlite3"
    store = Store(path)
    for _ in range(30):
        run(store, turn(store, store.start_conversation()), "reply " * 200)
    store.close()
    content = bytearray(path.read_bytes())
    if damage == "not a database":
        content = bytearray(b"Dear diary, " * 1000)
    elif damage == "torn header":
        content[:100] = os.urandom(100)
    else:
        content[4096:12288] = os.urandom(8192)
    path.write_bytes(content)
    with pytest.raises(StoreError) as refused:
        Store(path)
    assert "damaged or not a database" in str(refused.value)
    assert "left as it is" in str(refused.value)
    assert path.read_bytes() == content


def test_another_programs_database_is_left_alone(tmp_path):
    path = tmp_path / "arena.sqlite3"
    Database(path)["recipes"].insert({"id": 1})
    content = path.read_bytes()
    with pytest.raises(StoreError, match="another program's"):
        Store(path)
    assert path.read_bytes() == content


def test_a_folder_in_place_of_the_file(tmp_path):
    (tmp_path / "arena.sqlite3").mkdir()
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path / "arena.sqlite3")


@pytest.mark.parametrize(
    ("path", "read"),
    [
        (PurePosixPath("/data/my # history?.sqlite3"), "file:///data/my%20%23%20history%3F.sqlite3"),
        (PureWindowsPath("C:\\Users\\Jürgen\\a.sqlite3"), "file:///C:/Users/J%C3%BCrgen/a.sqlite3"),
        (PureWindowsPath("\\\\server\\home\\a b.sqlite3"), "file:////server/home/a%20b.sqlite3"),
    ],
)
def test_a_history_is_named_as_sqlite_reads_it(path, read):
    assert uri(path) == read
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):  # and not: invalid uri authority
        sqlite3.connect(f"{read}?mode=ro", uri=True)


def test_a_slow_disk_holds_up_the_write_it_is_slow_with_and_no_other(store, tmp_path):
    recorder = Recorder(store.file)
    writing, goes_on = threading.Event(), threading.Event()

    def slow(db):
        writing.set()
        assert goes_on.wait(60)
        db.execute("INSERT INTO settings VALUES ('order', '1')")

    stuck = threading.Thread(target=recorder.write, args=(slow,))
    stuck.start()
    assert writing.wait(60)
    for number in (2, 3):  # returns while the disk is still busy with the first
        recorder.write(
            lambda db, number=number: db.execute(
                "UPDATE settings SET value = value || ? WHERE key = 'order'", [str(number)]
            )
        )
    assert recorder.trouble is None
    goes_on.set()
    stuck.join()
    assert recorder.flush()
    assert store.get_setting("order") == 123
    recorder.close()


# --- versions ----------------------------------------------------------------------------------------------


def test_a_newer_versions_file_is_left_untouched(tmp_path):
    path = tmp_path / "arena.sqlite3"
    Store(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) "
            "VALUES ('backend_arena', '999_far', 'x')"
        )
    content = path.read_bytes()
    with pytest.raises(StoreError, match="newer version of Backend Arena"):
        Store(path)
    assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["arena.sqlite3"]


STEPS = [migration.name for migration in migrations.pending(Database(memory=True))]


RELEASED = {
    "001_tables": "8f8cc19d760233ce",
    "002_search": "aab62f06a9de0cde",
    "003_views": "6364ee2646c2b7cd",
    "004_prefill_rate_only_when_known": "c6ae3d4909bef09e",
    "005_panels_from_one": "c6ae3d4909bef09e",
}
"""Step -> what the schema is after it, as a hash."""


def test_a_released_step_still_does_what_it_did():
    """003 and 004 share a text: whoever changes it changes what old files were made of."""
    found = {}
    for number, name in enumerate(RELEASED, 1):
        db = Database(memory=True)
        migrations.apply(db, stop_before=STEPS[number] if number < len(STEPS) else None)
        schema = db.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE '%sqlite_migrations%' ORDER BY name"
        ).fetchall()
        found[name] = hashlib.sha256(repr(schema).encode()).hexdigest()[:16]
    assert found == RELEASED


@pytest.mark.parametrize("version", range(1, len(STEPS)))
def test_every_earlier_version_is_brought_up_to_date(tmp_path, version):
    path = tmp_path / "arena.sqlite3"
    older = Database(path)
    migrations.apply(older, stop_before=STEPS[version])
    older.conn.executescript(
        """
        INSERT INTO machines (id, name, facts, first_seen_at) VALUES ('m', 'desk', '{}', '2026-01-01');
        INSERT INTO targets (id, engine, device, precision, model) VALUES ('t', 'e', 'CPU', 'int4', 'demo');
        INSERT INTO conversations (id, title, created_at, updated_at) VALUES ('c', 'Old', '2026-01-01', '2026-01-01');
        INSERT INTO turns (id, conversation_id, created_at, mode, settings, prompt)
            VALUES ('u', 'c', '2026-01-01', 'together', '{}', 'an old prompt');
        INSERT INTO runs (id, turn_id, panel, attempt, target_id, machine_id, contended, status, started_at, text,
            token_offsets, first_token_us, last_token_us, output_tokens, prompt_tokens)
            VALUES ('r', 'u', 0, 1, 't', 'm', 0, 'finished', '2026-01-01', 'an old reply',
            x'00000186A00000030D40', 100000, 200000, 2, 5);
        """
    )
    older.close()
    store = Store(path)
    assert store.conversation("c").turns[0].runs[0].text == "an old reply"
    assert store.conversations(Filter(query="old")).total == 1
    with store.file.reading() as db:
        assert db.execute("SELECT ttft_s, decode_tok_s FROM run_metrics").fetchall() == [(0.1, 10.0)]
        # How much of the prompt came from a cache is not known here.
        assert db.execute("SELECT prefill_tok_s FROM run_metrics").fetchall() == [(None,)]
        assert db.execute("SELECT offset_s FROM token_times").fetchall() == [(0.1,), (0.2,)]
        assert db.execute("SELECT panel FROM runs").fetchall() == [(1 if version < 5 else 0,)]
    (backup,) = store.file.backups()
    assert f"before-{STEPS[version]}" in backup.name
    if os.name == "posix":
        assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert [each.name for each in migrations.applied(Database(backup))] == STEPS[:version]
    assert integrity(path) == integrity(backup) == "ok"
    store.close()


def from_zero(path):
    """A history of version 004 as `app.py run` and the page have left it."""
    older = Database(path)
    migrations.apply(older, stop_before="005_panels_from_one")
    db = older.conn
    db.execute(
        "INSERT INTO machines (id, name, facts, first_seen_at) VALUES ('m', 'desk', '{}', '2026-01-01')"
    )
    db.execute(
        "INSERT INTO targets (id, engine, device, precision, model) VALUES ('t', 'e', 'CPU', 'int4', 'demo')"
    )
    for conversation, turns in {
        "from the command line": {"u1": (0, 1, 2, 3)},
        "gone on with on the page": {"u2": (0, 1), "u3": (1, 2)},
        "with a sixth panel": {"u4": (0, 1), "u5": (1, 2, 6)},
        "with all panels": {"u6": (0, 1, 2, 3, 4, 5), "u7": (1, 2, 3, 4, 5, 6)},
        "from the page": {"u8": (1, 2)},
    }.items():
        db.execute(
            "INSERT INTO conversations (id, title, created_at, updated_at) VALUES (?1, ?1, '2026', '2026')",
            [conversation],
        )
        for turn_id, panels in turns.items():
            db.execute(
                "INSERT INTO turns (id, conversation_id, created_at, mode, settings, prompt) "
                "VALUES (?, ?, '2026', 'together', '{}', 'a prompt')",
                [turn_id, conversation],
            )
            for panel in panels:
                db.execute(
                    "INSERT INTO runs (id, turn_id, panel, attempt, target_id, machine_id, contended, status, "
                    "started_at, text) VALUES (?, ?, ?, 1, 't', 'm', 0, 'finished', '2026', ?)",
                    [f"{turn_id}-{panel}", turn_id, panel, f"reply of {panel}"],
                )
    for turn_id, winner in (("u1", "3"), ("u2", "0"), ("u3", "tie"), ("u4", "0"), ("u5", "6"), ("u8", "1")):
        db.execute(
            "INSERT INTO votes (turn_id, winner, blind, created_at) VALUES (?, ?, 0, '2026')",
            [turn_id, winner],
        )
    db.commit()
    older.close()


def test_panels_that_were_counted_from_zero_count_from_one(tmp_path):
    path = tmp_path / "arena.sqlite3"
    from_zero(path)
    store = Store(path)
    with store.file.reading() as db:
        found = dict(db.execute("SELECT id, panel FROM runs").fetchall())
        votes = dict(db.execute("SELECT turn_id, winner FROM votes").fetchall())
    moved = {run_id: panel - int(run_id.split("-")[1]) for run_id, panel in found.items()}
    assert {by for run_id, by in moved.items() if run_id.startswith(("u1", "u2", "u3"))} == {1}
    assert moved["u8-1"] == moved["u8-2"] == 0
    assert [found[f"u4-{panel}"] for panel in (0, 1)] == [3, 1]  # 6 must stay 6, so 0 takes what is free
    assert [found[f"u5-{panel}"] for panel in (1, 2, 6)] == [1, 2, 6]
    assert [found[f"u6-{panel}"] for panel in range(6)] == [7, 1, 2, 3, 4, 5]
    assert votes == {"u1": "4", "u2": "1", "u3": "tie", "u4": "3", "u5": "6", "u8": "1"}
    messages = store.panel_messages("gone on with on the page", 2)
    assert [message.content for message in messages[1::2]] == ["reply of 1", "reply of 1"]
    store.close()


def test_a_failed_migration_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "arena.sqlite3"
    older = Database(path)
    migrations.apply(older, stop_before=STEPS[1])
    older["turns_fts"].insert({"in_the_way": 1})
    older.close()
    with pytest.raises(StoreError):
        Store(path)
    assert [each.name for each in migrations.applied(Database(path))] == STEPS[:1]
    assert Database(path)["turns_fts"].exists()


# --- several apps, sudden ends -----------------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from storage.store import Store
from tests.storage.filling import run, turn, CPU, metrics
store = Store(Path(sys.argv[1]))
conversation_id = store.start_conversation(sys.argv[2])
print("ready", flush=True)
number = 0
while len(sys.argv) < 4 or number < int(sys.argv[3]):
    turn_id = turn(store, conversation_id, f"prompt {number}")
    run(store, turn_id, f"reply {number} " * 50)
    growing = store.start_run(turn_id, 1, CPU, machine={}, contended=False)
    store.save_partial(growing, f"part {number}", (0.1, 0.2))
    print(number, flush=True)
    number += 1
store.close()
"""


def writer(path: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_kill_9_a_hundred_times_loses_nothing_finished(tmp_path):
    """The writers are forked by a process of their own: that saves a hundred interpreter starts."""
    if not hasattr(os, "fork"):
        pytest.skip("fork makes a hundred writers affordable, and Windows has none")
    path = tmp_path / "arena.sqlite3"
    Store(path).close()
    done = subprocess.run(
        [sys.executable, "-m", "tests.storage.killed_writers", str(path), "100"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    finished = int(done.stdout)
    store = Store(path)
    assert integrity(path) == "ok"
    interrupted = store.mark_interrupted()
    with store.file.reading() as db:
        (saved,) = db.execute("SELECT count(*) FROM runs WHERE status = 'finished'").fetchone()
        (running,) = db.execute("SELECT count(*) FROM runs WHERE status = 'running'").fetchone()
        partial = db.execute("SELECT DISTINCT text FROM runs WHERE status = 'interrupted'").fetchall()
    assert finished <= saved <= finished + 100, "a run that was reported as finished is missing"
    assert finished > 20, "the writers were killed before they wrote anything"
    assert running == 0
    assert interrupted > 0
    assert ("part",) in partial
    assert set(partial) <= {("part",), (None,), ("reply " * 50,)}
    with store.file.writing() as db:
        for table in ("turns", "runs"):  # raises when the index and the texts differ
            db.execute(f"INSERT INTO {table}_fts ({table}_fts) VALUES ('integrity-check')")
    store.close()


def test_two_apps_write_one_history(tmp_path):
    path = tmp_path / "arena.sqlite3"
    writers = [writer(path, f"app {number}", "60") for number in range(2)]
    store = Store(path)
    for process in writers:
        process.communicate(timeout=60)
    assert [process.returncode for process in writers] == [0, 0]
    page = store.conversations()
    assert sorted(summary.title for summary in page.summaries) == ["app 0", "app 1"]
    assert [summary.turns for summary in page.summaries] == [60, 60]
    assert store.trouble is None
    assert integrity(path) == "ok"
    store.close()


def test_two_apps_may_create_the_file_at_once(tmp_path):
    processes = [writer(tmp_path / "arena.sqlite3", "x", "1") for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0] * 3


def test_many_threads_share_a_store(store):
    conversation_id = store.start_conversation()
    errors = []

    def work(panel: int) -> None:
        try:
            for number in range(15):
                run(store, turn(store, conversation_id, f"{panel} {number}"), panel=panel)
                store.panel_messages(conversation_id, panel)
                store.conversations()
        except Exception as error:  # noqa: BLE001 (whatever it is, the test tells)
            errors.append(error)

    threads = [threading.Thread(target=work, args=(panel,)) for panel in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store.conversation(conversation_id).turns) == 90
