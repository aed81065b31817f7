"""The four routes of Ollama's API, as its clients use them."""

import json

import httpx
import pytest

from tests.ui.api.conftest import ECHO

CHAT = {"model": ECHO, "messages": [{"role": "user", "content": "Hello 🎉 there"}]}


def post(served, document, path="chat", **options):
    return httpx.post(f"{served.address}api/{path}", json=document, timeout=60, **options)


def test_a_chat_comes_line_by_line_with_durations_at_the_end(served):
    lines = [json.loads(line) for line in post(served, CHAT).text.splitlines()]
    said = "".join(line["message"]["content"] for line in lines)
    assert "Hello 🎉 there" in said
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    last = lines[-1]
    assert (last["done_reason"], last["eval_count"] > 3) == ("stop", True)
    assert 0 < last["eval_duration"] <= last["total_duration"]
    whole = post(served, {**CHAT, "stream": False, "options": {"num_predict": 3, "num_ctx": 4096}}).json()
    assert (whole["done_reason"], whole["eval_count"], whole["done"]) == ("length", 3, True)


def test_what_is_there_is_listed_and_shown(served):
    assert httpx.get(f"{served.address}api/version").json()["version"]
    names = [model["name"] for model in httpx.get(f"{served.address}api/tags").json()["models"]]
    assert ECHO in names
    assert post(served, {"model": ECHO}, "show").json()["capabilities"] == ["completion"]
    assert post(served, {"model": "nobody"}, "show").status_code == 404


def test_thoughts_stand_apart(second):
    document = {"model": "endpoint/double/served@thinks", "messages": CHAT["messages"], "stream": False}
    message = post(second, document).json()["message"]
    assert (message["thinking"], message["content"]) == ("Let me see.", "Hello from far away.")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"options": {"mirostat": 1}}, "options.mirostat"),
        ({"options": {"temperature": 9}}, "options.temperature"),
        ({"options": {"num_predict": 0}}, "options.num_predict"),
        ({"tools": [{}]}, "tools"),
        ({"format": "json"}, "format"),
        ({"messages": [{"role": "user", "content": "Look", "images": ["aGk="]}]}, "messages[0].images"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages[0].role"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(served, fields, param):
    answer = post(served, {**CHAT, **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "stream": False},  # what Ollama's own Python client sends with every chat
        {"format": "", "options": {}, "keep_alive": "5m", "tools": None},
        {"stream": None, "options": {"temperature": None, "mirostat": None, "seed": -1}},
    ],
)
def test_fields_that_ask_for_nothing_are_taken(served, fields):
    answer = post(served, {**CHAT, **fields})
    assert answer.status_code == 200, answer.text
    assert (len(answer.text.splitlines()) > 1) == (fields.get("stream", True) is not False)


def test_the_same_doors_stand_before_these_routes(served):
    assert post(served, CHAT, headers={"Origin": "http://evil.example"}).status_code == 403
    served.door.lock(None)
    try:
        assert post(served, CHAT).status_code == 401
        assert httpx.get(f"{served.address}api/tags").status_code == 401
    finally:
        served.door.unlock()
