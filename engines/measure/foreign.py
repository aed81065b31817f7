"""Other benchmarks' results as rows of their own, and ours as llama-bench would write them.

What is read keeps the name of its contract and never enters a median or a verdict of ours: it was measured on other
tokens, under other rules, perhaps on another machine.

llama-bench (JSON and JSON Lines; ggml-org/llama.cpp, tools/llama-bench): `avg_ts` is the mean of n / seconds over the
repetitions, of n_prompt tokens (pp) or of n_gen tokens (tg); tg counts every token, there is no first one apart.
llm_bench (openvinotoolkit/openvino.genai, tools/llm_bench): milliseconds; its first iteration is a warm-up, left out.
What it could not measure is -1 or an empty text there; of a batch, a latency is that of all its sequences together.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from engines.measure.privacy import model_name
from engines.measure.records import ForeignRow, LaneResult, Measurement
from engines.measure.spread import counted

LLAMA_BENCH, LLM_BENCH = "llama-bench", "llm_bench"
_MOST = 1e12
"""No rate, latency or count is larger."""
_KEPT = (
    "build_commit",
    "cpu_info",
    "gpu_info",
    "backends",
    "model_type",
    "model_size",
    "model_n_params",
    "n_threads",
)


class ForeignError(ValueError):
    """A file that is neither of the known formats; the message says so."""


def read(text: str) -> tuple[ForeignRow, ...]:
    """The rows in a llama-bench JSON or JSON Lines file, or an llm_bench JSON report; raises ForeignError."""
    try:
        documents = _documents(text)
        if len(documents) == 1 and isinstance(documents[0], Mapping) and "perfdata" in documents[0]:
            rows = tuple(_llm_bench(documents[0]))
        else:
            flat = documents[0] if len(documents) == 1 and isinstance(documents[0], list) else documents
            rows = tuple(_llama_bench(entry) for entry in flat)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ForeignError(
            f"This is neither llama-bench's JSON or JSON Lines nor an llm_bench report ({error})."
        ) from error
    if not rows:
        raise ForeignError("The file holds no result.")
    return rows


def _documents(text: str) -> list[Any]:
    try:
        return [json.loads(text)]
    except ValueError:
        return [json.loads(line) for line in text.split("\n") if line.strip()]


def _llama_bench(entry: Mapping[str, Any]) -> ForeignRow:
    prompt, new, depth = (_count(entry.get(name, 0)) for name in ("n_prompt", "n_gen", "n_depth"))
    test = "+".join(part for part in (f"pp{prompt}" if prompt else "", f"tg{new}" if new else "") if part)
    return ForeignRow(
        LLAMA_BENCH,
        model_name(str(entry.get("model_filename") or entry.get("model_type") or "unnamed")),
        test + (f" @ d{depth}" if depth else ""),
        "decode_tok_s" if new and not prompt else "prefill_tok_s" if prompt and not new else "tok_s",
        _positive(entry["avg_ts"]),
        _number(entry.get("stddev_ts")),
        {name: entry[name] for name in _KEPT if isinstance(entry.get(name), (str, int, float))},
    )


def _llm_bench(report: Mapping[str, Any]) -> Iterator[ForeignRow]:
    metadata = report.get("metadata") or {}
    label = model_name(str(metadata.get("model") or "unnamed"))
    kept = ("framework", "device", "precision", "batch_size")
    detail = {name: metadata[name] for name in kept if name in metadata}
    batch = int(_known(detail.get("batch_size")) or 1)
    groups: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for result in report["perfdata"]["results"]:
        if _known(result.get("iteration")):  # 0 is the warm-up
            prompt, new = (int(_known(result.get(name)) or 0) for name in ("input_size", "output_size"))
            groups.setdefault((prompt, new), []).append(result)
    for (prompt, new), results in groups.items():
        for metric, test, latency, tokens in (
            ("prefill_tok_s", f"in {prompt}", "first_latency", prompt),
            ("decode_tok_s", f"in {prompt}, out {new}", "second_avg_latency", batch),
        ):
            rates = [1000 * tokens / known for r in results if (known := _known(r.get(latency)))]
            if rates and tokens:
                spread = statistics.stdev(rates) if len(rates) > 1 else None
                yield ForeignRow(LLM_BENCH, label, test, metric, statistics.fmean(rates), spread, detail)


def _known(value: Any) -> float | None:
    """A number that llm_bench could tell."""
    number = _number(value)
    return number if number is not None and 0 < number < _MOST else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _positive(value: Any) -> float:
    number = _number(value)
    if number is None or not 0 < number < _MOST:
        raise ValueError(f"{value!r} is no rate")
    return number


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no number of tokens")
    return value


# --- ours, as llama-bench writes ---------------------------------------------------------------------------


def llama_bench_lines(measurement: Measurement) -> Iterator[dict[str, Any]]:
    """One object per lane, case and test, with llama-bench's names; `contract` says whose rules they follow."""
    for result in measurement.measured:
        for case in measurement.suite.cases:
            repeats = counted(result.repeats, case.name)
            pairs = [(r.token_offsets_s[0], r.token_offsets_s[-1] - r.token_offsets_s[0]) for r in repeats]
            if not pairs:
                continue
            head = _head(result, measurement)
            prompt = repeats[0].prompt_tokens or case.prompt_tokens
            yield head | _test(prompt, 0, [first for first, _ in pairs], prompt)
            if case.new_tokens > 1 and all(rest > 0 for _, rest in pairs):
                decode = [rest for _, rest in pairs]
                yield head | _test(0, case.new_tokens - 1, decode, case.new_tokens - 1) | {"n_depth": prompt}


def _head(result: LaneResult, measurement: Measurement) -> dict[str, Any]:
    target = result.lane.target
    return {
        "contract": measurement.contract,
        "build_commit": None,
        "cpu_info": measurement.machine.get("processor"),
        "gpu_info": None,
        "backends": f"{target.engine}/{target.device}",
        "model_filename": model_name(target.model),
        "model_type": f"{model_name(target.model)} {target.precision}",
        "model_size": result.weight_bytes,
        "settings": dict(result.lane.settings),
        "test_time": measurement.created_at,
        "n_depth": 0,
    }


def _test(prompt: int, new: int, seconds: list[float], tokens: int) -> dict[str, Any]:
    rates = [tokens / s for s in seconds]
    return {
        "n_prompt": prompt,
        "n_gen": new,
        "avg_ns": round(statistics.fmean(seconds) * 1e9),
        "stddev_ns": round(statistics.stdev(seconds) * 1e9) if len(seconds) > 1 else 0,
        "avg_ts": statistics.fmean(rates),
        "stddev_ts": statistics.stdev(rates) if len(rates) > 1 else 0.0,
        "samples_ns": [round(s * 1e9) for s in seconds],
        "samples_ts": rates,
    }
