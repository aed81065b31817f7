"""Intel NPU Acceleration Library 1.4.0: Phi-3's linear layers on the NPU, the rest in torch on the CPU.

The library is archived upstream and lives in an environment of its own (engines/environments/intel_npu.txt). It
compiles one blob per layer shape *and token count*, each a copy of the weights or so in memory, and says
"for the NPU" whatever it runs on. So the token loop is ours: prompts go through in pieces of two fixed sizes,
padded at the end (causal attention never sees the padding, the KV cache is cropped), three shapes in all,
and the device named is the one the library's runtime was told to compile for.
"""

from __future__ import annotations

import contextlib
import io
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
    Claim,
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
    distributions=(
        "intel-npu-acceleration-library",
        "neural-compressor",
        "transformers",
        "torch",
        "tokenizers",
    ),
    advice=(
        "For the NPU, prefer OpenVINO GenAI where both work: it is maintained and runs the whole model there. "
        "This library is archived upstream, gets no fixes, and moves only the linear layers to the NPU."
    ),
)

PREFILL_SIZES = (64, 256)
"""Token counts a prompt is cut into and padded to. Measured: a pass over 64 costs about what one over 512
does (it is bound by moving weights), a new size 3-4 s and a third of the weights in memory for 0.4 B."""

MINIMUM_DRIVER = 2408
_PEAK_BYTES_PER_PARAMETER = {"fp16": 5.2, "int8": 4.2, "int4": 4.1}
"""Measured at 0.39 B parameters: 5.07 for fp16 (the compiled shapes' copies count), 3.98 for int8 (the peak is
the loading: fp16 weights, once more while they are quantised)."""
_BASE_BYTES = 500_000_000
_DEFAULT_CONTEXT = 2048
_NOISE = 0.1
"""So far may the logits of a prompt in two pieces be from those of the whole, as a share of their spread."""
_GARBAGE_REMEDY = (
    "This library is known for it with some models and drivers. Try another precision (fp16), update the NPU "
    "driver, or use OpenVINO GenAI."
)
_FALLBACK = "the library's own fallback; needs no NPU"


class IntelNPUEngine(Engine):
    """One causal language model, lowered by the library to the NPU or its CPU fallback."""

    spec = SPEC

    def __init__(self) -> None:
        self._model: Any = None
        self._cache: Any = None
        self._cached_ids: list[int] = []
        self._context = 0
        self._keeps = True

    def probe(self) -> Availability:
        from engines.toolkit.library_errors import first_sentence
        from engines.toolkit.process_facts import versions

        found = versions(*SPEC.distributions)
        try:
            return Availability(True, (_npu_status(), _cpu_status()), found)
        except Exception as error:  # noqa: BLE001 - a DLL, a pin, a driver: whatever it is, it is the reason
            return Availability(
                False,
                versions=found,
                reason=f"The library does not load: {first_sentence(error)}",
                remedy="Repair its environment: python app.py setup intel-npu",
            )

    def load(
        self, target: Target, model: PreparedModel, cache_dir: str, on_progress: OnProgress
    ) -> LoadReport:
        from engines.toolkit import library_errors, model_config

        folder = model.folder.resolve()
        model_config.require_files(folder, ("config.json",), SPEC.title)
        config, parameters = model_config.read_config(folder), _parameters(folder)
        # The runtime's blob cache and neural-compressor's workspace are relative to the working directory.
        os.chdir(cache_dir)
        _use_device(target.device)
        _check_memory(parameters, target.precision)
        on_progress(Progress("load", _loading_text(target.precision)))
        try:
            self._model = _lower(folder, target.precision)
        except Exception as error:
            raise library_errors.load_error(error, folder, SPEC.title) from error
        # Past its switch a long-context Phi-3 changes its position factors, which would void the cache.
        limits = (model_config.context_tokens(config), model_config.rope_switch(config))
        self._context = min([limit for limit in limits if limit] or [_DEFAULT_CONTEXT])
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
            claim=_claim(target.device),
        )

    def generate(
        self,
        prompt_ids: Sequence[int],
        request: GenerationRequest,
        stop_ids: frozenset[int],
        on_token: OnToken,
    ) -> GenerationReport:
        from engines.toolkit.library_errors import generation_error
        from engines.toolkit.torch_decoding import decode

        try:
            kept = self._keep(prompt_ids) if request.reuse_kv_cache and self._keeps else self._reset()
            with _bare_torch():
                decode(self._advance, prompt_ids, kept, request, stop_ids, on_token, context=self._context)
        except OutputError as error:
            self._reset()
            raise OutputError(str(error), _GARBAGE_REMEDY) from error
        except Exception as error:
            self._reset()  # some layers may hold the last piece, others not
            raise generation_error(error, SPEC.title) from error
        return GenerationReport(kept)

    def check_cache(self) -> str:
        from engines.toolkit.kv_cache import KEPT, prove

        with _bare_torch():
            found = prove(self._resume, _NOISE)
        self._keeps = found == KEPT
        self._reset()
        return found

    def _resume(self, kept: Sequence[int], ids: Sequence[int]) -> Any | None:
        self._reset()
        cached = 0
        if kept:
            self._advance(kept, 0)
            cached = self._keep(ids)
            if not cached:
                return None
        return self._advance(ids, cached)[0].float().numpy()

    def _compile(self) -> float:
        """Run every shape once, so that no prompt pays for it; seconds."""
        started = time.perf_counter()
        with _bare_torch():
            for size in (*PREFILL_SIZES, 1):
                self._reset()
                if size <= self._context:
                    self._forward([0] * size, size)
        self._reset()
        return time.perf_counter() - started

    def _reset(self) -> int:
        """Start with an empty KV cache; returns the number of tokens kept, 0."""
        from transformers import DynamicCache

        # Without the config: sliding-window layers could not be cropped, and the mask does the sliding.
        self._cache = DynamicCache()
        self._cached_ids = []
        return 0

    def _keep(self, prompt: Sequence[int]) -> int:
        """Crop the KV cache to what the prompt shares with it; returns how many tokens stay."""
        from engines.toolkit.kv_cache import reusable_tokens

        kept = reusable_tokens(self._cached_ids, prompt)
        if kept == 0:
            return self._reset()
        self._cache.crop(kept)
        del self._cached_ids[kept:]
        return kept

    def _advance(self, ids: Sequence[int], cached: int) -> Any:
        """Logits after the last of `ids`; the first `cached` are in the KV cache, the rest goes in PREFILL_SIZES."""
        token_ids, longest = ids[cached:], PREFILL_SIZES[-1]
        if len(token_ids) == 1:
            return self._forward(list(token_ids), 1)
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
        result = self._model(
            input_ids=padded,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.tensor([len(token_ids) - 1]),
        )
        self._cached_ids += token_ids
        if size > len(token_ids):
            self._cache.crop(len(self._cached_ids))
        return result.logits[:, -1]


def _lower(folder: Path, precision: str) -> Any:
    """Load the weights and have the library replace the linear layers."""
    with _quiet():
        import intel_npu_acceleration_library as npu_lib
        import torch
        from intel_npu_acceleration_library.backend import clear_cache
        from intel_npu_acceleration_library.compiler import CompilerConfig

        clear_cache()  # a second model in one process aborts otherwise
        dtype = {"fp16": torch.float16, "int8": npu_lib.int8, "int4": npu_lib.int4}[precision]
        # Its prints say "for the NPU" on any device. export=False: its cache is a pickle that torch >= 2.6
        # refuses to read back, with a key that ignores versions and changed weights.
        with contextlib.redirect_stdout(io.StringIO()):
            return npu_lib.NPUModelForCausalLM.from_pretrained(
                str(folder),
                CompilerConfig(dtype=dtype),
                transformers_class=_Untied,
                export=False,
                attn_implementation="sdpa",
                torch_dtype=torch.float16,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )


class _Untied:
    """What the library calls to load the weights: the head gets its own copy of a shared embedding.

    neural-compressor quantises the head's weights in place, which turns the embedding of a model that ties
    the two into integers, and every reply into garbage.
    """

    @staticmethod
    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        from engines.toolkit.model_config import refuse_invented_weights

        model, found = AutoModelForCausalLM.from_pretrained(*args, output_loading_info=True, **kwargs)
        refuse_invented_weights(found["missing_keys"], Path(str(args[0])))
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        if head is not None and head.weight is embedding.weight:
            head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        return model


def _claim(device: str) -> Claim:
    """What the library's own `npu_available` says; on the CPU, what its operators were made to name."""
    from intel_npu_acceleration_library.backend import npu_available

    said = f"npu_available() says {npu_available()}"
    if device == "NPU":
        return Claim(
            ("NPU",) if npu_available() else ("CPU",), f"{said}; the linear layers are compiled for it."
        )
    return Claim((device,), f"{said}; the operators are compiled for the {device}.")


def _use_device(device: str) -> None:
    """Compile for `device` and nothing else; raises UnavailableError when it is not there.

    The library's operators name the NPU as their default; its runtime then silently takes the CPU where there
    is none. So the NPU must be there, and for the CPU the operators are made to name it.
    """
    here = (_npu_status(), _cpu_status())
    status = next((status for status in here if status.device == device), None)
    if status is None:
        raise UnavailableError(f"{SPEC.title} knows no device {device}.", "Choose NPU or CPU.")
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
        operator.__init__(self, *args, **{**kwargs, "device": device})  # type: ignore[misc] # it is this one's base

    return type(operator.__name__, (operator,), {"__init__": __init__})


def _npu_status() -> DeviceStatus:
    with _quiet():
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


def _check_memory(parameters: int, precision: str) -> None:
    """Refuse early with the numbers: running into the limit here takes the whole machine down."""
    from engines.hardware import available_memory_bytes

    needed, available = estimated_peak_bytes(parameters, precision), available_memory_bytes()
    if needed > available:
        raise OutOfMemoryError(
            f"Not enough memory: {SPEC.title} would need about {needed / 1e9:.1f} GB for this model at "
            f"{precision}, {available / 1e9:.1f} GB are available.",
            "Close other programs, unload other panels, or choose a smaller model or OpenVINO GenAI.",
        )


def estimated_peak_bytes(parameters: int, precision: str) -> int:
    """Peak resident memory of a worker, from measurement (see the constants)."""
    return int(_BASE_BYTES + _PEAK_BYTES_PER_PARAMETER[precision] * parameters)


def _parameters(folder: Path) -> int:
    """Number of weights, from the safetensors headers; raises ModelError for files missing or cut short."""
    from engines.toolkit.model_config import read_safetensors_header

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{folder} is not a model for {SPEC.title}: it has no *.safetensors file.", "Get the model again."
        )
    headers = [read_safetensors_header(path) for path in files]
    tensors = [entry for header in headers for name, entry in header.items() if name != "__metadata__"]
    return sum(math.prod(entry["shape"]) for entry in tensors)


def _loading_text(precision: str) -> str:
    if precision == "fp16":
        return "Loading the weights"
    return f"Loading the weights and quantising them to {precision}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library warns about things we check and report ourselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _bare_torch() -> Iterator[None]:
    """No gradients, and without the Python hook the library leaves on every torch function."""
    import torch

    with torch.inference_mode(), torch._C.DisableTorchFunction():
        yield


ENGINE = IntelNPUEngine
