"""`measure …` as a person types it, on real workers without a library."""

import argparse
import contextlib
import json
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines.engine import EngineError
from engines.environments.environments import Environments
from engines.measure import document
from engines.measure.session import Session
from engines.protocol import ProtocolError
from engines.runtime.manager import EngineManager
from storage.measurements import Measurements
from storage.store import Store
from tests.engines.measure.test_verdict import measured, result
from tests.helpers import served_engine
from tests.helpers.measuring import Told, Weights
from tests.helpers.worlds import SPECS
from ui.cli import measure as measure_cli
from ui.measure import tuning
from ui.measure.desk import Desk, DeskError

OWN = '{"prompt": "Tell me about bread.", "prompt_tokens": 0, "new_tokens": 6, "name": "bread"}\n'


@pytest.fixture(scope="module")
def manager(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    echo, *others = SPECS
    quick = replace(
        echo, precisions=(*echo.precisions, "400")
    )  # as fast as the machine that is told of can be
    manager = EngineManager(
        folder, Weights(10_000_000), Environments(folder), specs=(quick, *others, served_engine.SPEC)
    )
    yield manager
    manager.shutdown()


@pytest.fixture
def arena(tmp_path, manager):
    """What a command is given: a real store and desk; sessions do not wait, and keep their workers."""
    store = Store(tmp_path / "arena.sqlite3")
    measurements = Measurements(store)

    def quick(measurement, manager, *, journal, keep_loaded=True):
        return Session(
            measurement, manager, journal=journal, surroundings=Told(), keep_loaded=True, cooldown_s=0,
            measure_bandwidth=lambda size: 10e9,
        )  # fmt: skip

    desk = Desk(manager, measurements, lambda: {"name": "secret-box", "processor": "P"}, quick)
    yield SimpleNamespace(store=store, manager=manager, measurements=measurements, desk=desk)
    desk.close()
    store.close()


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(OWN)
    return str(path)


def run(arena, *words: str) -> int:
    parser = argparse.ArgumentParser()
    measure_cli.register(parser.add_subparsers(), lambda arguments: contextlib.nullcontext(arena))
    arguments = parser.parse_args(["measure", *words])
    return arguments.run(arguments)


def test_a_measurement_is_told_saved_and_written(arena, suite, tmp_path, capsys):
    files = {name: tmp_path / f"out.{name}" for name in ("json", "html", "md", "csv", "jsonl")}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    lanes = ("--on", "echo/CPU/400", "--on", "bad/CPU/crash-in-reply")
    assert run(arena, "--suite", suite, *lanes, "--repeats", "3", *options) == 0
    made = json.loads(files["json"].read_text())
    assert made["contract"] == "backend-arena-measure/1"
    assert [lane["lane"] for lane in made["lanes"]] == ["echo/CPU/400", "bad/CPU/crash-in-reply"]
    assert [len(lane["repeats"]) for lane in made["lanes"]] == [3, 0]
    assert all(len(r["token_offsets_s"]) == 6 and r["prompt_sha256"] for r in made["lanes"][0]["repeats"])
    assert made["verdict"]["winner"] == "echo/CPU/400"
    for path in files.values():
        text = path.read_text(encoding="utf-8-sig")
        assert text
        assert "secret-box" not in text
        assert "Tell me about bread" not in text
    out, err = capsys.readouterr()
    assert "Short chat: echo/CPU/400" in out
    assert "ended unexpectedly" in out
    assert "This will take about" in err
    (listed,) = arena.measurements.listed()
    assert (listed.status, listed.resumable) == ("finished", False)
    assert arena.store.conversations().total == 1


def test_private_files_hold_it_all_and_the_terminal_takes_json(arena, suite, capsys):
    assert (
        run(arena, "--suite", suite, "--on", "echo/CPU/400", "--repeats", "1", "--private", "--json", "-")
        == 0
    )
    made = json.loads(capsys.readouterr().out)
    assert made["machine"]["name"] == "secret-box"
    assert made["suite"]["cases"][0]["text"] == "Tell me about bread."


def test_against_an_earlier_one_and_with_anothers_rows(arena, suite, tmp_path, capsys):
    first, second, llama = (tmp_path / name for name in ("a.json", "b.json", "llama.jsonl"))
    llama.write_text('{"model_filename": "m.gguf", "n_prompt": 0, "n_gen": 8, "avg_ts": 17.5}\n')
    common = ("--suite", suite, "--on", "echo/CPU/400", "--repeats", "3")
    assert run(arena, *common, "--json", str(first)) == 0
    assert run(arena, *common, "--against", str(first), "--foreign", str(llama), "--json", str(second)) == 0
    out = capsys.readouterr().out
    assert "echo/CPU/400  own-1  decode rate:" in out  # the file has no names of a person's prompts
    assert "Not comparable" not in out
    (row,) = document.loads(second.read_text()).foreign
    assert (row.contract, row.value) == ("llama-bench", 17.5)


def test_a_comparison_is_told_beside_a_document_on_the_terminal_too(capsys):
    """`--against old.json --json -`, as a nightly job does it, told nothing of the comparison."""
    nothing = dict.fromkeys(("html", "md", "csv", "jsonl", "job"))
    arguments = SimpleNamespace(**nothing, json=Path("-"), private=False)
    measure_cli._write_files(arguments, measured(result("100")), measured(result("100")))
    out, err = capsys.readouterr()
    assert json.loads(out)["id"] == "m"
    assert "decode rate: 20 → 20 tok/s (+0.0 %)" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Only Linux has a file that is always full.")
def test_a_file_that_cannot_be_written_in_the_end_costs_no_other(arena, suite, tmp_path, capsys):
    page = tmp_path / "report.html"
    lane = ("--on", "echo/CPU/400", "--repeats", "1")
    assert run(arena, "--suite", suite, *lane, "--json", "/dev/full", "--html", str(page)) == 2
    out, err = capsys.readouterr()
    assert "/dev/full could not be written: No space left" in err
    assert "echo/CPU/400" in out
    assert "echo/CPU/400" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--on"),
        (("--on", "echo/CPU/100", "--suite", "nonsense"), "There is no suite"),
        (("--on", "echo/CPU/100", "--against", "nowhere.json"), "cannot be compared"),
        (("--on", "echo/CPU/100", "--foreign", "nowhere.json"), "cannot be added"),
        (("--on", "echo/CPU/100", "--json", "tests"), "it is a folder"),
        (("--on", "echo/CPU/100", "--html", "nowhere/report.html"), "there is no folder"),
        (("--resume", "nobody"), "no measurement nobody"),
        (("--on", "echo/CPU/100", "--tune", "--on", "served/here/counted"), "runs on a server"),
        (("--on", "echo/CPU/100@one", "--on", "echo/CPU/100@two"), "of one model"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(arena, capsys, words, says):
    assert run(arena, *words) == 2
    assert says in capsys.readouterr().err
    assert arena.measurements.listed() == ()


def test_a_target_that_is_none_is_refused(arena):
    with pytest.raises(ProtocolError):
        run(arena, "--on", "echo")


def test_all_is_every_lane_that_runs_here_and_a_lane_nobody_knows_is_a_result(arena, suite, capsys):
    assert run(arena, "--suite", suite, "--on", "none/CPU/int4", "--repeats", "1") == 1
    assert "There is no engine" in capsys.readouterr().out
    others = {target.spelling: why for target, why in arena.desk.variants("demo")}
    assert "echo/CPU/100-coarse" in others
    targets = {target.spelling for target in arena.desk.targets("demo")}
    assert not targets & others.keys()
    assert {"echo/CPU/100", "echo/CPU/20", "bad/CPU/noise"} <= targets
    assert not any("/GPU/" in spelling for spelling in targets if spelling.startswith("echo"))


def test_stopped_it_keeps_what_is_done_and_is_gone_on_with(arena, suite, capsys):
    """As by Ctrl+C: the desk's session is stopped from outside."""
    desk = arena.desk
    counted = threading.Event()
    journal = arena.measurements
    original = journal.repeated

    def repeated(*arguments):
        original(*arguments)
        if not counted.is_set():
            counted.set()
            desk.session.stop()

    journal.repeated = repeated
    assert run(arena, "--suite", suite, "--on", "echo/CPU/400", "--repeats", "4") == 0
    (listed,) = journal.listed()
    assert (listed.status, listed.resumable) == ("stopped", True)
    capsys.readouterr()
    assert run(arena, "--resume", listed.id[-8:], "--json", "-") == 0
    made = document.loads(capsys.readouterr().out)
    assert made.status == "finished"
    assert len(made.lanes[0].repeats) == 4
    with pytest.raises(DeskError, match="complete"):
        desk.resume(listed.id)


def test_a_lane_that_names_its_model_is_measured_under_that_name(arena, suite, capsys):
    """It stood under the name of `--model`, the demo by default, and against the demo's answers."""
    assert run(arena, "--suite", suite, "--on", "echo/CPU/400@other", "--repeats", "1", "--json", "-") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["model"], [lane["model"] for lane in made["lanes"]]) == ("other", ["other"])


@pytest.mark.parametrize(
    ("change", "brought_in", "says"),
    [
        ({}, True, "another computer"),
        ({"contract": "backend-arena-measure/0"}, False, "follows the rules"),
        ({"machine": {"processor": "Q"}}, False, "another processor"),
    ],
)
def test_repeats_of_two_kinds_are_never_mixed(arena, capsys, change, brought_in, says):
    """Going on with it would measure the rest on this computer, by these rules, and call it one measurement."""
    begun = replace(measured(result("100"), machine={"processor": "P"}), status="stopped", **change)
    (arena.measurements.bring_in if brought_in else arena.measurements.saved)(begun)
    assert run(arena, "--resume", begun.id) == 2
    assert says in capsys.readouterr().err
    assert arena.measurements.measurement(begun.id).lanes == begun.lanes


@pytest.mark.parametrize("words", [("--repeats", "five"), ("--repeats", "0"), ("--tune-minutes", "nan")])
def test_a_number_that_is_none_is_said_to_be_none(arena, capsys, words):
    with pytest.raises(SystemExit):
        run(arena, *words)
    assert f"“{words[1]}” is no" in capsys.readouterr().err


def test_tuning_is_kept_told_used_and_taken_back(arena, suite, monkeypatch, capsys):
    monkeypatch.setattr(
        tuning, "tune",
        lambda *_, **__: SimpleNamespace(best={"pace": "400"}, why="it was faster", stopped=False),
    )  # fmt: skip
    monkeypatch.setattr(arena.manager, "tuned", arena.measurements.tuned)
    words = ("--suite", suite, "--on", "echo/CPU/100", "--repeats", "1", "--json", "-")
    assert run(arena, "--tune", *words) == 0
    out, err = capsys.readouterr()
    assert "it was faster" in err
    (lane,) = json.loads(out)["lanes"]
    assert lane["settings"] == {"pace": "400"}
    assert lane["details"]["tuning"] == {"pace": "400"}
    assert run(arena, "--untune", "--on", "echo/CPU/100") == 0
    assert arena.measurements.tunings() == ()


def test_only_one_measurement_runs_at_a_time(arena, suite):
    from engines.measure.records import Lane
    from engines.measure.suites import named, with_repeats
    from engines.protocol import Target

    begin = partial(arena.desk.start, "demo", [Target("echo", "CPU", "20")], with_repeats(named(suite), 50))
    session = begin()
    with pytest.raises(DeskError, match="running"):
        begin()
    assert session.measurement.lanes[0].lane == Lane(Target("echo", "CPU", "20"))
    arena.desk.close()
    assert not arena.desk.busy
    assert session.watch().state == "stopped"
    with pytest.raises(DeskError, match="No backend"):
        arena.desk.start("demo", [], named(suite))


def test_nothing_that_is_raised_in_a_session_is_lost(arena, suite, monkeypatch):
    monkeypatch.setattr(Session, "_prepare_models", lambda self: (_ for _ in ()).throw(EngineError("a bug")))
    with pytest.raises(EngineError, match="a bug"):
        run(arena, "--suite", suite, "--on", "echo/CPU/400")
    assert arena.measurements.listed()[0].status == "failed"
