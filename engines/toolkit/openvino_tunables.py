"""What is worth trying with OpenVINO on a machine: what helps depends on processor and model, so the tuner asks.

Names and values are OpenVINO's own properties (docs.openvino.ai, “CPU device: supported properties”).
"""

from __future__ import annotations

from engines.protocol import Tunable, WeightVariant
from engines.toolkit.process_facts import thread_counts

TUNABLES = (
    Tunable(
        "INFERENCE_PRECISION_HINT",
        ("f32", "bf16"),
        ("CPU",),
        "f32 may decode faster and prefill more slowly than bf16",
    ),
    Tunable("KV_CACHE_PRECISION", ("u8", "f16"), ("CPU", "GPU"), "a smaller cache is read faster at depth"),
    Tunable(
        "INFERENCE_NUM_THREADS", thread_counts(), ("CPU",), "more threads than memory can feed are no use"
    ),
    Tunable(
        "DYNAMIC_QUANTIZATION_GROUP_SIZE",
        ("0", "64"),
        ("CPU", "GPU"),
        "activations in int8, in groups of so many; 0: not",
    ),
)
VARIANTS = (
    WeightVariant("ratio1", "int4", {"ratio": 1.0}, "every layer in int4: fewer bytes, coarser"),
    WeightVariant("group32", "int4", {"group_size": 32}, "finer groups: more bytes, closer to the original"),
    WeightVariant("asym", "int4", {"sym": False}, "with zero points: closer to the original, other kernels"),
)
