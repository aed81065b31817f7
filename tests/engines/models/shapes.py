"""Checkpoints by their headers: the tensors of a Phi-3 of any size, written as a file with a hole for the weights."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

Shapes = Mapping[str, tuple[int, ...]]


def phi3_shapes(*, hidden: int, layers: int, vocab: int, intermediate: int, tied: bool = False) -> Shapes:
    """Tensor name -> shape, as transformers saves Phi3ForCausalLM."""
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(layers):
        base = f"model.layers.{layer}"
        shapes |= {
            f"{base}.self_attn.qkv_proj.weight": (3 * hidden, hidden),
            f"{base}.self_attn.o_proj.weight": (hidden, hidden),
            f"{base}.mlp.gate_up_proj.weight": (2 * intermediate, hidden),
            f"{base}.mlp.down_proj.weight": (hidden, intermediate),
            f"{base}.input_layernorm.weight": (hidden,),
            f"{base}.post_attention_layernorm.weight": (hidden,),
        }
    return shapes


def write_hollow(path: Path, shapes: Shapes) -> None:
    """A valid safetensors file of zeros in bfloat16 that takes no disk space where holes are possible."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + offset)


def write_random(path: Path, shapes: Shapes, seed: int = 1) -> None:
    """The same file filled with small random weights, norms with ones: one block of noise, begun elsewhere each time.

    Equal tensors would not do: OpenVINO stores equal constants once.
    """
    import numpy as np

    write_hollow(path, shapes)
    noise = np.random.default_rng(seed).normal(0, 0.02, 2**24).astype(np.float32)
    block = (noise.view(np.uint32) >> 16).astype(np.uint16)  # bfloat16 is the upper half of float32
    one = np.uint16(0x3F80)
    with path.open("r+b") as stream:
        stream.seek(8 + struct.unpack("<Q", stream.read(8))[0])
        for number, shape in enumerate(shapes.values()):
            left = int(np.prod(shape))
            shifted = np.roll(block, number * 104_729)
            if len(shape) == 1:
                stream.write(np.full(left, one, np.uint16).tobytes())
                continue
            while left > 0:
                stream.write(shifted[:left].tobytes())
                left -= block.size
