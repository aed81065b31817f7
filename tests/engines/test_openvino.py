"""What the OpenVINO engines leave on disk, and what a prefix cache spares, counted in the library's own steps."""

import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from engines.environments.environments import Environments
from engines.openvino_genai_engine import PrefixCache
from engines.protocol import Target
from engines.runtime.manager import EngineManager
from tests.helpers.worlds import OneFolder, ask


@pytest.fixture(scope="module")
def compute(manager):
    """Computes ids, one token a step, and returns how many steps the prompt took and the reply."""
    import openvino
    from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig

    with manager.lease(Target("openvino-genai", "CPU", "int8")) as lease:
        folder = lease.model.path
    scheduler = SchedulerConfig()
    scheduler.enable_prefix_caching, scheduler.max_num_batched_tokens = True, 1
    pipeline = ContinuousBatchingPipeline(folder, scheduler, "CPU")

    def compute(ids: list[int], reply_tokens: int) -> tuple[int, list[int]]:
        config = GenerationConfig(max_new_tokens=reply_tokens, ignore_eos=True)
        handle = pipeline.add_request(0, openvino.Tensor(np.array([ids], dtype=np.int64)), config)
        steps, reply = 0, []
        while pipeline.has_non_finished_requests():
            pipeline.step()
            steps += 1
            if handle.can_read():
                reply += next(iter(handle.read().values())).generated_ids
        return steps - (reply_tokens - 1), reply

    return compute


@pytest.mark.parametrize("length", [20, 31, 32, 33, 50, 64, 100])
@pytest.mark.parametrize("reply_tokens", [1, 5])
def test_the_tokens_reported_as_cached_are_not_computed(compute, length, reply_tokens):
    rng = np.random.default_rng([length, reply_tokens])

    def random_ids(count: int) -> list[int]:
        return rng.integers(300, 1500, count).tolist()

    for cut, new_tokens in product((0, 1, 2, 40), (0, 30)):
        first = random_ids(length)  # no older run may share anything with it
        _, reply = compute(first, reply_tokens)
        held = [*first, *reply][:-1]
        prompt = [*held[: max(1, len(held) - cut)], *random_ids(new_tokens)]
        computed, _ = compute(prompt, 1)
        cache = PrefixCache()
        cache.keep(held)
        assert computed == len(prompt) - cache.spares(prompt), (cut, new_tokens)


def test_what_an_older_run_may_spare_is_not_claimed():
    cache = PrefixCache()
    older, newer = list(range(100)), list(range(500, 600))
    assert cache.spares(older) == 0
    cache.keep(older)
    assert cache.spares([*older, 7]) == 100
    cache.keep(newer)
    assert cache.spares([*newer, 7]) == 100
    assert cache.spares([*older, 7]) is None
    assert cache.spares([*older[:40], 7]) is None
    assert cache.spares([*older[:20], 7]) == 0


@pytest.mark.parametrize("engine", ["openvino-genai", "optimum-intel"])
def test_no_second_copy_of_the_weights_is_kept_for_the_cpu(manager, data_dir, engine):
    with manager.lease(Target(engine, "CPU", "int8")) as lease:
        assert lease.loaded.details["execution_devices"] == ("CPU",)
    assert not list((data_dir / "cache" / "compiled").glob(f"{engine}-CPU-*/**/*.blob"))


def decompose_attention(source: Path, folder: Path) -> None:
    """A copy of an OpenVINO model whose attention is written out, which paged attention cannot be made of."""
    import openvino
    from openvino import opset13 as ops

    core = openvino.Core()
    model = core.read_model(source / "openvino_model.xml")
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            query, key, value, mask, *scale = [node.input_value(i) for i in range(node.get_input_size())]
            factor = scale[0] if scale else ops.constant(query.get_partial_shape()[3].get_length() ** -0.5)
            scores = ops.add(ops.matmul(ops.multiply(query, factor), key, False, True), mask)
            attended = ops.matmul(ops.softmax(scores, 3), value, False, False)
            for user in node.output(0).get_target_inputs():
                user.replace_source_output(attended.output(0))
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("openvino_model.*"))
    openvino.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)


def test_a_model_that_paged_attention_cannot_take_runs_without_prefix_cache(manager, data_dir, tmp_path):
    target = Target("openvino-genai", "CPU", "int8")
    request = ask("What is an NPU?", max_new_tokens=30, reuse_kv_cache=False)
    with manager.lease(target) as lease:
        decompose_attention(Path(lease.model.path), tmp_path / "decomposed")
        wanted = lease.generate("paged", request, lambda event: None)
    other = EngineManager(data_dir, OneFolder(tmp_path / "decomposed"), Environments(data_dir))
    try:
        with other.lease(target) as lease:
            runs = [
                lease.generate("plain", replace(request, reuse_kv_cache=True), lambda event: None)
                for _ in range(2)
            ]
            assert lease.loaded.details["attention_backend"] == "SDPA"
    finally:
        other.shutdown()
    assert [run.text for run in runs] == [wanted.text] * 2
    assert [run.metrics.cached_prompt_tokens for run in runs] == [0, 0]
