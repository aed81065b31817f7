"""How much of a kept KV cache a prompt may use, and what model folders say about their length."""

import errno

import pytest

from engines.toolkit.kv_cache import LEAST_TOKENS, reusable_tokens
from engines.toolkit.library_errors import first_sentence, is_memory_error
from engines.toolkit.model_config import context_tokens, rope_grows, rope_switch

KEPT = list(range(100, 160))


def test_a_follow_up_uses_all_that_is_kept():
    assert reusable_tokens(KEPT, [*KEPT, 1, 2, 3]) == len(KEPT)


def test_an_edited_chat_uses_what_comes_before_the_edit():
    assert reusable_tokens(KEPT, [*KEPT[:40], 1, *KEPT[41:]]) == 40


@pytest.mark.parametrize("length", [1, 30, 60])
def test_the_last_prompt_token_is_always_computed(length):
    reusable = reusable_tokens(KEPT, KEPT[:length])
    assert reusable == (length - 1 if length > LEAST_TOKENS else 0)


def test_a_template_in_common_is_not_a_follow_up():
    assert reusable_tokens(KEPT, [*KEPT[: LEAST_TOKENS - 1], 1, 2, 3]) == 0
    assert reusable_tokens([], KEPT) == 0


@pytest.mark.parametrize(("prompt_tokens", "reusable"), [(61, 60), (64, 60), (65, 0)])
def test_nothing_is_kept_across_a_change_of_position_factors(prompt_tokens, reusable):
    prompt = (KEPT + [1] * 60)[:prompt_tokens]
    assert reusable_tokens(KEPT, prompt, switch=64) == reusable


@pytest.mark.parametrize(
    ("kept", "prompt_tokens", "reusable"), [(60, 64, 60), (60, 65, 0), (70, 80, 0), (70, 60, 0)]
)
def test_factors_that_grow_with_every_token_leave_nothing_to_keep(kept, prompt_tokens, reusable):
    ids = list(range(100))
    assert reusable_tokens(ids[:kept], ids[:prompt_tokens], switch=64, grows=True) == reusable
    assert rope_grows({"rope_scaling": {"type": "dynamic", "factor": 2.0}})
    assert rope_grows({"text_config": {"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}})
    assert not rope_grows({"rope_scaling": LONG})


LONG = {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}


@pytest.mark.parametrize(
    ("config", "switch"),
    [
        ({"rope_scaling": LONG, "original_max_position_embeddings": 4096, "max_position_embeddings": 131072}, 4096),
        ({"rope_parameters": {**LONG, "original_max_position_embeddings": 4096}}, 4096),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 4096}}, 4096),
        ({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 2048}, 2048),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 8192}, 8192),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "longrope"}, "sliding_attention": {}},
             "original_max_position_embeddings": 4096},
            4096,
        ),
        (
            {"rope_parameters": {"full_attention": {**LONG, "original_max_position_embeddings": 1024},
                                 "sliding_attention": {"rope_type": "default"}}},
            1024,
        ),
        ({"text_config": {"rope_scaling": LONG, "original_max_position_embeddings": 4096}}, 4096),
        ({"text_config": {"rope_parameters": LONG}, "original_max_position_embeddings": 512}, 512),
        ({"llm_config": {"rope_scaling": LONG, "max_position_embeddings": 256}}, 256),
        ({"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 4096}}, None),
        ({"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 8192}}, None),
        ({"rope_scaling": None, "rope_parameters": None}, None),
    ],
)  # fmt: skip
def test_the_switch_is_read_wherever_a_config_states_it(config, switch):
    assert rope_switch(config) == switch


def test_only_longrope_models_change_their_position_factors():
    long = {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4096}
    assert rope_switch(long) == 4096
    assert rope_switch({"rope_scaling": None, "original_max_position_embeddings": 1024}) is None
    assert rope_switch({"rope_parameters": {"rope_type": "default"}}) is None


def test_the_context_is_read_under_any_of_its_names():
    assert context_tokens({"max_position_embeddings": 1024}) == 1024
    assert context_tokens({"n_positions": 2048}) == 2048
    assert context_tokens({}) is None


def test_a_library_message_is_cut_to_its_telling_line():
    raw = "Exception from src/core.cpp:112:\nCheck 'x' failed at y.cpp:3:\nThe file is broken\n"
    assert first_sentence(RuntimeError(raw)) == "The file is broken"
    assert len(first_sentence(RuntimeError("x" * 1000))) == 240
    assert first_sentence(RuntimeError("")) == "RuntimeError"


@pytest.mark.parametrize(
    "said",
    [
        "DefaultCPUAllocator: not enough memory: you tried to allocate 6442450944 bytes.",
        "[WinError 1455] Die Auslagerungsdatei ist zu klein, um diesen Vorgang durchzuführen",
        "页面文件太小，无法完成操作。 (os error 1455)",
        "Exception(3) tid(4304) 8007000E Für diesen Vorgang sind nicht genügend Speicherressourcen verfügbar.",
        str(OSError(errno.ENOMEM, "Cannot allocate memory")),
    ],
)
def test_memory_that_ran_out_is_known_in_any_language(said):
    assert is_memory_error(RuntimeError(said))
    assert not is_memory_error(RuntimeError("[WinError 126] Das angegebene Modul wurde nicht gefunden"))
