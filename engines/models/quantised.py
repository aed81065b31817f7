"""Whether weights are quantised already, and how: by what the config files state, else by what the tensors betray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.models.contents import Contents
from engines.toolkit.model_config import scopes


@dataclass(frozen=True)
class Quantised:
    """How weights were quantised."""

    method: str
    """As the files name it: `awq`, `gptq`."""
    bits: float | None
    stated_in: str
    """A file's name, or `its tensors`."""

    @property
    def title(self) -> str:
        """In words: `an AWQ checkpoint`."""
        return _TITLES.get(self.method, f"a checkpoint quantised with {self.method}")


def quantised(contents: Contents) -> Quantised | None:
    """How the weights of a checkpoint were quantised; None for original ones."""
    config = contents.document("config.json")
    stated = (
        part.get(name) for part in scopes(config) for name in ("quantization_config", "compression_config")
    )
    settings = next((part for part in stated if isinstance(part, dict) and part), {})
    method = (_method(settings) or "an unnamed method") if settings else None
    where = "config.json"
    if method is None and isinstance(config.get("quantization"), dict) and "bits" in config["quantization"]:
        method = "mlx"
    for name, meaning in (
        ("quantize_config.json", "gptq"),
        ("quant_config.json", "awq"),
        ("hf_quant_config.json", "modelopt"),
    ):
        if method is None and name in contents.sizes():
            settings = contents.document(name)
            method, where = _method(settings) or meaning, name
    if method is None:
        method, where = _method_by_tensors(contents.tensors()), "its tensors"
    if method is None:
        return None
    bits = settings.get("bits") or settings.get("w_bit")
    return Quantised(method, bits if isinstance(bits, (int, float)) else None, where)


def _method(settings: Mapping[str, Any]) -> str | None:
    method = settings.get("quant_method") or settings.get("quant_algo")
    if isinstance(settings.get("quantization"), dict):  # NVIDIA's modelopt
        method = method or settings["quantization"].get("quant_algo")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = "bitsandbytes"
    if method is None and "w_bit" in settings:
        method = "awq"
    if method is None and "desc_act" in settings:
        method = "gptq"
    return str(method).lower() if method else None


_TITLES = {
    "awq": "an AWQ checkpoint",
    "gptq": "a GPTQ checkpoint",
    "bitsandbytes": "a bitsandbytes checkpoint",
    "fp8": "an FP8 checkpoint",
    "fbgemm_fp8": "an FP8 checkpoint",
    "compressed-tensors": "a compressed-tensors checkpoint (FP8 or int, for vLLM)",
    "modelopt": "a ModelOpt checkpoint (NVIDIA)",
    "mxfp4": "an MXFP4 checkpoint",
    "exl2": "an EXL2 checkpoint (ExLlama)",
    "exl3": "an EXL3 checkpoint (ExLlama)",
    "mlx": "an MLX checkpoint (Apple)",
    "hqq": "an HQQ checkpoint",
    "aqlm": "an AQLM checkpoint",
    "quanto": "a Quanto checkpoint",
    "torchao": "a torchao checkpoint",
    "bitnet": "a BitNet checkpoint",
    "spqr": "a SpQR checkpoint",
    "vptq": "a VPTQ checkpoint",
    "auto-round": "an AutoRound checkpoint",
    "quark": "a Quark checkpoint (AMD)",
}


def _method_by_tensors(tensors: Mapping[str, str]) -> str | None:
    """What the tensors' names and types betray where no file says it."""
    endings = {name.rsplit(".", 1)[-1] for name in tensors}
    types = set(tensors.values())
    signs = (
        ({"q_weight", "q_groups"} <= endings, "exl2"),
        ("trellis" in endings, "exl3"),
        ("qweight" in endings and "g_idx" in endings, "gptq"),
        ("qweight" in endings, "awq"),
        ({"SCB", "absmax", "bitsandbytes__nf4", "bitsandbytes__fp4"} & endings, "bitsandbytes"),
        ("weight_packed" in endings, "compressed-tensors"),
        ({"scales", "biases"} <= endings and "U32" in types, "mlx"),
        (any(kind.startswith("F8_") for kind in types), "fp8"),
        (any(name.endswith("_blocks") for name in tensors) and "U8" in types, "mxfp4"),
        ("weight_scale" in endings and "I8" in types, "compressed-tensors"),
    )
    return next((method for is_it, method in signs if is_it), None)
