"""A foreign page in a real browser on the same computer: it reads nothing, runs nothing, shows nothing."""

import http.server
import json
import threading

import pytest

from tests.helpers.browser import ARGUMENTS, launch

ATTACK = """
async (victim) => {
  const done = [];
  const note = (what) => done.push(what);
  const join = JSON.stringify({data: ["run me", null, "together", null, 256, 0, 1, 0, 1, ""], fn_index: 0,
                               session_hash: "foreign"});
  const ways = [
    ["read config", "/config", {}],
    ["read config with cookies", "/config", {credentials: "include"}],
    ["run by JSON", "/gradio_api/queue/join",
     {method: "POST", headers: {"content-type": "application/json"}, body: join}],
    ["run by text", "/gradio_api/queue/join", {method: "POST", mode: "no-cors", body: join}],
    ["run by text, read", "/gradio_api/queue/join", {method: "POST", body: join}],
    ["run directly", "/gradio_api/run/predict", {method: "POST", mode: "no-cors", body: join}],
    ["server function", "/gradio_api/component_server", {method: "POST", mode: "no-cors", body: join}],
    ["read events", "/gradio_api/queue/data?session_hash=foreign", {}],
    ["use the API", "/v1/models", {}],
    ["chat by the API", "/v1/chat/completions", {method: "POST", mode: "no-cors",
      body: JSON.stringify({model: "demo", messages: [{role: "user", content: "run me"}]})}],
  ];
  for (const [name, path, options] of ways) {
    try {
      const answer = await fetch(victim + path, options);
      if (answer.type !== "opaque" && answer.ok) note(name);
    } catch { /* refused */ }
  }
  const upload = new FormData();
  upload.append("files", new Blob(["{}"]), "history.jsonl");
  try {
    const answer = await fetch(victim + "/gradio_api/upload", {method: "POST", body: upload});
    if (answer.ok) note("upload");
  } catch { /* refused */ }
  const frame = document.createElement("iframe");
  frame.src = victim + "/";
  document.body.appendChild(frame);
  await new Promise((ready) => { frame.onload = ready; setTimeout(ready, 3000); });
  const form = document.createElement("form");
  form.method = "post"; form.enctype = "text/plain"; form.target = "into";
  form.action = victim + "/gradio_api/queue/join";
  const field = document.createElement("input");
  field.name = join.slice(0, -1) + ', "x": "'; field.value = '"}';
  form.appendChild(field);
  const into = document.createElement("iframe");
  into.name = "into"; document.body.append(form, into);
  form.submit();
  await new Promise((ready) => { into.onload = ready; setTimeout(ready, 2000); });
  await new Promise((ready) => {
    const socket = new WebSocket(victim.replace("http", "ws") + "/gradio_api/queue/join");
    socket.onopen = () => { note("web socket"); ready(); };
    socket.onerror = ready;
  });
  return done;
}
"""


class _Nothing(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>foreign</title><body>")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def other_port():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


@pytest.fixture(scope="module")
def misled(playwright):
    """A browser for which a foreign name leads to this computer."""
    browser = launch(playwright, [*ARGUMENTS, "--host-resolver-rules=MAP *.evil.test 127.0.0.1"])
    yield browser
    browser.close()


def traces(arena) -> tuple[int, int]:
    """What an attack would leave: conversations and loaded targets."""
    return arena.store.conversations().total, len(arena.manager.states())


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "www.evil.test"])
def test_a_page_on_another_port_gets_nothing(arena, misled, other_port, name):
    port = arena.address.rstrip("/").rsplit(":", 1)[1]
    before = traces(arena)
    page = misled.new_page()
    page.goto(f"http://{name}:{other_port}/")
    for victim in (f"http://127.0.0.1:{port}", f"http://localhost:{port}"):
        assert page.evaluate(ATTACK, victim) == []
    assert not any("Backend Arena" in (frame.title() or "") for frame in page.frames if _alive(frame))
    page.close()
    assert traces(arena) == before


def test_a_page_under_a_name_that_was_led_here_gets_nothing(arena, misled):
    """DNS rebinding: the page is the attacker's, its own address now leads to the app."""
    port = arena.address.rstrip("/").rsplit(":", 1)[1]
    own = f"http://www.evil.test:{port}"
    before = traces(arena)
    page = misled.new_page()
    page.route(
        f"{own}/attack", lambda route: route.fulfill(body="<!doctype html><body>", content_type="text/html")
    )
    page.goto(f"{own}/attack")
    assert page.evaluate(ATTACK, own) == []
    answer = page.goto(f"{own}/")
    assert answer.status == 421
    assert "--allow-host" in json.loads(answer.text())["detail"]
    page.close()
    assert traces(arena) == before


def test_our_own_page_still_works_in_that_browser(arena, misled):
    page = misled.new_page()
    page.goto(arena.address)
    page.wait_for_selector("#panel-1 .ph, #panel-2 .ph", timeout=60_000)
    page.close()


def _alive(frame) -> bool:
    try:
        return bool(frame.url) and not frame.is_detached() and frame.parent_frame is not None
    except Exception:  # noqa: BLE001 - a frame that was refused has no document
        return False
