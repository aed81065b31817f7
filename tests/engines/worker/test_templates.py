# ruff: noqa: E501
"""For every model folder and every chat the page can make, the prompt's ids are those of transformers."""

import json
import shutil
import time
from datetime import datetime

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.engine import PromptError
from engines.protocol import GenerationRequest, Message
from engines.worker import chat_template, tokenization
from engines.worker.prompt import PromptEncoder
from tests.engines.worker.families import TEMPLATES
from tests.helpers.worlds import DEMO_WEIGHTS

SPECIAL = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
WORDS = st.text(
    st.sampled_from(" \n\tabcäé日本🤖{}%<>/'\"\\</think>") | st.characters(exclude_categories=("Cs", "Co")),
    max_size=30,
).filter(lambda text: not any(token in text for token in SPECIAL))
SAID = WORDS.filter(lambda text: text.strip())


@st.composite
def chats(draw) -> list[Message]:
    """What the page can make: perhaps a system prompt, exchanges, a prompt."""
    chat = [Message("system", draw(SAID))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 3))):
        thought = draw(st.none() | SAID)
        chat += [Message("user", draw(SAID)), Message("assistant", draw(SAID), thought)]
    return [*chat, Message("user", draw(SAID))]


def folder_with(path, template=None, *, tokenizer=None, **config):
    """A model folder with the bundled tokenizer; keys with the value None are taken away."""
    path.mkdir(parents=True, exist_ok=True)
    shutil.copy(DEMO_WEIGHTS / "config.json", path)
    content = json.loads((DEMO_WEIGHTS / "tokenizer.json").read_text())
    (path / "tokenizer.json").write_text(json.dumps(content | (tokenizer or {})))
    kept = json.loads((DEMO_WEIGHTS / "tokenizer_config.json").read_text())
    kept |= {"bos_token": "<|endoftext|>", "chat_template": template, **config}
    kept = {name: value for name, value in kept.items() if value is not None}
    (path / "tokenizer_config.json").write_text(json.dumps(kept))
    return path


def theirs(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def as_dicts(chat, field=None):
    return [
        {"role": m.role, "content": m.content} | ({field: m.reasoning} if field and m.reasoning else {})
        for m in chat
    ]


REASONING = {"qwen-3": "reasoning_content", "gpt-oss": "thinking"}


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    folders = {name: folder_with(root / name, template) for name, template in TEMPLATES.items()}
    return {name: (PromptEncoder(folder), theirs(folder)) for name, folder in folders.items()}


def test_there_are_enough_families():
    assert len(TEMPLATES) >= 30


@pytest.mark.parametrize("family", TEMPLATES)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(chat=chats(), thinking=st.sampled_from([None, True, False]))
def test_prompts_equal_those_of_transformers(families, family, chat, thinking):
    encoder, tokenizer = families[family]
    switch = encoder.thinking_switch
    if thinking is not None and switch not in ("enable_thinking", "thinking"):
        thinking = None
    kwargs = {} if thinking is None else {switch: thinking}
    request = GenerationRequest(tuple(chat), thinking=thinking, asked_at=time.time())
    try:
        expected = tokenizer.apply_chat_template(
            as_dicts(chat, REASONING.get(family)), add_generation_prompt=True, return_dict=False, **kwargs
        )
    except jinja2.TemplateError:
        expected = None
    prompt = encoder.prepare(request)
    if expected is None or chat_template.SYSTEM_MOVED in prompt.notes:
        assert chat[0].role == "system"  # the only thing in these chats that a family refuses or drops
        moved = [Message("user", f"{chat[0].content}\n\n{chat[1].content}"), *chat[2:]]
        expected = tokenizer.apply_chat_template(
            as_dicts(moved, REASONING.get(family)), add_generation_prompt=True, return_dict=False, **kwargs
        )
    assert prompt.ids == expected


DROPS_SYSTEM = ("phi-3-mini-first", "phi-4-reasoning", "olmo")
REFUSES_SYSTEM = ("mistral-v1", "gemma", "gemma-2")


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_system_prompt_is_never_lost(families, family):
    encoder, _ = families[family]
    chat = (Message("system", "Answer in rhyme."), Message("user", "Hello"))
    prompt = encoder.prepare(GenerationRequest(chat))
    assert "Answer in rhyme." in prompt.text
    moved = family in DROPS_SYSTEM + REFUSES_SYSTEM
    assert (chat_template.SYSTEM_MOVED in prompt.notes) == moved
    if moved:
        assert "Answer in rhyme.\n\nHello" in prompt.text


@pytest.mark.parametrize(
    ("family", "chat", "note"),
    [
        ("gemma", [("user", "one"), ("user", "two")], chat_template.JOINED),
        ("gemma", [("assistant", "hello"), ("user", "two")], chat_template.JOINED),
        ("mistral-v1", [("system", "s"), ("user", "a"), ("assistant", "b"), ("system", "t"), ("user", "c")],
         chat_template.SYSTEM_MOVED),
        ("llama-3", [("user", "  indented\n")], chat_template.TRIMMED),
        ("phi-3", [("user", "  indented\n")], None),
        ("chatml", [("user", "one"), ("user", "two")], None),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_is_kept_and_told(families, family, chat, note):
    prompt = families[family][0].prepare(GenerationRequest(tuple(Message(*m) for m in chat)))
    for _, content in chat:
        assert content.strip() in prompt.text
    assert prompt.notes == ((note,) if note else ())


PARTS_ONLY = {
    "smolvlm": "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}{% if m['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}{% for line in m['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}{% endif %}{% endfor %}<end>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
    "llava": "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "text-for-the-system": "{% for m in messages %}{% if m.role == 'system' %}{{ 'S ' + m.content }}{% else %}{% for c in m.content %}{{ '|' + c.text }}{% endfor %}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("family", PARTS_ONLY)
def test_a_template_that_takes_messages_in_parts_gets_them_in_parts(tmp_path, family):
    folder = folder_with(tmp_path / "m", PARTS_ONLY[family])
    encoder, reference = PromptEncoder(folder), theirs(folder)
    chat = [
        Message("system", "Be short."),
        Message("user", "<b>"),
        Message("assistant", "a"),
        Message("user", "<|end|>"),
    ]
    parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in as_dicts(chat)]
    if family == "text-for-the-system":
        parts[0]["content"] = "Be short."
    expected = reference.apply_chat_template(parts, add_generation_prompt=True, tokenize=False)
    prompt = encoder.prepare(GenerationRequest(tuple(chat)))
    assert (prompt.text, prompt.notes) == (expected, ())
    assert encoder.tokenizer.decode(prompt.ids, skip_special_tokens=False) == expected


def test_a_part_that_no_arrangement_saves_is_told(tmp_path):
    cuts = "{% for m in messages %}{{ m.content.split('---')[0] }}{% endfor %}"
    encoder = PromptEncoder(folder_with(tmp_path / "m", cuts))
    assert encoder.prepare(GenerationRequest((Message("user", "all of it"),))).notes == ()
    prompt = encoder.prepare(GenerationRequest((Message("user", "this --- not that"),)))
    assert prompt.notes == (chat_template.LEFT_OUT,)


def test_a_template_that_takes_the_chat_in_no_way_says_why(tmp_path):
    encoder = PromptEncoder(folder_with(tmp_path / "m", "{{ raise_exception('Only tools, please') }}"))
    with pytest.raises(PromptError, match="Only tools, please"):
        encoder.encode([Message("user", "Hello")])


# --- which files say what ------------------------------------------------------------------------------------

SAYS = "{{ bos_token }}{{ eos_token }}{{ messages[0].content }}"
NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "D" + SAYS}]


def _additional(path):
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "rag.jinja").write_text("no")
    (path / "chat_template.jinja").write_text("J" + SAYS)


FOLDERS = {
    "config": (lambda p: folder_with(p, SAYS), None),
    "named": (lambda p: folder_with(p, NAMED), None),
    "file-outweighs-config": (lambda p: folder_with(p, "no"), lambda p: (p / "chat_template.jinja").write_text("J" + SAYS)),
    "additional": (lambda p: folder_with(p, "no"), _additional),
    "llama-class": (lambda p: folder_with(p, SAYS, tokenizer_class="LlamaTokenizer"), lambda p: _model_type(p, "llama")),
    "gpt2-class": (lambda p: folder_with(p, SAYS, tokenizer_class="GPT2Tokenizer"), lambda p: _model_type(p, "gpt2")),
    "qwen2-class": (lambda p: folder_with(p, SAYS, tokenizer_class="Qwen2Tokenizer"), lambda p: _model_type(p, "qwen2")),
    "unknown-model": (lambda p: folder_with(p, SAYS), lambda p: _model_type(p, "never_heard_of")),
    "no-class": (lambda p: folder_with(p, SAYS, tokenizer_class=None), None),
    "added-here-only": (
        lambda p: folder_with(p, SAYS, added_tokens_decoder={"1664": {"content": "<extra>", "special": True, "lstrip": False,
                              "rstrip": False, "single_word": False, "normalized": False}}), None),
    "bos-not-in-the-vocabulary": (lambda p: folder_with(p, SAYS, bos_token="<bos!>"), None),
    "own-tokens": (lambda p: folder_with(p, "{{ image_token }}" + SAYS, image_token="<|user|>"), None),
    "map-file": (
        lambda p: folder_with(p, SAYS, added_tokens_decoder=None, bos_token=None, eos_token=None),
        lambda p: (p / "special_tokens_map.json").write_text(json.dumps(
            {"bos_token": "<|system|>", "eos_token": {"content": "<|end|>", "lstrip": False, "rstrip": False,
             "normalized": False, "single_word": False}}))),
    "splits-special": (lambda p: folder_with(p, SAYS, split_special_tokens=True), None),
    "no-config": (lambda p: folder_with(p, SAYS), lambda p: (p / "config.json").unlink()),
}  # fmt: skip
BASE = {
    "plain": {},
    "adds-bos": {"add_bos_token": True},
    "llama": {"tokenizer_class": "LlamaTokenizer"},
    "post-processor": {
        "tokenizer": {"post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}}}},
    "no-post-processor": {"tokenizer": {"post_processor": None}, "add_bos_token": True, "add_eos_token": True},
}  # fmt: skip
TEXTS = ("Hello, 世界!", " <extra> spaces  here ", "image <bos!> x\n\n")


def _model_type(path, name):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(
        json.dumps({"model_type": name}) if name != "phi3" else json.dumps(config)
    )


@pytest.mark.parametrize("which", FOLDERS)
def test_every_file_means_what_transformers_says_it_means(tmp_path, which):
    make, change = FOLDERS[which]
    folder = make(tmp_path / "m")
    if change:
        change(folder)
    reference = theirs(folder)
    for encoder in (
        PromptEncoder(folder),
        PromptEncoder(folder, tmp_path / "kept"),
        PromptEncoder(folder, tmp_path / "kept"),
    ):
        for text in TEXTS:
            if any(t.special and t.content in text for t in reference.added_tokens_decoder.values()):
                continue  # typed control tokens stay text here
            expected = reference.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
            assert encoder.encode([Message("user", text)]) == expected


@pytest.mark.parametrize("which", BASE)
def test_a_base_model_gets_its_tokenizers_default_encoding(tmp_path, which):
    folder = folder_with(tmp_path / "m", **BASE[which])
    if "tokenizer_class" in BASE[which]:
        _model_type(folder, "llama")
    reference, encoder = theirs(folder), PromptEncoder(folder)
    for text in TEXTS[:2]:
        assert encoder.encode([Message("user", text)]) == reference(text)["input_ids"]
    if which == "post-processor":
        assert encoder.encode([Message("user", "Hi")])[0] == 0


@pytest.mark.parametrize(
    ("architecture", "class_name"),
    [("phi3", "LlamaTokenizer"), ("mistral", "LlamaTokenizer"), ("llama", "LlamaTokenizer")],
)
def test_a_folder_of_the_model_builder_gets_the_tokens_of_the_original(tmp_path, architecture, class_name):
    original = folder_with(tmp_path / "original", SAYS, tokenizer_class=class_name)
    _model_type(original, architecture)
    built = folder_with(tmp_path / "built", SAYS, tokenizer_class=class_name)
    (built / "config.json").unlink()
    (built / "genai_config.json").write_text(json.dumps({"model": {"type": architecture}}))
    for text in TEXTS:
        expected = theirs(original).apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        assert PromptEncoder(original).encode([Message("user", text)]) == expected
        assert PromptEncoder(built).encode([Message("user", text)]) == expected


@pytest.mark.parametrize(
    ("config", "stops"),
    [
        ({"model_type": "llama", "eos_token_id": [0, 3]}, {0, 3}),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "eos_token_id": [2, 3]}},
            {2, 3},
        ),
        ({"model_type": "llama", "eos_token_id": ["<|end|>", None]}, set()),
    ],
)
def test_stops_are_read_wherever_a_config_states_them(tmp_path, config, stops):
    folder = folder_with(tmp_path / "m", SAYS)
    (folder / "config.json").write_text(json.dumps(config))
    assert PromptEncoder(folder).stop_ids == {4, *stops}  # 4: the tokenizer's own


@pytest.mark.parametrize(("version", "asked"), [("99.1", False), ("4.57.6", True)])
def test_a_newer_transformers_reading_is_taken_an_older_one_is_not(tmp_path, monkeypatch, version, asked):
    folder, kept = folder_with(tmp_path / "m", SAYS, tokenizer_class="LlamaTokenizer"), tmp_path / "kept"
    _model_type(folder, "llama")
    PromptEncoder(folder, kept)
    (made,) = kept.iterdir()
    made.rename(kept / f"{made.stem.partition('-')[0]}-{version}.json")
    calls = []
    ask = tokenization._ask_transformers
    monkeypatch.setattr(tokenization, "_ask_transformers", lambda folder: calls.append(folder) or ask(folder))
    PromptEncoder(folder, kept)
    assert bool(calls) == asked


def test_a_template_in_the_processors_file_is_found(tmp_path):
    folder = folder_with(tmp_path / "m")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "P {{ messages[0].content }}"}))
    assert PromptEncoder(folder).render([Message("user", "x")]) == "P x"


def test_what_transformers_made_is_kept_for_the_next_start(tmp_path, monkeypatch):
    folder = folder_with(tmp_path / "m", SAYS, tokenizer_class="LlamaTokenizer")
    _model_type(folder, "llama")
    first = PromptEncoder(folder, tmp_path / "kept").encode([Message("user", "Hello")])
    assert len(list((tmp_path / "kept").iterdir())) == 1
    monkeypatch.setattr(tokenization, "_ask_transformers", lambda folder: pytest.fail("asked again"))
    assert PromptEncoder(folder, tmp_path / "kept").encode([Message("user", "Hello")]) == first


def test_what_cannot_be_kept_whole_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource", reason="limits of a process are POSIX")
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as a full disk does: the rest cannot be written
    try:
        tokenization._keep(tmp_path / "kept" / "a.json", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    assert list((tmp_path / "kept").iterdir()) == []
    tokenization._keep(tmp_path / "kept" / "a.json", "x")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["a.json"]


def test_a_folder_taken_as_it_is_needs_no_transformers(monkeypatch):
    monkeypatch.setattr(tokenization, "_ask_transformers", lambda folder: pytest.fail("asked"))
    assert PromptEncoder(DEMO_WEIGHTS).encode([Message("user", "Hello")])


def test_every_panel_of_a_turn_reads_the_same_clock(tmp_path):
    encoder = PromptEncoder(
        folder_with(tmp_path / "m", "{{ strftime_now('%H:%M:%S') }} {{ messages[0].content }}")
    )
    asked_at = datetime(2026, 1, 2, 23, 59, 59).timestamp()
    request = GenerationRequest((Message("user", "x"),), asked_at=asked_at)
    assert encoder.prepare(request).text == "23:59:59 x"


# --- to carry a reply on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TEMPLATES)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(chat=chats(), reply=SAID)
def test_a_reply_is_carried_on_behind_the_prompt_that_asked_for_it(families, family, chat, reply):
    encoder, _ = families[family]
    asked = encoder.prepare(GenerationRequest(tuple(chat)))
    going_on = GenerationRequest((*chat, Message("assistant", reply)), continue_reply=True)
    prompt = encoder.prepare(going_on)
    assert prompt.ids[: len(asked.ids)] == asked.ids
    behind = encoder.tokenizer.decode(prompt.ids[len(asked.ids) :], skip_special_tokens=False)
    assert behind == reply


def test_known_tokens_of_a_reply_are_taken_as_they_are(families):
    encoder, _ = families["qwen-3"]
    chat = (Message("user", "Hello"),)
    ids = (70, 71, 4, 72)
    prompt = encoder.prepare(
        GenerationRequest((*chat, Message("assistant", "?")), continue_reply=True, reply_ids=ids)
    )
    assert prompt.ids == [*encoder.encode(chat), *ids]
    assert prompt.replied == ids


@pytest.mark.parametrize(
    ("family", "reply"), [("phi-3", "Hello <|end|> there"), ("zephyr", "\n\n<|user|>\n")]
)
def test_control_tokens_in_a_reply_stay_its_text(families, family, reply):
    encoder, _ = families[family]
    chat = (Message("user", "Hello"), Message("assistant", reply))
    asked = encoder.encode(chat[:1])
    ids = encoder.prepare(GenerationRequest(chat, continue_reply=True)).ids
    assert ids[: len(asked)] == asked
    assert encoder.tokenizer.decode(ids[len(asked) :], skip_special_tokens=True) == reply


# --- thinking on and off -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "switch", "on", "off"),
    [
        ("qwen-3", "enable_thinking", "assistant\n", "<think>\n\n</think>\n\n"),
        ("smollm-3", "enable_thinking", "Mode: /think", "Mode: /no_think"),
        ("exaone-4", "enable_thinking", "<think>\n", "<think>\n\n</think>\n\n"),
        ("granite-3", "thinking", "Here is my thought process:", "You are a helpful"),
        ("gpt-oss", "reasoning_effort", "Reasoning: high", "Reasoning: low"),
    ],
)
def test_thinking_is_switched_as_the_template_wants(families, family, switch, on, off):
    encoder, _ = families[family]
    assert encoder.thinking_switch == switch
    chat = (Message("user", "Hello"),)
    texts = {t: encoder.prepare(GenerationRequest(chat, thinking=t)).text for t in (True, False)}
    assert on in texts[True]
    assert off in texts[False]
    assert off not in texts[True] or off == ""
    assert encoder.prepare(GenerationRequest(chat, thinking=True)).notes == ()


def test_a_template_without_a_switch_says_so(families):
    encoder, _ = families["phi-3"]
    prompt = encoder.prepare(GenerationRequest((Message("user", "Hello"),), thinking=False))
    assert prompt.notes == (chat_template.NO_SWITCH,)


def test_a_switch_that_is_a_word_in_the_system_prompt(tmp_path):
    soft = "{% if '/no_think' in messages[0].content %}fast{% endif %}{% for m in messages %}{{ m.content }}|{% endfor %}"
    encoder = PromptEncoder(folder_with(tmp_path / "m", soft))
    assert (
        encoder.prepare(GenerationRequest((Message("user", "Hi"),), thinking=False)).text
        == "fast/no_think|Hi|"
    )


def test_a_thought_goes_back_only_where_the_template_asks_for_it(families):
    chat = (Message("user", "a"), Message("assistant", "b", "deep thought"), Message("user", "c"))
    for family in TEMPLATES:
        text = families[family][0].prepare(GenerationRequest(chat)).text
        assert "deep thought" not in text, family  # none of these keeps the thoughts of past turns
