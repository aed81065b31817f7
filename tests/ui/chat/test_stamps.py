"""Stamps of a run, decided when it has ended: what overlapped it, what other programs took, where it ran.

Whether this machine is quiet is not for a test to decide: what other programs took meanwhile is counted here a second
time, straight from /proc, and the stamps must agree with that.
"""

import contextlib
import json
import sqlite3
import subprocess
import sys
import threading
import time

import psutil
import pytest

from engines.protocol import Target
from engines.runtime.activity import Activity
from engines.runtime.worker_process import PROJECT_ROOT
from engines.telemetry.disturbance import cpu_limit_cores
from storage.store import Store
from tests.helpers import liar_engine, worlds
from tests.helpers.burners import burner
from tests.helpers.worlds import ECHO, SLOW_ECHO
from ui.chat.settings import Settings
from ui.chat.turns import Turns

LONG = Settings(max_new_tokens=400)
STORY = "word " * 25
MEDIANS = "SELECT runs, decode_tok_s FROM median_metrics WHERE NOT contended"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("stamps")
    store = Store(data_dir / "arena.sqlite3")
    manager = worlds.manager_on(data_dir, specs=(*worlds.SPECS, liar_engine.SPEC))
    turns = Turns(manager, store, lambda: {"name": "test machine"})
    for target in (ECHO, SLOW_ECHO):
        assert turns.send("warm", [(1, target)], LONG).wait(60)
    yield turns, manager, store
    turns.stop_everything()
    manager.shutdown()
    store.close()


def rows(store, sql, *values):
    connection = sqlite3.connect(store.path)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute(sql, values)]
    finally:
        connection.close()


def logged(store, run):
    (row,) = rows(store, "SELECT * FROM runs WHERE id = ?", run.run_id)
    (metrics,) = rows(store, "SELECT alone, stamp_rule FROM run_metrics WHERE run_id = ?", run.run_id)
    return {**row, **metrics}


def begun(turn):
    """Once the reply has begun."""
    deadline = time.monotonic() + 30
    while turn.runs[0].view().tokens < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ends(turn):
    assert turn.wait(30)
    (run,) = turn.runs
    return run, run.view()


def test_a_run_that_another_one_joins_later_is_contended_and_so_is_the_other(world):
    turns, _, store = world
    before = rows(store, MEDIANS)
    first = turns.send(STORY, [(1, SLOW_ECHO)], LONG)
    begun(first)
    second = turns.send("Hi", [(1, ECHO)], LONG)
    (run, view), (other, others) = ends(first), ends(second)
    assert view.contended
    assert others.contended
    assert view.other_load.ours == (f"generate {ECHO}",)
    assert (logged(store, run)["contended"], logged(store, run)["alone"]) == (1, 0)
    assert (logged(store, other)["contended"], logged(store, other)["stamp_rule"]) == (1, "end")
    assert rows(store, MEDIANS) == before


@pytest.mark.parametrize("kind", ["convert", "download", "load", "probe", "set-up"])
def test_whatever_else_of_ours_joins_makes_it_contended(world, kind):
    turns, manager, store = world
    turn = turns.send("a few words to say", [(1, SLOW_ECHO)], LONG)
    begun(turn)
    with manager.activity.doing(kind, "another model"):
        run, view = ends(turn)
    assert view.contended
    assert view.other_load.ours == (f"{kind} another model",)
    assert logged(store, run)["contended"] == 1


def test_what_ended_before_or_began_after_is_no_company(world):
    turns, manager, _ = world
    with manager.activity.doing("convert", "before"):
        pass
    _, view = ends(turns.send("Hi", [(1, ECHO)], LONG))
    with manager.activity.doing("convert", "after"):
        pass
    assert not view.contended
    assert view.other_load.ours == ()


def test_a_run_beside_a_burner_is_disturbed_and_enters_no_median(world):
    turns, _, store = world
    before = rows(store, MEDIANS)
    with burner():
        run, view = ends(turns.send(STORY, [(1, SLOW_ECHO)], LONG))
    assert view.disturbed, view.other_load
    assert not view.contended
    row = logged(store, run)
    load = json.loads(row["other_load"])
    assert (row["disturbed"], row["contended"], row["alone"]) == (1, 0, 0)
    assert load["foreign_cpu_cores"] > cpu_limit_cores()
    assert "Other programs" in load["reasons"][0]
    assert rows(store, MEDIANS) == before


def test_a_burner_that_joins_only_late_still_disturbs(world):
    turns, _, _ = world
    turn = turns.send(STORY, [(1, SLOW_ECHO)], LONG)
    begun(turn)
    with burner(2):
        _, view = ends(turn)
    assert view.disturbed


SECOND_APP = """
import sys
import time
from pathlib import Path
from engines.runtime.activity import Activity
from storage.store import Store
from tests.helpers.worlds import SLOW_ECHO, manager_on
from ui.chat.turns import Settings, Turns
data = Path(sys.argv[1])
manager = manager_on(data, activity=Activity(shared=data / "activity"))
turns = Turns(manager, Store(data / "arena.sqlite3"), lambda: {"name": "m"})
turns.send("warm", [(1, SLOW_ECHO)], Settings(max_new_tokens=2)).wait(60)
print("ready", flush=True)
sys.stdin.readline()
turn = turns.send("word " * 25, [(1, SLOW_ECHO)], Settings(max_new_tokens=400))
while turn.runs[0].view().tokens < 3:
    time.sleep(0.02)
print("writing", flush=True)
turn.wait(60)
view = turn.runs[0].view()
print(view.contended, *view.other_load.ours, sep="|", flush=True)
manager.shutdown()
"""


def test_two_apps_on_one_data_directory_know_of_each_other(tmp_path):
    activity = Activity(shared=tmp_path / "activity")
    manager = worlds.manager_on(tmp_path, activity=activity)
    store = Store(tmp_path / "arena.sqlite3")
    turns = Turns(manager, store, lambda: {"name": "m"})
    second = subprocess.Popen(
        [sys.executable, "-c", SECOND_APP, str(tmp_path)],
        cwd=PROJECT_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert turns.send("warm", [(1, ECHO)], LONG).wait(60)
        assert second.stdout.readline() == "ready\n"
        _, before = ends(turns.send("quiet", [(1, ECHO)], LONG))
        second.stdin.write("\n")
        second.stdin.flush()
        assert second.stdout.readline() == "writing\n"
        run, view = ends(turns.send("Hi", [(1, ECHO)], LONG))
        theirs = second.stdout.readline().strip().split("|")
        second.wait(30)
        _, after = ends(turns.send("quiet again", [(1, ECHO)], LONG))
    finally:
        second.kill()
        second.wait()
        manager.shutdown()
    assert (before.contended, view.contended, after.contended) == (False, True, False)
    assert view.other_load.ours == (f"generate {SLOW_ECHO} in another process",)
    assert theirs == ["True", f"generate {ECHO} in another process"]
    assert logged(store, run)["alone"] == 0
    store.close()


class ForeignTime:
    """Processor time of everything but this process and its workers, counted without the app's help (Linux)."""

    def __enter__(self):
        self._before, self._mine_before, self._at = self._busy(), self._mine(), time.monotonic()
        return self

    def __exit__(self, *_):
        busy, mine = self._busy() - self._before, self._mine()
        self.known = self._mine_before.keys() <= mine.keys()  # one that ended took its count along
        ours = sum(mine.values()) - sum(self._mine_before.values())
        self.cores = (busy - ours) / (time.monotonic() - self._at)

    def _busy(self):
        times = psutil.cpu_times()
        return times.user + times.nice + times.system

    def _mine(self):
        me, took = psutil.Process(), {}
        for process in (me, *me.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                took[process.pid] = sum(process.cpu_times()[:2])
        return took


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="counted from /proc")
def test_quiet_runs_stay_unstamped_and_others_do_not(world):
    """Ten runs: each is stamped if, and only if, others took too much while it ran."""
    turns, _, _ = world
    judged = 0
    for number in range(10):
        with ForeignTime() as foreign:
            _, view = ends(turns.send(f"{number} some words to say", [(1, SLOW_ECHO)], LONG))
        assert not view.contended
        limit, margin = cpu_limit_cores(), 0.1
        if not foreign.known:
            continue
        if foreign.cores < limit - margin:
            assert not view.disturbed, view.other_load
            judged += 1
        elif foreign.cores > limit + 3 * margin:
            assert view.disturbed, view.other_load
            judged += 1
    if judged == 0:
        pytest.skip("Other programs kept this machine at the limit all the time.")


def test_an_engine_that_claims_the_npu_and_burns_the_processor_is_contradicted(world):
    turns, _, store = world
    target = Target("liar", "NPU", "int8")
    run, view = ends(turns.send("Where do you run?", [(1, target)], LONG))
    assert view.placement.badge == "contradicted"
    assert (view.placement.requested, view.placement.claimed, view.placement.observed) == (
        "NPU",
        "NPU",
        "CPU",
    )
    assert "This machine has no NPU" in view.placement.evidence[-1]
    row = logged(store, run)
    assert (row["placement_badge"], row["alone"]) == ("contradicted", 0)
    assert not rows(store, "SELECT 1 FROM median_metrics WHERE engine = 'liar'")
    assert store.conversation(run_conversation(store, run)).turns[0].runs[0].placement == view.placement


def run_conversation(store, run):
    (row,) = rows(store, "SELECT conversation_id FROM run_metrics WHERE run_id = ?", run.run_id)
    return row["conversation_id"]


def test_asked_for_one_device_and_named_another_is_contradicted(world):
    turns, _, _ = world
    _, view = ends(turns.send("Where?", [(1, Target("liar", "GPU", "honest"))], LONG))
    assert view.placement.badge == "contradicted"
    assert (view.placement.claimed, view.placement.observed) == ("CPU", "CPU")


def test_auto_reports_the_device_it_chose_with_evidence(world):
    turns, _, _ = world
    _, view = ends(turns.send("Where?", [(1, Target("liar", "AUTO", "honest"))], LONG))
    assert view.placement.badge == "proven"
    assert (view.placement.requested, view.placement.claimed, view.placement.observed) == (
        "AUTO",
        "CPU",
        "CPU",
    )
    assert any("EXECUTION_DEVICES" in sentence for sentence in view.placement.evidence)
    assert any("processor cores busy" in sentence for sentence in view.placement.evidence)


def test_a_paced_run_on_the_processor_is_only_claimed(world):
    turns, _, _ = world
    _, view = ends(turns.send("slowly", [(1, SLOW_ECHO)], LONG))
    assert view.placement.badge == "claimed"


def test_a_run_that_never_came_to_generating_carries_no_stamp(world):
    turns, _, store = world
    turn = turns.send("x", [(1, worlds.bad("crash-on-load"))], LONG)
    run, view = ends(turn)
    assert view.phase == "failed"
    assert view.placement is None
    assert rows(store, "SELECT disturbed, placement FROM runs WHERE id = ?", run.run_id) == [
        {"disturbed": None, "placement": None}
    ]


def test_in_turn_each_has_the_machine_to_itself(world):
    turns, _, _ = world
    turn = turns.send("one after the other", [(1, SLOW_ECHO), (2, ECHO)], LONG, mode="in-turn")
    assert turn.wait(30)
    assert [run.view().contended for run in turn.runs] == [False, False]


def test_two_panels_of_one_target_take_turns_and_do_not_contend(world):
    """One worker serves both, one after the other: neither takes anything from the other."""
    turns, _, _ = world
    turn = turns.send("twice", [(1, ECHO), (2, ECHO)], LONG)
    assert turn.wait(30)
    assert [run.view().contended for run in turn.runs] == [False, False]


def test_stamps_are_there_as_soon_as_the_run_is_done(world):
    turns, _, _ = world
    turn = turns.send("Hi", [(1, ECHO)], LONG)
    seen = []

    def look():
        while True:
            view = turn.runs[0].view()
            if view.done:
                seen.append(view)
                return

    looking = threading.Thread(target=look)
    looking.start()
    looking.join(30)
    assert seen[0].other_load is not None
