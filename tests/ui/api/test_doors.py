"""Who may use the API: keys, foreign pages, other machines."""

import json
import os
import stat
import subprocess
import sys

import httpx
import pytest

from engines.runtime.worker_process import PROJECT_ROOT
from tests.ui.api.conftest import ECHO
from ui.api.keys import ApiKeys, KeyNameError

HELLO = {"model": ECHO, "messages": [{"role": "user", "content": "Hello"}]}


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def locked(served):
    """As when the app can be reached from other machines."""
    served.door.lock(None)
    yield served
    served.door.unlock()


ROUTES = [
    ("GET", "v1/models"),
    ("GET", "v1/models/auto"),
    ("POST", "v1/chat/completions"),
    ("POST", "v1/completions"),
    ("POST", "v1/responses"),
]


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "health"), ("GET", "v1/openapi.json")])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1234"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.example"},
    ],
    ids=lambda headers: "=".join(next(iter(headers.items()))),
)
def test_a_foreign_page_gets_nothing_on_any_route(served, method, path, headers):
    body = {**HELLO, "prompt": "x", "input": "x"} if method == "POST" else None
    answer = httpx.request(method, f"{served.address}{path}", json=body, headers=headers)
    assert answer.status_code in (403, 421)
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_beyond_this_computer_every_route_wants_a_key(locked, method, path):
    for headers in ({}, bearer("ba-wrong"), {"Authorization": "Basic b3duZXI6cHc="}):
        body = {"POST": {**HELLO}}.get(method)
        if path.endswith("/completions") and "chat" not in path:
            body = {"model": ECHO, "prompt": "x"}
        if path.endswith("responses"):
            body = {"model": ECHO, "input": "x"}
        answer = httpx.request(method, f"{locked.address}{path}", json=body, headers=headers)
        assert answer.status_code == 401
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert "keys add" in error["message"]
    assert httpx.get(f"{locked.address}health").status_code == 200


def test_a_key_opens_and_its_name_stands_in_the_log(locked):
    key = locked.keys.add("my laptop")
    try:
        answer = httpx.post(f"{locked.base}/chat/completions", json=HELLO, headers=bearer(key), timeout=30)
        assert answer.status_code == 200
        assert locked.rows("SELECT via FROM turns ORDER BY n DESC LIMIT 1") == [{"via": "api: my laptop"}]
        (known,) = locked.keys.all()
        assert known.last_used_at is not None
    finally:
        locked.keys.revoke("my laptop")
    refused = httpx.post(f"{locked.base}/chat/completions", json=HELLO, headers=bearer(key))
    assert refused.status_code == 401


def test_the_owner_may_want_a_key_at_home_too(served):
    served.keys.require(True)
    try:
        assert httpx.get(f"{served.base}/models").status_code == 401
    finally:
        served.keys.require(False)
    assert httpx.get(f"{served.base}/models", headers=bearer("anything")).status_code == 200


def test_keys_are_hashed_on_disk_and_readable_by_nobody_else(tmp_path):
    keys = ApiKeys(tmp_path)
    made = [keys.add(name) for name in ("one", "two")]
    text = (tmp_path / "api-keys.json").read_text()
    assert not any(key in text for key in made)
    assert len(set(made)) == 2
    assert all(len(key) > 40 for key in made)
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "api-keys.json").stat().st_mode) == 0o600
    assert keys.find(made[1]).name == "two"
    assert keys.find(made[1][:-1]) is None
    assert keys.find("") is None
    assert ApiKeys(tmp_path).find(made[0]).name == "one"


@pytest.mark.parametrize("name", ["", " ", "x" * 61, "a\nb", "a/b"])
def test_a_key_needs_a_name(tmp_path, name):
    with pytest.raises(KeyNameError):
        ApiKeys(tmp_path).add(name)


def test_one_name_is_one_key(tmp_path):
    keys = ApiKeys(tmp_path)
    keys.add("one")
    with pytest.raises(KeyNameError, match="already"):
        keys.add("one")
    with pytest.raises(KeyNameError, match="there are: one"):
        keys.revoke("other")


def test_a_damaged_file_of_keys_opens_nothing(tmp_path):
    keys = ApiKeys(tmp_path)
    key = keys.add("one")
    (tmp_path / "api-keys.json").write_text("{broken")
    assert keys.find(key) is None
    assert keys.required


def command(data_dir, *words):
    return subprocess.run(
        [sys.executable, "app.py", "keys", *words, "--data-dir", str(data_dir)],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_keys_from_the_command_line_are_seen_by_an_app_that_runs(tmp_path):
    running = ApiKeys(tmp_path)
    assert running.all() == ()
    added = command(tmp_path, "add", "phone", "--json")
    assert added.returncode == 0, added.stderr
    key = json.loads(added.stdout)["key"]
    assert running.find(key).name == "phone"
    listed = command(tmp_path, "list", "--json")
    (entry,) = json.loads(listed.stdout)["keys"]
    assert (entry["name"], entry["hint"]) == ("phone", key[-4:])
    assert key not in listed.stdout
    assert key not in command(tmp_path, "list").stdout
    again = command(tmp_path, "add", "phone")
    assert again.returncode == 2
    assert "already" in again.stderr
    assert command(tmp_path, "require", "yes").returncode == 0
    assert running.required
    assert command(tmp_path, "revoke", "phone").returncode == 0
    assert running.find(key) is None
