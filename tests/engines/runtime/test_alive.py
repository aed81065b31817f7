"""A panel waits only on something that is alive: workers that die, stop reading or are ended at the worst moment."""

import os
import signal
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest

from engines.environments.environments import Environments
from engines.protocol import Failed, Finished, Generate, ProtocolError, Target, decode
from engines.runtime.manager import EngineFailure, EngineManager
from engines.runtime.worker_process import WorkerProcess
from engines.telemetry.processes import ours
from tests.helpers.worlds import ECHO, SLOW_ECHO, SPECS, DemoFolder, ask, bad, manager_on

PATIENCE_S = 60
"""Far longer than any of this takes: what is still waiting then waits for ever."""


@pytest.fixture
def make_manager(tmp_path):
    made = []

    def make(**options):
        made.append(manager_on(tmp_path, **options))
        return made[-1]

    yield make
    for manager in made:
        manager.shutdown()


def in_a_thread(work):
    """Do it in a thread; returns a function that waits for the result and fails where there is none."""
    future = Future()

    def run():
        try:
            future.set_result(work())
        except EngineFailure as failure:
            future.set_result(failure.failed)
        except Exception as error:  # noqa: BLE001 - raised again where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return lambda: future.result(PATIENCE_S)


def generate(manager, target, request=None, on_event=lambda event: None, run_id="r"):
    with manager.lease(target) as lease:
        return lease.generate(run_id, request or ask(), on_event)


class DiesAtTheWorstMoment(WorkerProcess):
    """Dies, and its death is told, after the check that it is alive and before the prompt is sent."""

    doomed = False

    @property
    def alive(self):
        if self.doomed:
            self.doomed = False
            psutil.Process(self.pid).kill()
            assert self.ended.wait(PATIENCE_S)
            return True
        return super().alive


def test_a_worker_that_dies_between_the_check_and_the_prompt(make_manager):
    started = []

    def start_worker(*arguments, **options):
        started.append(DiesAtTheWorstMoment(*arguments, **options))
        return started[-1]

    manager = make_manager(start_worker=start_worker)
    with manager.lease(ECHO) as lease:
        started[-1].doomed = True
        outcome = in_a_thread(lambda: lease.generate("r", ask(), lambda event: None))()
    assert isinstance(outcome, Failed)
    assert outcome.kind == "crashed"
    assert outcome.run_id == "r"
    assert isinstance(
        in_a_thread(lambda: generate(manager, ECHO))(), Finished
    )  # the next prompt starts it afresh


def test_a_reply_ends_when_the_app_ends_its_worker(make_manager):
    manager = make_manager()
    writing = threading.Event()
    outcome = in_a_thread(
        lambda: generate(
            manager, SLOW_ECHO, ask("word " * 50, ignore_eos=True), lambda event: writing.set(), "r7"
        )
    )
    assert writing.wait(PATIENCE_S)
    manager.shutdown()
    assert outcome().kind == "crashed"
    assert outcome().run_id == "r7"


def test_a_load_ends_when_the_app_ends_its_worker(make_manager):
    manager = make_manager()
    loading = threading.Event()

    def load():
        with manager.lease(bad("hang-on-load"), lambda progress: progress.stage == "load" and loading.set()):
            pass

    failed = in_a_thread(load)
    assert loading.wait(PATIENCE_S)
    manager.shutdown()
    assert failed().kind == "crashed"


@pytest.mark.parametrize("error", [KeyError, ValueError, OSError, RecursionError])
def test_a_listener_that_raises_loses_its_event_and_stops_nobody(make_manager, caplog, error):
    manager = make_manager()

    def listen(event):
        raise error("a bug of ours")

    outcome = in_a_thread(lambda: generate(manager, ECHO, ask("a b c d e f g h"), listen))()
    assert isinstance(outcome, Finished)
    assert outcome.metrics.output_tokens > 8
    assert len(caplog.records) == 1  # told, and not once per token
    again = in_a_thread(lambda: generate(manager, ECHO))()
    assert isinstance(again, Finished)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals to stop a process without ending it")
def test_a_worker_that_does_not_read_holds_up_nobody(make_manager, monkeypatch):
    monkeypatch.setattr("engines.runtime.lease.CANCEL_TIMEOUT_S", 0.5)
    manager = make_manager()
    before = set(psutil.Process().children())
    with manager.lease(ECHO) as lease:
        (worker,) = set(psutil.Process().children()) - before
        os.kill(worker.pid, signal.SIGSTOP)
        outcome = in_a_thread(lambda: lease.generate("r", ask("x" * 2_000_000), lambda event: None))
        in_a_thread(lambda: lease.cancel("r") or True)()  # as the page's Stop does
    assert outcome().kind == "hung"
    assert not worker.is_running()


def test_what_is_sent_to_a_dead_worker_is_said_to_be_lost(make_manager, tmp_path):
    manager = make_manager()
    generate(manager, ECHO)
    worker = manager._slots[ECHO].worker
    worker.stop()
    assert not worker.send(Generate("r", ask()))
    assert worker.has_said_all()


def launcher(folder: Path) -> Path:
    """A Python that, like python.exe of a virtual environment on Windows, starts the interpreter as its child."""
    if os.name == "nt":
        return Path(sys.executable)
    script = folder / "python"
    script.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\nexit $?\n', encoding="utf-8")
    script.chmod(0o700)
    return script


def test_of_a_launcher_and_its_interpreter_the_interpreter_is_looked_at(tmp_path):
    worker = WorkerProcess(launcher(tmp_path), tmp_path / "worker.log")
    try:
        assert worker.start(lambda event: None) is None
        looked_at = psutil.Process(worker.pid)
        assert "engines.worker" in looked_at.cmdline()
        assert not [child for child in looked_at.children() if "engines.worker" in child.cmdline()]
        assert worker.rss_bytes() > 10_000_000
        assert worker.pid in ours.pids()
    finally:
        worker.stop()
    assert worker.pid not in ours.pids()


class Breaking(DemoFolder):
    """A model source that fails in a way nobody foresaw."""

    def prepare(self, target, spec, on_progress, cancelled):
        raise OSError(28, "No space left on device")


def test_a_load_that_breaks_unforeseen_is_a_failure_and_not_for_ever_under_way(tmp_path):
    manager = EngineManager(tmp_path, Breaking(), Environments(tmp_path), specs=SPECS)
    try:
        failed = in_a_thread(lambda: generate(manager, ECHO))()
        assert failed.kind == "error"
        assert "No space left on device" in failed.message
        assert manager.state(ECHO).phase == "failed"
        assert manager.activity.now() == ()
    finally:
        manager.shutdown()


@pytest.mark.parametrize(
    "line",
    [
        b'{"type": []}\n',
        b'{"type": {"type": "Token"}}\n',
        b'{"type": "Token", "not": "ours"}\n',
        b'{"type": "Target", "engine": "e", "device": "d", "precision": "p"}\n',
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
        b"12\n",
    ],
)
def test_whatever_a_library_prints_is_no_message(line):
    with pytest.raises(ProtocolError):
        decode(line)


class EndsSlowly(WorkerProcess):
    """A worker that takes as long to end as the test wants."""

    ending = threading.Event()
    may_end = threading.Event()

    def stop(self, *arguments, **options):
        self.ending.set()
        assert self.may_end.wait(PATIENCE_S)
        super().stop(*arguments, **options)


@pytest.fixture
def ends_slowly():
    EndsSlowly.ending.clear()
    EndsSlowly.may_end.clear()
    yield EndsSlowly
    EndsSlowly.may_end.set()


@pytest.mark.parametrize("how", ["evicted", "unloaded", "idle for long"])
def test_while_a_worker_ends_slowly_the_others_are_seen_and_used(make_manager, ends_slowly, how):
    available = [10_000_000_000]
    manager = make_manager(
        available_memory=lambda: available[0],
        start_worker=ends_slowly,
        keep_alive_s=0.4 if how == "idle for long" else 300,
    )
    generate(manager, ECHO)
    with manager.lease(SLOW_ECHO) as used:
        if how == "evicted":
            available[0] = 990_000_000
            in_a_thread(lambda: generate(manager, Target("echo", "CPU", "fast", "900000000")))
        elif how == "unloaded":
            in_a_thread(lambda: manager.unload(ECHO))
        assert ends_slowly.ending.wait(PATIENCE_S)

        def look_and_use():
            assert manager.state(SLOW_ECHO).phase == "ready"
            assert manager.state(ECHO).phase == "absent"
            assert {state.target for state in manager.states()} >= {ECHO, SLOW_ECHO}
            assert manager.known_availability is None
            return used.generate("r", ask("a b"), lambda event: None)

        assert isinstance(in_a_thread(look_and_use)(), Finished)
        ends_slowly.may_end.set()
