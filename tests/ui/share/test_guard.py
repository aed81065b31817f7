"""The guard on a real server: which addresses, which pages, which routes, how much and how slowly."""

import asyncio
import json
import socket
import time

import pytest

from tests.helpers.apart import run_apart
from tests.helpers.http import ask
from ui.share.door import Door, PageSessions
from ui.share.guard import Guard
from ui.share.hosts import Hosts

JOIN = "/gradio_api/queue/join"


def port_of(arena) -> int:
    return int(arena.address.rstrip("/").rsplit(":", 1)[1])


# --- which address -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "[0:0::0:1]", "LOCALHOST", "localhost."])
def test_the_names_of_this_computer_are_ours(arena, host):
    assert ask(arena.address, host=f"{host}:{port_of(arena)}").status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "localhost",
        "localhost:1",
        "localhost.evil.example:{port}",
        "127.0.0.1.nip.io:{port}",
        "192.168.1.5:{port}",
        "0.0.0.0:{port}",
        "user@localhost:{port}",
        "localhost:{port}@evil.example",
        "",
        "lоcalhost:{port}",
    ],
)
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/heartbeat/abc", "/v1/models", "/nowhere"])
def test_a_foreign_name_gets_one_sentence_whatever_the_route(arena, host, path):
    host = host.format(port=port_of(arena)).encode("utf-8").decode("latin-1")
    answer = ask(arena.address, path, host=host)
    assert answer.status in (400, 421)
    if answer.status == 421:
        assert "--allow-host" in answer.text
        assert "<" not in answer.text


def test_a_foreign_name_reaches_no_handler(arena):
    body = {"data": [], "fn_index": 0, "session_hash": "x"}
    for path in (JOIN, "/gradio_api/run/predict", "/gradio_api/component_server", "/gradio_api/upload"):
        assert ask(arena.address, path, json_body=body, host="evil.example").status == 421
    assert ask(arena.address, JOIN, method="OPTIONS", host="evil.example").status == 421


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://127.0.0.1:{port}/config", "127.0.0.1:{port}", b"200"),
        ("HTTP://LOCALHOST:{port}/config?x=1", "whatever.example", b"200"),
        ("http://localhost:{port}", "localhost:{port}", b"200"),
        ("http://evil.example/health", "127.0.0.1:{port}", b"421"),
        ("http://localhost:{port}@evil.example/health", "127.0.0.1:{port}", b"421"),
        ("ftp://localhost:{port}/health", "127.0.0.1:{port}", b"404"),
    ],
)
def test_a_target_that_names_a_server_counts_before_its_host(arena, target, host, status):
    port = port_of(arena)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        line.sendall(request.format(port=port).encode())
        assert line.recv(1000).split()[1] == status


def test_a_host_sent_twice_is_refused(arena):
    port = port_of(arena)
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(f"GET / HTTP/1.1\r\nHost: localhost:{port}\r\nHost: evil\r\n\r\n".encode())
        assert line.recv(100).split()[1] in (b"400", b"421")


def test_a_web_socket_under_a_foreign_name_is_refused(arena):
    handshake = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec_websocket_version": "13",
    }
    assert ask(arena.address, JOIN, host="evil.example", **handshake).status >= 400
    assert ask(arena.address, JOIN, **handshake).status >= 400


def test_what_the_owner_adds_is_ours_with_its_port_or_with_any():
    hosts = Hosts("127.0.0.1", ["pc.home", "tunnel.example:8443"])
    assert hosts.knows("pc.home:7860", 7860)
    assert hosts.knows("PC.home", 7860)
    assert hosts.knows("tunnel.example:8443", 7860)
    assert not hosts.knows("tunnel.example:7860", 7860)
    assert not hosts.knows("other.home:7860", 7860)
    with pytest.raises(ValueError, match="host name"):
        Hosts("127.0.0.1", ["http://pc.home/"])


def test_a_port_that_addresses_leave_out_may_be_added_with_it():
    hosts = Hosts("127.0.0.1", ["proxy.example:443", "plain.example:80", "tunnel.example:8443"])
    assert hosts.knows("proxy.example", 7860)
    assert hosts.knows("proxy.example:443", 7860)
    assert hosts.knows("plain.example", 7860)
    assert not hosts.knows("tunnel.example", 7860)
    assert not hosts.knows("proxy.example:80", 7860)


@pytest.mark.parametrize("bound", ["2001:DB8::5", "2001:db8:0::0:5", "2001:0db8:0:0:0:0:0:5"])
def test_an_address_that_was_bound_is_ours_in_every_spelling(bound):
    hosts = Hosts(bound)
    assert hosts.knows("[2001:db8::5]:7860", 7860)
    assert hosts.knows("[2001:DB8:0::5]:7860", 7860)
    assert not hosts.knows("[2001:db8::6]:7860", 7860)
    assert Hosts("::", on_network=lambda: {"2001:db8::5"}).knows("[2001:db8::0:5]:7860", 7860)


def test_on_all_addresses_those_of_this_machine_are_ours_and_are_looked_up_again():
    now, names = [0.0], {"192.168.1.7", "mypc"}
    hosts = Hosts("0.0.0.0", on_network=lambda: set(names), clock=lambda: now[0])
    assert hosts.knows("192.168.1.7:7860", 7860)
    assert hosts.knows("mypc:7860", 7860)
    assert not hosts.knows("192.168.1.8:7860", 7860)
    names.add("192.168.1.8")
    now[0] += 60
    assert hosts.knows("192.168.1.8:7860", 7860)


# --- which page --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"origin": "http://localhost"},
        {"origin": "http://127.0.0.1:{port}"},
        {"origin": "http://localhost:{port}.evil.example"},
        {"origin": "chrome-extension://abc"},
        {"origin": ""},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"},
        {"sec_fetch_site": "same-site", "sec_fetch_mode": "cors"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"},
        {"content_type": "text/plain"},
        {"content_type": "text/plain;charset=UTF-8", "origin": "null"},
        {"content_type": "application/x-www-form-urlencoded"},
        {"content_type": ""},
    ],
)
def test_another_sites_page_can_change_nothing(arena, headers):
    port = port_of(arena)
    named = {name: value.format(port=port) for name, value in headers.items()}
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "x"})
    for path in (JOIN, "/gradio_api/run/predict", "/gradio_api/component_server"):
        answer = ask(
            arena.address,
            path,
            method="POST",
            body=body,
            host=f"localhost:{port}",
            **{"content_type": "application/json", **named},
        )
        assert answer.status in (403, 415), answer.text


def test_another_sites_page_reads_nothing_and_shows_nothing(arena):
    port = port_of(arena)
    for origin in ("http://evil.example", f"http://127.0.0.1:{port + 1}", "null"):
        answer = ask(arena.address, "/config", origin=origin)
        assert answer.status == 403
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    framed = ask(
        arena.address, sec_fetch_site="cross-site", sec_fetch_mode="navigate", sec_fetch_dest="iframe"
    )
    assert framed.status == 403
    assert "frame-ancestors 'none'" in ask(arena.address).headers["content-security-policy"]


def test_our_own_page_and_a_followed_link_are_served(arena):
    port = port_of(arena)
    own = ask(arena.address, "/config", host=f"localhost:{port}", origin=f"http://localhost:{port}")
    assert own.status == 200
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert ask(arena.address, **link).status == 200
    assert ask(arena.address, "/config", **link).status == 403


# --- routes and headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/openapi.json",
        "/gradio_api/openapi.json",
        "/gradio_api/info",
        "/gradio_api/startup-events",
        "/gradio_api/token",
        "/gradio_api/proxy=https://example.com/",
        "/gradio_api/deep_link?session_hash=x",
        "/gradio_api/file/etc/passwd",
        "/monitoring/summary",
        "/monitoring",
        "/gradio_api/call/v2/_send",
        "/gradio_api/mcp/sse",
        "/gradio_api/vibe-code",
        "/docs",
        "//config",
        "/gradio_api/../config",
    ],
)
def test_what_the_page_does_not_need_is_not_there(arena, path):
    assert ask(arena.address, path).status == 404


@pytest.mark.parametrize("path", ["/", "/nowhere", "/config", "/theme.css", "/login"])
def test_every_answer_carries_the_headers(arena, path):
    headers = ask(arena.address, path).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"


def test_a_forwarded_host_writes_no_foreign_address_into_the_page(arena):
    answer = ask(arena.address, "/config", x_forwarded_host="evil.example", x_forwarded_proto="https")
    assert answer.status == 200
    assert "evil.example" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "app.py",
        "./app.py",
        "{data}/arena.sqlite3",
        "../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "http://127.0.0.1:22/",
        "https://example.com/x.png",
    ],
)
def test_no_file_of_this_computer_is_served_nor_fetched_from_elsewhere(arena, path):
    path = path.format(data=arena.store.path.parent)
    assert ask(arena.address, f"/gradio_api/file={path}").status in (403, 404)


# --- size and time -----------------------------------------------------------------------------------------


def test_a_body_that_is_too_large_is_refused_announced_or_not(arena):
    announced = ask(
        arena.address, JOIN, method="POST", content_type="application/json", content_length=str(2**31)
    )
    assert announced.status == 413
    assert "at most" in announced.text


def served_by(app, **scope):
    """Run one request through a guard around `app`; returns (status, body)."""
    sent: list = []
    messages = scope.pop("messages", [{"type": "http.request", "body": b"", "more_body": False}])

    async def receive():
        if messages:
            return messages.pop(0)
        await asyncio.sleep(3600)
        raise AssertionError

    async def send(message):
        sent.append(message)

    base = {
        "type": "http",
        "method": "POST",
        "path": JOIN,
        "headers": [(b"host", b"localhost:7860"), (b"content-type", b"application/json")],
        "server": ("127.0.0.1", 7860),
        "client": ("127.0.0.1", 5),
        "query_string": b"",
    }
    run_apart(Guard(app, Door())(base | scope, receive, send))
    return sent[0]["status"], sent[-1].get("body", b"")


async def reading(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_a_body_that_grows_without_end_is_cut(monkeypatch):
    monkeypatch.setattr("ui.share.guard.MOST_BODY_BYTES", 1000)
    pieces = [{"type": "http.request", "body": b"x" * 400, "more_body": True} for _ in range(10)]
    assert served_by(reading, messages=pieces)[0] == 413


def test_a_body_that_stops_coming_is_given_up(monkeypatch):
    monkeypatch.setattr("ui.share.bodies.BODY_TIMEOUT_S", 0.05)
    first = [{"type": "http.request", "body": b"{", "more_body": True}]
    started = time.monotonic()
    assert served_by(reading, messages=first)[0] == 408
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(("from_a_stranger", "taken"), [(True, False), (False, True)])
def test_a_body_that_drips_is_waited_for_only_when_somebody_is_logged_in(monkeypatch, from_a_stranger, taken):
    from ui.share.bodies import TooSlowError, bounded_receive

    monkeypatch.setattr("ui.share.bodies.BODY_TIMEOUT_S", 0.3)

    async def read_it_all() -> bool:
        left = 20

        async def receive():
            nonlocal left
            left -= 1
            await asyncio.sleep(0.05)
            return {"type": "http.request", "body": b"x", "more_body": left > 0}

        bounded = bounded_receive(receive, 1000, from_a_stranger=from_a_stranger)
        try:
            while (await bounded())["more_body"]:
                pass
        except TooSlowError:
            return False
        return True

    assert run_apart(read_it_all()) is taken


# --- sessions ----------------------------------------------------------------------------------------------


def test_a_session_belongs_to_whoever_named_it_first():
    from ui.access import Login, Role

    one, other, owner = (
        Login(n, n, r) for n, r in (("a", Role.VISITOR), ("b", Role.VISITOR), ("o", Role.OWNER))
    )
    closed = []
    sessions = PageSessions(most=10, most_of_a_visitor=2)
    sessions.on_close.append(closed.append)
    assert sessions.use("s1", one)
    assert not sessions.use("s1", other)
    assert not sessions.use("s1", owner)
    assert sessions.use("s2", one)
    assert sessions.use("s3", one)
    assert closed == ["s1"]
    sessions.close("s2", other)
    assert not sessions.use("s2", other)
    sessions.close("s2", one)
    assert sessions.use("s2", other)
    for number in range(30):
        sessions.use(f"o{number}", owner)
    assert len(sessions) <= 10


@pytest.mark.parametrize(
    "body",
    [
        b'{"session_hash": "mine", "session_hash": "theirs", "data": []}',
        b'{"session\\u005fhash": "theirs", "data": []}',
        b'{"data": {"session_hash": "theirs"}}',
        b'{"session_hash": "theirs"',
    ],
)
def test_however_a_session_is_named_it_is_found(body):
    from ui.share.bodies import sessions_named_in

    assert {"theirs", ""} & set(sessions_named_in(body))
