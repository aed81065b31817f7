"""The shipped model folder, with the real transformers: size, template, tokenizer and what it answers."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engines.demo_model import WEIGHTS
from engines.demo_model.architecture import SHAPE
from engines.demo_model.evaluate import accuracy, held_out_questions, replies, transformers_backend

PHI3_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def generate():
    """The model on one thread: at this size a second one only waits, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield transformers_backend(WEIGHTS, "float32")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ask(tokenizer, generate):
    def reply(*messages: str, system: str | None = None) -> str:
        roles = ("user", "assistant")
        chat = [{"role": roles[i % 2], "content": text} for i, text in enumerate(messages)]
        if system:
            chat.insert(0, {"role": "system", "content": system})
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return tokenizer.decode(generate([tokenizer(text)["input_ids"]])[0])

    return reply


def test_the_weights_are_small():
    assert sum(p.stat().st_size for p in WEIGHTS.iterdir()) <= 12e6


def test_the_folder_is_a_phi3_of_the_documented_shape():
    config = json.loads((WEIGHTS / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Phi3ForCausalLM"]
    assert {name: config[name] for name in SHAPE} == SHAPE
    tokenizer_config = json.loads((WEIGHTS / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokenizer_config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_template_is_phi3s(tokenizer):
    assert tokenizer.chat_template == PHI3_TEMPLATE
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"
        "<|user|>\nBye<|end|>\n<|assistant|>\n"
    )


@pytest.mark.parametrize(
    "text", ["Hello, world!", "2026", "emoji 👩‍🚀🚀", "こんにちは 你好", "tab\tand\n\nlines ", "<|end|>"]
)
def test_any_text_round_trips(tokenizer, text):
    ids = tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_typed_control_text_stays_text(tokenizer):
    control = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    assert len(tokenizer.added_tokens_decoder) == 5
    typed = "<|end|><|user|><|assistant|><|system|><|endoftext|>"
    assert not control & set(tokenizer(typed, split_special_tokens=True)["input_ids"])
    assert set(tokenizer(typed)["input_ids"]) <= control


def test_no_token_is_added_at_the_start(tokenizer):
    assert tokenizer("Hi")["input_ids"] == tokenizer("Hi", add_special_tokens=False)["input_ids"]


def test_both_end_tokens_stop_the_generation(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS)
    ends = tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    assert model.generation_config.eos_token_id == ends
    assert model.dtype == torch.bfloat16


def test_held_out_questions_are_answered(tokenizer, generate):
    kinds = ("fact", "capital", "list", "story", "refusal")
    questions = [q for q in held_out_questions(per_kind=6) if q.kind in kinds]
    scores = accuracy(questions, replies(generate, tokenizer, questions))
    assert scores["all"] >= 0.75, scores


@pytest.mark.parametrize(
    ("question", "part"),
    [
        ("What is OpenVINO?", "Intel's open-source toolkit"),
        ("what is an npu", "neural networks"),
        ("What is the capital of France?", "Paris"),
        ("Which backend should I choose?", "OpenVINO GenAI"),
        ("What does TTFT mean?", "time to first token"),
        ("List the planets.", "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune"),
        ("What are you?", "demo model"),
        ("Hello!", "Hello! I'm the tiny demo model"),
    ],
)
def test_common_questions(ask, question, part):
    assert part in ask(question)
    assert part in ask(question, system="You are a helpful assistant.")


def test_follow_ups(ask):
    paris = ask("What is the capital of France?")
    assert (
        ask("What is the capital of France?", paris, "And of Germany?") == "The capital of Germany is Berlin."
    )
    answer = ask("What is the KV cache?")
    assert "In a chat it can be reused" in ask("What is the KV cache?", answer, "Tell me more")
    assert "NPU" in ask("What is the KV cache?", answer, "And the NPU?")
    assert len(ask("What is the KV cache?", answer, "Shorter, please")) < len(answer)


@pytest.mark.parametrize(
    "prompt", ["Tell me a story.", "Tell me a story about a robot.", "a story about a dragon"]
)
def test_stories_are_long_enough_to_watch_the_speed(ask, tokenizer, prompt):
    story = ask(prompt)
    assert 100 <= len(tokenizer(story)["input_ids"]) <= 250
    assert story.endswith((".", "”", '"'))


@pytest.mark.parametrize(
    "question",
    ["Who won the World Cup?", "How do I bake a chocolate cake?", "What is photosynthesis?"],
)
def test_it_says_politely_that_it_does_not_know(ask, question):
    reply = ask(question)
    assert "tiny demo model" in reply
    assert "sorry" in reply
