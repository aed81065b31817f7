"""Published advisories about Gradio of 2023 to 2026, tried again on the shared app.

Each is known by its CVE record; there may be others: this is no complete list. Those about Gradio's own repository
(CVE-2023-6572, CVE-2024-1540, CVE-2024-4253: its workflows on GitHub) concern no app. What is tried is tried as a
stranger, as a visitor and as the owner: none of it is for anybody.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import argon2
import pytest
from gradio import tunneling

from tests.helpers.http import Answer, ask
from tests.helpers.walking import routes_of
from tests.ui.share.calling import API, run_handler
from ui.share import logins

FORBIDDEN_IN_ANSWERS = ("root:x:", "SQLite format", "only for the inside")


def tried(shared, cookies, path: str, **request) -> list[Answer]:
    return [ask(shared.address, path, cookie=cookie, **request) for cookie in cookies]


def refused(answers: list[Answer]) -> None:
    assert [answer.status for answer in answers if answer.status < 400 and answer.status != 303] == []
    assert not any(word in answer.text for answer in answers for word in FORBIDDEN_IN_ANSWERS)


@pytest.fixture(scope="module")
def inside():
    """Address of a server in here that nobody outside may make the app ask; ends with the assurance that none was."""
    asked = []

    class Inside(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"only for the inside")

    with ThreadingHTTPServer(("127.0.0.1", 0), Inside) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/x"
        server.shutdown()
    assert asked == []


@pytest.fixture
def cookies(shared) -> list[str | None]:
    """Of a stranger, a visitor and the owner."""
    return [None, shared.visitor(), shared.owner()]


PATHS = {
    "CVE-2023-34239": ["/file=/etc/passwd", "/proxy={inside}", "{api}/proxy={inside}"],
    "CVE-2023-51449": ["{api}/file=a/../../../../etc/passwd", "{api}/file=..%2f..%2f..%2fetc%2fpasswd"],
    "CVE-2024-1183": ["{api}/file={inside}", "{api}/file=%2e/{inside}"],
    "CVE-2024-2206": ["{api}/proxy={inside}", "{api}/proxy=https://evil.example@{inside}"],
    "CVE-2024-34510": ["{api}/file=%5C%5Cevil.example%5Cshare%5Cx", "{api}/file=//evil.example/share/x"],
    "CVE-2024-12217": [
        "{api}/file=app.py::$DATA",
        "{api}/file=C:%5Capp%5Carena.sqlite3::$INDEX_ALLOCATION",
    ],
    "CVE-2024-47164": ["{api}/file=/tmp/gradio/../../etc/passwd", "/static/..%2f..%2f..%2fetc%2fpasswd"],
    "CVE-2024-47166": [
        "{api}/custom_component/x/client/component/..",
        "/custom_component/x/component/%2e%2e",
    ],
    "CVE-2024-47168": ["/monitoring", "/monitoring/", "/monitoring/x", "{api}/monitoring/summary"],
    "CVE-2025-23042": ["{api}/file=/ETC/PASSWD", "{api}/file=/Etc/Passwd"],
    "CVE-2026-27167": ["/login/huggingface", "/login/callback?code=x&state=x", "{api}/login/huggingface"],
    "CVE-2026-28414": ["/static//windows/win.ini", "/assets//etc/passwd", "{api}/file=/windows/win.ini"],
    "CVE-2026-28416": ["{api}/proxy=http://169.254.169.254/latest/meta-data/"],
}


@pytest.mark.parametrize("advisory", PATHS)
def test_an_address(shared, cookies, inside, advisory):
    for path in PATHS[advisory]:
        refused(tried(shared, cookies, path.format(api=API, inside=inside)))


KIND = {"meta": {"_type": "gradio.FileData"}}
DATA = {
    "CVE-2024-0964": {"path": "/etc/passwd"},
    "CVE-2024-1728": {"path": "../../../../etc/passwd", "orig_name": "x", **KIND},
    "CVE-2024-4941, CVE-2024-47868, CVE-2024-51751": {"path": "/etc/passwd", **KIND},
    "CVE-2024-4325, CVE-2024-47167, CVE-2024-48052": {"path": "{inside}", "url": "{inside}", **KIND},
}


@pytest.mark.parametrize("advisory", DATA)
def test_data_of_an_event(shared, inside, advisory):
    """A file or an address in place of every value, for every handler that visitors may call: nothing is read,
    fetched or put where it is served."""
    value = json.loads(json.dumps(DATA[advisory]).replace("{inside}", inside))
    visitor, cache = shared.visitor(), Path(shared.visitors_page.GRADIO_CACHE)
    before = set(cache.rglob("*"))
    for number, function in shared.visitors_page.fns.items():
        if function.inputs:
            data = [value] * len(function.inputs)
            answer = run_handler(shared, visitor, number, data, f"advisory{number}")
            assert not any(word in answer.text for word in FORBIDDEN_IN_ANSWERS)
            # at once, for it may go again later
            assert [path for path in set(cache.rglob("*")) - before if path.is_file()] == []


@pytest.mark.parametrize("advisory", DATA)
@pytest.mark.parametrize("cookie", [None, "backend-arena-7860=guessed"])
def test_data_of_an_event_from_a_stranger(shared, inside, advisory, cookie):
    value = json.loads(json.dumps(DATA[advisory]).replace("{inside}", inside))
    body = {"fn_index": 0, "data": [value], "session_hash": "stranger"}
    for route in (f"{API}/queue/join", f"{API}/run/predict", f"{API}/api/predict"):
        refused([ask(shared.address, route, json_body=body, cookie=cookie)])


@pytest.mark.parametrize(
    "name", ["move_resource_to_block_cache", "as_example", "read_from_flag", "preprocess"]
)
def test_cve_2024_1561_any_method_of_a_component_by_its_name(shared, cookies, name):
    for component in list(shared.owners_page.blocks)[::60]:
        body = {"component_id": str(component), "data": "/etc/passwd", "fn_name": name, "session_hash": "x"}
        for answer in tried(shared, cookies, f"{API}/component_server", json_body=body):
            assert answer.status >= 400
            assert "passwd" not in answer.text


@pytest.mark.parametrize("path", [f"{API}/upload", f"{API}/queue/join"])
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1:1"]
)
def test_another_site(shared, cookies, path, origin):
    """CVE-2024-1727, CVE-2024-47084, CVE-2024-47165, CVE-2025-5320: uploads and events from a foreign page with the
    owner's cookies, answers readable there."""
    for answer in tried(
        shared, cookies, path, method="POST", body="{}", content_type="text/plain", origin=origin
    ):
        assert answer.status in (401, 403)
        assert answer.headers.get("access-control-allow-origin") != origin


@pytest.mark.parametrize(
    "path",
    [
        f"{API}/file=https://evil.example",
        "//evil.example/%2e%2e",
        "/logout?_target_url=https://evil.example",
        "/login/callback?_target_url=https://evil.example",
        "/login?_target_url=//evil.example",
    ],
)
def test_a_redirect_elsewhere(shared, cookies, path):
    """CVE-2024-4940, CVE-2024-8021, CVE-2026-28415."""
    for answer in tried(shared, cookies, path):
        assert "evil.example" not in answer.headers.get("location", "")


def test_cve_2024_47870_the_address_that_others_are_told(shared):
    """A forged host of one person's request was written into the configuration that the next one got."""
    owner = shared.owner()
    ask(shared.address, "/config", cookie=owner, x_forwarded_host="evil.example", x_forwarded_proto="https")
    assert "evil.example" not in ask(shared.address, "/config", cookie=owner).text
    assert "evil.example" not in ask(shared.address, "/", cookie=owner).text


@pytest.mark.parametrize("name", ["x.svg", "x.html", "x.xhtml", "x.xml", "x.js"])
def test_cve_2024_47872_an_uploaded_page(shared, name):
    owner, edge = shared.owner(), "edge"
    body = (
        f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        f"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>\r\n--{edge}--\r\n"
    )
    kind = f"multipart/form-data; boundary={edge}"
    stored = ask(shared.address, f"{API}/upload", method="POST", body=body, content_type=kind, cookie=owner)
    answer = ask(shared.address, f"{API}/file={json.loads(stored.text)[0]}", cookie=owner)
    assert answer.status >= 400 or "attachment" in answer.headers["content-disposition"]


@pytest.mark.parametrize("advisory", ["CVE-2024-8966", "CVE-2025-0187"])
def test_a_form_that_takes_for_ever(shared, cookies, advisory):
    """A boundary of many hyphens, a file's name without end: answered at once."""
    bodies = {
        "CVE-2024-8966": b"-" * 2_000_000,
        "CVE-2025-0187": b'--edge\r\nContent-Disposition: form-data; name="files"; filename="'
        + b"x" * 2_000_000
        + b'"\r\n\r\nx\r\n--edge--\r\n',
    }
    kind = "multipart/form-data; boundary=edge"
    for answer in tried(
        shared,
        cookies,
        f"{API}/upload",
        method="POST",
        body=bodies[advisory],
        content_type=kind,
        timeout=20,
    ):
        assert answer.status >= 400 or answer.text == "[]"


@pytest.mark.parametrize(
    ("advisory", "component"),
    [
        ("CVE-2024-10569", "dataframe"),
        ("CVE-2024-10624", "datetime"),
        ("CVE-2024-10648", "audio"),
        ("CVE-2025-48889", "flag"),
    ],
)
def test_what_is_not_on_our_pages_cannot_be_reached(shared, advisory, component):
    """A zip bomb in a table, an endless expression in a date, a path in a sound's name, flagging: no such part."""
    for page in (shared.owners_page, shared.visitors_page):
        assert component not in {block.get_block_name() for block in page.blocks.values()}
        assert not any(
            component in route for _, route in routes_of(page.server_app.routes) if component == "flag"
        )


def test_the_tunnel():
    """CVE-2023-25823, CVE-2024-47867, CVE-2024-47871: its program is checked before it runs, and speaks TLS."""
    assert tunneling.CHECKSUMS
    assert all(len(digest) == 64 for digest in tunneling.CHECKSUMS.values())
    assert "share_server_tls_certificate" in tunneling.Tunnel.__init__.__code__.co_varnames


def test_a_password_is_not_compared_letter_by_letter():
    """CVE-2024-1729, CVE-2024-47869."""
    assert isinstance(logins._hasher(), argon2.PasswordHasher)
