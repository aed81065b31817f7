"""Programs that people already use, against the real server: the openai package, curl, plain HTTP."""

import asyncio
import json
import shutil
import subprocess
import threading
import time

import httpx
import openai
import pytest

from engines.protocol import Finished, RunMetrics, Target, Token
from storage.measurements import Measurements
from tests.helpers.apart import run_apart
from tests.ui.api.conftest import ECHO, SLOW
from ui.api.running import Piece, Running

HELLO = [{"role": "user", "content": "Hello 🎉 there"}]


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=served.base, api_key="none", max_retries=0) as client:
        yield client


def until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def post(served, document, path="chat/completions", **options):
    return httpx.post(f"{served.base}/{path}", json=document, timeout=60, **options)


def test_a_chat_is_answered_counted_and_timed(client):
    reply = client.chat.completions.create(
        model=ECHO, messages=[{"role": "system", "content": "Be brief."}, *HELLO], temperature=0, seed=1
    )
    assert reply.object == "chat.completion"
    assert reply.model == ECHO
    assert "Be brief." in reply.choices[0].message.content
    assert "Hello 🎉 there" in reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "stop"
    usage = reply.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == 0
    timings = reply.model_extra["timings"]
    assert timings["predicted_n"] == usage.completion_tokens
    assert timings["predicted_per_second"] == pytest.approx(
        1000 * (usage.completion_tokens - 1) / timings["predicted_ms"], rel=0.01
    )
    assert 0 < timings["ttft_ms"] <= timings["total_ms"]
    assert "token_offsets_s" not in timings


def test_a_stream_brings_the_same_text_then_usage_then_the_end(client, served):
    whole = client.chat.completions.create(model=ECHO, messages=HELLO)
    chunks = list(
        client.chat.completions.create(
            model=ECHO, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 3
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    raw = post(served, {"model": ECHO, "messages": HELLO, "stream": True})
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.text.endswith("data: [DONE]\n\n")
    assert '"usage"' not in raw.text  # nobody asked for it


def test_a_reply_that_is_taken_apart_at_its_end_has_been_streamed_once():
    """A model whose template knows no marks: its thought is told from its answer when both are whole."""

    async def heard():
        running = Running()
        for event in (
            Token("r", 1, "<think>a</think>", 0.1),
            Token("r", 2, "b", 0.2),
            Finished("r", "stop", "b", RunMetrics(), None, "a"),
        ):
            running.hear(event)
        return [piece async for piece in running.pieces(1.0)]

    assert run_apart(heard()) == [Piece("<think>a</think>"), Piece("b")]


def test_the_async_client_streams_several_at_once(served):
    async def one(client, number):
        said = ""
        stream = await client.chat.completions.create(
            model="echo/CPU/100@demo", messages=[{"role": "user", "content": f"number {number}"}], stream=True
        )
        async for chunk in stream:
            said += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        return said

    async def four():
        async with openai.AsyncOpenAI(base_url=served.base, api_key="none") as client:
            return await asyncio.gather(*(one(client, number) for number in range(4)))

    assert [f"number {n}" in said for n, said in enumerate(run_apart(four()))] == [True] * 4


def test_responses_without_state(client):
    reply = client.responses.create(model=ECHO, input="Hello", instructions="Be brief.", max_output_tokens=50)
    assert reply.status == "completed"
    assert "Be brief." in reply.output_text
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    with client.responses.stream(model=ECHO, input=[{"role": "user", "content": "Hello you"}]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert [event.sequence_number for event in events] == sorted({e.sequence_number for e in events})
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == final.output_text
    assert "Hello you" in said
    cut = client.responses.create(model=ECHO, input="one two three four five", max_output_tokens=3)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_an_answers_own_items_can_be_sent_back(client):
    """As OpenAI's guide has it: `input += response.output`; a thought is made of other parts than a message."""
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    thought["content"] = [{"type": "reasoning_text", "text": "Let me see."}]
    said = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    said["content"] = [{"type": "output_text", "text": "Four.", "annotations": [], "logprobs": []}]
    asked = [{"role": "user", "content": "2 + 2?"}, thought, said, {"role": "user", "content": "Sure?"}]
    reply = client.responses.create(model=ECHO, input=asked)
    assert "Four." in reply.output_text
    assert "Let me see." not in reply.output_text


def test_a_raw_prompt_gets_no_template(client):
    reply = client.completions.create(model=ECHO, prompt="Once upon a time", max_tokens=50)
    assert reply.choices[0].text == "Once upon a time"
    assert reply.usage.prompt_tokens == reply.usage.completion_tokens
    stream = client.completions.create(model=ECHO, prompt="Once upon a time", max_tokens=50, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == "Once upon a time"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_limit_is_obeyed_under_both_names(client, name):
    reply = client.chat.completions.create(model=ECHO, messages=HELLO, **{name: 3})
    assert (reply.choices[0].finish_reason, reply.usage.completion_tokens) == ("length", 3)


@pytest.mark.parametrize("stop", ["there", ["never", "there"]])
def test_stop_texts_end_it(client, stop):
    reply = client.chat.completions.create(model=ECHO, messages=HELLO, stop=stop)
    assert reply.choices[0].message.content.endswith("Hello 🎉 ")
    assert reply.choices[0].finish_reason == "stop"


def test_text_parts_and_a_whole_chat_are_taken(client, served):
    chat = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello Ada."},
        {"role": "user", "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "am I?"}]},
    ]
    said = client.chat.completions.create(model=ECHO, messages=chat).choices[0].message.content
    assert all(part in said for part in ("Be kind.", "My name is Ada.", "Hello Ada.", "Who am I?"))
    (row,) = served.rows("SELECT * FROM turns ORDER BY n DESC LIMIT 1")
    assert (row["prompt"], row["system_prompt"]) == ("Who am I?", "Be kind.")
    assert json.loads(row["earlier"]) == [["user", "My name is Ada."], ["assistant", "Hello Ada."]]


def test_models_are_lanes_and_each_can_be_asked_for_alone(client, served):
    ids = [model.id for model in client.models.list()]
    assert ids[0] == "auto"
    assert ECHO in ids
    assert not any("GPU" in name for name in ids)  # this machine has none
    assert client.models.retrieve(ECHO).owned_by == "Echo"
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("echo/GPU/fast@demo")


def test_auto_an_alias_and_a_models_name_say_who_answered(client, served):
    served.lanes.set_alias("quick", "echo/CPU/400@demo")
    try:
        assert "quick" in [model.id for model in client.models.list()]
        reply = client.chat.completions.create(model="quick", messages=HELLO)
        assert reply.model == "echo/CPU/400@demo"
    finally:
        served.lanes.set_alias("quick", None)
    client.chat.completions.create(model=ECHO, messages=HELLO)
    until(lambda: served.rows("SELECT 1 FROM median_metrics WHERE precision = 'fast' AND NOT contended"))
    fastest = served.rows(
        "SELECT engine, precision FROM median_metrics WHERE NOT contended ORDER BY decode_tok_s DESC LIMIT 1"
    )[0]
    for name in ("auto", "demo"):
        reply = client.chat.completions.create(model=name, messages=HELLO)
        assert reply.model == f"{fastest['engine']}/CPU/{fastest['precision']}@demo"


@pytest.mark.parametrize("name", ["Auto", "DEMO", "Echo/cpu/FAST@Demo"])
def test_capitals_make_no_other_model(client, name):
    answered_by = client.chat.completions.create(model=name, messages=HELLO, max_tokens=2).model
    assert answered_by in [model.id for model in client.models.list()]


def test_auto_follows_the_verdict_that_the_person_took(client, served):
    Measurements(served.store).prefer(Target("plain", "CPU", "20"))
    try:
        reply = client.chat.completions.create(model="auto", messages=HELLO, max_tokens=2)
        assert reply.model == "plain/CPU/20@demo"
    finally:
        served.store.set_setting("preferred_targets", {})


def test_every_request_is_a_run_in_the_log(client, served):
    client.chat.completions.create(model=ECHO, messages=[{"role": "user", "content": "Log me"}])
    sql = (
        "SELECT t.via, x.status, x.output_tokens, x.decode_tok_s, x.prompt_sha256 FROM turns t "
        "JOIN run_metrics x ON x.turn_id = t.id WHERE t.prompt = 'Log me'"
    )
    until(lambda: [row["status"] for row in served.rows(sql)] == ["finished"])
    (row,) = served.rows(sql)
    assert row["via"] == "api"
    assert row["decode_tok_s"] > 0
    assert row["prompt_sha256"]


@pytest.mark.parametrize(("other", "contended"), [(SLOW, [0, 0]), ("echo/CPU/100@demo", [1, 1])])
def test_one_lane_takes_turns_and_lanes_beside_each_other_are_contended(served, other, contended):
    def ask(model):
        messages = [{"role": "user", "content": f"beside {other} " + "word " * 30}]
        post(served, {"model": model, "messages": messages, "max_tokens": 30})

    for model in (SLOW, other):  # loaded first: a load would count, too
        post(served, {"model": model, "messages": HELLO})
    threads = [threading.Thread(target=ask, args=(model,)) for model in (SLOW, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sql = (
        "SELECT x.contended FROM turns t JOIN run_metrics x ON x.turn_id = t.id "
        "WHERE t.prompt LIKE 'beside ' || ? || '%' AND x.status = 'finished'"
    )
    until(lambda: len(served.rows(sql, other)) == 2)
    assert [row["contended"] for row in served.rows(sql, other)] == contended


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(served):
    told = subprocess.run(
        [
            *("curl", "-sN", f"{served.base}/chat/completions", "-H", "Content-Type: application/json"),
            *("-d", json.dumps({"model": "auto", "messages": HELLO, "stream": True})),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert told.startswith("data: {")
    assert told.rstrip().endswith("data: [DONE]")


def test_health_and_a_description_that_machines_read(served):
    assert httpx.get(f"{served.address}health").json() == {"status": "ok"}
    paths = httpx.get(f"{served.base}/openapi.json").json()["paths"]
    assert {"/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/responses"} <= set(paths)
    refused = paths["/v1/chat/completions"]["post"]["responses"]  # what a made client would read an error as
    assert set(refused) == {"200", "4XX", "5XX"}
    assert refused["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorDocument")


# --- streams that take long, or end early ------------------------------------------------------------------


def test_a_silent_stream_says_that_it_is_still_there(served):
    """While the model loads, for ever in this case: the client hears pings, and leaves."""
    document = {"model": "bad/CPU/hang-on-load@demo", "messages": HELLO, "stream": True}
    with httpx.stream("POST", f"{served.base}/chat/completions", json=document, timeout=30) as answer:
        assert answer.status_code == 200
        pings = 0
        for line in answer.iter_lines():
            pings += line.startswith(": ")
            if pings == 3:
                break
    until(lambda: served.rows("SELECT status FROM runs ORDER BY n DESC LIMIT 1")[0]["status"] == "stopped")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_cancels_its_run(served, stream):
    prompt = f"word {'again ' * 80}{stream}"
    document = {"model": SLOW, "messages": [{"role": "user", "content": prompt}], "stream": stream}

    def row():
        found = served.rows(
            "SELECT r.status, r.output_tokens FROM turns t JOIN runs r ON r.turn_id = t.id WHERE t.prompt = ?",
            prompt,
        )
        return found[0] if found else {"status": None, "output_tokens": 0}

    if stream:
        with httpx.stream("POST", f"{served.base}/chat/completions", json=document, timeout=30) as answer:
            for line in answer.iter_lines():
                if "again" in line:
                    break
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{served.base}/chat/completions", json=document, timeout=1.5)
    until(lambda: row()["status"] == "stopped", 5)
    assert row()["output_tokens"] < 80


@pytest.mark.parametrize("stream", [True, False])
def test_a_reply_that_is_stopped_here_is_not_told_as_whole(served, stream):
    """As when the app ends: what has been said so far is no finished answer."""
    document = {
        "model": SLOW,
        "messages": [{"role": "user", "content": f"stop me {stream} " * 40}],
        "stream": stream,
    }
    answers = []
    asking = threading.Thread(target=lambda: answers.append(post(served, document)))
    asking.start()
    sql = "SELECT r.status FROM turns t JOIN runs r ON r.turn_id = t.id WHERE t.prompt LIKE ? AND r.output_tokens > 3"
    until(lambda: served.rows(sql, f"stop me {stream}%"))
    served.turns.stop_everything()
    asking.join(20)
    assert answers[0].status_code == (200 if stream else 503)
    error = json.loads(answers[0].text.strip().split("data: ")[-1])["error"]
    assert error["code"] == "cancelled"
    assert "stopped before its end" in error["message"]


def test_what_fails_at_once_has_a_status_and_what_fails_later_is_told_in_the_stream(served):
    answer = post(served, {"model": "bad/CPU/no-memory@demo", "messages": HELLO})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "insufficient_memory"
    assert "Choose int4" in answer.json()["error"]["message"]
    answer = post(served, {"model": "bad/CPU/raise@demo", "messages": HELLO, "stream": True})
    assert answer.status_code == 200
    last = json.loads(answer.text.strip().split("data: ")[-1])
    assert "The library said no." in last["error"]["message"]
    with (
        openai.OpenAI(base_url=served.base, api_key="none", max_retries=0) as client,
        pytest.raises(openai.APIError, match="The library said no"),
    ):
        list(client.chat.completions.create(model="bad/CPU/raise@demo", messages=HELLO, stream=True))


def test_what_fails_here_is_not_asked_again_by_the_package_itself(served):
    """Each time the model would be loaded to fail once more, and be a run of its own in the history."""
    prompt = [{"role": "user", "content": "Once is enough."}]
    with (
        openai.OpenAI(base_url=served.base, api_key="none") as client,
        pytest.raises(openai.InternalServerError),
    ):
        client.chat.completions.create(model="bad/CPU/no-memory@demo", messages=prompt)
    assert len(served.rows("SELECT 1 FROM turns WHERE prompt = 'Once is enough.'")) == 1


def test_too_long_a_prompt_is_refused_with_the_numbers(served):
    long = [{"role": "user", "content": "word " * 9000}]
    error = post(served, {"model": ECHO, "messages": long}).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "4,096" in error["message"]


# --- what is not supported ---------------------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "ludicrous"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"documents": []}}, "chat_template_kwargs.documents"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"top_p": 0.5, "temperature": 1}, "top_p"),
        ({"min_p": 0.1}, "min_p"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"stream_options": {"include_usage": "perhaps"}}, "stream_options.include_usage"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "Hello"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": IMAGE}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}, *HELLO]},
            "messages[0].tool_calls",
        ),
        ({"messages": [{"role": "user", "content": "Look", "images": ["aGk="]}]}, "messages[0].images"),
        (
            {"messages": [{"role": "assistant", "content": "", "audio": {"id": "a"}}, *HELLO]},
            "messages[0].audio",
        ),
        ({"model": 5}, "model"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(served, fields, param):
    answer = post(served, {"model": ECHO, "messages": HELLO, **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "none", "n": 1, "logprobs": False, "logit_bias": {}},
        {"response_format": {"type": "text"}, "user": "me", "metadata": {"a": "b"}, "store": False},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "top_p": 1, "parallel_tool_calls": True},
        *({"seed": seed} for seed in (-1, 2**31, 3_000_000_000, 2**63, -(2**63))),
        {"service_tier": "auto", "stream": None, "stop": None, "seed": None, "temperature": None},
    ],
)
def test_fields_that_ask_for_nothing_are_taken(served, fields):
    assert post(served, {"model": ECHO, "messages": HELLO, **fields}).status_code == 200


@pytest.mark.parametrize(
    ("path", "document", "param"),
    [
        ("completions", {"prompt": ["a", "b"]}, "prompt"),
        ("completions", {"prompt": [1, 2, 3]}, "prompt[0]"),
        ("completions", {"prompt": " "}, "prompt"),
        ("completions", {"prompt": "x", "echo": True}, "echo"),
        ("completions", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("completions", {"prompt": "x", "logprobs": 2}, "logprobs"),
        ("responses", {"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ("responses", {"input": "x", "background": True}, "background"),
        ("responses", {"input": "x", "tools": [TOOL]}, "tools"),
        (
            "responses",
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
        ),
        ("responses", {"input": []}, "input"),
        ("responses", {"input": "x", "text": {"format": {"type": "json_schema"}}}, "text"),
    ],
)
def test_the_other_routes_refuse_by_name_too(served, path, document, param):
    answer = post(served, {"model": ECHO, **document}, path)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("gpt-4o", "no model"),
        ("echo/GPU/fast@demo", "An echo has no GPU"),
        ("echo/CPU/int3@demo", "no precision"),
        ("echo/CPU@demo", "no model"),
        ("echo/CPU/fast@nobody/has-this", "downloads nothing"),
        ("echo/CPU/fast@../../etc", "downloads nothing"),
        ("nothing/CPU/int4@demo", "no model"),
        ("", "no model"),
    ],
)
def test_a_model_that_is_not_there_is_a_404_that_says_what_is(served, model, words):
    answer = post(served, {"model": model, "messages": HELLO})
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert words in error["message"]


@pytest.mark.parametrize(
    ("content", "headers", "words"),
    [
        (b"{", {"content-type": "application/json"}, "not JSON"),
        (b"[1]", {"content-type": "application/json"}, "JSON object"),
        (b"", {"content-type": "application/json"}, "JSON object"),
        (b"model=x", {"content-type": "application/x-www-form-urlencoded"}, "JSON object"),
        (b"\xff\xfe", {"content-type": "application/json"}, "JSON"),
    ],
)
def test_what_is_no_request_is_told_so(served, content, headers, words):
    answer = httpx.post(f"{served.base}/chat/completions", content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


def test_other_paths_and_methods_are_told_in_the_same_shape(served):
    assert httpx.get(f"{served.base}/nothing").json()["error"]["message"].startswith("There is no")
    answer = httpx.get(f"{served.base}/chat/completions")
    assert answer.status_code == 405
    assert "GET" in answer.json()["error"]["message"]
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("root", ["", "/", "//v1"])
def test_a_base_url_without_v1_or_with_a_slash_too_many_is_told_what_is_missing(served, root):
    base = served.address.rstrip("/") + root
    with (
        openai.OpenAI(base_url=base, api_key="none", max_retries=0) as client,
        pytest.raises(openai.NotFoundError, match="end the base URL with it"),
    ):
        client.chat.completions.create(model=ECHO, messages=HELLO)


@pytest.mark.parametrize("path", ["health", "v1/models", f"v1/models/{ECHO}", "api/version", "api/tags"])
def test_what_can_be_got_can_be_asked_for_by_head(served, path):
    answer = httpx.head(f"{served.address}{path}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == len(httpx.get(f"{served.address}{path}").content)


HALF = "half \\ud83d of a pair"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("chat/completions", '{"messages": [{"role": "user", "content": "HALF"}]}'),
        ("completions", '{"prompt": "HALF"}'),
        ("responses", '{"input": "HALF", "instructions": "HALF", "metadata": {"a": "HALF", "b": NaN}}'),
    ],
)
@pytest.mark.parametrize("stream", ["true", "false"])
def test_half_a_surrogate_pair_and_what_is_no_number_end_no_answer(served, path, fields, stream):
    body = f'{{"model": "{ECHO}", "stream": {stream}, {fields.replace("HALF", HALF)[1:]}'
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{served.base}/{path}", content=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    assert "NaN" not in answer.text
    assert "\ufffd" in answer.text or "\\ufffd" in answer.text
    named = httpx.post(
        f"{served.base}/{path}",
        content=fields.replace("HALF", "x")[:-1] + ', "\\ud800": 1}',
        headers=headers,
    )
    assert (named.status_code, named.json()["error"]["param"]) == (400, "\ufffd")
