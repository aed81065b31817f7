"""A hostile visitor against a running shared app: everything they can reach, in every form, and not one success.

The regression checks name the published Gradio advisory whose kind they are of.
"""

import http.client
import json
import re
import socket
import threading
import time

import pytest

from tests.helpers.http import ask
from tests.helpers.walking import routes_of
from tests.ui.share.calling import API, run_handler
from tests.ui.share.conftest import FAST, OWNER_PASSWORD, VISITOR_PASSWORD
from ui.access import ROUTES, Way, handler_name, server_functions
from ui.chat.settings import Settings

PARAMETERS = {
    "path": "x",
    "session_hash": "abcdef",
    "api_name": "_send",
    "event_id": "e",
    "path_or_url": "/etc/passwd",
    "url_path": "https://example.com/",
    "key": "k",
    "size": "192",
    "id": "i",
    "environment": "client",
    "type": "t",
    "file_name": "f",
    "run": "r",
    "component_id": "1",
    "segment_id": "s",
    "ext": "ts",
    "endpoint": "e",
    "record_id": "r",
    "asset_id": "a",
}


@pytest.fixture(scope="module")
def visitor(shared_app) -> str:
    shared_app.fresh()
    return shared_app.visitor()


@pytest.fixture(scope="module")
def owners_conversation(shared_app) -> str:
    turn = shared_app.turns.send("the owner's secret", [(1, FAST)], Settings())
    assert turn.wait(60)
    return turn.conversation_id


def every_route(shared) -> list[tuple[str, str]]:
    found = set()
    for page in (shared.owners_page, shared.visitors_page):
        found |= set(routes_of(page.server_app.routes))
    return sorted(
        (m, re.sub(r"\{(\w+)(?::\w+)?\}", lambda p: PARAMETERS.get(p[1], "x"), r)) for m, r in found
    )


# --- without a login ---------------------------------------------------------------------------------------


def test_without_a_login_no_route_answers(shared):
    open_to_all = {route.path for route in ROUTES if route.way in (Way.EVERYONE, Way.GUARD, Way.ITSELF)}
    for method, path in every_route(shared):
        if path in open_to_all:
            continue
        answer = ask(shared.address, path, method=method, json_body={} if method == "POST" else None)
        assert answer.status in (303, 401, 404, 405), (method, path, answer.status)
        assert "gradio_config" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"x_forwarded_for": "127.0.0.1"},
        {"x_real_ip": "127.0.0.1"},
        {"forwarded": "for=127.0.0.1;host=localhost"},
        {"authorization": "Basic b3duZXI6b3duZXI="},
        {"authorization": "Bearer owner"},
        {"cookie": "backend-arena-7860=owner; access-token-unsecure=x"},
        {"x_gradio_user": "owner"},
        {"x_forwarded_user": "owner"},
        {"x_original_url": "/login"},
        {"x_http_method_override": "GET"},
        {"x_forwarded_host": "localhost"},
    ],
)
def test_no_header_is_a_login(shared, headers):
    for path in ("/config", "/", f"{API}/heartbeat/abcdef"):
        assert ask(shared.address, path, **headers).status in (303, 401)


def test_without_a_login_no_handler_runs(shared):
    for page in (shared.owners_page, shared.visitors_page):
        for index in page.fns:
            body = {"data": [], "fn_index": index, "session_hash": "nobody"}
            for path in ("run/predict", "queue/join"):
                assert ask(shared.address, f"{API}/{path}", json_body=body).status == 401


# --- as a visitor ------------------------------------------------------------------------------------------


def test_a_visitor_gets_only_what_the_table_gives_visitors(shared, visitor):
    for method, path in every_route(shared):
        if path.startswith(
            (f"{API}/heartbeat", f"{API}/queue/data", f"{API}/upload_progress", "/login", "/logout")
        ):
            continue
        answer = ask(
            shared.address, path, method=method, cookie=visitor, json_body={} if method == "POST" else None
        )
        page = "gradio_config" in answer.text or path in ("/config", "/config/")
        assert not (page and str(shared.store.path.parent) in answer.text), path
        assert "Traceback" not in answer.text
        assert "root:x:" not in answer.text


def test_every_handler_of_the_owners_is_out_of_a_visitors_reach(shared, visitor):
    """The visitors' server has none of them; their numbers there mean the visitors' own handlers or nothing."""
    own = {handler_name(f.fn) for f in shared.visitors_page.fns.values() if f.fn}
    assert all(name.startswith("ui.share.visitor_page:VisitorPage.") for name in own)
    beyond = [index for index in shared.owners_page.fns if index not in shared.visitors_page.fns]
    assert len(beyond) > 50
    for index in beyond:
        body = {"data": [], "fn_index": index, "session_hash": "vis"}
        for path in ("run/predict", "queue/join"):
            assert ask(shared.address, f"{API}/{path}", json_body=body, cookie=visitor).status >= 400


def test_a_handler_of_the_owners_refuses_a_visitor_even_on_the_owners_server(shared, visitor):
    """Were a visitor ever led to the owner's server, every handler there would still ask who calls."""
    from gradio.context import LocalContext

    login = shared.door.logins.find(visitor.split("=", 1)[1])
    scope = {"type": "http", "headers": [], "backend_arena.login": lambda: login}
    functions = [f.fn for f in shared.owners_page.fns.values() if f.fn]
    functions += [f for block in shared.owners_page.blocks.values() for _, f in server_functions(block)]
    from starlette.requests import Request

    LocalContext.request.set(Request(scope))
    try:
        for function in functions:
            with pytest.raises(Exception, match="Only the owner"):
                function()
    finally:
        LocalContext.request.set(None)


def test_another_conversation_cannot_be_opened_or_written_to(shared, visitor, owners_conversation):
    page = shared.visitors_page
    opener = next(i for i, f in page.fns.items() if f.fn and f.fn.__name__ == "_open")
    for conversation in (owners_conversation, owners_conversation.lower(), "' OR 1=1 --", "../x", "%"):
        answer = run_handler(shared, visitor, opener, [conversation], "convo")
        assert "the owner's secret" not in answer.text


def test_another_logins_session_cannot_be_used(shared, visitor):
    owner, other = shared.owner(), shared.visitor()
    body = {"data": [], "fn_index": 0, "session_hash": "owners-page"}
    ask(shared.address, f"{API}/queue/join", json_body=body, cookie=owner)
    for cookie in (visitor, other):
        for path in ("queue/join", "run/predict", "cancel", "reset", "component_server"):
            answer = ask(
                shared.address,
                f"{API}/{path}",
                json_body={**body, "event_id": "e", "component_id": 1, "fn_name": "changes"},
                cookie=cookie,
            )
            assert answer.status == 403
        assert ask(shared.address, f"{API}/queue/data?session_hash=owners-page", cookie=cookie).status == 403
        assert ask(shared.address, f"{API}/heartbeat/owners-page", cookie=cookie).status == 403


@pytest.mark.parametrize("written", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig"])
def test_a_session_is_somebody_elses_in_whatever_letters_its_name_is_written(shared, visitor, written):
    """Python's reader of JSON takes them all; the guard once looked for the name in UTF-8 only."""
    assert shared.door.sessions.use("owners-page", shared.door.logins.find(shared.owner().split("=", 1)[1]))
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "owners-page"}).encode(written)
    for path in ("queue/join", "run/predict", "cancel", "component_server"):
        answer = ask(
            shared.address,
            f"{API}/{path}",
            method="POST",
            body=body,
            cookie=visitor,
            content_type="application/json",
        )
        assert answer.status == (403 if written == "utf-8-sig" else 400), path


def test_a_session_is_named_in_no_form(shared, visitor):
    form = '--x\r\nContent-Disposition: form-data; name="session_hash"\r\n\r\nowners-page\r\n--x--\r\n'
    answer = ask(
        shared.address,
        f"{API}/component_server",
        method="POST",
        body=form,
        cookie=visitor,
        content_type="multipart/form-data; boundary=x",
    )
    assert answer.status == 415


def test_another_visitors_page_key_shows_nothing(shared, visitor):
    other = shared.visitor()
    live = next(b for b in shared.visitors_page.blocks.values() if server_functions(b))
    login = shared.door.logins.find(other.split("=", 1)[1])
    guest = shared.visitors.of(login)
    turn = shared.visitors.send(guest, "a private word", [(1, FAST)], Settings())
    assert turn.wait(60)
    for key in ("", "none", None, {}, [], "../"):
        body = {
            "data": {"key": key, "everything": True},
            "component_id": live._id,
            "fn_name": "changes",
            "session_hash": "look",
        }
        answer = ask(shared.address, f"{API}/component_server", json_body=body, cookie=visitor)
        assert "a private word" not in answer.text


@pytest.mark.parametrize(
    "name", ["__class__", "__init__", "postprocess", "get_config", "launch", "render", "unload"]
)
def test_no_other_function_of_a_component_can_be_called(shared, visitor, name):
    """Any method of any component could once be called by its name."""
    for component in list(shared.visitors_page.blocks)[:5]:
        body = {"data": [], "component_id": component, "fn_name": name, "session_hash": "cs"}
        answer = ask(shared.address, f"{API}/component_server", json_body=body, cookie=visitor)
        assert answer.status in (404, 500)


# --- files -------------------------------------------------------------------------------------------------

FILES = [
    "/etc/passwd",
    "../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "....//....//etc/passwd",
    "C:/Windows/win.ini",
    "\\\\server\\share\\x",
    "file:///etc/passwd",
    "http://127.0.0.1:22/",
    "http://169.254.169.254/latest/meta-data/",
    "//etc/passwd",
    "app.py",
    "/proc/self/environ",
    "{data}/arena.sqlite3",
]


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("who", ["owner", "visitor"])
def test_no_path_leads_to_a_file(shared, visitor, path, who):
    """Paths that Gradio once followed: out of its folders, to Windows shares, to other hosts, to its own files."""
    cookie = visitor if who == "visitor" else shared.owner()
    path = path.format(data=shared.store.path.parent)
    for route in (
        f"{API}/file={path}",
        f"{API}/file/{path}",
        f"/static/{path}",
        f"/assets/{path}",
        f"/svelte/{path}",
        f"{API}/proxy={path}",
        f"{API}/custom_component/x/client/component/{path}",
        f"/theme.css?path={path}",
        f"{API}/stream/x/y/1/{path}",
    ):
        answer = ask(shared.address, route.replace("\\", "%5C"), cookie=cookie)
        assert "root:x:" not in answer.text
        assert "SQLite format" not in answer.text
        assert answer.status != 200 or route.startswith("/theme.css")


def test_a_file_named_in_a_handlers_input_is_not_read(shared, visitor):
    """gradio#11162: a path in the data of an event was copied to where it is served."""
    senders = [i for i, f in shared.visitors_page.fns.items() if f.fn and f.fn.__name__ in ("_send", "_open")]
    for index in senders:
        width = len(shared.visitors_page.fns[index].inputs)
        file = {"path": "/etc/passwd", "url": "file:///etc/passwd", "meta": {"_type": "gradio.FileData"}}
        answer = run_handler(shared, visitor, index, [file] * width, f"file{index}")
        assert "root:x:" not in answer.text
    uploads = [
        b for b in shared.visitors_page.blocks.values() if type(b).__name__ in ("UploadButton", "File")
    ]
    assert not uploads


def test_the_owner_cannot_be_made_to_import_a_file_by_its_path(shared):
    owner = shared.owner()
    for index, function in shared.owners_page.fns.items():
        if function.fn and function.fn.__name__ in ("_import", "_attach"):
            width = len(function.inputs)
            file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
            answer = run_handler(shared, owner, index, [file, *[""] * (width - 1)], f"imp{index}")
            assert answer.status != 200 or "root:x:" not in answer.text


def test_an_upload_is_bounded_and_its_name_is_only_a_name(shared, visitor):
    """Endless or crafted multipart bodies, and names that lead out of the folder."""
    edge = "----x"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="../../evil.txt"\r\n\r\n'
    kind = f"multipart/form-data; boundary={edge}"
    small = ask(
        shared.address,
        f"{API}/upload",
        method="POST",
        body=f"{head}hello\r\n--{edge}--\r\n",
        content_type=kind,
        cookie=visitor,
    )
    assert small.status == 200
    assert ".." not in small.text
    large = ask(
        shared.address,
        f"{API}/upload",
        method="POST",
        body=head.encode() + b"x" * (5 * 2**20) + f"\r\n--{edge}--\r\n".encode(),
        content_type=kind,
        cookie=visitor,
    )
    assert large.status == 413
    for boundary in ("", "x" * 5000, "-" * 70):
        started = time.monotonic()
        odd = ask(
            shared.address,
            f"{API}/upload",
            method="POST",
            body="--" + "-" * 100_000,
            content_type=f"multipart/form-data; boundary={boundary}",
            cookie=visitor,
        )
        assert odd.status >= 400 or odd.text == "[]"
        assert time.monotonic() - started < 20


# --- pages of others ---------------------------------------------------------------------------------------


def test_redirects_go_nowhere_else(shared):
    """Open redirects as in gradio#13593 and #13608, and /logout, which redirected to any Host."""
    for path in ("/logout", "/login", "//evil.example", "/\\evil.example", "/login?next=//evil.example"):
        for method in ("GET", "POST"):
            answer = ask(
                shared.address,
                path,
                method=method,
                x_forwarded_host="evil.example",
                **(
                    {"content_type": "application/x-www-form-urlencoded", "body": ""}
                    if method == "POST"
                    else {}
                ),
            )
            assert "evil.example" not in answer.headers.get("location", "")


def test_a_login_page_repeats_nothing_as_markup(shared):
    script = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    for answer in (
        ask(shared.address, "/login", form={"name": script, "password": "x"}),
        ask(shared.address, "/login?name=%3Cscript%3Ealert(1)%3C/script%3E"),
    ):
        assert "<script>" not in answer.text
        assert "<img src=x" not in answer.text


def test_an_uploaded_page_is_not_shown_as_one(shared):
    """HTML and SVG were once served for a browser to run."""
    owner, edge = shared.owner(), "----x"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="x.html"\r\n\r\n'
    stored = ask(
        shared.address,
        f"{API}/upload",
        method="POST",
        body=f"{head}<script>alert(1)</script>\r\n--{edge}--\r\n",
        content_type=f"multipart/form-data; boundary={edge}",
        cookie=owner,
    )
    (path,) = json.loads(stored.text)
    answer = ask(shared.address, f"{API}/file={path}", cookie=owner)
    assert "attachment" in answer.headers.get("content-disposition", "") or answer.status >= 400
    assert ask(shared.address, f"{API}/file={path}", cookie=shared.visitor()).status == 403


# --- force -------------------------------------------------------------------------------------------------


def test_ten_thousand_guesses_find_nothing_and_the_owner_still_comes_in(shared, monkeypatch):
    """The guesses come from elsewhere: this computer's own tries are counted apart."""
    monkeypatch.setattr("ui.share.guard.is_loopback", lambda host: False)
    host, port = shared.address.removeprefix("http://").split(":")
    statuses: list[int] = []

    def guess(first: int) -> None:
        line = http.client.HTTPConnection(host, int(port), timeout=60)
        for number in range(first, first + 2500):
            line.request(
                "POST",
                "/login",
                f"name=owner&password=guess{number}",
                {"content-type": "application/x-www-form-urlencoded"},
            )
            answer = line.getresponse()
            answer.read()
            statuses.append(answer.status)
        line.close()

    guessers = [threading.Thread(target=guess, args=(2500 * n,)) for n in range(4)]
    for guesser in guessers:
        guesser.start()
    for guesser in guessers:
        guesser.join()
    assert len(statuses) == 10_000
    assert set(statuses) <= {401, 429}
    assert statuses.count(401) < 60
    monkeypatch.undo()
    assert shared.owner()


def test_slow_and_broken_requests_leave_the_page_to_others(shared):
    host, port = shared.address.removeprefix("http://").split(":")
    lines = []
    for number in range(200):
        line = socket.create_connection((host, int(port)))
        line.sendall(
            b"POST /login HTTP/1.1\r\nHost: localhost" if number % 2 else b"\x16\x03\x01\x02\x00garbage\r\n"
        )
        lines.append(line)
    started = time.monotonic()
    assert ask(shared.address, "/login").status == 200
    assert time.monotonic() - started < 20
    for line in lines:
        line.close()


def test_oversize_and_deep_bodies_are_refused_in_a_sentence(shared, visitor):
    for body in (b'{"data": ["' + b"x" * (5 * 2**20) + b'"]}', b"[" * 200_000):
        answer = ask(
            shared.address,
            f"{API}/queue/join",
            method="POST",
            body=body,
            content_type="application/json",
            cookie=visitor,
        )
        assert answer.status in (400, 403, 413)
        assert "Traceback" not in answer.text


def test_a_visitor_has_a_bounded_number_of_open_pages(shared):
    cookie = shared.visitor()
    login = shared.door.logins.find(cookie.split("=", 1)[1])
    for number in range(60):
        body = {"data": [], "fn_index": 0, "session_hash": f"page{number}"}
        ask(shared.address, f"{API}/queue/join", json_body=body, cookie=cookie)
    assert shared.door.sessions.of(login) <= 8
    assert OWNER_PASSWORD not in json.dumps(VISITOR_PASSWORD)
