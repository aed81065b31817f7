"""A child that has ended before it was told what to do."""

import errno
import os
import subprocess
import threading

import pytest

from engines.engine import ModelError
from engines.processes.jobs import run_job


class OfAnEndedChild:
    """The pipe to a child that has ended, as systems tell it when something is written."""

    def __init__(self, number: int):
        self._number = number

    def write(self, _data: bytes) -> None:
        raise OSError(self._number, "refused")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EINVAL])  # the second on Windows: cpython#79935
def test_a_child_that_ends_at_once_is_one_sentence(tmp_path, monkeypatch, number):
    class Ended(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.stdin.close()
            self.stdin = OfAnEndedChild(number)

    monkeypatch.setattr(subprocess, "Popen", Ended)
    with pytest.raises(ModelError, match=r"ended unexpectedly \(exit code 0\)"):
        run_job("this", {}, tmp_path / "log", lambda progress: None, threading.Event())


@pytest.mark.skipif(os.name == "nt", reason="POSIX process groups")
def test_a_terminals_ctrl_c_does_not_reach_a_job(tmp_path, monkeypatch):
    """It goes to the whole process group; the app cancels its jobs in order, and knows then why they ended."""
    groups = []

    class Seen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            groups.append(os.getpgid(self.pid))

    monkeypatch.setattr(subprocess, "Popen", Seen)
    with pytest.raises(ModelError):
        run_job("this", {}, tmp_path / "log", lambda progress: None, threading.Event())
    assert os.getpgid(0) not in groups
