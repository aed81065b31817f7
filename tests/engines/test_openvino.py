"""What the OpenVINO engines leave on disk, and what a prefix cache spares, counted in the library's own steps."""

from itertools import product

import numpy as np
import pytest

from engines.openvino_genai_engine import _cached_tokens
from engines.protocol import Target


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
        assert computed == len(prompt) - _cached_tokens(held, prompt), (cut, new_tokens)


@pytest.mark.parametrize("engine", ["openvino-genai", "optimum-intel"])
def test_no_second_copy_of_the_weights_is_kept_for_the_cpu(manager, data_dir, engine):
    with manager.lease(Target(engine, "CPU", "int8")) as lease:
        assert lease.loaded.details["execution_devices"] == ("CPU",)
    assert not list((data_dir / "cache").rglob("*.blob"))
