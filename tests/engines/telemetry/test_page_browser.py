"""Which processes draw the page: those at the other end of our own port, and nobody else."""

import contextlib
import os
import socket
import subprocess
import sys

from engines.telemetry.page_browser import page_processes
from engines.telemetry.processes import snapshot
from tests.helpers.burners import burner

VISITOR = """
import socket, sys
there = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print("connected", flush=True)
sys.stdin.read()
"""
SERVER = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as door:
    print(door.getsockname()[1], flush=True)
    here, _ = door.accept()
    sys.stdin.read()
"""


@contextlib.contextmanager
def program(code, *arguments):
    """A Python program, a child of this one, and the first line it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process.pid, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_who_is_connected_to_our_port_draws_the_page_and_its_siblings_do_not():
    with (
        socket.create_server(("127.0.0.1", 0)) as door,
        program(VISITOR, str(door.getsockname()[1])) as (visitor, said),
        burner() as (other,),
    ):
        assert said == "connected"
        taken, _ = door.accept()
        with taken:
            found = page_processes(snapshot())
    assert found == {visitor}
    assert other not in found
    assert os.getpid() not in found


def test_a_server_that_we_ask_is_no_browser():
    with (
        socket.create_server(("127.0.0.1", 0)),
        program(SERVER) as (server, port),
        socket.create_connection(("127.0.0.1", int(port))),
    ):
        assert server not in page_processes(snapshot())


def test_nobody_connected_is_no_browser():
    assert os.getpid() not in page_processes(snapshot())
