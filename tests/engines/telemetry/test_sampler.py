"""The sampler: right against psutil and /proc, cheap, awake only while needed, and what it says of a run's time."""

import os
import time

import psutil
import pytest

from engines.telemetry.device_sources import nvidia_shares
from engines.telemetry.devices_seen import DeviceReading
from engines.telemetry.processes import ours
from engines.telemetry.readings import SystemReadings
from engines.telemetry.sampler import Sample, Sampler, weigh
from tests.helpers.burners import burner
from ui.strip_html import Strip


def until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def by_name(readings):
    return {reading.name: reading for reading in readings}


@pytest.mark.alone
def test_readings_agree_with_psutil_within_the_sampling_error():
    with burner() as (pid,):
        ours.add(pid)
        try:
            system = SystemReadings()
            system.take((pid,), ours.pids())
            times, burnt, started = psutil.cpu_times(), psutil.Process(pid).cpu_times(), time.monotonic()
            time.sleep(1.0)
            found = by_name(system.take((pid,), ours.pids()))
            times_after, burnt_after = psutil.cpu_times(), psutil.Process(pid).cpu_times()
            elapsed_s = time.monotonic() - started
            memory, rss = psutil.virtual_memory(), psutil.Process(pid).memory_info().rss
        finally:
            ours.discard(pid)
    idle = (times_after.idle + times_after.iowait - times.idle - times.iowait) / elapsed_s
    cores = os.cpu_count()
    assert found["cpu"].value == pytest.approx(1 - idle / cores, abs=0.08)
    assert found[f"worker.{pid}.cpu"].value == pytest.approx(
        (sum(burnt_after[:2]) - sum(burnt[:2])) / elapsed_s, abs=0.08
    )
    assert found[f"worker.{pid}.rss"].value == pytest.approx(rss, rel=0.05)
    assert found["memory"].value == pytest.approx((memory.total - memory.available) / memory.total, abs=0.05)
    assert len([name for name in found if name.startswith("cpu.")]) == cores
    assert found["others"].value <= cores - found[f"worker.{pid}.cpu"].value + 0.1
    assert all(reading.source and reading.unit for reading in found.values())
    assert ("battery" in found) == (psutil.sensors_battery() is not None)  # what is not here is absent


def test_it_sleeps_unless_something_runs_or_somebody_looks():
    running = []
    sampler = Sampler(lambda: bool(running), list, period_s=0.02)
    assert sampler.samples() == ()
    running.append(1)
    sampler.run_begins("a run")
    until(lambda: sampler.version > 4)
    running.clear()
    until(lambda: sampler._thread is None)
    asleep_at = sampler.version
    time.sleep(0.2)
    assert sampler.version == asleep_at
    sampler.look()
    until(lambda: sampler.version > asleep_at + 1)
    sampler.close()
    until(lambda: sampler._thread is None)
    sampler.look()
    assert sampler._thread is None


class Counter:
    """A source whose device is busy as it is told."""

    def __init__(self):
        self.busy, self.by_pid = 0.0, {}

    def read(self, pids):
        return [DeviceReading("NPU accel0", "NPU", "a counter", self.busy)]


def test_a_run_samples_at_both_ends_and_leaves_its_marks():
    npu = Counter()
    sampler = Sampler(lambda: False, list, lambda: [npu], period_s=60)
    sampler.run_begins("before it")
    until(lambda: sampler._thread is None)
    time.sleep(0.06)
    since = time.monotonic()
    sampler.run_begins("the run")
    time.sleep(0.06)
    npu.busy = 0.9
    sampler.run_ends("the run")
    seen = sampler.seen(since, time.monotonic(), None)
    assert seen.busy == {"NPU": pytest.approx(0.9)}
    assert seen.sources == {"NPU": "a counter"}
    assert [(mark.what, mark.starts) for mark in sampler.marks()] == [
        ("before it", True),
        ("the run", True),
        ("the run", False),
    ]
    sampler.close()


def sample(at_s, *devices, length_s=0.5):
    return Sample(at_s, at_s - length_s, {}, devices)


def gpu(name="GPU 0", busy=None, **by_pid):
    shares = {int(pid.removeprefix("p")): share for pid, share in by_pid.items()}
    return DeviceReading(
        name, "GPU", "counters", busy, shares, sees_processes=bool(shares), sees_everybody=bool(shares)
    )


def test_shares_are_weighed_by_time_and_the_workers_told_apart():
    seen = weigh(
        [sample(1, gpu(p7=0.2, p9=0.5)), sample(2.5, gpu(p7=0.8, p9=0.1), length_s=1.5)],
        7,
        {7},
        frozenset({"GPU"}),
    )
    assert seen.busy == {"GPU": pytest.approx((0.2 * 0.5 + 0.8 * 1.5) / 2)}
    assert seen.by_process == {"GPU"}
    assert seen.foreign_gpu_share() == pytest.approx((0.5 * 0.5 + 0.1 * 1.5) / 2)
    assert seen.present == {"GPU"}


def test_of_two_gpus_the_busier_counts_and_power_is_no_device():
    power = DeviceReading("package-0", "power", "RAPL", watts=12.0)
    seen = weigh([sample(1, gpu("GPU 0", busy=0.1), gpu("GPU 1", busy=0.7), power)], 7, {7}, None)
    assert seen.busy == {"GPU": 0.7}
    assert seen.by_process == frozenset()
    assert seen.foreign_gpu_share() is None
    assert weigh([], 7, {7}, None).busy == {}


def test_nvidias_samples_are_averaged_and_nonsense_left_out():
    assert nvidia_shares([(1, 50), (1, 100), (2, 0), (3, 4294967295)]) == {1: 0.75, 2: 0.0}


def test_the_strip_draws_each_device_and_worker_with_its_figures():
    npu = Counter()
    sampler = Sampler(
        lambda: False, lambda: [(os.getpid(), "echo/CPU/fast + demo")], lambda: [npu], period_s=60
    )
    strip = Strip(sampler)
    ours.add(os.getpid())
    npu.busy = 0.25
    for _ in range(3):
        sampler.sample()
        time.sleep(0.06)
    sampler.run_begins("a <run>")
    html = strip.html()
    assert "NPU accel0: 25%" in html
    assert "<b>Processor</b>" in html
    assert "<b>echo/CPU/fast</b>" in html
    assert 'class="mark starts"' in html
    assert "echo/CPU/fast" not in strip.html(hide_workers=True)
    sampler.close()


class Broken:
    """A driver's library that raises something of its own."""

    asked = 0

    def read(self, pids):
        Broken.asked += 1
        raise ZeroDivisionError("the driver")


def test_a_source_that_raises_is_dropped_and_costs_no_run():
    sampler = Sampler(lambda: False, list, lambda: [Broken(), Counter()], period_s=60)
    for _ in range(3):
        sampler.sample()
        time.sleep(0.06)
    assert Broken.asked == 1
    assert [device.name for device in sampler.samples()[-1].devices] == ["NPU accel0"]
    sampler.close()


def test_readings_that_fail_cost_no_run():
    def no_workers():
        raise OSError("not now")

    sampler = Sampler(lambda: False, no_workers, period_s=60)
    sampler.sample()
    sampler.run_ends("a run")
    assert sampler.samples() == ()
    assert sampler.seen(0.0, time.monotonic(), None).busy == {}
