"""Not only Phi-3: tiny Llama, Qwen3 and Mistral models, made from configs, on every engine with equal prompts."""

import json
import shutil
from pathlib import Path

import pytest

from engines import ENGINES
from engines.models.model_names import DEMO_FOLDER
from engines.protocol import Finished, GenerationRequest, Message, Target

TEMPLATES = {
    # the shapes of the families' own templates, in the words of the bundled tokenizer
    "llama": "{{ bos_token }}{% for m in messages %}<|user|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>assistant\n\n{% endif %}",
    "qwen3": "{% for m in messages %}<|user|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>assistant\n{% endif %}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|user|> {{ m['content'] | trim }} "
    "<|assistant|>{% else %} {{ m['content'] | trim }}<|end|>{% endif %}{% endfor %}",
}
CHAT = (
    Message("user", "Hello, 世界! 👩‍💻 <|end|>"),
    Message("assistant", "Hi there."),
    Message("user", "What is an NPU?"),
)
SIZES = {
    "vocab_size": 1664,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 4,
    "pad_token_id": 0,
}
PRECISIONS = {"openvino": "fp16", "onnxruntime-genai": "fp32", "safetensors": "fp32"}


@pytest.fixture(scope="module", params=TEMPLATES)
def family(request, tmp_path_factory) -> Path:
    """A tiny model of one family with the bundled tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen3Config

    config_class = {"llama": LlamaConfig, "qwen3": Qwen3Config, "mistral": MistralConfig}[request.param]
    folder = tmp_path_factory.mktemp("families") / request.param
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config_class(**SIZES)).save_pretrained(folder)
    for name in ("tokenizer.json", "special_tokens_map.json"):
        shutil.copy(DEMO_FOLDER / name, folder)
    tokenizer = json.loads((DEMO_FOLDER / "tokenizer_config.json").read_text())
    tokenizer |= {"chat_template": TEMPLATES[request.param], "bos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def run(manager, target: Target) -> tuple[Finished, list[int]]:
    tokens: list[int] = []

    def note(event) -> None:
        if hasattr(event, "token_id"):
            tokens.append(event.token_id)

    with manager.lease(target) as lease:
        outcome = lease.generate("run", GenerationRequest(CHAT, max_new_tokens=8, ignore_eos=True), note)
    manager.unload(target)
    assert isinstance(outcome, Finished), outcome
    return outcome, tokens


def test_every_engine_runs_it_on_equal_prompts(family, manager):
    outcomes = {}
    for spec in ENGINES:
        if spec.environment != "main" or spec.model_format not in PRECISIONS:
            continue
        target = Target(spec.name, "CPU", PRECISIONS[spec.model_format], str(family))
        outcomes[spec.name] = run(manager, target)
    assert len(outcomes) >= 4
    assert len({outcome.metrics.prompt_sha256 for outcome, _ in outcomes.values()}) == 1
    assert {outcome.metrics.output_tokens for outcome, _ in outcomes.values()} == {8}
    replies = {name: tokens for name, (_, tokens) in outcomes.items()}
    assert replies["onnxruntime-genai"] == replies["transformers"]
    assert replies["openvino-genai"][0] == replies["optimum-intel"][0] == replies["transformers"][0]
