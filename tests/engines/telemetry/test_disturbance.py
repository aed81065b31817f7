"""What disturbs a run: other programs, a change of the power state; and what does not."""

import os
import time
from collections import namedtuple

import psutil
import pytest

from engines.telemetry.devices_seen import DevicesSeen
from engines.telemetry.disturbance import Watch, cpu_limit_cores
from engines.telemetry.processes import Snapshot, Used
from tests.helpers.burners import burner

Other = namedtuple("Other", "kind what")
CORES = os.cpu_count() or 1


def used(pid, cpu_s, name="program", parent=1):
    return Used(pid, parent, name, 1.0, cpu_s, None, cpu_s)


def watch(taken_s, *, window_s=2.0, page=frozenset(), power=("mains", "mains"), swapped=(0, 0)):
    """A watch over a window in which each process (name -> seconds) took what it says; ours is this process."""
    names = list(taken_s)
    looks = iter(
        Snapshot(
            moment * window_s,
            0.0,
            {100 + i: used(100 + i, moment * taken_s[name], name) for i, name in enumerate(names)},
            swapped[moment],
        )
        for moment in (0, 1)
    )
    powers = iter(power)
    return Watch(
        lambda: next(powers),
        look=lambda: next(looks),
        page=lambda _seen: {100 + names.index(name) for name in page},
    )


def test_a_burner_disturbs_with_its_numbers():
    quiet_cores = cpu_limit_cores()
    with burner():
        beside = Watch(lambda: "mains")
        time.sleep(0.6)
        conditions = beside.ended(())
    assert conditions.disturbed
    assert not conditions.contended
    load = conditions.other_load
    assert load.foreign_cpu_cores > quiet_cores == load.limit_cpu_cores
    assert load.foreign_cpu_share == pytest.approx(load.foreign_cpu_cores / CORES, abs=0.01)
    assert any(program.startswith("python") for program in load.programs)
    assert load.reasons[0].startswith("Other programs kept ")
    assert load.foreign_cpu_cores <= CORES


def test_our_own_work_does_not_disturb():
    me = psutil.Process()
    before = sum(me.cpu_times()[:2])
    beside = Watch(lambda: None)
    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass
    load = beside.ended(()).other_load
    mine = (sum(me.cpu_times()[:2]) - before) / load.window_s
    everything = load.foreign_cpu_cores + mine
    assert everything <= CORES + 0.1  # what we burned is not counted a second time as another's


@pytest.mark.parametrize(
    ("cores", "limit"), [(1, 0.25), (2, 0.25), (4, 0.4), (6, 0.6), (8, 0.75), (64, 0.75)]
)
def test_the_limit_is_a_tenth_within_bounds(cores, limit):
    assert cpu_limit_cores(cores) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("seconds", "window_s", "disturbed"),
    [
        (2.0, 2.0, True),
        (0.4, 2.0, False),  # a fifth of a core: a mail program, a clock
        (0.04, 0.05, False),  # less than the system's ticks can tell
        (0.2, 0.25, True),
        (0.0, 2.0, False),
    ],
)
def test_how_much_is_too_much(seconds, window_s, disturbed):
    assert watch({"mail": seconds}, window_s=window_s).ended(()).disturbed is disturbed


def test_the_browser_that_draws_the_page_is_not_another_program():
    drawing = watch({"chrome": 2.0, "mail": 0.1}, page={"chrome"}).ended(())
    assert not drawing.disturbed
    assert drawing.other_load.page_cpu_cores == pytest.approx(1.0)
    assert drawing.other_load.foreign_cpu_cores == pytest.approx(0.05)


def test_a_browser_that_does_much_more_than_draw_the_page_is():
    film = watch({"chrome": 3.8}, page={"chrome"}).ended(())
    assert film.disturbed
    assert film.other_load.page_cpu_cores == pytest.approx(1.9)
    assert film.other_load.foreign_cpu_cores == pytest.approx(0.4)


def test_a_change_of_the_power_state_disturbs():
    changed = watch({}, power=("mains, balanced", "battery, balanced")).ended(())
    assert changed.disturbed
    assert changed.other_load.reasons == (
        "The power state changed from mains, balanced to battery, balanced.",
    )
    assert (changed.other_load.power_before, changed.other_load.power_after) == (
        "mains, balanced",
        "battery, balanced",
    )


def test_swapping_disturbs_and_a_few_pages_do_not():
    assert watch({}, swapped=(0, 200_000_000)).ended(()).disturbed
    assert not watch({}, swapped=(5_000_000, 6_000_000)).ended(()).disturbed


def test_another_programs_gpu_use_disturbs():
    assert watch({}).ended((), DevicesSeen(foreign_gpus=({7: 0.2, 8: 0.2}, {7: 0.1}))).disturbed
    assert not watch({}).ended((), DevicesSeen(foreign_gpus=({7: 0.05},))).disturbed
    assert watch({}).ended((), DevicesSeen(foreign_gpus=())).other_load.foreign_gpu_share == 0
    assert watch({}).ended((), DevicesSeen()).other_load.foreign_gpu_share is None


@pytest.mark.parametrize(
    ("chrome", "dwm", "game", "share"),
    [(0.15, 0.1, 0.05, 0.05), (0.5, 0.1, 0.0, 0.35), (0.1, 0.0, 0.2, 0.2), (0.05, 0.02, 0.01, 0.08)],
)
def test_drawing_the_page_disturbs_no_gpu(chrome, dwm, game, share):
    names = {"chrome": 0.0, "dwm.exe": 0.0, "game": 0.0}
    seen = DevicesSeen(foreign_gpus=({100: chrome, 101: dwm, 102: game},))
    conditions = watch(names, page={"chrome"}).ended((), seen)
    assert conditions.other_load.foreign_gpu_share == pytest.approx(share)
    assert conditions.disturbed is (share > 0.1)


def test_what_of_ours_overlapped_makes_it_contended_and_is_named():
    conditions = watch({}).ended([Other("convert", "demo"), Other("load", "x"), Other("load", "x")])
    assert conditions.contended
    assert not conditions.disturbed
    assert conditions.other_load.ours == ("convert demo", "load x")
    assert not conditions.alone
    assert watch({}).ended(()).alone
