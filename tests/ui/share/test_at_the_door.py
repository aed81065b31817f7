"""Text is made safe where it comes in, and folders are closed to others where they are made."""

import json
import os
import stat
import subprocess
import sys

import pytest

from engines.runtime.worker_process import PROJECT_ROOT
from storage.database import close_to_others
from storage.recorder import RETRY_S
from storage.store import Store
from tests.helpers.http import ask
from ui.share.bodies import NoJsonError, as_text, without_surrogates

posix = pytest.mark.skipif(os.name != "posix", reason="Windows keeps the profile folder private instead")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"t": "a\\ud800b"}', "a\ufffdb"),
        (b'{"t": "\\udfff\\ud800"}', "\ufffd\ufffd"),
        (b'{"t": "\\ud83d\\ude00"}', "😀"),
        ('{"t": "😀 plain"}'.encode(), "😀 plain"),
        (b'{"t": "\\\\ud800 written out"}', "\\ud800 written out"),
        (b'{"t": "\\uD800"}', "\ufffd"),
    ],
)
def test_half_a_pair_becomes_a_sign_that_is_text(body, text):
    assert json.loads(without_surrogates(body)) == {"t": text}


@pytest.mark.parametrize(
    "body", [b'{"t": "\xed\xa0\x80"}', '{"t": "\\ud800"}'.encode("utf-16-le"), b'{"t": "\xff"}']
)
def test_what_is_not_written_in_utf_8_is_no_json(body):
    """Python's reader would take the first two, with half a pair in the text."""
    with pytest.raises(NoJsonError):
        as_text(body)


def test_names_and_nested_text_are_made_safe_too():
    assert json.loads(without_surrogates(b'{"a\\udc00": [{"b": "\\ud800"}, 1, null]}')) == {
        "a\ufffd": [{"b": "\ufffd"}, 1, None]
    }


def test_what_is_no_json_is_left_to_those_who_read_it():
    assert without_surrogates(b'{"\\ud800"') == b'{"\\ud800"'


def test_a_panel_sets_name_with_half_a_pair_breaks_no_page(arena):
    """It once broke “Panel sets” for every page for good; a name that was kept so is readable again, too."""
    arena.store.set_setting("compare.sets", {"half \ud800 pair": [[1, "echo", "CPU", "fast", "demo"]]})
    config = json.loads(ask(arena.address, "/config").text)
    toggle = next(d for d in config["dependencies"] if d["api_name"] == "_toggle_sets")
    body = {"data": ["\ud83d"], "fn_index": toggle["id"], "session_hash": "halfpair"}
    joined = ask(arena.address, "/gradio_api/queue/join", json_body=body)
    assert joined.status == 200
    from ui.compare.actions import Actions
    from ui.compare.browser_tab import Desk

    names = Actions(Desk(arena.manager, arena.store, arena.turns, None)).set_names()
    assert names == ["half \ufffd pair"]
    arena.forget()


@posix
def test_what_the_app_writes_is_for_its_user_alone(tmp_path):
    data_dir = tmp_path / "data"
    environment = {**os.environ, "BACKEND_ARENA_DATA": str(data_dir)}
    command = [sys.executable, "app.py", "run", "Hi", "--on", "openvino-genai/NPU/int4"]
    subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, timeout=200, check=False)
    found = [data_dir, *data_dir.rglob("*")]
    assert len(found) > 3
    assert not [path for path in found if path.stat().st_mode & 0o077 and not path.is_symlink()]


@posix
def test_what_an_earlier_version_left_readable_is_closed(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o755)
    (logs / "worker.log").write_text("a prompt")
    (logs / "worker.log").chmod(0o644)
    (tmp_path / "other").mkdir(mode=0o755)
    (tmp_path / "other").chmod(0o755)
    close_to_others(tmp_path)
    assert stat.S_IMODE(logs.stat().st_mode) == 0o700
    assert stat.S_IMODE((logs / "worker.log").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o755


def test_before_anything_is_sent_a_full_disk_is_told(tmp_path, monkeypatch):
    store = Store(tmp_path / "arena.sqlite3")
    assert store.trouble is None
    monkeypatch.setattr("storage.store.LEAST_ROOM_BYTES", 2**62)
    assert "will not be kept" in store.trouble
    store.close()


def test_ending_waits_for_space_and_then_everything_is_written(tmp_path):
    import sqlite3
    import threading

    path = tmp_path / "arena.sqlite3"
    store = Store(path)
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    conversation = store.start_conversation("said while nothing could be written")
    assert store.trouble
    release = threading.Timer(2 * RETRY_S, lambda: (holder.execute("ROLLBACK"), holder.close()))
    release.start()
    store.close(patience_s=60)
    release.join()
    again = Store(path)
    assert again.conversation(conversation) is not None
    again.close()


def test_exports_of_an_app_that_was_killed_go_with_the_next_start(tmp_path, monkeypatch):
    from storage.exchange.exports import FOLDER_PREFIX, own_folder

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, alive = tmp_path / f"{FOLDER_PREFIX}{ended.pid}-x", tmp_path / f"{FOLDER_PREFIX}{os.getppid()}-y"
    foreign = tmp_path / f"{FOLDER_PREFIX}notes-z"
    for folder in (dead, alive, foreign):
        folder.mkdir()
        (folder / "history.csv").write_text("texts")
    with own_folder() as folder:
        assert os.listdir(folder) == []  # noqa: PTH208
        assert not dead.exists()
        assert alive.exists()
        assert foreign.exists()
