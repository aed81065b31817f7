"""`history …` as a person types it, in a process of its own."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from engines.protocol import Failed
from storage.store import FILE_NAME, Store, StoreError
from tests.storage.filling import OTHER, run, turn
from ui.cli import history as history_cli


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    store = Store(tmp_path / FILE_NAME)
    first = store.start_conversation("About NPUs")
    run(store, turn(store, first, "What is an NPU?"), "A neural processing unit.")
    second = store.start_conversation()
    second_turn = turn(store, second, "Tell me a story")
    run(store, second_turn, "Once upon a time.", panel=0)
    run(store, second_turn, "", panel=1, target=OTHER, failed=Failed("crashed", "It ended."), offsets_s=())
    store.close()
    return tmp_path


def history(data_dir: Path, *words: str) -> int:
    """The command, in this process."""
    parser = argparse.ArgumentParser()
    parser.set_defaults(data_dir=data_dir)
    history_cli.register(parser.add_subparsers())
    arguments = parser.parse_args(["history", *words])
    return arguments.run(arguments)


def document(capsys, data_dir: Path, *words: str):
    assert history(data_dir, *words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_search_finds_prompts_and_replies(capsys, data_dir):
    for words, count in (("neural", 1), ("once UPON", 1), ("npu story", 0), ("t", 1), ('"', 0), ("NEAR(", 0)):
        assert document(capsys, data_dir, "search", words)["total"] == count, words
    assert document(capsys, data_dir, "search", "processing", "unit")["total"] == 1
    assert document(capsys, data_dir, "search")["total"] == 2
    found = document(capsys, data_dir, "search", "--engine", "transformers", "--status", "failed")
    assert [each["first_prompt"] for each in found["conversations"]] == ["Tell me a story"]


def test_search_reads_well(capsys, data_dir):
    assert history(data_dir, "search", "neural") == 0
    out, err = capsys.readouterr()
    assert "About NPUs" in out
    assert "A neural processing unit." in out
    assert err == "1 found, 1 shown.\n"


def test_show_takes_the_end_of_an_id(capsys, data_dir):
    (found,) = document(capsys, data_dir, "search", "neural")["conversations"]
    assert history(data_dir, "show", found["id"][-8:].lower()) == 0
    assert "# About NPUs" in capsys.readouterr().out
    shown = document(capsys, data_dir, "show", found["id"])
    assert shown["runs"][0]["text"] == "A neural processing unit."
    with pytest.raises(StoreError, match="There is no conversation"):
        history(data_dir, "show", "nonsense")


@pytest.mark.parametrize("name", ["all.csv", "all.jsonl", "all.sqlite3"])
def test_export_goes_by_the_ending(capsys, data_dir, tmp_path, name):
    written = document(capsys, data_dir, "export", str(tmp_path / name))
    assert written["bytes"] == (tmp_path / name).stat().st_size > 100
    assert written["runs"] == (None if name.endswith("sqlite3") else 3)


def test_export_of_one_conversation(capsys, data_dir, tmp_path):
    (found,) = document(capsys, data_dir, "search", "neural")["conversations"]
    assert history(data_dir, "export", str(tmp_path / "one.md"), "--id", found["id"]) == 0
    assert (tmp_path / "one.md").read_text(encoding="utf-8").startswith("# About NPUs")
    with pytest.raises(StoreError, match="say which with --id"):
        history(data_dir, "export", str(tmp_path / "two.md"))
    with pytest.raises(StoreError, match="add --format"):
        history(data_dir, "export", str(tmp_path / "two.xyz"))


def test_import_merges(capsys, data_dir, tmp_path):
    assert history(data_dir, "export", str(tmp_path / "all.jsonl")) == 0
    other = tmp_path / "other"
    other.mkdir()
    capsys.readouterr()
    imported = document(capsys, other, "import", str(tmp_path / "all.jsonl"), "--name", "lab")
    assert (imported["runs"], imported["conversations"]) == (3, 2)
    assert document(capsys, other, "search")["conversations"][0]["imported_from"] == "lab"


def test_delete_asks_first(capsys, data_dir, monkeypatch):
    (found,) = document(capsys, data_dir, "search", "neural")["conversations"]
    monkeypatch.setattr("sys.stdin", open("/dev/null") if Path("/dev/null").exists() else open("nul"))  # noqa: SIM115, PTH123
    assert history(data_dir, "delete", found["id"]) == 1
    assert document(capsys, data_dir, "search")["total"] == 2
    assert document(capsys, data_dir, "delete", found["id"], "--yes") == {"deleted": 1, "of": "conversations"}
    assert document(capsys, data_dir, "search")["total"] == 1
    assert document(capsys, data_dir, "delete", "--texts", "--yes")["deleted"] == 2
    assert document(capsys, data_dir, "search", "story")["total"] == 0
    assert document(capsys, data_dir, "search")["total"] == 1
    assert document(capsys, data_dir, "delete", "--older-than", "1", "--yes")["deleted"] == 0
    assert document(capsys, data_dir, "delete", "--all", "--yes")["deleted"] == 1
    assert document(capsys, data_dir, "search")["total"] == 0


def test_nothing_heavy_is_loaded():
    script = (
        "import sys, ui.cli.history\nprint([m for m in ('duckdb', 'gradio', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_a_path_means_what_it_says_wherever_it_stands(tmp_path, data_dir, monkeypatch):
    """Shells leave the `~` of `--data-dir=~/folder` to the program; once it made a folder of that name."""
    (tmp_path / "home").mkdir()
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert history(data_dir, "search", "--data-dir", "~/elsewhere") == 0
    assert (tmp_path / "home" / "elsewhere" / "arena.sqlite3").exists()
    assert history(data_dir, "export", "~/all.csv") == 0
    with pytest.raises(StoreError, match=r"home.all\.sqlite3 cannot be read"):
        history(data_dir, "import", "~/all.sqlite3", "--data-dir=~/elsewhere")
    assert (tmp_path / "home" / "all.csv").exists()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("command", ["history search", "keys list", "models list"])
def test_every_command_takes_a_data_dir_alike(command, tmp_path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    from app import parser

    for words in ([*command.split(), "--data-dir=~/a"], ["--data-dir=~/a", *command.split()]):
        assert parser().parse_args(words).data_dir == tmp_path / "a"
    assert parser().parse_args([*command.split(), "--data-dir=b"]).data_dir == tmp_path / "b"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("delete", "--yes", "--older-than", "-1"), "“-1” is no number"),  # it would have deleted everything
        (("delete", "--yes", "--older-than", "nan"), "“nan” is no number"),
        (("delete", "--yes", "--older-than", "inf"), "“inf” is no number"),
        (("search", "--limit", "99999999999999999999"), "is no whole number"),
        (("search", "--limit", "many"), "“many” is no whole number"),
        (("search", "--offset", "-3"), "“-3” is no whole number"),
    ],
)
def test_a_number_out_of_bounds_is_refused_by_name(capsys, data_dir, words, says):
    with pytest.raises(SystemExit):
        history(data_dir, *words)
    assert says in capsys.readouterr().err
    assert document(capsys, data_dir, "search")["total"] == 2


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="Windows has one time zone for all processes.")
def test_the_times_are_those_of_this_pcs_clock_as_the_days_of_the_filters_are(capsys, data_dir, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        here = datetime.now()
        assert history(data_dir, "search", "neural", "--since", here.date().isoformat()) == 0
        assert f"{here.day} {here:%b %Y, %H:}" in capsys.readouterr().out
    finally:
        monkeypatch.undo()
        time.tzset()


def test_json_says_that_there_are_more_than_are_counted(capsys, data_dir, monkeypatch):
    assert document(capsys, data_dir, "search", "neural")["more"] is False
    monkeypatch.setattr("storage.queries.COUNTED", 1)
    found = document(capsys, data_dir, "search", "--limit", "1", "--precision", "int4")
    assert (found["total"], found["more"]) == (1, True)


def test_with_json_there_is_always_a_document(capsys, data_dir, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    assert history(data_dir, "delete", "--all", "--json") == 1
    assert json.loads(capsys.readouterr().out) == {"deleted": 0}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_export_can_go_to_the_terminal(capsys, data_dir, kind):
    assert history(data_dir, "export", "-", "--format", kind) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (4 if kind == "csv" else 3)
    assert lines[0].startswith("run_id,") if kind == "csv" else json.loads(lines[0])["run_id"]
    for words in ((), ("--format", "db"), ("--format", "csv", "--json")):
        with pytest.raises(StoreError, match="The terminal takes texts"):
            history(data_dir, "export", "-", *words)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files.")
@pytest.mark.parametrize("kind", ["csv", "db"])
def test_what_is_no_file_is_not_replaced_by_one(data_dir, tmp_path, kind):
    """As root, `history export /dev/null --format csv` left a file in the place of the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StoreError, match="it is a device"):
        history(data_dir, "export", str(pipe), "--format", kind)
    assert pipe.is_fifo()
