"""Quantisation-aware training: the forward pass sees int4 weights, the optimiser moves float32 ones.

The grid is the one both weight compressors use for symmetric int4 (OpenVINO's NNCF and ONNX Runtime's
MatMul quantiser): in each group of 128 inputs the weight of largest magnitude becomes -8, the others
-8..7 times the scale. Scales keep five significant bits, so scale x level is exact in bfloat16 and float16.
A snapped weight therefore survives the trip to bf16, fp16 and int4 unchanged: int4 costs no accuracy.
"""

import torch
from torch import Tensor

GROUP = 128
_LOW_BITS = 19  # float32 stores 23 mantissa bits; dropping 19 leaves 4 + the implicit one


def round_to_five_bits(x: Tensor) -> Tensor:
    """The nearest float32 with five significant bits."""
    bits = x.contiguous().view(torch.int32)
    bits = (bits + (1 << (_LOW_BITS - 1))) & ~((1 << _LOW_BITS) - 1)
    return bits.view(torch.float32)


def snap(weight: Tensor) -> Tensor:
    """``weight`` (rows, columns; columns a multiple of 128) on its int4 grid, as float32."""
    groups = weight.reshape(weight.shape[0], -1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    largest = torch.where(-low >= high, low, high)
    scale = round_to_five_bits(largest / -8)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    levels = torch.round(groups / scale).clamp(-8, 7)
    return (levels * scale).reshape(weight.shape)


def straight_through(weight: Tensor) -> Tensor:
    """Snapped in the forward pass, the identity in the backward pass."""
    return weight + (snap(weight) - weight).detach()


def quantised(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """All matrices straight-through quantised; the norms' vectors as they are."""
    return {name: straight_through(p) if p.dim() == 2 else p for name, p in parameters.items()}


def snapped(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights to export: matrices on their int4 grid, everything representable in bfloat16."""
    return {
        name: (snap(p.detach()) if p.dim() == 2 else p.detach()).to(torch.bfloat16)
        for name, p in parameters.items()
    }
