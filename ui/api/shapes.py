"""Answers as programs expect them: OpenAI's documents and chunks, `usage`, and our own `timings` beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from engines.protocol import RunMetrics
from ui.chat.run_view import RunView

DONE = b"data: [DONE]\n\n"
PING = b": still there\n\n"


def sse(document: Mapping[str, Any], event: str | None = None) -> bytes:
    """One server-sent event. ASCII only: lone surrogates survive."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(document, separators=(',', ':'))}\n\n".encode("ascii")


def now_s() -> int:
    return int(time.time())


def finish_reason(view: RunView) -> str:
    return "length" if view.finish_reason == "length" else "stop"


def usage(metrics: RunMetrics | None) -> dict[str, Any] | None:
    """Token counts; None where nobody knows them."""
    if metrics is None or metrics.prompt_tokens is None or metrics.output_tokens is None:
        return None
    counts: dict[str, Any] = {
        "prompt_tokens": metrics.prompt_tokens,
        "completion_tokens": metrics.output_tokens,
        "total_tokens": metrics.prompt_tokens + metrics.output_tokens,
    }
    if metrics.cached_prompt_tokens is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": metrics.cached_prompt_tokens}
    if metrics.reasoning_tokens is not None:
        counts["completion_tokens_details"] = {"reasoning_tokens": metrics.reasoning_tokens}
    return counts


def timings(view: RunView, *, offsets: bool = False) -> dict[str, Any]:
    """Our measurements, named as llama.cpp names them where it has a name; what is not known is left out.

    `offsets`: with the time of each token, in seconds from the moment that the worker took the request.
    """
    metrics = view.metrics or RunMetrics()
    seen = metrics.token_offsets_s or metrics.piece_offsets_s
    cached, prompt = metrics.cached_prompt_tokens, metrics.prompt_tokens
    values = {
        "ttft_ms": _ms(metrics.ttft_s),
        "cache_n": cached,
        "prompt_n": prompt - cached if prompt is not None and cached is not None else prompt,
        "prompt_ms": _ms(metrics.ttft_s),
        "prompt_per_second": metrics.prefill_tok_s,
        "predicted_n": metrics.output_tokens,
        "predicted_ms": _ms(seen[-1] - seen[0]) if seen else None,
        "predicted_per_second": metrics.decode_tok_s,
        "total_ms": _ms(metrics.total_s),
        "load_ms": _ms(metrics.load_s),
        "clock": metrics.clock,
        "contended": view.contended,
        "token_offsets_s": list(metrics.token_offsets_s) if offsets and metrics.token_offsets_s else None,
    }
    return {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in values.items()
        if value is not None
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds
