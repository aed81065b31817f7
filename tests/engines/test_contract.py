"""One contract for every engine on every device it finds, through real workers, on the bundled model.

What cannot run here is skipped with the engine's own reason; that reason is tested too.
"""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from engines import ENGINES
from engines.environments.environments import Environments
from engines.protocol import Failed, Finished, GenerationRequest, Message, Target, Token
from engines.runtime.manager import EngineFailure, EngineManager
from engines.worker.prompt import PromptEncoder
from tests.helpers.worlds import DEMO_WEIGHTS, OneFolder

DEVICES = [(spec, device) for spec in ENGINES for device in spec.devices]
HARD_CHAT = (
    Message("system", "You are terse. 🤖"),
    Message("user", "I typed <|end|> and <|user|> myself, and 日本語 👩‍👩‍👧, and \ta tab\n\n"),
    Message("assistant", "So you did."),
    Message("user", "What is an NPU?"),
)
_run_ids = (f"run-{number}" for number in itertools.count())


def ask(*texts: str, **options) -> GenerationRequest:
    """A chat of user and assistant texts in turn, greedy, 24 tokens."""
    roles = itertools.cycle(("user", "assistant"))
    messages = tuple(Message(role, text) for role, text in zip(roles, texts, strict=False))
    return GenerationRequest(messages, **{"max_new_tokens": 24, **options})


def status_of(manager, spec, device):
    """The first usable device of this family, else why there is none."""
    availability = manager.availability()[spec.name]
    family = [s for s in availability.device_status if s.device.split(".")[0] == device]
    if not family:
        pytest.skip(availability.reason or f"{spec.title} does not list {device}")
    return next((status for status in family if status.ok), family[0])


def target_on(manager, spec, device) -> Target:
    status = status_of(manager, spec, device)
    if not status.ok:
        pytest.skip(f"{spec.title} on {device}: {status.reason}")
    return Target(spec.name, status.device, (status.precisions or spec.precisions)[0])


@pytest.fixture(scope="module", params=DEVICES, ids=lambda pair: f"{pair[0].name}-{pair[1]}")
def target(request, manager) -> Target:
    return target_on(manager, *request.param)


@pytest.fixture
def generate(manager, target):
    def run(request, on_event=lambda event: None) -> Finished | Failed:
        with manager.lease(target) as lease:
            return lease.generate(next(_run_ids), request, on_event)

    return run


def ids_of(outcome_events) -> list[int]:
    return [event.token_id for event in outcome_events if isinstance(event, Token)]


def test_it_says_where_it_runs(manager, target):
    with manager.lease(target) as lease:
        assert lease.loaded.device
        assert lease.loaded.context_tokens
        assert lease.loaded.warmup_s > 0
        assert manager.specs[target.engine].environment != "main" or lease.loaded.versions[target.engine]
        assert lease.loaded.claim.devices
        assert lease.loaded.claim.evidence
        assert lease.observed is None


def test_where_it_ran_is_proven(manager, target):
    """Here every device is the processor, and it is seen at work."""
    with manager.lease(target) as lease:
        lease.generate(next(_run_ids), ask("Hello!", max_new_tokens=150, ignore_eos=True), lambda event: None)
        placement = lease.observed.placement
    assert placement.requested == target.device
    assert placement.badge == "proven", placement
    if target.device in ("CPU", "AUTO"):
        assert (placement.claimed.upper(), placement.observed) == ("CPU", "CPU")
    assert lease.loaded.claim.evidence in placement.evidence


def test_it_streams_and_stops_at_the_end_of_the_reply(manager, target, generate):
    events = []
    finished = generate(ask("What is an NPU?", max_new_tokens=200), events.append)
    tokens = [event for event in events if isinstance(event, Token)]
    assert finished.finish_reason == "stop"
    assert len(tokens) == finished.metrics.output_tokens > 5
    offsets = finished.metrics.token_offsets_s
    assert list(offsets) == sorted(offsets)
    assert offsets[0] < 0.8 * offsets[-1]  # not all at once at the end
    assert "".join(token.text for token in tokens) == finished.text
    assert "<|" not in finished.text
    with manager.lease(target) as lease:
        assert not PromptEncoder(lease.model.path).stop_ids & set(ids_of(events))


def test_the_limit_ends_the_reply(generate):
    for limit in (7, 1):
        finished = generate(ask("Tell me a story.", max_new_tokens=limit))
        assert (finished.finish_reason, finished.metrics.output_tokens) == ("length", limit)


def test_measuring_runs_past_the_end_of_the_reply(generate):
    finished = generate(ask("Hello!", max_new_tokens=150, ignore_eos=True, reuse_kv_cache=False))
    assert (finished.finish_reason, finished.metrics.output_tokens) == ("length", 150)
    assert not finished.metrics.cached_prompt_tokens


def test_stop_is_obeyed_within_a_token(manager, target):
    def stop_at_the_third_token(lease):
        run_id, seen = next(_run_ids), []

        def listen(event):
            if isinstance(event, Token):
                seen.append(event)
                if len(seen) == 3:
                    lease.cancel(run_id)

        slow = ask("Tell me a story.", max_new_tokens=800, ignore_eos=True)
        return lease.generate(run_id, slow, listen), seen[2].offset_s

    with manager.lease(target) as lease:
        for _attempt in range(
            5
        ):  # thousands of tokens a second: all 800 may be out before the command arrives
            finished, third_s = stop_at_the_third_token(lease)
            if finished.finish_reason == "cancelled":
                break
        after = lease.generate(next(_run_ids), ask("What is an NPU?"), lambda event: None)
    assert finished.finish_reason == "cancelled"
    assert finished.metrics.total_s - third_s < 0.25
    assert after.finish_reason in ("stop", "length")


def test_greedy_replies_repeat(generate):
    first, again = [], []
    fresh = ask("What is an NPU?", reuse_kv_cache=False)
    generate(fresh, first.append)
    generate(ask("Tell me a story."))
    generate(fresh, again.append)
    assert ids_of(first) == ids_of(again)


def test_a_seed_repeats_a_draw(manager, target, generate):
    if not {"temperature", "seed"} <= set(manager.specs[target.engine].honours):
        pytest.skip(f"{target.engine} takes no seed")
    draw = ask("Tell me a story.", temperature=3.0, seed=11, reuse_kv_cache=False)
    assert generate(draw).text == generate(draw).text
    others = {generate(replace(draw, seed=seed)).text for seed in (12, 13, 14)}
    assert others != {generate(draw).text}


def test_sampling_limits_are_obeyed(manager, target, generate):
    if "top_k" not in manager.specs[target.engine].honours:
        pytest.skip(f"{target.engine} takes no top_k")
    greedy = generate(ask("What is an NPU?", reuse_kv_cache=False)).text
    assert generate(ask("What is an NPU?", temperature=5.0, top_k=1, reuse_kv_cache=False)).text == greedy
    assert generate(ask("What is an NPU?", temperature=5.0, top_p=1e-6, reuse_kv_cache=False)).text == greedy
    penalised = ask("What is an NPU?", repetition_penalty=5.0, reuse_kv_cache=False, ignore_eos=True)
    ids = []
    generate(penalised, ids.append)
    assert len(set(ids_of(ids))) > 20  # 24 tokens, hardly any twice


def test_a_follow_up_turn_says_what_a_fresh_worker_says(manager, target, generate):
    spec = manager.specs[target.engine]
    chat, prompts, kept = ["What is an NPU?"], [], []
    for text in ("Tell me a story.", "Thank you!", None):
        finished = generate(ask(*chat, max_new_tokens=100))
        prompts.append(tuple(chat))
        kept.append(finished)
        chat += [finished.text, text]
    edited = (*prompts[1][:2], "What is DirectML?")  # the second question asked again, differently
    prompts.append(edited)
    kept.append(generate(ask(*edited, max_new_tokens=100)))

    manager.unload(target)
    fresh = [generate(ask(*prompt, max_new_tokens=100, reuse_kv_cache=False)) for prompt in prompts]
    assert [run.text for run in kept] == [run.text for run in fresh]
    assert not any(run.metrics.cached_prompt_tokens for run in fresh)
    if spec.reuses_kv_cache and target.device.split(".")[0] != "NPU":
        assert all(run.metrics.cached_prompt_tokens >= 16 for run in kept[1:])


def test_a_prompt_may_come_again_and_again(generate):
    replies = {generate(ask("What is an NPU?")).text for _ in range(3)}
    assert len(replies) == 1


def test_a_prompt_longer_than_the_context_is_refused(manager, target, generate):
    failed = generate(ask("word " * 3000))
    assert isinstance(failed, Failed)
    assert failed.kind == "prompt"
    with manager.lease(target) as lease:
        assert f"{lease.loaded.context_tokens:,}" in failed.message
    assert generate(ask("Hello!")).text


def test_a_full_context_ends_the_reply(manager, target, generate):
    with manager.lease(target) as lease:
        context, encoder = lease.loaded.context_tokens, PromptEncoder(lease.model.path)
    prompt = next(
        prompt
        for words in range(context, 0, -8)
        if len(encoder.encode((prompt := ask("Hello! " * words)).messages)) <= 3 * context // 4
    )
    left = context - len(encoder.encode(prompt.messages))
    finished = generate(replace(prompt, max_new_tokens=2 * context, ignore_eos=True))
    assert (finished.finish_reason, finished.metrics.output_tokens) == ("length", left)


def test_equal_chats_are_equal_tokens_on_every_engine(manager):
    hashes = {}
    for spec, device in DEVICES:
        status = next(
            (s for s in manager.availability()[spec.name].device_status if s.device == device and s.ok), None
        )
        if status is None:
            continue
        target = Target(spec.name, device, (status.precisions or spec.precisions)[0])
        with manager.lease(target) as lease:
            finished = lease.generate(
                next(_run_ids), GenerationRequest(HARD_CHAT, max_new_tokens=1), lambda event: None
            )
        hashes[str(target)] = finished.metrics.prompt_sha256
    assert len(hashes) >= 4
    assert len(set(hashes.values())) == 1, hashes


# --- what goes wrong ---------------------------------------------------------------------------------------


def load_failure(data_dir, folder: Path, target: Target) -> Failed:
    manager = EngineManager(data_dir, OneFolder(folder), Environments(data_dir))
    try:
        with pytest.raises(EngineFailure) as caught, manager.lease(target):
            pass
    finally:
        manager.shutdown()
    return caught.value.failed


@pytest.fixture(scope="module", params=ENGINES, ids=lambda spec: spec.name)
def first_target(request, manager) -> Target:
    """Each engine's first usable device."""
    for device in request.param.devices:
        for status in manager.availability()[request.param.name].device_status:
            if status.device == device and status.ok:
                return Target(request.param.name, device, (status.precisions or request.param.precisions)[0])
    pytest.skip(manager.availability()[request.param.name].reason or "no device here")


def test_a_missing_model_folder_is_one_sentence(data_dir, tmp_path, first_target):
    failed = load_failure(data_dir, tmp_path / "gone", first_target)
    assert failed.kind == "model"
    assert "gone" in failed.message
    assert "\n" not in failed.message


def test_a_folder_that_is_no_model_is_one_sentence(data_dir, tmp_path, manager, first_target):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_WEIGHTS / name, tmp_path)
    (tmp_path / "notes.txt").write_text("not a model")
    failed = load_failure(data_dir, tmp_path, first_target)
    assert failed.kind == "model"
    assert manager.specs[first_target.engine].title in failed.message
    assert failed.remedy


def test_a_truncated_model_is_one_sentence(data_dir, tmp_path, manager, first_target):
    with manager.lease(first_target) as lease:
        folder = shutil.copytree(lease.model.path, tmp_path / "cut")
    weights = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    with weights.open("r+b") as stream:
        stream.truncate(weights.stat().st_size // 2)
    failed = load_failure(data_dir, folder, first_target)
    assert failed.kind == "model", failed
    assert len(failed.message) < 500
    assert "\n" not in failed.message
    assert failed.remedy


@pytest.mark.parametrize(("spec", "device"), DEVICES, ids=lambda value: getattr(value, "name", value))
def test_a_device_that_is_not_here_says_why_and_what_to_do(data_dir, manager, spec, device):
    status = status_of(manager, spec, device)
    if status.ok:
        pytest.skip(f"{spec.title} has {device} here")
    assert status.reason
    assert status.remedy
    failed = load_failure(data_dir, DEMO_WEIGHTS, Target(spec.name, device, spec.precisions[0]))
    assert failed.kind == "unavailable"
    assert status.reason.rstrip(".") in failed.message
    assert failed.remedy
