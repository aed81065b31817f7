"""Thought, answer and markup come apart whatever marks a model uses and however its text is cut into tokens."""

import itertools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engines.toolkit.thoughts import Parted, ThoughtParser, find_marks, marks_of_reply, part

THINK = find_marks("{% if '</think>' in message.content %}<think>")
HARMONY = find_marks(None, ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"])

WHOLE = [
    # marks, prompt, what the model writes, thought, answer
    ("<think>", "<|assistant|>\n", "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
    ("<think>", "<|assistant|>\n<think>\n", "Hm.\n</think>\n\nYes.", "Hm.", "Yes."),  # opened by the template
    ("<think>", "<|Assistant|><think>\n", "<think>\nHm.</think>Yes.", "Hm.", "Yes."),  # and by the model again
    ("<think>", "<|assistant|>\n<think>\n\n</think>\n\n", "\nYes.", None, "Yes."),  # thinking switched off
    ("<think>", "<|assistant|>\n", "</think>\nYes.", None, "Yes."),
    ("<think>", "<|assistant|>\n", "<think></think>Yes.", None, "Yes."),
    ("<think>", "<|assistant|>\n", "  Yes, <think> is a mark.\n", None, "  Yes, <think> is a mark.\n"),
    ("<think>", "<|assistant|>\n", "<think>\nHm, and then it was cut", "Hm, and then it was cut", ""),
    ("<think>", "<|assistant|>\n", "<think>a < b </thin</think>c", "a < b </thin", "c"),
    ("<think> <answer>", "", "<think>\nHm.\n</think>\n<answer>\nYes.\n</answer>", "Hm.", "Yes."),
    ("<think> <response>", "", "<think>Hm.</think><response>Yes.</response>", "Hm.", "Yes."),
    ("<thought>", "[|assistant|]<thought>\n", "Hm.\n</thought>\n\nYes.", "Hm.", "Yes."),
    ("[THINK] [/THINK]", "[/INST]", "[THINK]Hm.[/THINK]Yes.[THINK]But.[/THINK]No.", "Hm.\n\nBut.", "Yes.\n\nNo."),
    ("◁think▷", "", "◁think▷Hm.◁/think▷Yes.", "Hm.", "Yes."),
    ("<seed:think>", "", "<seed:think>Hm.</seed:think>Yes.", "Hm.", "Yes."),
    ("<|START_THINKING|> <|START_RESPONSE|>", "", "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Yes."
     "<|END_RESPONSE|>", "Hm.", "Yes."),
    ("Here is my thought process: Here is my response:", "",
     "Here is my thought process: Hm.\n\nHere is my response: Yes.", "Hm.", "Yes."),
    ("<|channel>thought <channel|>", "<|turn>model\n", "<|channel>thought\nHm.\n<channel|>Yes.", "Hm.", "Yes."),
    ("<|channel>thought <channel|>", "", "<|channel>thought\nHm.<channel|><|channel>thought\nSo.<channel|>Yes.",
     "Hm.\n\nSo.", "Yes."),
    ("<think>", "<think>\n\n</think>\n\n", "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),  # off, and all the same
    ("<think>", "", "<think>\n\n</think>\n\n<think>\nHm.\n</think>\nYes.", "Hm.", "Yes."),
    ("<think>", "", "<think>Hm.</think>\n<think>So.</think>Yes: `<think>`", "Hm.\n\nSo.", "Yes: `<think>`"),
    ("<think>", "", "<think>Hm.</think>\n```\n<think>\n</think>\n```", "Hm.", "```\n<think>\n</think>\n```"),
    ("Here is my thought process: Here is my response:", "",  # what Granite also says, whatever its template says
     "Here's my thought process: Hm.\n\nHere's my response: Yes.", "Hm.", "Yes."),
    ("Here are my reasoning steps:", "<|assistant|>\nHere are my reasoning steps:\n",
     "Hm.\n[BEGIN FINAL RESPONSE]\nYes.\n[END FINAL RESPONSE]", "Hm.", "Yes."),
    ("<think>", "<think>\n\n</think>\n\n", "</think>\n\nYes.", None, "Yes."),  # closed once more
    ("<think>", "", "<think>Hm.</think>\n</think>\n\nYes: </think>", "Hm.", "Yes: </think>"),
    ("<|inner_prefix|>", "", "<|inner_prefix|>Hm.<|inner_suffix|>Yes.", "Hm.", "Yes."),
]  # fmt: skip


@pytest.mark.parametrize(("template", "prompt", "text", "thought", "answer"), WHOLE)
def test_each_family_is_taken_apart(template, prompt, text, thought, answer):
    assert part(text, find_marks(template), prompt) == Parted(thought, answer)


HARMONY_REPLIES = [
    ("<|channel|>analysis<|message|>greet<|end|><|start|>assistant<|channel|>final<|message|>Hello!<|return|>",
     "greet", "Hello!"),
    ("<|channel|>final<|message|>Hello!", None, "Hello!"),
    ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>I will look.<|end|>"
     "<|start|>assistant<|channel|>analysis<|message|>b<|end|><|start|>assistant<|channel|>final<|message|>Done.",
     "a\n\nb", "I will look.\n\nDone."),
    ("<|channel|>analysis<|message|>cut in the mid", "cut in the mid", ""),
    ("<|channel|>analysis<|message|>a<|end|><|start|>assist", "a", ""),
    ("Hello without channels", None, "Hello without channels"),
    (" to=functions.get_weather<|channel|>commentary json<|message|>{}<|call|>", None, "{}"),
    (" to=web.open <|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "a", "b"),
    ("to= is what it says", None, "to= is what it says"),
    ("to be <|", None, "to be <|"),
    ("to=x", None, "to=x"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "thought", "answer"), HARMONY_REPLIES)
def test_channels_are_taken_apart(text, thought, answer):
    assert part(text, HARMONY, "<|start|>assistant") == Parted(thought, answer)


def test_an_answer_begun_by_the_template_is_one():
    assert part("Hello!", HARMONY, "<|start|>assistant<|channel|>final<|message|>") == Parted(None, "Hello!")


def test_a_model_that_knows_no_marks_may_write_them():
    assert find_marks("<|user|>{{ messages }}", ["<|end|>"]) is None
    text = " <think>x</think> y\n"
    assert part(text, None) == Parted(None, text)


SPACE = st.text(alphabet=" \n\t", max_size=3)
WORDS = st.text(alphabet="abc <>/think\n", max_size=30)


@given(SPACE, WORDS, WORDS)
def test_a_whole_reply_that_begins_with_a_thought_and_closes_it_is_both(space, thought, answer):
    assume("</think>" not in thought)
    assume(not any(each.lstrip().startswith(("<think>", "</think>")) for each in (thought, answer)))
    text = f"{space}<think>{thought}</think>{answer}"
    parted = part(text, *marks_of_reply(text))
    assert parted == Parted(thought.strip() or None, answer.lstrip())


@given(WORDS, WORDS)
def test_any_other_text_is_left_as_it_is(before, after):
    for text in (
        before,
        f"a{before}<think>{after}</think>",
        f"`<think>{before}</think>`",
        f"<think>{before}",
    ):
        if not text.lstrip().startswith("<think>") or "</think>" not in text:
            if "<think>" in text:
                assert marks_of_reply(text) is None
            assert part(text, None) == Parted(None, text)


@pytest.mark.parametrize(
    ("text", "parted"),
    [
        ("Is it so?\n</think>\n\nYes.", Parted("Is it so?", "Yes.")),  # the template opened it, unseen
        ("Is it\n\nso? </think> \nYes.", Parted("Is it\n\nso?", "Yes.")),
        ("[THINK]Is it so?[/THINK]Yes.", Parted("Is it so?", "Yes.")),
        ("Is it so?[/THINK]\nYes.", Parted("Is it so?", "Yes.")),
        ("<seed:think>Is it so?</seed:think>Yes.", Parted("Is it so?", "Yes.")),
        (
            "<|channel|>analysis<|message|>So?<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
            Parted("So?", "Yes."),
        ),
        ("A thought ends with `</think>`\nand that is all.", None),
        ("Like this:\n```\nThought\n</think>\nAnswer\n```", None),
        ("First <think>\n</think>\nThen the answer.", None),
        ("The end is </think>\nand the beginning is <think>.", None),
        ("</think> ends it.", None),
        ("It ends with\n</think>\n", None),
        ("Here is my thought process: none.\nHere is my response: none.", None),
    ],
)
def test_a_whole_reply_shows_what_it_is(text, parted):
    used = marks_of_reply(text)
    assert (used and part(text, *used)) == parted


def test_marks_are_known_by_control_tokens_alone():
    assert part("[THINK]a[/THINK]b", find_marks(None, ["[THINK]", "[/THINK]"])) == Parted("a", "b")


REPLIES = [(find_marks(template), prompt, text) for template, prompt, text, _, _ in WHOLE]
REPLIES += [(HARMONY, "<|start|>assistant", text) for text, _, _ in HARMONY_REPLIES]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(REPLIES), st.data())
def test_however_it_is_cut_it_is_the_same(reply, data):
    marks, prompt, text = reply
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text))))})
    parser = ThoughtParser(marks, prompt)
    pieces = []
    for token, (start, end) in enumerate(itertools.pairwise(cuts)):
        pieces += parser.feed(text[start:end], token)
    pieces += parser.finish()
    assert Parted(
        "".join(p.text for p in pieces if p.kind == "thought") or None,
        "".join(p.text for p in pieces if p.kind == "answer"),
    ) == part(text, marks, prompt)
    assert [t for p in pieces for t in p.tokens] == sorted(t for p in pieces for t in p.tokens)


@given(st.text(alphabet="<think/> \na", max_size=40))
def test_no_letter_is_lost(text):
    parser = ThoughtParser(THINK)
    pieces = [*parser.feed(text), *parser.finish()]
    assert "".join(p.text for p in pieces).replace("\n\n", "").count("a") == text.count("a")
    assert sum(len(p.text) for p in pieces) >= len(text)


def test_an_answer_is_never_held_back_without_need():
    parser = ThoughtParser(THINK)
    assert [p.text for p in parser.feed("Hello <b")] == ["Hello <b"]
    assert not parser.thinking
