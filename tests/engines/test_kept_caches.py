"""What is kept between turns gives the logits of computing the whole prompt, or it is not kept."""

import shutil

import pytest

from engines import ENGINES
from engines.protocol import GenerationRequest, PreparedModel, Target
from engines.toolkit.kv_cache import DIFFERS, FAILS, FORGETS, KEPT, prove
from engines.transformers_engine import TransformersEngine
from tests.helpers.worlds import DEMO_WEIGHTS

SIZES = {
    "vocab_size": 1664,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 4,
    "pad_token_id": 0,
}


def _configs():
    import transformers as t

    small = {**SIZES, "head_dim": 16}
    layers = ["sliding_attention", "full_attention"]
    return {
        "llama": t.LlamaConfig(**SIZES),
        "dynamic-ntk": t.LlamaConfig(
            **{**SIZES, "max_position_embeddings": 48},
            rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        ),
        "lfm2": t.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
        "gemma3": t.Gemma3TextConfig(**small, sliding_window=16, layer_types=layers),
        "mistral": t.MistralConfig(**small, sliding_window=24),
        "qwen3-next": t.Qwen3NextConfig(
            **small, layer_types=["linear_attention", "full_attention"], num_experts=0, linear_num_value_heads=4,
            linear_num_key_heads=2, linear_key_head_dim=16, linear_value_head_dim=16,
        ),
        "granite-hybrid": t.GraniteMoeHybridConfig(
            **SIZES, layer_types=["mamba", "attention"], mamba_n_heads=8, mamba_d_head=16, mamba_d_state=16,
            num_local_experts=0, shared_intermediate_size=128,
        ),
        "mamba": t.MambaConfig(**SIZES, state_size=8),
        "mamba2": t.Mamba2Config(**SIZES, num_heads=8, head_dim=16, state_size=16, n_groups=1, chunk_size=16),
        "rwkv": t.RwkvConfig(**SIZES),
        "bamba": t.BambaConfig(
            **SIZES, mamba_n_heads=8, mamba_d_head=16, mamba_d_state=16, attn_layer_indices=[1]
        ),
        "minimax": t.MiniMaxConfig(**small, num_local_experts=2, num_experts_per_tok=1, block_size=16),
    }  # fmt: skip


FAMILIES = ("llama", "dynamic-ntk", "lfm2", "gemma3", "mistral", "qwen3-next", "granite-hybrid")


def made(path, family):
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(_configs()[family]).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_WEIGHTS / name, path)
    return path


def loaded(folder):
    engine = TransformersEngine()
    model = PreparedModel(str(folder), "m", "fp32", "safetensors")
    engine.load(Target("transformers", "CPU", "fp32", "m"), model, str(folder), lambda progress: None)
    return engine


def reply(engine, prompt, **options):
    ids = []
    request = GenerationRequest((), max_new_tokens=6, ignore_eos=True, **options)
    report = engine.generate(prompt, request, frozenset(), lambda i: ids.append(i) or True)
    return ids, report.cached_prompt_tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_turn_is_what_computing_it_whole_gives(tmp_path, family):
    engine = loaded(made(tmp_path / family, family))
    found = engine.check_cache()
    assert found in (KEPT, DIFFERS, FAILS)
    first = [3 + (n * 37) % 400 for n in range(60)]
    said, _ = reply(engine, first)
    chats = ([*first, *said, 7, 8], [*first[:40], 9, 10, 11], [*first, *said, 12])
    kept = [reply(engine, chat) for chat in chats]
    whole = [reply(engine, chat, reuse_kv_cache=False)[0] for chat in chats]
    assert [ids for ids, _ in kept] == whole
    if found != KEPT:
        assert not any(cached for _, cached in kept)
    if family == "llama":
        assert found == KEPT
        assert all(cached >= 16 for _, cached in kept)


@pytest.mark.parametrize("family", ["llama", "mamba", "mamba2", "rwkv", "bamba", "minimax"])
def test_a_reply_is_the_librarys_own_whatever_its_state_is_called(tmp_path, family):
    import torch

    engine = loaded(made(tmp_path / family, family))
    found = engine.check_cache()
    prompt = [3 + (n * 37) % 400 for n in range(40)]
    inputs = torch.tensor([prompt])
    ids = engine._model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert reply(engine, prompt)[0] == ids[0, len(prompt) :].tolist()
    assert reply(engine, [*prompt, 5])[1] == (40 if family == "llama" else 0)
    assert (found == FORGETS) == (family == "bamba")  # of transformers 5.5


def test_a_long_prompt_leaves_no_trace_in_a_short_one(tmp_path):
    folder = made(tmp_path / "m", "dynamic-ntk")
    long, short = ([3 + (n * 37) % 400 for n in range(count)] for count in (120, 30))
    fresh, used = loaded(folder), loaded(folder)
    reply(used, long)
    assert reply(used, short) == reply(fresh, short)
    assert abs(used.score(long) - fresh.score(long)).max() < 1e-4
    assert abs(used.score(short) - fresh.score(short)).max() < 1e-4


def test_an_architecture_without_fused_attention_loads(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, GptOssConfig

    torch.manual_seed(3)
    config = GptOssConfig(**{**SIZES, "head_dim": 16}, num_local_experts=2, num_experts_per_tok=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert len(reply(loaded(tmp_path), [5, 6, 7])[0]) == 6


def test_the_check_finds_a_state_that_is_lost_at_the_seam():
    def resume(lost):
        def compute(kept, ids):
            import numpy as np

            seen = ids if not kept else ids[lost:]
            return np.cumsum(np.sin(np.outer(seen, np.arange(1, 40))), axis=0)[-1]

        return compute

    assert prove(resume(0), 1e-3) == KEPT
    assert prove(resume(1), 1e-3) == DIFFERS
    assert prove(lambda kept, ids: None if kept else [0.0, 1.0], 1e-3) == KEPT
    assert prove(lambda kept, ids: [float("nan")] * 9, 1e-3) == DIFFERS
    assert prove(lambda kept, ids: 1 / 0, 1e-3) == FAILS


def test_every_engine_says_with_its_runs_what_the_check_found(manager):
    asked = 0
    for spec in ENGINES:
        devices = manager.availability()[spec.name].devices
        if spec.model_elsewhere or not devices or spec.environment != "main":
            continue
        with manager.lease(Target(spec.name, devices[0], spec.precisions[0])) as lease:
            assert lease.loaded.details["kv_cache"] == KEPT
        asked += 1
    assert asked >= 4
