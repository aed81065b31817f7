"""OpenVINO GenAI: Intel's C++ generation library, driven through `LLMPipeline` with token ids in and out.

Off the NPU it runs the stateful pipeline (`ATTENTION_BACKEND="SDPA"`), about twice as fast for a single chat on
a CPU as the default paged attention, and keeps its KV cache between turns. The pipeline only does that in its
chat mode, which insists on building the history itself. But a generation ended by CANCEL is taken back out of that
history while its KV cache stays, and the next full prompt is aligned with the cache, token by token. So every
generation here gets the whole prompt and ends by CANCEL: at the stop id or at the last token wanted.
"""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Mapping, Sequence
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
from engines.protocol import Availability, EngineSpec, GenerationRequest, PreparedModel, Progress, Target

SPEC = EngineSpec(
    name="openvino-genai",
    title="OpenVINO GenAI",
    module="engines.openvino_genai_engine",
    devices=("CPU", "GPU", "NPU", "AUTO"),
    precisions=("int4", "int8", "fp16"),
    model_format="openvino",
    reuses_kv_cache=True,
    homepage="https://github.com/openvinotoolkit/openvino.genai",
)
_FILES = ("openvino_model.xml", "openvino_model.bin", "config.json")
_NPU_PROMPT_TOKENS = 2048
_NPU_REPLY_TOKENS = 512
"""Static limits an NPU model is compiled for; larger ones cost memory and time on every prompt."""


def device_properties(_device: str, cache_dir: str) -> dict[str, Any]:
    """Plugin properties for one chat at a time.

    The rest is left to the plugin. Measured on a Xeon with AMX, where the precision defaults to bf16: f32 decodes
    compressed weights about 1.3 times as fast but prefills 1.4 (124 tokens) to 1.8 times (500) as slowly; other
    quantisation groups, KV cache precisions, streams and pinning gain nothing.
    """
    return {"CACHE_DIR": cache_dir, "PERFORMANCE_HINT": "LATENCY"}


class OpenVINOGenAIEngine(Engine):
    spec = SPEC

    def __init__(self) -> None:
        self._pipeline: Any = None
        self._chat = False
        """Whether the pipeline keeps its KV cache; else every prompt is computed whole (NPU)."""
        self._kept: list[int] = []
        """Token ids the pipeline's KV cache may hold, longest case; empty: nothing kept."""
        self._prompt_limit: int | None = None
        self._switch: int | None = None

    def probe(self) -> Availability:
        from engines.loading import first_sentence, versions

        found = versions("openvino-genai", "openvino")
        try:
            import openvino_genai  # noqa: F401 - whether it loads is the question

            from engines.openvino_devices import list_devices

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
        from engines import loading, openvino_devices

        folder = Path(model.path)
        openvino_devices.require_device(target.device, SPEC.devices)
        loading.require_files(folder, _FILES, SPEC.title)
        config = loading.read_config(folder)
        context = loading.context_tokens(config)
        properties = device_properties(target.device, cache_dir)
        limits: dict[str, Any] = {}
        if openvino_devices.family(target.device) == "NPU":
            limits, self._prompt_limit, context = _npu_limits(context)
        else:
            limits["ATTENTION_BACKEND"] = "SDPA"
        on_progress(Progress("compile", f"Compiling for {target.device}"))
        started = time.perf_counter()
        try:
            self._pipeline = openvino_genai.LLMPipeline(folder, target.device, **properties, **limits)
        except Exception as error:
            raise loading.load_error(error, folder, SPEC.title, target.device) from error
        compile_s = time.perf_counter() - started
        self._chat = not self._prompt_limit
        self._switch = loading.rope_switch(config)
        self._forget()
        device, details = openvino_devices.describe(target.device, properties)
        return LoadReport(device, context, compile_s, {**details, **_readable(limits)})

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

        from engines.loading import generation_error

        if self._prompt_limit and len(prompt_ids) > self._prompt_limit:
            raise PromptError(
                f"The prompt is {len(prompt_ids):,} tokens long; the model was compiled for prompts of up to "
                f"{self._prompt_limit:,} tokens on the NPU.",
                "Shorten the prompt, start a new conversation, or choose another device.",
            )
        if not request.reuse_kv_cache:
            self._forget()
        self._prepare_cache(prompt_ids)
        stops = [] if request.ignore_eos else sorted(stop_ids)
        config = _generation_config(openvino_genai, request, stops)
        streamer = _streamer(openvino_genai, on_token, frozenset(stops), request.max_new_tokens)
        inputs = openvino.Tensor(np.array([prompt_ids], dtype=np.int64))
        try:
            results = self._pipeline.generate(inputs, config, streamer)
        except Exception as error:
            self._forget()
            raise generation_error(error, SPEC.title) from error
        if streamer.error is not None:
            raise streamer.error
        if not self._chat:
            return GenerationReport(cached_prompt_tokens=0)
        self._kept = [*prompt_ids, *streamer.ids]
        return GenerationReport(len(prompt_ids) - results.perf_metrics.get_num_input_tokens())

    def _prepare_cache(self, prompt_ids: Sequence[int]) -> None:
        """Drop the kept KV cache where the pipeline could not carry on from it."""
        from engines.kept_cache import reusable_tokens

        if not self._kept:
            return
        # A prompt the cache holds already leaves the pipeline nothing to compute, and it raises.
        nothing_new = self._kept[: len(prompt_ids)] == list(prompt_ids)
        if nothing_new or not reusable_tokens(self._kept, prompt_ids, self._switch):
            self._forget()

    def _forget(self) -> None:
        self._kept = []
        if self._chat:
            with warnings.catch_warnings():
                # Its successor, ChatHistory, takes text only and would apply a template of its own.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._pipeline.finish_chat()
                self._pipeline.start_chat()


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
    if request.temperature > 0:
        config.do_sample = True
        config.temperature = request.temperature
        config.rng_seed = secrets.randbits(32) if request.seed is None else request.seed
        if request.top_p is not None:
            config.top_p = request.top_p
        if request.top_k:
            config.top_k = request.top_k
    return config


def _streamer(genai: Any, on_token: OnToken, stop_ids: frozenset[int], limit: int) -> Any:
    """A streamer that hands ids to `on_token` and ends every generation by CANCEL (see the module's idea)."""
    running, cancel = genai.StreamingStatus.RUNNING, genai.StreamingStatus.CANCEL

    class TokenStreamer(genai.StreamerBase):
        def __init__(self) -> None:
            super().__init__()
            self.ids: list[int] = []
            self.error: Exception | None = None
            self._done = False

        def write(self, token: int | Sequence[int]) -> Any:
            for token_id in (token,) if isinstance(token, int) else token:
                if not self._done:
                    self._done = not self._take(token_id)
            return cancel if self._done else running

        def _take(self, token_id: int) -> bool:
            self.ids.append(token_id)
            try:
                wanted = on_token(token_id)
            except Exception as error:  # noqa: BLE001 - it must not travel through C++
                self.error = error
                return False
            return wanted and token_id not in stop_ids and len(self.ids) < limit

        def end(self) -> None:
            pass

    return TokenStreamer()


ENGINE = OpenVINOGenAIEngine
