"""The corpus: repeatable, complete, and with phrasings that are really kept out of training."""

import itertools

import pytest

from engines.demo_model import corpus
from engines.demo_model.evaluate import NEW_HEROES, held_out_questions, new_paraphrases

SOME = 2000


@pytest.fixture(scope="module")
def chats():
    return list(corpus.training_conversations(seed=1, count=SOME))


def test_the_same_seed_gives_the_same_corpus(chats):
    assert list(corpus.training_conversations(seed=1, count=SOME)) == chats
    assert list(corpus.training_conversations(seed=2, count=50)) != chats[:50]


def test_chats_alternate_and_end_with_the_assistant(chats):
    for chat in chats:
        roles = [m.role for m in chat if m.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(m.content.strip() for m in chat)


def test_no_placeholder_is_left(chats):
    text = "\n".join(m.content for chat in chats for m in chat)
    assert not any(mark in text for mark in ("{x}", "{thing}", "@PARAMETERS", "@STORY", "@SIZE", "@CONTEXT"))


def test_there_are_enough_facts_each_asked_in_ten_ways_or_more():
    assert len(corpus.facts()) >= 128
    definitions = len(corpus._pools("phrasings.txt")["definition"])
    for fact in corpus.facts():
        questions = {q for pattern in fact["q"] for q in corpus.expand(pattern)}
        ways = len(questions) + (definitions if "n" in fact else 0)
        assert ways >= 10, f"{fact['key']} has only {ways} phrasings"
        assert fact["a"].endswith(".")
        assert fact["m"].endswith(".")
        assert fact["s"].endswith(".")


def test_facts_have_distinct_keys_and_answers():
    facts = corpus.facts()
    assert len({f["key"] for f in facts}) == len(facts)
    assert len({f["a"] for f in facts}) == len(facts)


def test_held_out_phrasings_are_not_trained_on():
    import random

    rng = random.Random(3)
    held_out = {
        e.question.lower()
        for e in itertools.islice(iter(lambda: corpus.fact_exchange(rng), None), 4000)
        if corpus.is_held_out(e.question)
    }
    trained = {
        m.content.lower().rstrip("?!. ")
        for chat in corpus.training_conversations(seed=5, count=4000)
        for m in chat
        if m.role == "user"
    }
    assert len(held_out) > 50
    assert not held_out & trained


def test_evaluation_subjects_are_new():
    assert not set(NEW_HEROES) & set(corpus._pools("fillers.txt")["hero"])
    asked = {q for fact in corpus.facts() for pattern in fact["q"] for q in corpus.expand(pattern)}
    asked = {q.lower() for q in asked}
    assert not [q for q in new_paraphrases() if q.messages[0]["content"].lower().rstrip("?") in asked]


def test_evaluation_questions_are_the_same_each_time():
    assert held_out_questions(per_kind=5) == held_out_questions(per_kind=5)


@pytest.mark.parametrize(
    ("pattern", "variants"),
    [
        ("what is (a|the) token", ("what is a token", "what is the token")),
        ("explain (it|)", ("explain it", "explain")),
        ("plain", ("plain",)),
        ("(a|b (c|d))", ("a", "b c", "a", "b d")),
    ],
)
def test_expand(pattern, variants):
    assert corpus.expand(pattern) == variants
