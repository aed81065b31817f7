"""transformers: the reference implementation, PyTorch with the model's own weights, unquantised.

The KV cache is a `DynamicCache` that this engine owns: it lives on between turns and is cropped to what the next
prompt shares with it. State-space models take it under another name, or have a state of their own, and handing it in
wrongly raises nothing: the model just forgets. So what is proven at load is not only that a cache may be kept between
turns but that a reply may lean on it at all; where not, every token is computed with all the text before it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.engine import Engine, GenerationReport, LoadReport, OnProgress, OnToken, UnavailableError
from engines.protocol import (
    Availability,
    DeviceStatus,
    EngineSpec,
    GenerationRequest,
    PreparedModel,
    Progress,
    Target,
    Tunable,
)
from engines.toolkit.process_facts import thread_counts

SPEC = EngineSpec(
    name="transformers",
    title="Transformers",
    module="engines.transformers_engine",
    devices=("CPU", "CUDA", "XPU"),
    precisions=("bf16", "fp32"),
    model_format="safetensors",
    reuses_kv_cache=True,
    homepage="https://github.com/huggingface/transformers",
    reference=True,
    own_memory=("CUDA", "XPU"),
    distributions=("transformers", "torch"),
    tunables=(
        Tunable(
            "attn_implementation",
            ("eager",),
            None,
            "without fused attention: rarely faster, on short prompts",
        ),
        Tunable("threads", thread_counts(), ("CPU",), "hyperthreads rarely help, fewer threads sometimes do"),
        Tunable(
            "torch_compile", (True,), ("CPU", "CUDA", "XPU"), "compiled once, at the first prompt of a shape"
        ),
    ),
)
_REMEDIES = {
    "CUDA": "Use a machine with an NVIDIA GPU and install the CUDA build of PyTorch (pytorch.org).",
    "XPU": "Use a machine with an Intel GPU and install the XPU build of PyTorch (pytorch.org).",
}
_NOISE = {"torch.float32": 1e-3, "torch.float16": 0.02, "torch.bfloat16": 0.05}
"""How far the logits of a prompt in two pieces may be from those of the whole, as a share of their spread."""
_STATE_NAMES = ("past_key_values", "cache_params", "state")
"""Those that `generate()` looks for, too (`ALL_CACHE_NAMES`)."""
_WAIT_BRIEFLY = {"GOMP_SPINCOUNT": "5000", "KMP_BLOCKTIME": "1"}
"""OpenMP threads waiting for each other spin for milliseconds by default, which starves every neighbour and then
themselves: with both cores busy a token took 226 ms. Too short a spin costs a wake-up at every operation. Measured on
two cores (132 M parameters, tok/s alone / beside one busy program / beside two): default 42 / 14 / 2–11, 1,000 turns
33 / 22 / 16, 5,000 41 / 18 / 16, 12,000 40 / 13 / 18. Linux; Windows and macOS."""


class TransformersEngine(Engine):
    spec = SPEC

    def __init__(self) -> None:
        self._model: Any = None
        self._device = "cpu"
        self._cache: Any = None
        self._kept: list[int] = []
        """Token ids whose keys and values are in the cache, in order."""
        self._extra: dict[str, Any] = {}
        """Arguments of every forward call that not every architecture takes."""
        self._switch: int | None = None
        self._grows = False
        self._keeps = True
        self._cache_name = "past_key_values"
        """What the model calls the state that it takes and returns."""
        self._own_state = False
        """Whether that state is of the model's own making, not a `DynamicCache`."""
        self._remembers = True
        """Whether a token computed from the state is the one that computing all the text gives."""
        self._resumed = False

    def probe(self) -> Availability:
        from engines.toolkit.library_errors import first_sentence
        from engines.toolkit.process_facts import versions

        found = versions(*SPEC.distributions)
        remedy = "pip install transformers torch"
        if "transformers" not in found:
            reason = "The package transformers is not installed."
            return Availability(False, versions=found, reason=reason, remedy=remedy)
        try:
            devices = _devices()
        except Exception as error:  # noqa: BLE001 - a probe never raises
            reason = f"PyTorch cannot be loaded: {first_sentence(error)}"
            return Availability(False, versions=found, reason=reason, remedy=remedy)
        return Availability(any(status.ok for status in devices), devices, found)

    def load(
        self, target: Target, model: PreparedModel, cache_dir: str, on_progress: OnProgress
    ) -> LoadReport:
        from engines.toolkit import library_errors, model_config, process_facts
        from engines.toolkit.torch_decoding import claim_of_parameters

        for name, value in _WAIT_BRIEFLY.items():  # read once, when PyTorch is loaded
            os.environ.setdefault(name, value)
        folder = model.folder
        device = _require_device(target.device)
        model_config.require_files(folder, ("config.json",), SPEC.title)
        config = model_config.read_config(folder)
        _require_weights(folder)
        import torch

        torch.set_num_threads(int(self.tuning.get("threads", process_facts.physical_cores())))
        self._device = target.device.lower()
        on_progress(Progress("load", f"Loading the weights onto {target.device}"))
        try:
            attention = self.tuning.get("attn_implementation")
            self._model = _load_model(folder, target.precision, self._device, attention)
        except Exception as error:
            raise library_errors.load_error(error, folder, SPEC.title, target.device) from error
        self._extra = _optional_arguments(self._model)
        self._cache_name = _state_name(self._model)
        self._own_state = not self._model._supports_default_dynamic_cache()
        if self.tuning.get("torch_compile"):
            self._model = torch.compile(self._model, dynamic=True)
        self._switch, self._grows = model_config.rope_switch(config), model_config.rope_grows(config)
        details = {
            "attention_backend": getattr(self._model.config, "_attn_implementation", None),
            "inference_precision": str(self._model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads() if self._device == "cpu" else None,
            "cpu_capability": torch.backends.cpu.get_cpu_capability() if self._device == "cpu" else None,
        }
        where = f"{str(self._model.device).upper()} ({device.title})"
        claim = claim_of_parameters(self._model)
        return LoadReport(where, model_config.context_tokens(config), None, details, claim)

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
            cached = self._crop_cache(prompt_ids) if request.reuse_kv_cache else 0
            decode(
                *(self._forward, prompt_ids, cached, request, stop_ids, on_token),
                switch=self._switch,
                device=self._device,
            )
        except Exception as error:
            self._forget()
            raise generation_error(error, SPEC.title) from error
        return GenerationReport(cached)

    def score(self, token_ids: Sequence[int]) -> Any:
        import torch

        self._forget()
        self._forget_lengths()
        with torch.inference_mode():
            inputs = torch.tensor([list(token_ids)], device=self._device)
            return self._model(input_ids=inputs, use_cache=False).logits[0].float().cpu().numpy()

    def check_cache(self) -> str:
        from engines.toolkit.kv_cache import FORGETS, KEPT, prove

        noise = _NOISE.get(str(self._model.dtype), 0.05)
        found = prove(self._resume, noise)
        self._keeps = found == KEPT
        if not (self._keeps and self._resumed):
            self._remembers = self._steps_like_the_library(noise)
            found = found if self._remembers else FORGETS
            self._keeps = self._keeps and self._remembers
        self._forget()
        return found

    def _resume(self, kept: Sequence[int], ids: Sequence[int]) -> Any | None:
        self._forget()
        cached = 0
        if kept:
            self._forward(kept, 0)
            cached = self._crop_cache(ids)
            if not cached:
                return None
            self._resumed = True
        return self._forward(ids, cached)[0].float().cpu().numpy()

    def _steps_like_the_library(self, noise: float) -> bool:
        """Whether a reply that goes one token at a time gets the logits that `generate()` gets."""
        from engines.toolkit.kv_cache import alike, proof_ids

        prompt = proof_ids()
        try:
            ids, wanted = self._generated(prompt)
            logits = self._forward(prompt, 0)
            for length in range(len(prompt), len(ids)):
                logits = self._forward(ids[: length + 1], length)
        except Exception:  # noqa: BLE001 - whatever goes wrong, then nothing is leant on
            return False
        return alike(logits[0].float().cpu().numpy(), wanted, noise)

    def _generated(self, prompt: Sequence[int]) -> tuple[list[int], Any]:
        """Some more ids behind the prompt, and the logits after them, by the library's own loop."""
        import torch

        inputs = torch.tensor([prompt], device=self._device)
        found = self._model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return found.sequences[0].tolist()[:-1], found.logits[-1][0].float().cpu().numpy()

    def _forward(self, ids: Sequence[int], cached: int) -> Any:
        """Logits of the last of `ids`, shape (1, vocab), given that the cache holds the first `cached`."""
        import torch

        if not self._remembers:
            cached = 0
        if not cached:
            self._begin()
        self._kept = []  # until the call has succeeded nothing is known about the cache
        state = {} if self._cache is None else {self._cache_name: self._cache}
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([ids[cached:]], device=self._device),
                use_cache=self._remembers,
                **state,
                **self._extra,
            )
        if self._own_state and self._remembers:
            self._cache = getattr(output, self._cache_name)
        self._kept = list(ids)
        return output.logits[:, -1]

    def _begin(self) -> None:
        """An empty cache; None where the model makes its state itself, or must not lean on any."""
        from transformers import DynamicCache

        ours = self._remembers and not self._own_state
        self._cache = DynamicCache(config=self._model.config) if ours else None
        self._forget_lengths()

    def _crop_cache(self, prompt_ids: Sequence[int]) -> int:
        """Crop the cache to its common prefix with the prompt; returns how many tokens stay."""
        from engines.toolkit.kv_cache import reusable_tokens

        if not self._keeps or self._own_state:
            return 0
        keep = reusable_tokens(self._kept, prompt_ids, self._switch, grows=self._grows)
        if 0 < keep < len(self._kept):
            try:
                self._cache.crop(keep)
            except (ValueError, RuntimeError):  # a sliding window has forgotten what we would need
                keep = 0
        if self._cache is not None and self._cache.get_seq_length() != keep:
            keep = 0
        return keep

    def _forget(self) -> None:
        self._cache, self._kept = None, []

    def _forget_lengths(self) -> None:
        """Give dynamic position factors back their first values: transformers keeps those of the longest text."""
        for module in self._model.modules() if self._grows else ():
            if hasattr(module, "original_inv_freq"):
                module.inv_freq = module.original_inv_freq.to(module.inv_freq.device)


def _load_model(folder: Path, precision: str, device: str, attention: Any) -> Any:
    """`attention`: None for the library's choice, which knows what each architecture supports."""
    import torch
    from transformers import AutoModelForCausalLM

    from engines.toolkit import model_config

    model, found = AutoModelForCausalLM.from_pretrained(
        folder,
        output_loading_info=True,
        dtype={"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision],
        attn_implementation=attention,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # refused below, in words: the library's own point at a report that it printed
    )
    model_config.refuse_other_shapes(found["mismatched_keys"], folder)
    model_config.refuse_invented_weights(found["missing_keys"], folder)
    return model.eval().to(device)


def _state_name(model: Any) -> str:
    """What a model's forward call takes its state by: a KV cache, or that of a state-space model."""
    import inspect

    names = inspect.signature(model.forward).parameters
    return next((name for name in _STATE_NAMES if name in names), _STATE_NAMES[0])


def _optional_arguments(model: Any) -> dict[str, Any]:
    """Ask for the last token's logits only, where the architecture can: a prompt's others are never used."""
    import inspect

    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def _require_weights(folder: Path) -> None:
    """Raise ModelError for a folder without whole safetensors files, before PyTorch reads gigabytes of it."""
    from engines.engine import ModelError
    from engines.toolkit.model_config import read_safetensors_header

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{folder} is not a model for {SPEC.title}: it has no *.safetensors file.", "Get the model again."
        )
    for path in files:
        read_safetensors_header(path)


def _devices() -> tuple[DeviceStatus, ...]:
    import torch

    from engines.toolkit.process_facts import processor_name

    fast_bf16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) if torch.backends.mkldnn.enabled else False
    on_cpu = ("bf16", "fp32") if fast_bf16 else ("fp32", "bf16")
    statuses = [DeviceStatus("CPU", ok=True, title=processor_name(), precisions=on_cpu)]
    for name, module in (("CUDA", torch.cuda), ("XPU", torch.xpu)):
        if module.is_available():
            statuses.append(DeviceStatus(name, ok=True, title=module.get_device_name(0)))
        else:
            reason = f"PyTorch {torch.__version__} finds no {name} device."
            statuses.append(DeviceStatus(name, ok=False, reason=reason, remedy=_REMEDIES[name]))
    return tuple(statuses)


def _require_device(device: str) -> DeviceStatus:
    """The status of `device`; raises UnavailableError unless it can be used here."""
    try:
        statuses: Mapping[str, DeviceStatus] = {status.device: status for status in _devices()}
    except ImportError as error:
        raise UnavailableError(
            f"PyTorch cannot be loaded: {error}.", "pip install transformers torch"
        ) from error
    status = statuses.get(device)
    if status is not None and status.ok:
        return status
    here = ", ".join(f"{known.device} ({known.title})" for known in statuses.values() if known.ok)
    reason = status.reason if status else f"PyTorch knows no device {device}."
    raise UnavailableError(f"{reason} Usable here: {here}.", status.remedy if status else None)


ENGINE = TransformersEngine
