"""ONNX Runtime GenAI: Microsoft's generation loop over ONNX models, on the CPU, DirectML or CUDA.

One engine, three devices: the execution provider is chosen when the model is loaded. The token loop is in view below.
A `Generator` owns the KV cache and, on every provider, a buffer of `max_length` tokens for it; it is kept between
turns and rewound to the common prefix, as long as the sampling options stay the same and the buffer is long enough.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from engines.engine import (
    Engine,
    GenerationReport,
    LoadReport,
    OnProgress,
    OnToken,
    OutputError,
    UnavailableError,
)
from engines.protocol import (
    Availability,
    Build,
    Claim,
    DeviceStatus,
    EngineSpec,
    GenerationRequest,
    PreparedModel,
    Progress,
    Target,
    Tunable,
    WeightVariant,
)
from engines.toolkit.process_facts import thread_counts

_SMALL_BLOCKS = {"int4_block_size": 32}
_FAST_KERNELS = {"int4_accuracy_level": 4}
"""int8 activations, on the CPU."""


def _build(provider: str, precision: str, **options: int) -> Build:
    """A folder for one execution provider, as the model builder is told to make it."""
    return Build(precision, provider.upper(), {"execution_provider": provider, **options})


SPEC = EngineSpec(
    name="onnxruntime-genai",
    title="ONNX Runtime GenAI",
    module="engines.onnxruntime_genai_engine",
    devices=("CPU", "DML", "CUDA"),
    precisions=("int4", "fp16", "fp32"),
    model_format="onnxruntime-genai",
    builds=(
        _build("cpu", "int4", **_SMALL_BLOCKS, **_FAST_KERNELS),
        _build("cpu", "fp32"),
        _build("dml", "int4", **_SMALL_BLOCKS),
        _build("dml", "fp16"),
        _build("cuda", "int4", **_SMALL_BLOCKS),
        *(_build("cuda", precision) for precision in ("fp16", "bf16", "fp32")),
    ),
    reuses_kv_cache=True,
    homepage="https://github.com/microsoft/onnxruntime-genai",
    own_memory=("DML", "CUDA"),
    distributions=(
        *("onnxruntime-genai", "onnxruntime-genai-directml", "onnxruntime-genai-cuda"),
        *("onnxruntime", "onnxruntime-directml", "onnxruntime-gpu"),
    ),
    tunables=(
        Tunable("intra_op_num_threads", thread_counts(), ("CPU",), "ONNX Runtime's own choice: all cores"),
    ),
    variants=(
        WeightVariant("block128", "int4", {"int4_block_size": 128}, "fewer scales: fewer bytes, coarser"),
    ),
)
_PRECISIONS = {"CPU": ("int4", "fp32"), "DML": ("int4", "fp16"), "CUDA": ("int4", "fp16")}
_PROVIDERS = {"DML": "dml", "CUDA": "cuda"}
"""Names the library gives its execution providers; the CPU is what is left when there is none."""
_INSTALL = {
    "DML": "Use Windows 10 or 11 with a DirectX 12 graphics card and pip install onnxruntime-genai-directml.",
    "CUDA": "Use a machine with an NVIDIA GPU and pip install onnxruntime-genai-cuda in place of "
    "onnxruntime-genai.",
}
_CACHE_BYTES = 512 * 2**20
"""KV cache buffer made at once: room for follow-up turns without growing it, and not so much as to hurt."""
_PHI_SWITCH = 4096
"""Tokens up to which the long-context Phi-3 and Phi-4-mini use their short position factors."""
_GEMMA_2_WINDOW = 4096
"""The model builder (0.13) gives Gemma 2's sliding window to the odd layers instead of the even ones: as long as it
covers everything that is the same; beyond it the logits are another model's."""
_NOISE = 0.05
"""So far may the logits of a prompt in two pieces be from those of the whole, as a share of their spread."""
_NEVER_END = '{"model": {"eos_token_id": [2147483647]}}'
"""The library ends a sequence for good at an id of the model's; where to stop is the token loop's decision."""


_TELL_PLACEMENT = '{"model": {"decoder": {"session_options": {"log_severity_level": 0}}}}'
"""ONNX Runtime says on stderr which provider each node has gone to, at this level; while it runs it stays silent."""
_PLACED = re.compile(r"odes?(?:\(s\))? placed on \[(\w+)\]\. Number of nodes: (\d+)")
_DEVICE_OF = {"CPUExecutionProvider": "CPU", "DmlExecutionProvider": "DML", "CUDAExecutionProvider": "CUDA"}


class ONNXRuntimeGenAIEngine(Engine):
    spec = SPEC

    def __init__(self) -> None:
        self._model: Any = None
        self._generator: Any = None
        self._options: dict[str, Any] = {}
        self._capacity = 0
        """Tokens the generator's KV cache buffer holds."""
        self._kept: list[int] = []
        """Token ids whose keys and values the generator holds, in order."""
        self._context: int | None = None
        self._roomy_tokens = 0
        self._switch: int | None = None
        self._keeps = True

    def probe(self) -> Availability:
        from engines.toolkit.library_errors import first_sentence
        from engines.toolkit.process_facts import versions

        found = versions(*SPEC.distributions)
        try:
            devices = _devices(found)
        except Exception as error:  # noqa: BLE001 - a probe never raises
            reason = f"ONNX Runtime GenAI cannot be loaded: {first_sentence(error)}"
            return Availability(False, versions=found, reason=reason, remedy="pip install onnxruntime-genai")
        return Availability(any(status.ok for status in devices), devices, found)

    def load(
        self, target: Target, model: PreparedModel, cache_dir: str, on_progress: OnProgress
    ) -> LoadReport:
        from engines.toolkit import library_errors, model_config, process_facts
        from engines.toolkit.overhearing import overhearing

        folder = model.folder
        device = _require_device(target.device)
        model_config.require_files(folder, ("genai_config.json",), SPEC.title)
        settings = model_config.read_json(folder / "genai_config.json")
        decoder = settings.get("model", {}).get("decoder", {})
        model_config.require_files(folder, model_config.genai_files(settings), SPEC.title)
        import onnxruntime_genai

        on_progress(Progress("load", f"Loading onto {target.device}"))
        started = time.perf_counter()
        heard: list[str] = []
        try:
            config = onnxruntime_genai.Config(str(folder))
            config.overlay(_NEVER_END)
            config.overlay(_TELL_PLACEMENT)
            if "intra_op_num_threads" in self.tuning:
                config.overlay(_threads(int(self.tuning["intra_op_num_threads"])))
            config.clear_providers()
            if target.device in _PROVIDERS:
                config.append_provider(_PROVIDERS[target.device])
            with overhearing(heard, 2):
                self._model = onnxruntime_genai.Model(config)
        except Exception as error:
            raise library_errors.load_error(error, folder, SPEC.title, target.device) from error
        compile_s = time.perf_counter() - started
        # What the model builder writes has no config.json: genai_config.json is the folder's own statement.
        facts = model_config.read_config(folder) if (folder / "config.json").is_file() else {}
        self._context = _right_context(settings, facts)
        self._switch = model_config.rope_switch(facts) if facts else _likely_switch(settings)
        self._roomy_tokens = _CACHE_BYTES // max(1, _cache_bytes_per_token(decoder))
        details = {
            "execution_provider": str(self._model.device_type),
            "model_type": str(self._model.type),
            "threads": process_facts.physical_cores() if target.device == "CPU" else None,
            "kv_cache_buffer_tokens": self._capacity_for(1),
        }
        ran_on = _PROVIDERS.get(target.device, "cpu")
        if str(self._model.device_type).lower() != ran_on:
            raise UnavailableError(
                f"ONNX Runtime GenAI loaded the model on {self._model.device_type}, not on {target.device}.",
                _INSTALL.get(target.device),
            )
        claim = claim_heard(heard[0]) or Claim(
            (target.device,), f"The model's device type is {self._model.device_type}."
        )
        return LoadReport(f"{target.device} ({device.title})", self._context, compile_s, details, claim)

    def generate(
        self,
        prompt_ids: Sequence[int],
        request: GenerationRequest,
        stop_ids: frozenset[int],
        on_token: OnToken,
    ) -> GenerationReport:
        from engines.toolkit.library_errors import generation_error

        stops = frozenset() if request.ignore_eos else stop_ids
        try:
            cached = self._ready_generator(prompt_ids, request)
            self._decode(prompt_ids[cached:], request.max_new_tokens, stops, on_token)
        except Exception as error:
            self._forget()
            raise generation_error(error, SPEC.title) from error
        return GenerationReport(cached)

    def score(self, token_ids: Sequence[int]) -> Any:
        """One token at a time: of several, the library keeps the last one's logits only."""
        import numpy as np

        self._make_generator(_search_options(GenerationRequest(())), self._capacity_for(len(token_ids)))
        rows = []
        for token_id in token_ids:
            self._generator.append_tokens(np.array([token_id], dtype=np.int32))
            rows.append(np.array(self._generator.get_logits(), dtype=np.float32).reshape(-1))
        self._forget()
        return np.stack(rows)

    def check_cache(self) -> str:
        from engines.toolkit.kv_cache import KEPT, prove

        found = prove(self._resume, _NOISE)
        self._keeps = found == KEPT
        self._forget()
        return found

    def _resume(self, kept: Sequence[int], ids: Sequence[int]) -> Any | None:
        import numpy as np

        request, cached = GenerationRequest((), max_new_tokens=8), 0
        self._forget()
        self._ready_generator([*ids, *kept], request)
        if kept:
            self._decode(kept, 2, frozenset(), lambda _id: True)  # with a reply behind it, as between turns
            cached = self._ready_generator(ids, request)
            if not cached:
                return None
        self._generator.append_tokens(np.array(ids[cached:], dtype=np.int32))
        return np.array(self._generator.get_logits(), dtype=np.float32).reshape(-1)

    def _decode(
        self, new_ids: Sequence[int], max_new_tokens: int, stop_ids: frozenset[int], on_token: OnToken
    ) -> None:
        """The token loop: `append_tokens` prefills; each `generate_next_token` computes the id before, if any is
        left, and picks one. So the last id of a reply is never in the KV cache, and appending to the sequence
        as it stands would leave it out for good: the next turn must rewind to before it.
        """
        import numpy as np

        generator = self._generator
        generator.append_tokens(np.array(new_ids, dtype=np.int32))
        computing = list(new_ids)
        for _ in range(max_new_tokens):
            generator.generate_next_token()
            token_id = int(generator.get_next_tokens()[0])
            if token_id < 0:
                raise OutputError("The model's output is not a token.", "Convert the model again.")
            self._kept += computing
            computing = [token_id]
            if not on_token(token_id) or token_id in stop_ids:
                return

    def _ready_generator(self, prompt_ids: Sequence[int], request: GenerationRequest) -> int:
        """A generator with room, rewound to what the prompt shares with it; returns those tokens' number."""
        from engines.toolkit.kv_cache import reusable_tokens

        options = _search_options(request)
        need = len(prompt_ids) + request.max_new_tokens
        repeatable_draw = options["do_sample"] and request.seed is not None
        if (
            self._generator is None
            or options != self._options
            or need > self._capacity
            or repeatable_draw  # a draw repeats only from a fresh generator
        ):
            self._make_generator(options, self._capacity_for(need))
            return 0
        usable = request.reuse_kv_cache and self._keeps
        cached = reusable_tokens(self._kept, prompt_ids, self._switch) if usable else 0
        self._generator.rewind_to(cached)
        del self._kept[cached:]
        return cached

    def _make_generator(self, options: Mapping[str, Any], capacity: int) -> None:
        import onnxruntime_genai

        self._forget()  # its buffer first, then the new one
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=capacity, **options)
        self._generator = onnxruntime_genai.Generator(self._model, parameters)
        self._options, self._capacity = dict(options), capacity

    def _capacity_for(self, need: int) -> int:
        """Tokens to make room for: twice the need, or what fits a modest buffer, up to the context."""
        tokens = max(self._roomy_tokens, 2 ** math.ceil(math.log2(max(2, 2 * need))))
        return min(tokens, self._context) if self._context else tokens

    def _forget(self) -> None:
        self._generator, self._capacity, self._kept = None, 0, []


def claim_heard(text: str) -> Claim | None:
    """The device that computes most nodes of the graph, from ONNX Runtime's log; None where it does not say."""
    nodes: dict[str, int] = {}
    for provider, count in _PLACED.findall(text):
        nodes[provider] = nodes.get(provider, 0) + int(count)
    if not nodes:
        return None
    ranked = sorted(nodes, key=lambda provider: -nodes[provider])
    said = ", ".join(f"{nodes[provider]} on {provider}" for provider in ranked)
    main = _DEVICE_OF.get(ranked[0], ranked[0].removesuffix("ExecutionProvider"))
    return Claim((main,), f"ONNX Runtime's providers, by nodes of the graph: {said}.")


def _threads(count: int) -> str:
    return json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": count}}}})


def _search_options(request: GenerationRequest) -> dict[str, Any]:
    """Every option that decides the choice is set, so that nothing is left to the model's genai_config.json."""
    sample = request.temperature > 0
    return {
        "do_sample": sample,
        "temperature": float(request.temperature) if sample else 1.0,
        "top_p": float(request.top_p) if sample and request.top_p is not None else 1.0,
        "top_k": int(request.top_k or 0) if sample else 1,
        "repetition_penalty": float(request.repetition_penalty or 1.0),
        "random_seed": request.seed if sample and request.seed is not None else -1,
        "min_length": 0,
    }


def _right_context(settings: Mapping[str, Any], facts: Mapping[str, Any]) -> int | None:
    """Tokens up to which the folder's graph computes what the model is; None: unknown."""
    from engines.toolkit import model_config

    model = settings.get("model", {})
    context: int | None = model.get("context_length") or model_config.context_tokens(facts)
    if model.get("type") != "gemma2":
        return context
    window = facts.get("sliding_window") or _GEMMA_2_WINDOW
    return min(context or window, window)


def _likely_switch(settings: Mapping[str, Any]) -> int | None:
    """Where a Phi-3 with a long context changes its position factors, which genai_config.json does not state.

    To be on the safe side: what is kept below it is then computed anew above it.
    """
    model = settings.get("model", {})
    is_long_phi = (
        str(model.get("type", "")).startswith("phi") and (model.get("context_length") or 0) > _PHI_SWITCH
    )
    return _PHI_SWITCH if is_long_phi else None


def _cache_bytes_per_token(decoder: Mapping[str, Any]) -> int:
    """Keys and values of one token in all layers, at four bytes a number (the CPU's; others take half)."""
    numbers = (decoder.get(name) or 0 for name in ("num_hidden_layers", "num_key_value_heads", "head_size"))
    return 2 * 4 * math.prod(numbers)


def _devices(found: Mapping[str, str]) -> tuple[DeviceStatus, ...]:
    return tuple(_device(name, found) for name in SPEC.devices)


def _device(name: str, found: Mapping[str, str]) -> DeviceStatus:
    import onnxruntime_genai

    from engines.toolkit.process_facts import processor_name

    title, reason = None, None
    if name == "CPU":
        title = processor_name()
    elif name == "DML":
        # is_dml_available() tells how the package was built, not what the machine has.
        if sys.platform != "win32":
            reason = "DirectML needs Windows."
        elif "onnxruntime-genai-directml" not in found or not onnxruntime_genai.is_dml_available():
            reason = "The DirectML build of ONNX Runtime GenAI is not installed."
        else:
            title = "DirectX 12 device 0"
    elif "onnxruntime-genai-cuda" not in found:
        reason = "The CUDA build of ONNX Runtime GenAI is not installed."
    elif not onnxruntime_genai.is_cuda_available():
        reason = "ONNX Runtime GenAI finds no CUDA device."
    else:
        title = "NVIDIA GPU"
    ok = reason is None
    return DeviceStatus(name, ok, title, reason, None if ok else _INSTALL.get(name), _PRECISIONS[name])


def _require_device(device: str) -> DeviceStatus:
    """The status of `device`; raises UnavailableError unless it can be used here."""
    from engines.toolkit.process_facts import versions

    try:
        statuses = _devices(versions(*SPEC.distributions))
    except ImportError as error:
        raise UnavailableError(
            f"ONNX Runtime GenAI cannot be loaded: {error}.", "pip install onnxruntime-genai"
        ) from error
    status = next((status for status in statuses if status.device == device), None)
    if status is not None and status.ok:
        return status
    here = ", ".join(f"{known.device} ({known.title})" for known in statuses if known.ok)
    reason = status.reason if status else f"ONNX Runtime GenAI knows no device {device}."
    raise UnavailableError(f"{reason} Usable here: {here}.", status.remedy if status else None)


ENGINE = ONNXRuntimeGenAIEngine
