"""A model that thinks, on two engines: thought and answer apart, the same on both, and carried on at a clean seam."""

from dataclasses import replace

import pytest

from engines.protocol import GenerationRequest, Message, Target, Token
from tests.helpers.thinking_model import QUESTION, thinking_model

THOUGHT = "Int4 needs half the memory of int8 and is usually faster"
ANSWER = "int8 stays closer to the original."
ASK = GenerationRequest((Message("user", QUESTION),), max_new_tokens=80)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return thinking_model(tmp_path_factory.mktemp("models") / "thinker")


@pytest.fixture(scope="module", params=["transformers", "onnxruntime-genai"])
def generate(request, manager, folder):
    target = Target(request.param, "CPU", "fp32", str(folder))

    def run(asked):
        tokens = []
        with manager.lease(target) as lease:
            finished = lease.generate(
                "run", asked, lambda e: tokens.append(e) if isinstance(e, Token) else None
            )
        return finished, tokens

    yield run
    manager.unload(target)


def test_thought_and_answer_come_apart_token_by_token(generate):
    finished, tokens = generate(ASK)
    assert finished.reasoning == THOUGHT
    assert finished.text.startswith(ANSWER)
    assert "".join(token.thought for token in tokens) == finished.reasoning
    assert "".join(token.text for token in tokens) == finished.text
    metrics = finished.metrics
    assert (
        metrics.reasoning_tokens + metrics.answer_tokens == metrics.output_tokens - 1
    )  # the mark between them
    assert metrics.ttft_s == metrics.first_reasoning_s < metrics.first_answer_s < metrics.answer_s
    assert metrics.first_answer_s == metrics.token_offsets_s[metrics.reasoning_tokens + 1]


@pytest.mark.parametrize("length", [1, 5, 13, 14, 15, 30])
def test_it_goes_on_wherever_it_was_cut(generate, length):
    whole, _ = generate(ASK)
    cut, tokens = generate(replace(ASK, max_new_tokens=length))
    said = Message("assistant", cut.text, cut.reasoning)
    going_on = replace(
        ASK,
        messages=(*ASK.messages, said),
        continue_reply=True,
        reply_ids=tuple(token.token_id for token in tokens),
    )
    rest, _ = generate(going_on)
    assert rest.metrics.prompt_tokens == whole.metrics.prompt_tokens + length
    assert (cut.reasoning or "") + (rest.reasoning or "") == whole.reasoning
    assert cut.text + rest.text == whole.text


def test_the_next_turn_does_not_see_the_thought(generate):
    first, _ = generate(ASK)
    seen = (*ASK.messages, Message("assistant", first.text, first.reasoning), Message("user", "Thank you!"))
    unseen = (*ASK.messages, Message("assistant", first.text), Message("user", "Thank you!"))
    hashes = {
        generate(GenerationRequest(chat, max_new_tokens=2))[0].metrics.prompt_sha256
        for chat in (seen, unseen)
    }
    assert len(hashes) == 1


def test_thinking_can_be_switched_off(generate):
    off, _ = generate(replace(ASK, thinking=False))
    assert off.reasoning is None
    assert off.metrics.reasoning_tokens == 0
    assert off.metrics.first_reasoning_s is None
