"""optimum-intel: Hugging Face's way to run OpenVINO models, `OVModelForCausalLM`, with PyTorch tensors around them.

The model is stateful: its KV cache lives in the inference request. Passing `past_key_values=((),)` tells it to go on
from that state, so a follow-up turn feeds only its new tokens; where the new prompt departs from what is kept,
the state tensors are cut to the common prefix first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from engines.engine import Engine, GenerationReport, LoadReport, OnProgress, OnToken, UnavailableError
from engines.protocol import (
    Availability,
    Claim,
    EngineSpec,
    GenerationRequest,
    PreparedModel,
    Progress,
    Target,
)
from engines.toolkit.openvino_builds import BUILDS
from engines.toolkit.openvino_tunables import TUNABLES, VARIANTS

SPEC = EngineSpec(
    name="optimum-intel",
    title="Optimum Intel",
    module="engines.optimum_intel_engine",
    devices=("CPU", "GPU", "AUTO"),
    precisions=("int4", "int8", "fp16"),
    model_format="openvino",
    builds=BUILDS,
    reuses_kv_cache=True,
    homepage="https://github.com/huggingface/optimum-intel",
    own_memory=("GPU",),
    distributions=("optimum-intel", "optimum", "openvino", "nncf", "transformers", "torch"),
    tunables=TUNABLES,
    variants=VARIANTS,
)
_FILES = ("openvino_model.xml", "openvino_model.bin", "config.json")
_SEQUENCE_AXIS = 2
"""Of a state tensor, shape (batch, heads, tokens, head size)."""
_NOISE = 0.1
"""The KV cache is quantised: so far may the logits of two pieces be from the whole's, as a share of their spread."""
_CONTINUE = ((),)
"""`past_key_values` that means: go on from the request's own state."""


def device_properties(device: str, cache_dir: str) -> dict[str, str]:
    """OpenVINO properties for one chat at a time, as this library takes them."""
    from engines.toolkit.openvino_devices import model_cache

    properties = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", **model_cache(device, cache_dir)}
    if device == "AUTO":
        del properties["NUM_STREAMS"]  # a property of the device AUTO picks, not of AUTO
    return properties


class OptimumIntelEngine(Engine):
    spec = SPEC

    def __init__(self) -> None:
        self._model: Any = None
        self._kept: list[int] = []
        """Token ids whose keys and values are in the request's state, in order."""
        self._switch: int | None = None
        self._grows = False
        self._keeps = True

    def probe(self) -> Availability:
        from importlib.util import find_spec

        from engines.toolkit.library_errors import first_sentence
        from engines.toolkit.process_facts import versions

        found = versions(*SPEC.distributions)
        remedy = "pip install optimum-intel openvino"
        if "optimum-intel" not in found or find_spec("optimum.intel") is None:
            reason = "The package optimum-intel is not installed."
            return Availability(False, versions=found, reason=reason, remedy=remedy)
        try:
            from engines.toolkit.openvino_devices import list_devices

            devices = list_devices(SPEC.devices)
        except Exception as error:  # noqa: BLE001 - a probe never raises
            reason = f"OpenVINO cannot be loaded: {first_sentence(error)}"
            return Availability(False, versions=found, reason=reason, remedy=remedy)
        return Availability(any(status.ok for status in devices), devices, found)

    def load(
        self, target: Target, model: PreparedModel, cache_dir: str, on_progress: OnProgress
    ) -> LoadReport:
        from engines.toolkit import library_errors, model_config, openvino_devices

        folder = model.folder
        openvino_devices.require_device(target.device, SPEC.devices)
        model_config.require_files(folder, _FILES, SPEC.title)
        config = model_config.read_config(folder)
        try:
            from optimum.intel.openvino import OVModelForCausalLM
        except ImportError as error:
            raise UnavailableError(
                f"optimum-intel cannot be loaded: {error}.", "pip install optimum-intel openvino"
            ) from error
        import torch

        torch.set_num_threads(
            1
        )  # it only picks tokens here; more threads would fight OpenVINO's for the cores
        on_progress(Progress("compile", f"Compiling for {target.device}"))
        tuning = {name: str(value) for name, value in self.tuning.items()}
        properties = {**device_properties(target.device, cache_dir), **tuning}
        try:
            self._model = OVModelForCausalLM.from_pretrained(
                str(folder),
                device=target.device,
                ov_config=properties,
                export=False,
                compile=False,
                local_files_only=True,
                trust_remote_code=False,
            )
            started = time.perf_counter()
            self._model.compile()
        except Exception as error:
            raise library_errors.load_error(error, folder, SPEC.title, target.device) from error
        compile_s = time.perf_counter() - started
        self._switch, self._grows = model_config.rope_switch(config), model_config.rope_grows(config)
        device, details = openvino_devices.describe(target.device, properties)
        details["stateful"] = bool(self._model.stateful)
        claim = _claim(self._model) or openvino_devices.claim_of_stand_in(details)
        return LoadReport(device, model_config.context_tokens(config), compile_s, details, claim)

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
            cached = self._cut_state(prompt_ids) if request.reuse_kv_cache else 0
            decode(self._forward, prompt_ids, cached, request, stop_ids, on_token, switch=self._switch)
        except Exception as error:
            self._kept = []
            raise generation_error(error, SPEC.title) from error
        return GenerationReport(cached)

    def score(self, token_ids: Sequence[int]) -> Any:
        import torch

        self._kept = []
        with torch.no_grad():
            output = self._model(
                input_ids=torch.tensor([list(token_ids)]),
                attention_mask=torch.ones((1, len(token_ids)), dtype=torch.int64),
                past_key_values=None,
            )
        logits = output.logits[0].float().numpy()
        return logits if len(logits) == len(token_ids) else None

    def check_cache(self) -> str:
        from engines.toolkit.kv_cache import KEPT, prove

        found = prove(self._resume, _NOISE)
        self._keeps, self._kept = found == KEPT, []
        return found

    def _resume(self, kept: Sequence[int], ids: Sequence[int]) -> Any | None:
        cached = 0
        if kept:
            self._forward(kept, 0)
            cached = self._cut_state(ids)
            if not cached:
                return None
        return self._forward(ids, cached)[0].float().numpy()

    def _forward(self, ids: Sequence[int], cached: int) -> Any:
        """Logits of the last of `ids`, shape (1, vocab), given that the state holds the first `cached`."""
        import torch

        self._kept = []  # until the call has succeeded nothing is known about the state
        with torch.no_grad():
            output = self._model(
                input_ids=torch.tensor([ids[cached:]]),
                attention_mask=torch.ones((1, len(ids)), dtype=torch.int64),
                past_key_values=_CONTINUE if cached else None,
            )
        self._kept = list(ids)
        return output.logits[:, -1]

    def _cut_state(self, prompt_ids: Sequence[int]) -> int:
        """Cut the request's state to its common prefix with the prompt; returns how many tokens stay."""
        from engines.toolkit.kv_cache import reusable_tokens

        if not (self._model.stateful and self._keeps):
            return 0
        keep = reusable_tokens(self._kept, prompt_ids, self._switch, grows=self._grows)
        if 0 < keep < len(self._kept) and not self._cut(keep):
            keep = 0
        return keep

    def _cut(self, keep: int) -> bool:
        """Cut every state tensor to `keep` tokens; False if this model's state is not a plain KV cache."""
        import numpy as np
        import openvino

        kept, self._kept = self._kept, []
        states = self._model.request.query_state()
        for state in states:
            tensor = state.state
            if len(tensor.shape) != 4 or tensor.shape[_SEQUENCE_AXIS] != len(kept):
                return False
        for state in states:
            state.state = openvino.Tensor(np.ascontiguousarray(state.state.data[:, :, :keep, :]))
        self._kept = kept[:keep]
        self._model._past_length = keep
        return True


def _claim(model: Any) -> Claim | None:
    """What the model's own compiled form says; None where this version of the library does not show it."""
    from engines.toolkit.openvino_devices import execution_devices

    try:
        return execution_devices(model.request.get_compiled_model())
    except (AttributeError, RuntimeError):
        return None


ENGINE = OptimumIntelEngine
