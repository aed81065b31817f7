"""Processor time by process: right against psutil, told apart into ours and others'."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from engines.telemetry import processes
from engines.telemetry.processes import Snapshot, Used, parse_stat, snapshot, taken
from tests.helpers.burners import burner

STAT = (
    b"4242 (a (b) c) S 1 4242 4242 0 -1 4194560 1000 20 0 0 250 50 7 3 20 0 4 0 123456 500000000 2500 "
    b"18446744073709551615 1 1 0 0 0 0 0 16781312 1260 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
)
"""The format of proc_pid_stat(5), with a name that only its last parenthesis ends."""


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_line_of_proc_stat_is_read_whatever_the_process_is_called():
    found = parse_stat(STAT)
    assert (found.pid, found.parent, found.name) == (4242, 1, "a (b) c")
    assert found.cpu_s == pytest.approx(310 / processes.TICKS_A_SECOND)
    assert found.started == 123456
    for broken in (b"", b"4242 (x", b"1 (x) S 1 2", STAT.replace(b" 250 ", b" many ")):
        assert parse_stat(broken) is None


def test_what_this_process_burns_is_its_own_and_agrees_with_psutil():
    me = psutil.Process()
    before, psutil_before = snapshot(), me.cpu_times()
    burn(0.3)
    after, psutil_after = snapshot(), me.cpu_times()
    used = taken(before, after, {os.getpid()})
    theirs = sum(psutil_after[:2]) - sum(psutil_before[:2])
    assert used.ours_s == pytest.approx(theirs, abs=0.03)
    assert used.ours_s >= 0.27
    assert "python" not in dict(used.programs) or dict(used.programs)["python"] < 0.3 or used.foreign_s > 0


def test_the_list_has_every_process_that_psutil_has_with_its_memory():
    seen = snapshot()
    missing = [pid for pid in psutil.pids() if pid not in seen.processes and psutil.pid_exists(pid)]
    assert len(missing) <= 3  # those that began or ended just now
    mine = seen.processes[os.getpid()]
    assert mine.rss_bytes == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
    assert mine.parent == os.getppid()


def test_another_program_is_foreign_until_it_is_registered_as_ours():
    with burner() as (pid,):
        before = snapshot()
        time.sleep(0.5)
        after = snapshot()
    took_s = after.processes[pid].cpu_s - before.processes[pid].cpu_s
    assert took_s > 0
    foreign = taken(before, after, {os.getpid()})
    assert foreign.foreign_s >= took_s - 0.001
    ours = taken(before, after, {os.getpid()}, {pid})
    assert ours.ours_s >= took_s
    assert foreign.foreign_s - ours.foreign_s == pytest.approx(took_s, abs=0.06)


def test_the_time_of_children_that_have_ended_is_not_lost():
    code = "import time\nend = time.process_time() + 0.25\nwhile time.process_time() < end: pass"
    before = snapshot()
    subprocess.run([sys.executable, "-c", code], check=True)
    used = taken(before, snapshot(), {os.getpid()})
    assert used.ours_s >= 0.24


def used(pid, parent, cpu_s, started=1.0, name="program", own_s=0.0):
    return Used(pid, parent, name, started, cpu_s, None, own_s)


def two(before, after, busy_s=0.0):
    return (
        Snapshot(10.0, 0.0, {u.pid: u for u in before}),
        Snapshot(12.0, busy_s, {u.pid: u for u in after}),
    )


def test_a_process_id_that_is_used_again_is_another_process():
    before, after = two([used(50, 1, 900.0)], [used(50, 1, 0.5, started=2.0)])
    assert taken(before, after, ()).foreign_s == pytest.approx(0.5)


def test_a_child_older_than_its_parent_is_none():
    """On Windows the parent's id stays when the parent has gone, and may be another process by now."""
    seen = Snapshot(0.0, 0.0, {u.pid: u for u in (used(7, 1, 0, started=9.0), used(8, 7, 0, started=3.0))})
    assert seen.family((7,)) == {7}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux adds an ended child's time to its parent")
def test_what_an_ended_child_used_before_is_not_counted_again():
    before, after = two([used(5, 1, 10.0), used(6, 5, 100.0)], [used(5, 1, 110.5)])
    assert taken(before, after, {5, 6}).ours_s == pytest.approx(0.5)
    assert taken(before, after, ()).foreign_s == pytest.approx(0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux adds an ended child's time to its parent")
def test_what_went_up_through_a_parent_that_ended_too_is_not_counted_again():
    """A build tool waits for shells that wait for compilers."""
    before, after = two(
        [used(5, 1, 10.0), used(6, 5, 0.0), used(7, 6, 100.0)],
        [used(5, 1, 110.5)],
    )
    assert taken(before, after, ()).foreign_s == pytest.approx(0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux adds an ended child's time to its parent")
def test_a_worker_that_has_ended_hides_no_other_program():
    """Its time goes to the app (5) that waited for it, which no longer calls it its own."""
    before, after = two(
        [used(5, 1, 10.0), used(6, 5, 100.0), used(9, 1, 0.0)],
        [used(5, 1, 110.5), used(9, 1, 2.0)],
        busy_s=2.5,
    )
    found = taken(before, after, {5})
    assert (found.ours_s, found.foreign_s) == (pytest.approx(0.5), pytest.approx(2.0))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux adds an ended child's time to its parent")
def test_a_real_child_that_ends_beside_a_burner_hides_nothing_of_it():
    with burner() as (ends,), burner() as (stays,):
        while psutil.Process(ends).cpu_times().user < 1.0:
            time.sleep(0.05)
        before = snapshot()
        os.kill(ends, signal.SIGKILL)
        os.waitid(os.P_PID, ends, os.WEXITED | os.WNOWAIT)
        time.sleep(0.5)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(ends, 0)  # here its second goes to this process
        after = snapshot()
        took_s = after.processes[stays].cpu_s - before.processes[stays].cpu_s
        found = taken(before, after, {os.getpid()})
    assert took_s > 0.2
    assert found.foreign_s >= took_s - 0.05


def test_nobody_takes_more_than_there_is():
    before, after = two([used(5, 1, 0.0), used(6, 1, 0.0)], [used(5, 1, 1e6), used(6, 1, 0.5)])
    assert taken(before, after, {6}).foreign_s == pytest.approx(2.0 * (os.cpu_count() or 1) - 0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux adds an ended child's time to its parent")
def test_a_whole_family_that_ended_is_counted_once_and_named_by_who_burned():
    """A build: make (5) waited for sh (6), which waited for the compiler (7); both ended in between."""
    before, after = two(
        [
            used(5, 1, 1.0, name="make", own_s=1.0),
            used(6, 5, 2.0, name="sh"),
            used(7, 6, 500.0, name="cc1plus"),
        ],
        [used(5, 1, 504.0, name="make", own_s=1.25), used(8, 5, 0.5, started=2.0, name="cc1plus", own_s=0.5)],
    )
    found = taken(before, after, ())
    # 503 more for make, less 502 of before, and the new compiler
    assert found.foreign_s == pytest.approx(1.5)
    assert dict(found.programs) == {"cc1plus": 0.5, "make": 0.25}


def test_what_cannot_be_listed_still_counts():
    """Another container's programs are in the system's count only."""
    before, after = two([used(5, 1, 1.0)], [used(5, 1, 1.5)], busy_s=2.5)
    cores = os.cpu_count() or 1
    assert taken(before, after, {5}).foreign_s == pytest.approx(2.0 - 2 * cores / processes.TICKS_A_SECOND)
