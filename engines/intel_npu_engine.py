"""Intel NPU Acceleration Library 1.4.0: Phi-3's linear layers on the NPU, the rest in torch on the CPU.

The library is archived upstream and lives in an environment of its own (engines/envs/intel_npu.txt). It
compiles one blob per layer shape *and token count*, each a copy of the weights or so in memory, and says
"for the NPU" whatever it runs on. So the token loop is ours: prompts go through in pieces of two fixed sizes,
padded at the end (causal attention never sees the padding, the KV cache is cropped), three shapes in all,
and the device named is the one the library's runtime was told to compile for.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engines.engine import (
    Engine,
    GenerationReport,
    LoadReport,
    ModelError,
    OnProgress,
    OnToken,
    OutOfMemoryError,
    OutputError,
    UnavailableError,
)
from engines.protocol import (
    Availability,
    DeviceStatus,
    EngineSpec,
    GenerationRequest,
    PreparedModel,
    Progress,
    Target,
)

SPEC = EngineSpec(
    name="intel-npu",
    title="Intel NPU Acceleration Library",
    module="engines.intel_npu_engine",
    environment="intel-npu",
    devices=("NPU", "CPU"),
    precisions=("int8", "fp16", "int4"),
    model_format="safetensors",
    reuses_kv_cache=True,
    homepage="https://github.com/intel/intel-npu-acceleration-library",
)

ADVICE = (
    "For the NPU, prefer OpenVINO GenAI where both work: it is maintained and runs the whole model there. "
    "This library is archived upstream, gets no fixes, and moves only the linear layers to the NPU."
)

PREFILL_SIZES = (64, 256)
"""Token counts a prompt is cut into and padded to. Measured: a pass over 64 costs about what one over 512
does (it is bound by moving weights), a new size 3-4 s and a third of the weights in memory for 0.4 B."""

MINIMUM_DRIVER = 2408
_PEAK_BYTES_PER_PARAMETER = {"fp16": 5.6, "int8": 4.6, "int4": 4.0}
"""Measured at 0.39 B parameters: loading takes 3.8 (fp16 weights, once more while lowering), then fp16's
compiled copies 1.7 on top; int8 and int4 stay below the loading peak for a while."""
_BASE_BYTES = 500_000_000
_VERSIONS = ("intel-npu-acceleration-library", "neural-compressor", "transformers", "torch", "tokenizers")
_PHI_ONLY = "Choose a Phi-3 model, or OpenVINO GenAI, which runs many more."
_FALLBACK = "the library's own fallback; needs no NPU"


class IntelNPUEngine(Engine):
    """One causal language model, lowered by the library to the NPU or its CPU fallback."""

    spec = SPEC

    def __init__(self) -> None:
        self._model: Any = None
        self._cache: Any = None
        self._cached_ids: list[int] = []
        self._context = 0

    def probe(self) -> Availability:
        try:
            with _quiet():
                import intel_npu_acceleration_library  # noqa: F401
            return Availability(True, (_npu_status(), _cpu_status()), _versions())
        except Exception as error:  # noqa: BLE001 - a DLL, a pin, a driver: whatever it is, it is the reason
            return Availability(
                False,
                versions=_versions(),
                reason=f"The library does not load: {type(error).__name__}: {str(error)[:200]}",
                remedy="Repair its environment: python app.py setup intel-npu",
            )

    def load(
        self, target: Target, model: PreparedModel, cache_dir: str, on_progress: OnProgress
    ) -> LoadReport:
        folder = Path(model.path).resolve()
        config = _read_config(folder)
        _check_memory(folder, target.precision)
        # The runtime's blob cache and neural-compressor's workspace are relative to the working directory.
        os.chdir(cache_dir)
        with _quiet():
            import torch
            from intel_npu_acceleration_library.backend import clear_cache

        _use_device(target.device)
        clear_cache()
        on_progress(Progress("load", _loading_text(target.precision)))
        self._model = _lower(folder, target.precision, torch)
        self._context = _context_tokens(config)
        on_progress(Progress("compile", f"Compiling for the {target.device}"))
        compile_s = self._compile()
        return LoadReport(
            device=target.device,
            context_tokens=self._context,
            compile_s=compile_s,
            details={
                "runs_on": "Intel NPU" if target.device == "NPU" else f"CPU: {_FALLBACK}",
                "driver": _driver_version() if target.device == "NPU" else None,
                "attention": "torch sdpa, float16, on the CPU",
                "prefill_sizes": list(PREFILL_SIZES),
            },
        )

    def generate(
        self,
        prompt_ids: Sequence[int],
        request: GenerationRequest,
        stop_ids: frozenset[int],
        on_token: OnToken,
    ) -> GenerationReport:
        import torch

        prompt = list(prompt_ids)
        # The library leaves a Python hook on every torch function; ours need none.
        with torch.inference_mode(), torch._C.DisableTorchFunction():
            kept = self._keep(prompt)
            logits = self._prefill(prompt[kept:])
            choose = _Sampler(request, prompt, torch)
            for count in range(1, request.max_new_tokens + 1):
                _require_finite(logits, count, torch)
                token_id = choose(logits)
                if not on_token(token_id) or (token_id in stop_ids and not request.ignore_eos):
                    break
                if count == request.max_new_tokens or len(self._cached_ids) + 1 >= self._context:
                    break
                logits = self._forward([token_id], 1)
        return GenerationReport(cached_prompt_tokens=kept)

    def _compile(self) -> float:
        """Run every shape once, so that no prompt pays for it; seconds."""
        import torch

        started = time.perf_counter()
        with torch.inference_mode(), torch._C.DisableTorchFunction():
            for size in (*PREFILL_SIZES, 1):
                if size <= self._context:
                    self._reset()
                    self._forward([0] * size, size)
            self._reset()
        return time.perf_counter() - started

    def _reset(self) -> None:
        from transformers import DynamicCache

        # Without the config: sliding-window layers could not be cropped, and the mask does the sliding.
        self._cache = DynamicCache()
        self._cached_ids = []

    def _keep(self, prompt: Sequence[int]) -> int:
        """Crop the KV cache to the longest common prefix, one token short of the prompt; returns its length."""
        limit = min(len(self._cached_ids), len(prompt) - 1)
        kept = next((i for i in range(limit) if self._cached_ids[i] != prompt[i]), max(0, limit))
        if kept == 0:
            self._reset()
        else:
            self._crop(kept)
        return kept

    def _crop(self, length: int) -> None:
        self._cache.crop(length)
        del self._cached_ids[length:]

    def _prefill(self, token_ids: Sequence[int]) -> Any:
        """Logits after the last of `token_ids`, which go through in pieces of PREFILL_SIZES."""
        longest = PREFILL_SIZES[-1]
        logits = None
        for start in range(0, len(token_ids), longest):
            piece = list(token_ids[start : start + longest])
            size = next(size for size in PREFILL_SIZES if size >= len(piece))
            room = self._context - len(self._cached_ids)
            logits = self._forward(piece, max(len(piece), min(size, room)))
        return logits

    def _forward(self, token_ids: list[int], size: int) -> Any:
        """One pass over `token_ids` padded to `size`; returns the last real token's logits, shape (1, vocab)."""
        import torch

        padded = torch.tensor([token_ids + [0] * (size - len(token_ids))])
        try:
            result = self._model(
                input_ids=padded,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=torch.tensor([len(token_ids) - 1]),
            )
        except BaseException:
            self._reset()  # some layers may hold this piece, others not
            raise
        self._cached_ids += token_ids
        if size > len(token_ids):
            self._cache.crop(len(self._cached_ids))
        return result.logits[:, -1].float()


class _Sampler:
    """transformers' own processors, in the order its `generate` applies them."""

    def __init__(self, request: GenerationRequest, prompt: Sequence[int], torch: Any):
        from transformers import generation

        self._torch = torch
        self._ids = list(prompt)
        self._greedy = request.temperature <= 0
        self._random = torch.Generator()
        if request.seed is not None:
            self._random.manual_seed(request.seed)
        else:
            self._random.seed()
        self._processors = []
        if request.repetition_penalty not in (None, 1.0):
            self._processors.append(generation.RepetitionPenaltyLogitsProcessor(request.repetition_penalty))
        if not self._greedy:
            self._processors.append(generation.TemperatureLogitsWarper(float(request.temperature)))
            if request.top_k:
                self._processors.append(generation.TopKLogitsWarper(request.top_k))
            if request.top_p is not None and request.top_p < 1.0:
                self._processors.append(generation.TopPLogitsWarper(request.top_p))

    def __call__(self, logits: Any) -> int:
        if self._processors:
            ids = self._torch.tensor([self._ids])
            for process in self._processors:
                logits = process(ids, logits)
        if self._greedy:
            chosen = int(logits.argmax())
        else:
            shares = logits.softmax(-1)
            chosen = int(self._torch.multinomial(shares[0], 1, generator=self._random))
        self._ids.append(chosen)
        return chosen


def _lower(folder: Path, precision: str, torch: Any) -> Any:
    """Load and lower the model; raises ModelError with the library's own words."""
    import intel_npu_acceleration_library as npu_lib
    from intel_npu_acceleration_library.compiler import CompilerConfig

    dtype = {"fp16": torch.float16, "int8": npu_lib.int8, "int4": npu_lib.int4}[precision]
    try:
        # Its prints say "for the NPU" on any device. export=False: its cache is a pickle that torch >= 2.6
        # refuses to read back, with a key that ignores versions and changed weights.
        with _quiet(), contextlib.redirect_stdout(io.StringIO()):
            return npu_lib.NPUModelForCausalLM.from_pretrained(
                str(folder),
                CompilerConfig(dtype=dtype),
                transformers_class=_Untied,
                export=False,
                attn_implementation="sdpa",
                torch_dtype=torch.float16,
                local_files_only=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        if isinstance(error, RuntimeError) and "memory" in str(error).lower():
            raise OutOfMemoryError(f"Loading ran out of memory: {str(error)[:200]}", _SMALLER) from error
        raise ModelError(f"The library cannot load this model: {str(error)[:300]}", _PHI_ONLY) from error


class _Untied:
    """What the library calls to load the weights: the head gets its own copy of a shared embedding.

    neural-compressor quantises the head's weights in place, which turns the embedding of a model that ties
    the two into integers, and every reply into garbage.
    """

    @staticmethod
    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(*args, **kwargs)
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        if head is not None and head.weight is embedding.weight:
            head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        return model


_SMALLER = "Close other programs, unload other panels, or choose a smaller model."


def _use_device(device: str) -> None:
    """Compile for `device` and nothing else; raises UnavailableError when it is not there.

    The library's operators name the NPU as their default; its runtime then silently takes the CPU where there
    is none. So the NPU must be there, and for the CPU the operators are made to name it.
    """
    status = {"NPU": _npu_status, "CPU": _cpu_status}[device]()
    if not status.ok:
        raise UnavailableError(status.reason or "", status.remedy)
    if device == "NPU":
        return
    from intel_npu_acceleration_library.backend import runtime

    for name in ("Linear", "QLinear", "MatMul", "QMatMul"):
        setattr(runtime, name, _for_device(getattr(runtime, name), device))


def _for_device(operator: type, device: str) -> type:
    """The same operator, compiled for another device; its name is part of the library's cache key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        operator.__init__(self, *args, **{**kwargs, "device": device})

    return type(operator.__name__, (operator,), {"__init__": __init__})


def _npu_status() -> DeviceStatus:
    from intel_npu_acceleration_library.backend import npu_available

    if not npu_available():
        return DeviceStatus(
            "NPU",
            False,
            reason="The library finds no Intel NPU here.",
            remedy="It needs an Intel Core Ultra processor with the NPU driver from intel.com installed.",
        )
    version = _driver_version()
    if version is not None and version < MINIMUM_DRIVER:
        return DeviceStatus(
            "NPU",
            False,
            f"Intel NPU, driver {version}",
            f"The NPU driver is too old: version {version}, at least {MINIMUM_DRIVER} is needed.",
            _driver_remedy(),
        )
    return DeviceStatus("NPU", True, f"Intel NPU, driver {version if version is not None else 'unknown'}")


def _cpu_status() -> DeviceStatus:
    return DeviceStatus("CPU", True, f"CPU ({_FALLBACK})")


def _driver_version() -> int | None:
    from intel_npu_acceleration_library.backend import get_driver_version

    try:
        return int(get_driver_version())
    except (RuntimeError, OSError, ValueError):
        return None


def _driver_remedy() -> str:
    from intel_npu_acceleration_library.backend.utils import get_driver_installation_url

    url = get_driver_installation_url().removeprefix("Driver Update URL: ")
    return f"Install a newer NPU driver: {url}"


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{folder} holds no model: there is no config.json.", "Choose a model folder."
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder / 'config.json'} cannot be read: {error}", "Fetch the model again."
        ) from error
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} holds no *.safetensors weights.", "Fetch the model again.")
    return config


def _context_tokens(config: dict[str, Any]) -> int:
    """Prompt and reply together. Long-context Phi-3 changes its position factors past the original length,
    which would invalidate the KV cache in mid-reply: stay below it."""
    longest = int(config.get("max_position_embeddings") or 2048)
    original = config.get("original_max_position_embeddings")
    return min(longest, int(original)) if config.get("rope_scaling") and original else longest


def _check_memory(folder: Path, precision: str) -> None:
    """Refuse early with the numbers: running into the limit here takes the whole machine down."""
    try:
        import psutil
    except ImportError:
        return
    needed = estimated_peak_bytes(_parameters(folder), precision)
    available = psutil.virtual_memory().available
    if needed > available:
        raise OutOfMemoryError(
            f"Not enough memory: this library would need about {needed / 1e9:.1f} GB for this model at {precision}, "
            f"{available / 1e9:.1f} GB are available.",
            _SMALLER,
        )


def estimated_peak_bytes(parameters: int, precision: str) -> int:
    """Peak resident memory of a worker, from measurement (see the constants)."""
    return int(_BASE_BYTES + _PEAK_BYTES_PER_PARAMETER[precision] * parameters)


def _parameters(folder: Path) -> int:
    """Number of weights, from the safetensors headers. Raises ModelError for a file that is cut short."""
    total = 0
    for path in folder.glob("*.safetensors"):
        total += sum(math.prod(shape) for shape in _tensor_shapes(path))
    return total


def _tensor_shapes(path: Path) -> Iterator[list[int]]:
    try:
        with path.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            if not 0 < header_bytes < path.stat().st_size:
                raise ValueError("no header")
            header = json.loads(stream.read(header_bytes))
        end = (
            8 + header_bytes + max(entry["data_offsets"][1] for key, entry in header.items() if key[0] != "_")
        )
        if end > path.stat().st_size:
            raise ValueError(f"{path.stat().st_size:,} of {end:,} bytes are there")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path.name} is not a complete weights file: {error}.", "Fetch the model again."
        ) from error
    yield from (entry["shape"] for key, entry in header.items() if key != "__metadata__")


def _loading_text(precision: str) -> str:
    if precision == "fp16":
        return "Loading the weights"
    return f"Loading the weights and quantising them to {precision}"


def _require_finite(logits: Any, count: int, torch: Any) -> None:
    if bool(torch.isfinite(logits).all()):
        return
    raise OutputError(
        f"The model's output at token {count} is not a number: the computation overflowed.",
        "This library is known for it with some models and drivers. Try another precision (fp16), update the "
        "NPU driver, or use OpenVINO GenAI.",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library warns about things we check and report ourselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


ENGINE = IntelNPUEngine
