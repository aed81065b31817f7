"""Marks that are control tokens: no part of the text, yet they tell thought from answer, token by token."""

import json
import shutil

import pytest

from engines.worker.prompt import PromptEncoder
from engines.worker.reading import ReplyReader
from tests.helpers.worlds import DEMO_WEIGHTS

HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|return|>")
MARKED = {
    HARMONY: (
        "<|channel|>analysis<|message|>greet 🎉<|end|><|start|>assistant<|channel|>final<|message|>Hello! 世界",
        "<|start|>assistant",
    ),
    ("[THINK]", "[/THINK]"): ("[THINK]greet 🎉[/THINK]Hello! 世界", "[/INST]"),
    ("<|channel>", "<channel|>"): ("<|channel>thought\ngreet 🎉\n<channel|>Hello! 世界", "<|turn>model\n"),
    ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"): (
        "<|START_THINKING|>greet 🎉<|END_THINKING|><|START_RESPONSE|>Hello! 世界<|END_RESPONSE|>",
        "",
    ),
}


@pytest.fixture(params=MARKED, ids=lambda tokens: tokens[0])
def marked(request, tmp_path):
    """A tokenizer with these control tokens, what a model writes with them, and what it follows."""
    folder = shutil.copytree(DEMO_WEIGHTS, tmp_path / "m")
    content = json.loads((folder / "tokenizer.json").read_text())
    flags = {**dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False), "special": True}
    content["added_tokens"] += [{"id": 1664 + n, "content": t, **flags} for n, t in enumerate(request.param)]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    template = "<|channel>thought" if "<|channel>" in request.param else ""
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}{# " + template + " #}")
    return PromptEncoder(folder), *MARKED[request.param]


def read(encoder, prompt, ids, replied=()):
    reader = ReplyReader(encoder.tokenizer, encoder.marks, prompt, replied)
    parts = [*(reader.push(token_id) for token_id in ids), reader.finish()]
    return "".join(p.thought for p in parts), "".join(p.answer for p in parts), reader.kinds()


def test_control_tokens_part_a_reply_and_are_no_text(marked):
    encoder, text, prompt = marked
    ids = encoder.tokenizer.encode(text, add_special_tokens=False).ids
    thought, answer, kinds = read(encoder, prompt, ids)
    assert (thought, answer) == ("greet 🎉", "Hello! 世界")
    assert len(kinds) == len(ids)
    own = [encoder.tokenizer.encode(part, add_special_tokens=False).ids for part in (thought, answer)]
    assert kinds.count("thought") >= len(own[0])
    assert kinds.count("answer") == len(own[1])
    assert kinds.index("thought") < kinds.index("answer")


def test_it_goes_on_wherever_it_was_cut(marked):
    encoder, text, prompt = marked
    ids = encoder.tokenizer.encode(text, add_special_tokens=False).ids
    for cut in range(len(ids) + 1):
        before = read(encoder, prompt, ids[:cut])
        after = read(encoder, prompt, ids[cut:], replied=ids[:cut])
        assert len(after[2]) == len(ids) - cut
        whole = (before[0] + after[0], before[1] + after[1])
        if not any("\ufffd" in part for part in before[:2]):  # cut in the middle of a character
            assert whole == ("greet 🎉", "Hello! 世界"), cut
