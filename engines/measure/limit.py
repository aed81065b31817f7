"""The physical limit of decoding: every token reads the weights once, and memory reads only so fast.

A rate beyond 1.2 times that limit is no achievement but a mistake somewhere: it is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engines.measure.records import LaneResult, Repeat

TOLERANCE = 1.2
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def read_bytes_per_token(folder: Path, weight_bytes: int | None) -> int | None:
    """Bytes of weights that one decoded token reads: all, less an input embedding that is no output head as well.

    None where it cannot be told: no size, or experts of which a token uses a few.
    """
    if weight_bytes is None:
        return None
    config = _config(folder)
    if any((config.get(name) or 0) > 1 for name in _EXPERTS):
        return None
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")
    sizes = [config[name] for name in names if isinstance(config.get(name), int) and config[name] > 0]
    if config.get("tie_word_embeddings") or len(sizes) < len(names):
        return weight_bytes
    # Shares by count of weights: which of them got how many bits is the converter's affair.
    vocabulary, hidden, layers, middle = sizes
    embedding = vocabulary * hidden
    layer = 4 * hidden * hidden + 3 * hidden * middle
    return int(weight_bytes * (1 - embedding / (2 * embedding + layers * layer)))


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict):
        return {}
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def impossible(result: LaneResult, repeat: Repeat) -> str | None:
    """Why a repeat's decode rate cannot be; None when it can, or when the limit is not known."""
    rate, per_token, bandwidth = repeat.decode_tok_s, result.read_bytes_per_token, result.bandwidth_bytes_s
    if rate is None or per_token is None or bandwidth is None:
        return None
    needed = rate * per_token
    if needed <= TOLERANCE * bandwidth:
        return None
    return (
        f"impossible: {rate:,.0f} tok/s would read {needed / 1e9:,.1f} GB/s of weights, "
        f"this machine's memory delivers {bandwidth / 1e9:,.1f} GB/s"
    )
