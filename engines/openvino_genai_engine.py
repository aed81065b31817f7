"""OpenVINO GenAI: Intel's C++ generation library, driven through `LLMPipeline` with token ids in and out.

Off the NPU it runs paged attention with the library's own prefix cache, as the library does by default. The
stateful alternative (`ATTENTION_BACKEND="SDPA"`) is no faster, and on the CPU it computes the new tokens of a
follow-up turn one at a time: 125 tokens after 1,000 kept ones took it six times as long as after none, paged
attention 1.3 times. A pipeline cannot be told to forget, so where a request rules reuse out and something could be
reused, it gets a new one. (A pipeline without prefix cache decodes 4 % slower: that would not be a fair measure.)
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from engines.engine import (
    Engine,
    GenerationReport,
    LoadReport,
    OnProgress,
    OnToken,
    PromptError,
    UnavailableError,
)
from engines.protocol import (
    Availability,
    EngineSpec,
    GenerationRequest,
    PreparedModel,
    Progress,
    Target,
    Tunable,
)
from engines.toolkit.openvino_builds import BUILDS
from engines.toolkit.openvino_tunables import TUNABLES, VARIANTS

SPEC = EngineSpec(
    name="openvino-genai",
    title="OpenVINO GenAI",
    module="engines.openvino_genai_engine",
    devices=("CPU", "GPU", "NPU", "AUTO"),
    precisions=("int4", "int8", "fp16"),
    model_format="openvino",
    honours=(
        *("temperature", "top_p", "top_k", "repetition_penalty", "seed"),
        *("frequency_penalty", "presence_penalty"),
    ),
    builds=BUILDS,
    reuses_kv_cache=True,
    homepage="https://github.com/openvinotoolkit/openvino.genai",
    own_memory=("GPU",),
    distributions=("openvino-genai", "openvino", "openvino-tokenizers"),
    tunables=(
        Tunable(
            "ATTENTION_BACKEND", ("SDPA",), ("CPU", "GPU"), "the stateful model instead of paged attention"
        ),
        *TUNABLES,
    ),
    variants=VARIANTS,
)
_FILES = ("openvino_model.xml", "openvino_model.bin", "config.json")
_NPU_PROMPT_TOKENS = 2048
_NPU_REPLY_TOKENS = 512
"""Static limits an NPU model is compiled for; larger ones cost memory and time on every prompt."""
_CACHE_BLOCK_TOKENS = 32
"""Of the CPU's prefix cache. A GPU's blocks are smaller: there a few more tokens may be spared than are reported."""
_NOISE = 0.1
"""Of logarithms of probabilities: the KV cache is quantised."""
_ANY_NUMBER = 1 << 30
"""Of prompt tokens in one go."""
_WARM_UP_TOKENS = 4
_WARM_UP_IDS = 256
"""Every vocabulary has that many."""


def device_properties(device: str, cache_dir: str) -> dict[str, Any]:
    """Plugin properties for one chat at a time.

    The rest is left to the plugin. Measured on a Xeon with AMX, where the precision defaults to bf16: f32 decodes
    compressed weights about 1.3 times as fast but prefills 1.4 (124 tokens) to 1.8 times (500) as slowly; other
    quantisation groups, KV cache precisions, streams and pinning gain nothing.
    """
    from engines.toolkit.openvino_devices import model_cache

    return {"PERFORMANCE_HINT": "LATENCY", **model_cache(device, cache_dir)}


class OpenVINOGenAIEngine(Engine):
    spec = SPEC

    def __init__(self) -> None:
        self._pipeline: Any = None
        self._open: Callable[[bool], Any] | None = None
        """Makes a pipeline, with an empty prefix cache or without one; None where pipelines have none (NPU)."""
        self._cache: PrefixCache | None = None
        """What the pipeline's cache holds; None: it has none, or nobody knows."""
        self._beyond: bool | None = None
        """Whether what is kept was computed beyond the switch; None: nothing is kept."""
        self._switch: int | None = None
        """Prompt length above which the model's position factors change."""
        self._prompt_limit: int | None = None

    def probe(self) -> Availability:
        from engines.toolkit.library_errors import first_sentence
        from engines.toolkit.process_facts import versions

        found = versions(*SPEC.distributions)
        try:
            import openvino_genai  # noqa: F401 - whether it loads is the question

            from engines.toolkit.openvino_devices import list_devices

            devices = list_devices(SPEC.devices)
        except Exception as error:  # noqa: BLE001 - a probe never raises
            reason = f"OpenVINO GenAI cannot be loaded: {first_sentence(error)}"
            return Availability(False, versions=found, reason=reason, remedy="pip install openvino-genai")
        return Availability(any(status.ok for status in devices), devices, found)

    def load(
        self, target: Target, model: PreparedModel, cache_dir: str, on_progress: OnProgress
    ) -> LoadReport:
        try:
            import openvino_genai
        except ImportError as error:
            raise UnavailableError(
                f"OpenVINO GenAI cannot be loaded: {error}.", "pip install openvino-genai"
            ) from error
        from engines.toolkit import library_errors, model_config, openvino_devices
        from engines.toolkit.overhearing import overhearing

        folder = model.folder
        openvino_devices.require_device(target.device, SPEC.devices)
        model_config.require_files(folder, _FILES, SPEC.title)
        config = model_config.read_config(folder)
        context = model_config.context_tokens(config)
        tuning = dict(self.tuning)
        backend = tuning.pop("ATTENTION_BACKEND", "PA")
        properties = {**device_properties(target.device, cache_dir), **tuning}
        on_progress(Progress("compile", f"Compiling for {target.device}"))
        started = time.perf_counter()
        heard: list[str] = []
        try:
            with overhearing(heard, 1, openvino_devices.TELL_COMPILED):
                if openvino_devices.family(target.device) == "NPU":
                    limits, self._prompt_limit, context = _npu_limits(context)
                    self._pipeline = openvino_genai.LLMPipeline(folder, target.device, **properties, **limits)
                else:
                    self._switch = model_config.rope_switch(config)
                    limits = self._open_paged_or_stateful(
                        openvino_genai, folder, target.device, properties, paged=backend == "PA"
                    )
        except Exception as error:
            raise library_errors.load_error(error, folder, SPEC.title, target.device) from error
        compile_s = time.perf_counter() - started
        device, details = openvino_devices.describe(target.device, properties)
        claim = openvino_devices.claim_heard(heard[0]) or openvino_devices.claim_of_stand_in(details)
        return LoadReport(device, context, compile_s, {**details, **_readable(limits)}, claim)

    def _open_paged_or_stateful(
        self, genai: Any, folder: Path, device: str, properties: Mapping[str, Any], *, paged: bool
    ) -> dict[str, str]:
        """Not every architecture can be turned into paged attention; the others compute every prompt whole."""
        self._open = partial(_paged_pipeline, genai, folder, device, properties)
        try:
            if not paged:
                raise RuntimeError("the stateful model is wanted")
            self._reopen()
            return {"ATTENTION_BACKEND": "PA"}
        except RuntimeError:
            self._open = None
            self._pipeline = genai.LLMPipeline(folder, device, ATTENTION_BACKEND="SDPA", **properties)
            return {"ATTENTION_BACKEND": "SDPA"}

    def check_cache(self) -> str:
        """The library hands out no logits, but the probability of what it chooses."""
        from engines.toolkit.kv_cache import DIFFERS, FAILS, KEPT, proof_ids

        if self._open is None:
            return "not kept: every prompt is computed whole"
        ids, scores = proof_ids(_CACHE_BLOCK_TOKENS + 10), []
        try:
            for _ in ("whole", "with all that was kept"):
                scores.append(self._score_of_choice(ids))
        except Exception:  # noqa: BLE001 - whatever goes wrong, then nothing is kept
            found = FAILS
        else:
            found = KEPT if abs(scores[0] - scores[1]) <= _NOISE else DIFFERS
        if found == KEPT:
            self._cache = PrefixCache()
            self._cache.keep(ids)
        else:
            self._reopen(keeping=False)
            self._open = self._cache = None
        return found

    def _score_of_choice(self, ids: Sequence[int]) -> float:
        """Logarithm of the probability of the likeliest token behind `ids`."""
        import numpy as np
        import openvino
        import openvino_genai

        request = GenerationRequest((), max_new_tokens=1, ignore_eos=True)
        config = _generation_config(openvino_genai, request, [])
        config.logprobs = 1
        result = self._pipeline.generate(openvino.Tensor(np.array([ids], dtype=np.int64)), config)
        return float(result.scores[0])

    def make_ready(self, prompt_ids: Sequence[int], request: GenerationRequest) -> None:
        if self._open is None:
            return
        # LongRoPE's factors depend on the prompt's length: what was kept on the other side is of no use.
        beyond = self._switch is not None and len(prompt_ids) > self._switch
        unwanted = (
            not request.reuse_kv_cache and self._cache is not None and self._cache.spares(prompt_ids) != 0
        )
        if self._cache is None or unwanted or self._beyond not in (None, beyond):
            self._reopen()
            self._warm_up(prompt_ids)
        self._beyond = beyond

    def _reopen(self, keeping: bool = True) -> None:
        self._pipeline, self._cache, self._beyond = None, None, None  # its memory first, then the new one
        if self._open is not None:
            self._pipeline, self._cache = self._open(keeping), PrefixCache()

    def _warm_up(self, prompt_ids: Sequence[int]) -> None:
        """A new pipeline's first tokens are slow, and so is its first prompt of any length."""
        other = (prompt_ids[0] + 1) % _WARM_UP_IDS
        request = GenerationRequest((), max_new_tokens=_WARM_UP_TOKENS, ignore_eos=True)
        length = max(1, len(prompt_ids) - _WARM_UP_TOKENS)  # it must fit into the context, too
        self.generate([other] * length, request, frozenset(), lambda _token_id: True)

    def generate(
        self,
        prompt_ids: Sequence[int],
        request: GenerationRequest,
        stop_ids: frozenset[int],
        on_token: OnToken,
    ) -> GenerationReport:
        import numpy as np
        import openvino
        import openvino_genai

        from engines.toolkit.library_errors import generation_error

        if self._prompt_limit and len(prompt_ids) > self._prompt_limit:
            raise PromptError(
                f"The prompt is {len(prompt_ids):,} tokens long; the model was compiled for prompts of up to "
                f"{self._prompt_limit:,} tokens on the NPU.",
                "Shorten the prompt, start a new conversation, or choose another device.",
            )
        stops = [] if request.ignore_eos else sorted(stop_ids)
        config = _generation_config(openvino_genai, request, stops)
        streamer = _streamer(openvino_genai, on_token)
        inputs = openvino.Tensor(np.array([prompt_ids], dtype=np.int64))
        cached = 0 if self._cache is None else self._cache.spares(prompt_ids)
        try:
            self._pipeline.generate(inputs, config, streamer)
        except Exception as error:
            self._cache = None
            raise generation_error(error, SPEC.title) from error
        if streamer.error is not None:
            raise streamer.error
        if self._cache is not None:
            self._cache.keep([*prompt_ids, *streamer.ids][:-1])  # the last one was chosen, not computed
        return GenerationReport(cached)


def _paged_pipeline(
    genai: Any, folder: Path, device: str, properties: Mapping[str, Any], keeping: bool = True
) -> Any:
    """A pipeline for one chat at a time: a prompt goes through whole, the KV cache grows as it is needed."""
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = keeping
    scheduler.max_num_batched_tokens = _ANY_NUMBER
    scheduler.dynamic_split_fuse = False
    return genai.LLMPipeline(folder, device, scheduler_config=scheduler, ATTENTION_BACKEND="PA", **properties)


class PrefixCache:
    """What is known of the library's prefix cache, which does not tell how much of a prompt it spared.

    It keeps whole blocks, and the last, unfinished one as a whole. The last run's are surely there; those of older
    runs may be, until their place is needed.
    """

    def __init__(self) -> None:
        self._last: Sequence[int] = ()
        self._ever: set[int] = set()
        """A hash for each whole block that was ever kept, with all before it."""

    def keep(self, ids: Sequence[int]) -> None:
        """Note the token ids, in order, whose keys and values a run has left."""
        self._last = ids
        self._ever.update(_block_hashes(ids))

    def spares(self, prompt: Sequence[int]) -> int | None:
        """How many of the prompt's tokens need not be computed; None when an older run may spare more."""
        limit = min(len(self._last), len(prompt))
        common = next((i for i in range(limit) if self._last[i] != prompt[i]), limit)
        surely = common if common == len(self._last) else common - common % _CACHE_BLOCK_TOKENS
        possibly = 0
        for block in _block_hashes(prompt):
            if block not in self._ever:
                break
            possibly += _CACHE_BLOCK_TOKENS
        if possibly > surely:
            return None
        return min(surely, len(prompt) - 1)  # the last one is computed in any case


def _block_hashes(ids: Sequence[int]) -> Iterator[int]:
    so_far = 0
    for start in range(0, len(ids) - _CACHE_BLOCK_TOKENS + 1, _CACHE_BLOCK_TOKENS):
        so_far = hash((so_far, *ids[start : start + _CACHE_BLOCK_TOKENS]))
        yield so_far


def _npu_limits(context: int | None) -> tuple[dict[str, Any], int, int]:
    """Properties, longest prompt and context (tokens) of a model compiled for the NPU's static shapes."""
    reply = min(_NPU_REPLY_TOKENS, (context or 4 * _NPU_REPLY_TOKENS) // 4)
    prompt = min(_NPU_PROMPT_TOKENS, (context or _NPU_PROMPT_TOKENS + reply) - reply)
    limits = {"MAX_PROMPT_LEN": prompt, "MIN_RESPONSE_LEN": reply, "GENERATE_HINT": "BEST_PERF"}
    return limits, prompt, prompt + reply


def _readable(limits: Mapping[str, Any]) -> dict[str, Any]:
    return {name.lower(): value for name, value in limits.items()}


def _generation_config(genai: Any, request: GenerationRequest, stop_ids: Sequence[int]) -> Any:
    config = genai.GenerationConfig()
    config.max_new_tokens = request.max_new_tokens
    config.ignore_eos = not stop_ids
    config.stop_token_ids = set(stop_ids)
    config.apply_chat_template = False
    if request.repetition_penalty is not None:
        config.repetition_penalty = request.repetition_penalty
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(request, name) is not None:
            setattr(config, name, getattr(request, name))
    if request.temperature > 0:
        config.do_sample = True
        config.temperature = request.temperature
        config.rng_seed = secrets.randbits(32) if request.seed is None else request.seed
        if request.top_p is not None:
            config.top_p = request.top_p
        if request.top_k:
            config.top_k = request.top_k
    return config


def _streamer(genai: Any, on_token: OnToken) -> Any:
    """A streamer that hands ids to `on_token` and cancels at its no."""
    running, cancel = genai.StreamingStatus.RUNNING, genai.StreamingStatus.CANCEL

    class TokenStreamer(genai.StreamerBase):
        def __init__(self) -> None:
            super().__init__()
            self.ids: list[int] = []
            self.error: Exception | None = None
            self._wanted = True

        def write(self, token: int | Sequence[int]) -> Any:
            for token_id in (token,) if isinstance(token, int) else token:
                if self._wanted:
                    self.ids.append(token_id)
                    self._wanted = self._hand_over(token_id)
            return running if self._wanted else cancel

        def _hand_over(self, token_id: int) -> bool:
            try:
                return on_token(token_id)
            except Exception as error:  # noqa: BLE001 - it must not travel through C++
                self.error = error
                return False

        def end(self) -> None:
            pass

    return TokenStreamer()


ENGINE = OpenVINOGenAIEngine
