"""The quality gate: what counts as garbage, as obeyed, as too far from the reference."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr

from engines.engine import OutputError, PromptError
from engines.measure import quality
from engines.measure.instructions import INSTRUCTIONS
from engines.protocol import Failed, Finished, Message, RunMetrics, Score
from engines.worker.prompt import PromptEncoder
from engines.worker.worker import expectations
from tests.helpers.worlds import DEMO_WEIGHTS

BY_NAME = {instruction.name: instruction for instruction in INSTRUCTIONS}
GOOD_REPLIES = {
    "json-object": '```json\n{"name": "Ada", "age": 36}\n```', "json-list": '["red", "green", "blue"]',
    "json-number": '{"sum": 5}', "json-empty": "[]", "three-lines": "apple\npear\nplum",
    "five-lines": "1\n2\n3\n4\n5", "bullets": "- cat\n- dog", "numbered": "1. Boil.\n2. Pour.\n3. Wait.",
    "forbidden-word": "The sea is wide.", "forbidden-letter": "A dog barks.", "wanted-word": "The Moon is up.",
    "two-words": "He ate bread by the river.", "yes-or-no": "Yes.", "one-word": "Paris", "arithmetic": "12",
    "upper-case": "HELLO", "repeat": "green apple", "ends-with": "Goodnight. END", "short": "A hole with glass.",
    "count-up": "1, 2, 3, 4",
}  # fmt: skip
BAD_REPLIES = {
    "json-object": '{"name": "Ada"}', "json-list": "red, green, blue", "json-number": '{"sum": "5"}',
    "json-empty": "[1]", "three-lines": "apple, pear, plum", "five-lines": "1\n2\n3", "bullets": "cat\ndog",
    "numbered": "First boil.", "forbidden-word": "The sea is water.", "forbidden-letter": "A dog in a zoo.",
    "wanted-word": "It is dark.", "two-words": "He ate bread.", "yes-or-no": "Yes, because it is cold.",
    "one-word": "It is Paris", "arithmetic": "The answer is 12", "upper-case": "hello", "repeat": "a green apple",
    "ends-with": "Goodnight.", "short": "A window is an opening in a wall that lets light and air into a room.",
    "count-up": "1 2 3 4",
}  # fmt: skip


@pytest.mark.parametrize("name", BY_NAME)
def test_each_instruction_is_checked(name):
    assert BY_NAME[name].obeyed(GOOD_REPLIES[name])
    assert not BY_NAME[name].obeyed(BAD_REPLIES[name])
    assert not BY_NAME[name].obeyed("")


def test_there_are_twenty():
    assert len(INSTRUCTIONS) == len(BY_NAME) == 20


def reply(text="fine", ids=(1, 2, 3), kind=None):
    outcome = (
        Failed(kind, "no")
        if kind
        else Finished("r", "stop", text, RunMetrics(token_offsets_s=(0.1, 0.2, 0.3)))
    )
    return quality.reply_of(INSTRUCTIONS[0], outcome, ids)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (reply(""), "empty"),
        (reply(" \n"), "empty"),
        (reply(ids=[7] * 30), "loop"),
        (reply(ids=[1, 2, 3] * 10), "loop"),
        (reply(ids=[9, 8, *([1, 2, 3, 4, 5] * 6)]), "loop"),
        (reply("\ufffd\ufffd\ufffd a"), "not text"),
        (reply(kind="output"), "not finite"),
        (reply(kind="error"), "empty"),
        (reply(ids=list(range(40))), None),
        (reply(ids=[7] * 5), None),
    ],
)
def test_garbage_is_seen(given, kind):
    assert quality.garbage(given) == kind


def test_divergence_is_the_first_other_token_and_the_share():
    assert quality.divergence([1, 2, 3, 4], [1, 2, 3, 4]) == (None, 0.0)
    assert quality.divergence([1, 9, 3, 4], [1, 2, 3, 4]) == (1, 0.25)
    assert quality.divergence([1, 2], [1, 2, 3, 4]) == (2, 0.5)
    assert quality.divergence([], []) == (None, None)


def answers(texts, ids, reference=None):
    replies = [
        quality.Reply(instruction, tuple(ids[at]), texts.get(instruction.name, ""), 0.5)
        for at, instruction in enumerate(INSTRUCTIONS)
    ]
    return quality.answers(replies, reference)


OWN_IDS = [[at, at + 1, at + 2] for at in range(20)]


def test_the_reference_passes_and_a_lane_like_it_does():
    reference = quality.judge(answers(GOOD_REPLIES, OWN_IDS), None, None, None, None)
    assert (reference.passed, reference.instructions_passed) == (True, 20)
    assert (reference.answer_tokens, reference.answer_s) == (3, 0.5)
    lane = quality.judge(answers(GOOD_REPLIES, OWN_IDS, reference.answers), "ref", reference, None, None)
    assert (lane.passed, lane.divergent_share, lane.first_divergent_token) == (True, 0.0, None)


@pytest.mark.parametrize(
    ("texts", "ids", "reason"),
    [
        (BAD_REPLIES, OWN_IDS, "0 of 20 instructions obeyed"),
        (GOOD_REPLIES, [[5] * 30] * 20, "20 of 20 answers are garbage"),
        (GOOD_REPLIES, [[99, 98, 97]] * 20, "only 0 of 20 answers begin"),
        ({}, [[]] * 20, "20 of 20 answers are garbage (empty)"),
    ],
)
def test_a_lane_unlike_it_fails_and_is_told_why(texts, ids, reason):
    reference = quality.judge(answers(GOOD_REPLIES, OWN_IDS), None, None, None, None)
    lane = quality.judge(answers(texts, ids, reference.answers), "ref", reference, None, None)
    assert not lane.passed
    assert reason in " ".join(lane.reasons)


def test_a_lane_that_writes_garbage_fails_even_as_its_own_reference():
    found = quality.judge(answers(GOOD_REPLIES, [[5] * 30] * 20), None, None, None, None)
    assert not found.passed
    assert found.reasons == ("20 of 20 answers are garbage (loop)",)


def test_a_reference_that_writes_garbage_itself_cannot_tell_good_from_bad():
    loops = [[5] * 30] * 20
    reference = quality.judge(answers(GOOD_REPLIES, loops), None, None, None, None)
    lane = quality.judge(answers(GOOD_REPLIES, OWN_IDS, reference.answers), "ref", reference, None, None)
    assert lane.passed
    assert "cannot tell" in lane.notes[0]


def scored(logits, keep):
    ids = list(range(len(logits)))
    return expectations(Score("r", "", 99, keep), ids, logits)


def test_expectations_are_scipys():
    logits = np.random.default_rng(5).normal(0, 3, (12, 50))
    logs = log_softmax(logits, axis=-1)
    made = scored(logits, 50)
    assert made.losses == pytest.approx([-logs[at, at + 1] for at in range(11)])
    assert [ids[0] for ids in made.likely_ids] == list(logits[:11].argmax(-1))


def test_kl_is_scipys_over_the_whole_vocabulary_and_less_over_a_part():
    rng = np.random.default_rng(6)
    one, other = rng.normal(0, 2, (10, 40)), rng.normal(0, 2, (10, 40))
    exact = np.mean([rel_entr(np.exp(log_softmax(p)), np.exp(log_softmax(q))).sum()
                     for p, q in zip(one[:9], other[:9], strict=True)])  # fmt: skip
    agreement, kl = quality.compare(scored(other, 40), scored(one, 40))
    assert kl == pytest.approx(exact, rel=0.01)
    assert agreement == np.mean(one[:9].argmax(-1) == other[:9].argmax(-1))
    assert quality.compare(scored(one, 8), scored(one, 8)) == (1.0, pytest.approx(0.0, abs=1e-4))


def test_logits_that_are_no_numbers_are_refused():
    logits = np.zeros((4, 9))
    logits[1, 2] = math.nan
    with pytest.raises(OutputError):
        scored(logits, 4)


def test_lanes_that_scored_other_ids_are_not_compared():
    made = scored(np.zeros((4, 9)), 4)
    with pytest.raises(ValueError, match="different token ids"):
        quality.compare(replace(made, prompt_sha256="x"), made)


# --- exact prompts -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder():
    return PromptEncoder(DEMO_WEIGHTS)


@pytest.mark.parametrize("count", [40, 64, 257, 1000])
def test_a_chat_is_cut_to_exactly_so_many_tokens_and_still_asks_for_a_reply(encoder, count):
    chat = (Message("user", "The quick brown fox jumps over the lazy dog. " * 400),)
    whole, cut = encoder.encode(chat), encoder.encode_exactly(chat, count)
    assert len(cut) == count
    assert cut[: count - 20] == whole[: count - 20]
    assert cut[-2:] == whole[-2:]


def test_what_cannot_be_cut_to_a_length_is_refused(encoder):
    with pytest.raises(PromptError, match="cannot be cut to 500"):
        encoder.encode_exactly((Message("user", "too short"),), 500)
    with pytest.raises(PromptError, match="cannot be cut to 2"):
        encoder.encode_exactly((Message("user", "long enough " * 50),), 2)
