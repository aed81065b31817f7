"""Ctrl+C in the middle of `measure`, as a terminal sends it: to a real process and all its children."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from engines.runtime.worker_process import PROJECT_ROOT as ROOT
from storage.measurements import Measurements
from storage.store import Store

APP = """
import argparse, contextlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may have it ignored
from pathlib import Path
from types import SimpleNamespace
from engines.environments.environments import Environments
from engines.runtime.manager import EngineManager
from storage.measurements import Measurements
from storage.store import Store
from tests.helpers.measuring import Weights
from tests.helpers.worlds import SPECS
from ui.cli import measure
from ui.measure.desk import Desk

@contextlib.contextmanager
def opened(arguments):
    folder = Path(sys.argv[1])
    store = Store(folder / "arena.sqlite3")
    manager = EngineManager(folder, Weights(1000), Environments(folder), specs=SPECS)
    measurements = Measurements(store)
    desk = Desk(manager, measurements, dict)
    try:
        yield SimpleNamespace(store=store, manager=manager, measurements=measurements, desk=desk)
    finally:
        desk.close(); manager.shutdown(); store.close()

parser = argparse.ArgumentParser()
measure.register(parser.add_subparsers(), opened)
arguments = parser.parse_args(["measure", *sys.argv[2:]])
sys.exit(arguments.run(arguments))
"""


@pytest.mark.skipif(
    os.name == "nt", reason="Ctrl+C of a console cannot be sent to one process group on Windows."
)
def test_ctrl_c_keeps_what_is_done_says_how_to_go_on_and_leaves_no_worker(tmp_path):
    suite = tmp_path / "own.jsonl"
    suite.write_text('{"prompt": "Bread.", "prompt_tokens": 32, "new_tokens": 20, "name": "bread"}\n')
    words = ("--suite", str(suite), "--on", "echo/CPU/20", "--keep-loaded", "--repeats", "50")
    process = subprocess.Popen(
        [sys.executable, "-c", APP, str(tmp_path), *words],
        cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "checking answers" in line:
            break
    deadline = time.monotonic() + 30
    while not (workers := psutil.Process(process.pid).children(recursive=True)):  # is about to be started
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (said, out, err)
    stopping, stopped = (line for line in err.splitlines() if "--resume" in line)
    assert stopping.startswith("Stopping; what is done is kept. Go on with:"), err
    resumed = re.search(r"--resume (\w+)", stopped)
    assert resumed, err
    assert resumed.group() in stopping  # who presses again sees only this
    deadline = time.monotonic() + 10
    while any(worker.is_running() and worker.status() != "zombie" for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    store = Store(tmp_path / "arena.sqlite3")
    found = Measurements(store).measurement(resumed.group(1))
    store.close()
    assert (found.status, found.lanes[0].status) == ("stopped", "partly")
    assert found.lanes[0].probe is not None
