"""Servers behind servers: another instance as a lane, thoughts that come from elsewhere, and no endless circle."""

import httpx
import openai
import pytest

from tests.helpers.server_double import WORDS
from tests.ui.api.conftest import ECHO
from ui.chat.settings import Settings

HELLO = [{"role": "user", "content": "Hello over there"}]
FIRST = f"endpoint/first/served@{ECHO}"


@pytest.fixture
def client(second):
    with openai.OpenAI(base_url=second.base, api_key="none", max_retries=0) as client:
        yield client


def test_another_instance_is_a_lane_with_true_token_times(second, served):
    from engines.protocol import Target

    target = Target("endpoint", "first", "served", "echo/CPU/100@demo")
    turn = second.turns.send("Tell me something long, please.", [(1, target)], Settings(max_new_tokens=40))
    assert turn.wait(60)
    view = turn.runs[0].view()
    assert view.failure is None
    assert "Tell me something long" in view.text
    metrics = view.metrics
    assert metrics.clock == "server"
    assert len(metrics.token_offsets_s) == metrics.output_tokens == view.tokens > 5
    assert metrics.decode_tok_s == pytest.approx(100, rel=0.25)
    assert metrics.prompt_sha256 is None
    assert metrics.cached_prompt_tokens == 0
    there = served.rows("SELECT * FROM run_metrics ORDER BY n DESC LIMIT 1")
    assert there[0]["decode_tok_s"] == pytest.approx(metrics.decode_tok_s, rel=0.01)
    assert metrics.server["ttft_ms"] == pytest.approx(1000 * metrics.ttft_s, rel=0.01)


def test_the_page_offers_the_other_instances_lanes_as_its_models(second):
    (status,) = [s for s in second.manager.availability()["endpoint"].device_status if s.device == "first"]
    assert ECHO in status.models
    assert "auto" in status.models


def test_a_lane_is_not_passed_on_to_a_third(second, client):
    headers = {"X-Backend-Arena": "token-offsets"}
    document = {"model": FIRST, "messages": HELLO}
    refused = httpx.post(f"{second.base}/chat/completions", json=document, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "loop"
    listed = httpx.get(f"{second.base}/models", headers=headers).json()["data"]
    assert not any(entry["id"].startswith("endpoint/") for entry in listed)
    # But a program that is no arena may ask through.
    assert (
        "Hello over there"
        in client.chat.completions.create(model=FIRST, messages=HELLO).choices[0].message.content
    )


@pytest.mark.parametrize("model", ["thinks", "thinks-aloud"])
def test_a_thought_goes_to_reasoning_content_on_every_route(client, model):
    lane = f"endpoint/double/served@{model}"
    message = client.chat.completions.create(model=lane, messages=HELLO).choices[0].message
    assert message.content == "".join(WORDS)
    assert message.model_extra["reasoning_content"] == "Let me see."
    said, thought = "", ""
    for chunk in client.chat.completions.create(model=lane, messages=HELLO, stream=True):
        delta = chunk.choices[0].delta
        said += delta.content or ""
        thought += (delta.model_extra or {}).get("reasoning_content") or ""
        assert not (said and (delta.model_extra or {}).get("reasoning_content")), "thought after the answer"
    assert (said, thought) == ("".join(WORDS), "Let me see.")
    reply = client.responses.create(model=lane, input="Hello")
    assert [item.type for item in reply.output] == ["reasoning", "message"]
    assert (reply.output[0].content[0].text, reply.output_text) == ("Let me see.", "".join(WORDS))
    with client.responses.stream(model=lane, input="Hello") as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == "".join(WORDS)
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")


def test_a_prompt_that_is_too_long_for_the_server_is_told_as_one_that_is_too_long_here(client):
    """Programs shorten it then, or take another model; after a 502 they would only ask again."""
    with pytest.raises(openai.BadRequestError, match="available context size") as caught:
        client.chat.completions.create(model="endpoint/double/served@too-long", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert "Shorten the prompt" in str(caught.value)


def test_without_counts_there_is_no_usage_and_what_fails_there_is_told_here(client):
    reply = client.chat.completions.create(model="endpoint/double/served@silent", messages=HELLO)
    assert reply.usage is None
    assert "predicted_per_second" not in reply.model_extra["timings"]
    assert reply.model_extra["timings"]["clock"] == "client"
    with pytest.raises(openai.InternalServerError, match="out of memory") as caught:
        client.chat.completions.create(model="endpoint/double/served@broken", messages=HELLO)
    assert caught.value.code == "upstream_failed"
