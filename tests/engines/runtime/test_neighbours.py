"""Apps on one data directory: each knows what the others do, and a measurement has the machine among all of them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from engines.runtime.activity import Activity, GaveUpError
from engines.runtime.worker_process import PROJECT_ROOT

OTHER_APP = """
import sys
from pathlib import Path
from engines.runtime.activity import Activity
activity = Activity(shared=Path(sys.argv[1]))
context = None
for line in sys.stdin:
    verb, _, what = line.strip().partition(" ")
    if verb == "do":
        context = activity.doing("convert", what, on_wait=lambda w: print("waits for", w, flush=True))
    elif verb == "measure":
        context = activity.exclusive(what, on_wait=lambda w: print("waits for", w, flush=True))
    if verb == "end":
        context.__exit__(None, None, None)
    else:
        context.__enter__()
    print(verb, "done", flush=True)
"""


class OtherApp:
    """An app in a process of its own that does as it is told."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER_APP, str(folder)],
            cwd=PROJECT_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, order: str) -> None:
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()

    def hears(self, answer: str) -> list[str]:
        """What it said until this answer."""
        said = []
        for line in self.process.stdout:
            if line.strip() == answer:
                return said
            said.append(line.strip())
        pytest.fail(f"it ended after {said}")

    def __call__(self, order: str) -> None:
        self.tell(order)
        self.hears(f"{order.split()[0]} done")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "activity"


@pytest.fixture
def other(folder):
    app = OtherApp(folder)
    yield app
    app.process.kill()
    app.process.wait()


def kinds(found):
    return [(doing.kind, doing.what) for doing in found]


THEIRS = ("convert", "a model in another process")


def test_what_another_app_does_is_known_while_it_does_it_and_afterwards(folder, other):
    activity = Activity(shared=folder)
    with activity.doing("generate", "mine") as mine:
        assert activity.overlapping(mine.started_s, activity.clock(), besides=mine) == ()
        other("do a model")
        during = activity.overlapping(mine.started_s, activity.clock(), besides=mine)
        other("end")
        afterwards = activity.overlapping(mine.started_s, activity.clock(), besides=mine)
    assert kinds(during) == kinds(afterwards) == [THEIRS]
    with activity.doing("generate", "later") as later:
        assert activity.overlapping(later.started_s, activity.clock(), besides=later) == ()
    assert other.process.pid in activity.processes_elsewhere()


def test_an_app_that_ended_in_between_is_not_forgotten(folder, other):
    activity = Activity(shared=folder)
    with activity.doing("generate", "mine") as mine:
        other("do a model")
        other("end")
        other.process.stdin.close()
        other.process.wait(30)
        assert kinds(activity.overlapping(mine.started_s, activity.clock(), besides=mine)) == [THEIRS]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_app_does_nothing_any_more(folder, other):
    activity = Activity(shared=folder)
    other("do a model")
    with activity.doing("generate", "beside it") as beside:
        assert kinds(activity.overlapping(beside.started_s, activity.clock(), besides=beside)) == [THEIRS]
    os.kill(other.process.pid, signal.SIGKILL)
    other.process.wait()
    with activity.doing("generate", "after it") as after:
        assert activity.overlapping(after.started_s, activity.clock(), besides=after) == ()
    with activity.exclusive("a measurement"):
        pass  # nobody is waited for
    assert activity.processes_elsewhere() == ()


def test_a_measurement_waits_for_another_apps_work(folder, other):
    activity = Activity(shared=folder)
    other("do a model")
    waits = []

    def heard(what: str) -> None:
        waits.append(what)
        if len(waits) == 1:
            other("end")

    with activity.exclusive("a measurement", on_wait=heard):
        pass
    assert waits[0] == "a model"


def test_another_apps_work_waits_for_a_measurement(folder, other):
    activity = Activity(shared=folder)
    with activity.exclusive("a measurement"):
        other.tell("do a model")
        assert other.process.stdout.readline() == "waits for a measurement\n"
        with activity.doing("generate", "its own") as own:
            assert activity.overlapping(own.started_s, activity.clock(), besides=own) == ()
    other.hears("do done")
    assert [entry.what for entry in activity._neighbours.doing_now()] == ["a model"]


def test_two_apps_measure_one_after_the_other(folder, other):
    activity = Activity(shared=folder)
    with activity.exclusive("the first"):
        other.tell("measure the second")
        assert other.process.stdout.readline().startswith("waits for")
    other.hears("measure done")
    with pytest.raises(GaveUpError), activity.exclusive("the third", cancelled=lambda: True):
        pytest.fail("it was taken")
    other("end")
    with activity.exclusive("the fourth"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_measurement_that_was_killed_lets_go(folder, other):
    other("measure for ever")
    activity = Activity(shared=folder)
    with pytest.raises(GaveUpError), activity.doing("load", "x", cancelled=lambda: True):
        pytest.fail("it did not wait")
    os.kill(other.process.pid, signal.SIGKILL)
    other.process.wait()
    with activity.doing("load", "x"), activity.doing("probe", "inside"):
        pass
    with activity.exclusive("next"):
        pass


def test_never_do_both_have_the_machine(folder):
    """Two registers, a measurement and work at the same moment, many times: one always gives way."""
    measuring, working = Activity(shared=folder), Activity(shared=folder)
    inside, trouble = set(), []
    lock = threading.Lock()

    def enter(name, other_name):
        with lock:
            inside.add(name)
            if other_name in inside:
                trouble.append(sorted(inside))

    def leave(name):
        with lock:
            inside.discard(name)

    def measure():
        for _ in range(25):
            with measuring.exclusive("m"):
                enter("measurement", "work")
                time.sleep(0.001)
                leave("measurement")

    def work():
        for _ in range(25):
            with working.doing("generate", "w"):
                enter("work", "measurement")
                time.sleep(0.001)
                leave("work")

    threads = [threading.Thread(target=measure), threading.Thread(target=work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not trouble


def test_an_app_whose_file_is_seen_before_its_first_line_is_not_taken_for_dead(folder, other):
    folder.mkdir()
    file = folder / "1-new.jsonl"
    file.touch()
    activity = Activity(shared=folder)
    with activity.exclusive("nobody is there yet"):
        pass
    started = psutil.Process(other.process.pid).create_time()
    lines = (
        {"app": other.process.pid, "started": started},
        {"begin": 1, "kind": "load", "what": "x", "at": time.time(), "processes": []},
    )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(GaveUpError, match="x"), activity.exclusive("next", cancelled=lambda: True):
        pytest.fail("it was taken")
    assert other.process.pid in activity.processes_elsewhere()


def test_files_of_the_dead_go_after_an_hour_and_garbage_hurts_nobody(folder):
    folder.mkdir()
    old = folder / "1-old.jsonl"
    old.write_text('{"app": 999999999, "started": 1}\n{"begin": 1, "kind": "load", "what": "x", "at": 1}\n')
    os.utime(old, (1, 1))
    (folder / "2-garbage.jsonl").write_bytes(b'\xff\x00{"begin"\n[1]\n{"begin": 1}\n{"end": 7}\n')
    activity = Activity(shared=folder)
    with activity.doing("generate", "mine") as mine:
        assert activity.overlapping(mine.started_s, activity.clock(), besides=mine) == ()
    assert not old.exists()


def test_a_folder_that_cannot_be_written_is_no_trouble(tmp_path):
    (tmp_path / "file").write_text("in the way")
    activity = Activity(shared=tmp_path / "file" / "activity")
    with activity.doing("generate", "mine"):
        pass
    with activity.exclusive("a measurement"):
        pass
