"""What is freed between things that stay goes back to the system."""

import subprocess
import sys

import pytest

from engines.runtime.worker_process import PROJECT_ROOT

HOLES = """
import sys, psutil
from ui.heap import give_back_at_once
if sys.argv[1] == "yes" and not give_back_at_once():
    sys.exit("no glibc")
process = psutil.Process()
del [bytes(30_000_000)][0]  # as a first export or upload would
before = process.memory_info().rss
buffers = []
for _ in range(200):
    buffers += [b"x" * 500_000, b"y" * 5_000]
buffers = buffers[1::2]
print((process.memory_info().rss - before) // 1_000_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps what it could give back")
def test_large_buffers_leave_no_holes():
    def kept_mb(ours: str) -> int:
        command = [sys.executable, "-c", HOLES, ours]
        ended = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60)
        if "no glibc" in ended.stderr:
            pytest.skip("only glibc keeps what it could give back")
        return int(ended.stdout)

    assert kept_mb("yes") < 10
    assert kept_mb("no") > 50  # else this is no longer needed


STAYS = """
import gc
from ui.heap import leave_out_of_collections
stays = [[] for _ in range(300_000)]
leave_out_of_collections()
assert len(gc.get_objects()) < 10_000, len(gc.get_objects())
cycle = []
cycle.append(cycle)
del cycle
print(gc.collect(), len(stays))
"""


def test_what_stays_is_not_searched_and_what_goes_is_still_found():
    command = [sys.executable, "-c", STAYS]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60, check=True)
    found, stays = map(int, done.stdout.split())
    assert found >= 1
    assert stays == 300_000
