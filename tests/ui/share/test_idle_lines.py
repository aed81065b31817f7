"""Clients that connect and never get to the point, on real sockets against the running app."""

import asyncio
import contextlib
import http.client
import select
import socket
import threading
import time
from types import SimpleNamespace

import pytest
import uvicorn

from tests.helpers.http import ask
from ui.share import idle_lines


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(idle_lines, "HEADERS_WITHIN_S", 1.0)


def connected(arena) -> socket.socket:
    host, port = arena.address.removeprefix("http://").rstrip("/").split(":")
    line = socket.create_connection((host, int(port)))
    line.settimeout(10)
    return line


def is_cut(line: socket.socket) -> bool:
    try:
        return line.recv(100) == b""
    except ConnectionError:
        return True


def test_headers_that_come_byte_by_byte_are_not_waited_for(arena, impatient):
    slow, silent = connected(arena), connected(arena)
    started = time.monotonic()
    try:
        for byte in b"GET /login HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"x" * 200:
            slow.send(bytes([byte]))
            time.sleep(0.1)
    except ConnectionError:
        pass
    assert time.monotonic() - started < 15
    assert is_cut(slow)
    assert is_cut(silent)


def test_a_connection_in_use_is_left_alone(arena, impatient):
    host, port = arena.address.removeprefix("http://").rstrip("/").split(":")
    steady = http.client.HTTPConnection(host, int(port), timeout=10)
    steady.connect()
    line = steady.sock
    for _ in range(8):
        steady.request("GET", "/login")
        steady.getresponse().read()
        assert steady.sock is line
        time.sleep(0.3)
    steady.close()


def test_a_crowd_that_waits_is_thinned_out(arena, monkeypatch):
    monkeypatch.setattr(idle_lines, "MOST_WAITING", 5)
    crowd = [connected(arena) for _ in range(20)]
    until = time.monotonic() + 10
    while len(select.select(crowd, [], [], 0.1)[0]) < 15 and time.monotonic() < until:
        time.sleep(0.1)
    cut = select.select(crowd, [], [], 0)[0]
    assert len(cut) == 15
    assert all(is_cut(line) for line in cut)
    assert ask(arena.address).status == 200
    for line in crowd:
        line.close()


def test_a_line_without_requests_does_not_end_the_watch():
    """uvicorn lists web sockets among its connections, where their library is installed; this app has none."""
    cut, now = [], [0.0]

    class WebSocket:
        transport = SimpleNamespace(abort=lambda: cut.append(now[0]))

    open_lines = {WebSocket()}
    lines = idle_lines.IdleLines(lambda: open_lines, lambda: now[0])
    lines.look()
    assert cut == []
    now[0] = idle_lines.HEADERS_WITHIN_S + 1
    lines.look()
    assert cut == [now[0]]


@pytest.fixture
def large_answer(monkeypatch):
    """The port of a server that answers everything with more than a system keeps for a reader, and looks often."""
    monkeypatch.setattr(idle_lines, "UNREAD_FOR_S", 2.0)
    monkeypatch.setattr(idle_lines, "LOOK_EVERY_S", 0.1)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    watching = idle_lines.IdleLines(lambda: server.server_state.connections)

    async def serve():
        watch = asyncio.create_task(watching.watch())
        await server.serve()
        watch.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = server.force_exit = True
    thread.join()


def asked(port: int) -> socket.socket:
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64_000)  # little is taken before it is read
    line.settimeout(10)
    line.connect(("127.0.0.1", port))
    line.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return line


def test_an_answer_that_nobody_takes_is_not_held_for_ever(large_answer):
    with asked(large_answer) as line:
        time.sleep(5)
        taken = 0
        with contextlib.suppress(ConnectionError):
            while piece := line.recv(1_000_000):
                taken += len(piece)
        assert taken < 40_000_000  # no more than the system had kept


def test_who_reads_slowly_is_left_alone(large_answer):
    with asked(large_answer) as line:
        for _ in range(30):
            time.sleep(0.1)
            assert line.recv(300_000)
