"""The routes of Ollama's API, as its clients use them."""

import json
import time

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
    whole = post(served, {**CHAT, "stream": False, "options": {"num_predict": 3, "num_ctx": 4096}}).json()
    assert (whole["done_reason"], whole["eval_count"], whole["done"]) == ("length", 3, True)


def listed(served, path="tags"):
    return [model["name"] for model in httpx.get(f"{served.address}api/{path}").json()["models"]]


def test_what_is_there_is_listed_and_shown(served):
    assert httpx.get(f"{served.address}api/version").json()["version"]
    served.lanes.set_alias("quick", ECHO)
    try:
        assert {"auto:latest", "quick:latest", f"{ECHO}:latest"} <= set(listed(served))
        assert post(served, {**CHAT, "model": "quick:latest"}).status_code == 200
    finally:
        served.lanes.set_alias("quick", None)
    for named in ({"model": ECHO}, {"name": ECHO}):
        assert post(served, named, "show").json()["capabilities"] == ["completion"]
    assert post(served, {"model": "nobody"}, "show").status_code == 404


def test_a_name_has_a_tag_as_clients_give_it_one(served, second):
    """Open WebUI puts `:latest` behind a name that has no tag, and then looks for it in the list."""
    for name in listed(served):
        assert ":" in name
        if name.startswith("echo/"):
            assert post(served, {"model": name}, "show").json()["details"]["family"] == "echo"
    # Of a server's models the tag is their own.
    assert f"endpoint/first/served@{ECHO}:latest" in listed(second)
    asked = {**CHAT, "model": f"endpoint/first/served@{ECHO}:latest", "stream": False}
    assert "Hello 🎉 there" in post(second, asked).json()["message"]["content"]


def test_durations_are_nanoseconds_of_this_request_and_add_up(served):
    """Loading is what this request waited for, not how long the worker took to start at some time before."""
    document = {"model": "echo/CPU/100@demo", "messages": CHAT["messages"], "stream": False}
    for _ in range(2):
        began = time.perf_counter()
        told = post(served, document).json()
        took_ns = (time.perf_counter() - began) * 1e9
    parts = [told[f"{name}_duration"] for name in ("load", "prompt_eval", "eval")]
    assert sum(parts) == pytest.approx(told["total_duration"], abs=1000)
    assert told["total_duration"] < took_ns
    assert told["load_duration"] < told["eval_duration"]
    assert 1e9 * told["eval_count"] / told["eval_duration"] == pytest.approx(100, rel=0.3)
    once = post(served, {**document, "options": {"num_predict": 1}}).json()
    assert once["eval_duration"] > 0  # clients divide by it


def test_one_prompt_is_generated_with_and_without_the_template(served):
    document = {"model": ECHO, "prompt": "Once upon a time", "system": "Be brief."}
    lines = [json.loads(line) for line in post(served, document, "generate").text.splitlines()]
    said = "".join(line["response"] for line in lines)
    assert "Once upon a time" in said
    assert "Be brief." in said
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    raw = {**document, "raw": True, "stream": False, "options": {"num_predict": 50}}
    whole = post(served, raw, "generate").json()
    assert (whole["response"], whole["done_reason"]) == ("Once upon a time", "stop")
    assert whole["prompt_eval_count"] == whole["eval_count"]


@pytest.mark.parametrize(("path", "nothing"), [("generate", {}), ("chat", {"messages": []})])
def test_asking_nothing_loads_a_model_or_ends_it(served, path, nothing):
    document = {"model": "echo/CPU/400@demo", **nothing}
    known = f"{document['model']}:latest"
    assert post(served, document, path).json()["done_reason"] == "load"
    assert known in listed(served, "ps")
    assert post(served, {**document, "keep_alive": "0s"}, path).json()["done_reason"] == "unload"
    assert known not in listed(served, "ps")


def test_json_needs_no_name_as_in_ollamas_own_examples_but_no_page_may_send_it_so(served):
    """`curl http://localhost:11434/api/chat -d '{…}'` calls it a form."""
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = httpx.post(f"{served.address}api/chat", content=json.dumps(CHAT), headers=form, timeout=60)
    assert answer.status_code == 200
    assert json.loads(answer.text.splitlines()[-1])["done"]
    foreign = {**form, "origin": "http://evil.example"}
    assert (
        httpx.post(f"{served.address}api/chat", content=json.dumps(CHAT), headers=foreign).status_code == 403
    )
    wrong = httpx.post(f"{served.address}api/chat", content="model=x", headers=form)
    assert wrong.status_code == 400
    assert "not JSON" in wrong.json()["error"]


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
    told = answer.json()
    assert told["param"] == param
    assert isinstance(told["error"], str)  # as Ollama's clients show it


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
        refused = post(served, CHAT)
        assert refused.status_code == 401
        assert "keys add" in refused.json()["error"]
        for path in ("tags", "ps"):
            assert httpx.get(f"{served.address}api/{path}").status_code == 401
    finally:
        served.door.unlock()
