"""Other benchmarks' results as rows of their own, and ours as llama-bench would write them.

What is read keeps the name of its contract and never enters a median or a verdict of ours: it was measured on other
tokens, under other rules, perhaps on another machine.

llama-bench (ggml-org/llama.cpp, tools/llama-bench; every form of its `-o`): `avg_ts` is the mean of n / seconds over
the repetitions, of n_prompt tokens (pp) or of n_gen tokens (tg); tg counts every token, there is no first one apart.
llama-batched-bench (the same, tools/batched-bench): `speed_pp`, `speed_tg`: of all sequences together.
llm_bench (openvinotoolkit/openvino.genai, tools/llm_bench): milliseconds; its first iteration is a warm-up: left out.
What it could not measure is -1, NA or an empty text there; of a batch, a latency is that of all its sequences.
benchmark_e2e (microsoft/onnxruntime-genai, benchmark/python): means; tokenisation and sampling are timed apart, the
first token belongs to the prompt.
vLLM's `bench serve`, genai-perf and its successor AIPerf: as a client sees a server, often many requests at once; a
decode rate is 1 / mean time per output token, the first one excluded.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

from engines.measure.foreign_forms import entries
from engines.measure.privacy import model_name
from engines.measure.records import ForeignRow, LaneResult, Measurement
from engines.measure.spread import counted

LLAMA_BENCH, LLM_BENCH = "llama-bench", "llm_bench"
BATCHED_BENCH, ORT_GENAI = "llama-batched-bench", "onnxruntime-genai benchmark_e2e"
VLLM, GENAI_PERF = "vLLM bench serve", "genai-perf"
KNOWN = (
    "llama-bench's JSON, JSON Lines, CSV, Markdown or SQL, llama-batched-bench's, llm_bench's JSON or CSV, "
    "onnxruntime-genai's benchmark_e2e, vLLM's bench serve or genai-perf's JSON"
)
_MOST = 1e12
"""No rate, latency or count is larger."""
_SETTINGS = (
    *("backends", "devices", "n_gpu_layers", "n_cpu_moe", "split_mode", "main_gpu", "tensor_split"),
    *("n_threads", "cpu_mask", "cpu_strict", "poll", "n_batch", "n_ubatch", "type_k", "type_v"),
    *("flash_attn", "no_kv_offload", "load_mode", "use_mmap", "embeddings", "no_op_offload", "no_host"),
)
_KEPT = ("build_commit", "cpu_info", "gpu_info", "model_type", "model_size", "model_n_params", *_SETTINGS)
_TOLD_BY_OTHERS = ("model_size", "model_n_params")
"""What differs with `model_type` alone."""
_COLUMNS = {
    "model": "model_type",
    "backend": "backends",
    "ngl": "n_gpu_layers",
    "threads": "n_threads",
    "sm": "split_mode",
    "fa": "flash_attn",
    "nkvo": "no_kv_offload",
    "dev": "devices",
    "ts": "tensor_split",
    "lm": "load_mode",
    "mmap": "use_mmap",
    "embd": "embeddings",
    "nopo": "no_op_offload",
    "noh": "no_host",
}
"""Names of llama-bench's in its Markdown -> in its other forms."""
_TEST = re.compile(r"(?:pp ?(\d+))?\+?(?:tg ?(\d+))?(?: @ d(\d+))?")
_MEAN = re.compile(r"(\d+(?:\.\d+)?)(?:[^\d.]+(\d+(?:\.\d+)?))?")


class ForeignError(ValueError):
    """A file that is in none of the known formats; the message says so."""


def read(text: str) -> tuple[ForeignRow, ...]:
    """The rows in another benchmark's file; raises ForeignError."""
    try:
        found = entries(text)
        rows = tuple(row for reader, group in _by_reader(found) for row in reader(group))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ForeignError(f"This is not {KNOWN} ({error}).") from error
    if not rows:
        raise ForeignError("The file holds no result.")
    return _told_apart(rows)


_Reader = Callable[[Sequence[Mapping[str, Any]]], Iterator[ForeignRow]]


def _by_reader(found: Sequence[Mapping[str, Any]]) -> Iterator[tuple[_Reader, list[Mapping[str, Any]]]]:
    for reader, group in itertools.groupby(found, _reader_of):
        yield reader, list(group)


def _reader_of(entry: Mapping[str, Any]) -> _Reader:
    return next((reader for names, reader in _READERS if any(name in entry for name in names)), _llama_bench)


def _told_apart(rows: Sequence[ForeignRow]) -> tuple[ForeignRow, ...]:
    """Rows that read alike but were measured otherwise (a sweep over threads, say) get that behind their label."""
    groups: dict[tuple[str, ...], list[ForeignRow]] = {}
    alike = attrgetter("contract", "label", "test", "metric")
    for row in rows:
        groups.setdefault(alike(row), []).append(row)
    varied = {key: _varied([row.detail for row in group]) for key, group in groups.items()}
    return tuple(
        replace(row, label=f"{row.label} ({', '.join(f'{name}={row.detail.get(name)}' for name in names)})")
        if (names := varied[alike(row)])
        else row
        for row in rows
    )


def _varied(details: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for detail in details for name in detail)
    return [
        name
        for name in names
        if name not in _TOLD_BY_OTHERS and len({str(detail.get(name)) for detail in details}) > 1
    ]


# --- llama.cpp ---------------------------------------------------------------------------------------------


def _llama_bench(found: Sequence[Mapping[str, Any]]) -> Iterator[ForeignRow]:
    for entry in found:
        yield _llama_bench_row(_from_markdown(entry) if "t/s" in entry else entry)


def _llama_bench_row(entry: Mapping[str, Any]) -> ForeignRow:
    prompt, new, depth = (_count(entry.get(name, 0)) for name in ("n_prompt", "n_gen", "n_depth"))
    test = "+".join(part for part in (f"pp{prompt}" if prompt else "", f"tg{new}" if new else "") if part)
    return ForeignRow(
        str(entry.get("contract") or LLAMA_BENCH),  # ours in its form names its own rules
        model_name(str(entry.get("model_filename") or entry.get("model_type") or "unnamed")),
        test + (f" @ d{depth}" if depth else ""),
        "decode_tok_s" if new and not prompt else "prefill_tok_s" if prompt and not new else "tok_s",
        _positive(entry["avg_ts"]),
        _number(entry.get("stddev_ts")),
        {name: entry[name] for name in _KEPT if isinstance(entry.get(name), (str, int, float))}
        | _spelled(entry.get("settings")),
    )


def _spelled(settings: Any) -> dict[str, str]:
    """A lane's settings, in ours."""
    if not isinstance(settings, Mapping) or not settings:
        return {}
    return {"settings": ", ".join(f"{name}={value}" for name, value in sorted(settings.items()))}


def _from_markdown(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A row of its table, as its other forms have it: `pp512 @ d64`, `123.45 ± 0.67`."""
    test, mean = _TEST.fullmatch(str(entry["test"])), _MEAN.fullmatch(str(entry["t/s"]))
    if test is None or mean is None:
        raise ValueError(f"“{entry['test']}”, “{entry['t/s']}” is no test with its rate")
    counts = zip(("n_prompt", "n_gen", "n_depth"), (int(part or 0) for part in test.groups()), strict=True)
    return {
        **{_COLUMNS.get(name, name): value for name, value in entry.items()},
        **dict(counts),
        "avg_ts": float(mean[1]),
        "stddev_ts": None if mean[2] is None else float(mean[2]),
    }


def _batched_bench(found: Sequence[Mapping[str, Any]]) -> Iterator[ForeignRow]:
    for entry in found:
        prompt, new, at_once = (
            _count(entry[table] if table in entry else entry[name])
            for table, name in (("PP", "pp"), ("TG", "tg"), ("B", "pl"))
        )
        detail = {name: entry[name] for name in (*_SETTINGS, "is_pp_shared") if name in entry}
        many = f", {at_once} at once" if at_once > 1 else ""
        for metric, test, table, name in (
            ("prefill_tok_s", f"pp{prompt}", "S_PP t/s", "speed_pp"),
            ("decode_tok_s", f"tg{new} @ d{prompt}", "S_TG t/s", "speed_tg"),
        ):
            if rate := _known(entry.get(table, entry.get(name))):
                yield ForeignRow(BATCHED_BENCH, "unnamed", test + many, metric, rate, None, detail)


# --- OpenVINO GenAI, ONNX Runtime GenAI --------------------------------------------------------------------


def _llm_bench(found: Sequence[Mapping[str, Any]]) -> Iterator[ForeignRow]:
    for report in found:
        yield from _llm_bench_rows(report.get("metadata") or {}, report["perfdata"]["results"])


def _llm_bench_csv(found: Sequence[Mapping[str, Any]]) -> Iterator[ForeignRow]:
    """Its table ends with means and with what the columns mean: no iterations."""
    results = [
        {**row, "first_latency": row["1st_latency(ms)"], "second_avg_latency": row["2nd_avg_latency(ms)"]}
        for row in found
        if isinstance(row["iteration"], int)
    ]
    yield from _llm_bench_rows(results[0] if results else {}, results)


def _llm_bench_rows(
    metadata: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]
) -> Iterator[ForeignRow]:
    label = model_name(str(metadata.get("model") or "unnamed"))
    kept = ("framework", "device", "precision", "batch_size")
    detail = {name: metadata[name] for name in kept if name in metadata}
    batch = int(_known(detail.get("batch_size")) or 1)
    groups: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for result in measured:
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


def _ort_genai(found: Sequence[Mapping[str, Any]]) -> Iterator[ForeignRow]:
    for entry in found:
        flat = dict(_flat(entry))
        prompt, new = (
            int(_known(flat.get(f"config.{name}")) or 0) for name in ("prompt_length", "tokens_generated")
        )
        detail = {
            name: flat[path]
            for name, path in (
                ("precision", "config.precision"),
                ("device", "metadata.device"),
                ("package", "metadata.package_name"),
                ("version", "metadata.package_version"),
                ("batch_size", "config.batch_size"),
            )
            if path in flat
        }
        label = model_name(str(flat.get("config.model_info.full_name") or "unnamed"))
        for metric, test, name in (
            ("prefill_tok_s", f"in {prompt}", "prompt_processing"),
            ("decode_tok_s", f"in {prompt}, out {new}", "token_generation"),
        ):
            if rate := _known(flat.get(f"metrics.{name}_throughput_tps")):
                yield ForeignRow(ORT_GENAI, label, test, metric, rate, None, detail)


def _flat(entry: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{"metrics": {"x": 1}}` as its CSV names it: `metrics.x`."""
    for name, value in entry.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


# --- servers -----------------------------------------------------------------------------------------------


def _vllm(found: Sequence[Mapping[str, Any]]) -> Iterator[ForeignRow]:
    for entry in found:
        label = model_name(str(entry.get("model_id") or "unnamed"))
        kept = ("backend", "endpoint_type", "request_rate", "max_concurrency", "num_prompts")
        detail = {name: entry[name] for name in kept if isinstance(entry.get(name), (str, int, float))}
        completed = int(_known(entry.get("completed")) or 0)
        sizes = [int(_known(entry.get(f"total_{name}_tokens")) or 0) for name in ("input", "output")]
        test = f"{completed} requests"
        if completed:
            test += f", in {sizes[0] / completed:.0f}, out {sizes[1] / completed:.0f} on average"
        if at_once := _known(entry.get("max_concurrency")):
            test += f", {at_once:.0f} at once"
        times = [
            (_known(entry.get(f"mean_{name}_ms")), entry.get(f"std_{name}_ms")) for name in ("ttft", "tpot")
        ]
        yield from _served(VLLM, label, test, times, _known(entry.get("output_throughput")), detail)


def _genai_perf(found: Sequence[Mapping[str, Any]]) -> Iterator[ForeignRow]:
    for entry in found:

        def mean(name: str, unit: str, entry: Mapping[str, Any] = entry) -> tuple[float | None, Any]:
            told = entry.get(name)
            if not isinstance(told, Mapping) or told.get("unit") != unit:
                return None, None
            return _known(told.get("avg")), told.get("std")

        label = model_name(
            _first_text(entry.get("input_config"), ("model_names", "model", "formatted_model_name"))
        )
        sizes = [mean(f"{way}_sequence_length", "tokens")[0] for way in ("input", "output")]
        test = ", ".join(f"{way} {size:.0f}" for way, size in zip(("in", "out"), sizes, strict=True) if size)
        times = [mean("time_to_first_token", "ms"), mean("inter_token_latency", "ms")]
        rate = mean("output_token_throughput", "tokens/sec")[0]
        yield from _served(GENAI_PERF, label, test and f"{test} on average", times, rate, {})


def _served(
    contract: str,
    label: str,
    test: str,
    times_ms: Sequence[tuple[float | None, Any]],
    output_tok_s: float | None,
    detail: Mapping[str, Any],
) -> Iterator[ForeignRow]:
    """`times_ms`: to the first token, and per token after it; mean and deviation each."""
    (first, deviation), (gap, _) = times_ms
    if first:
        spread = _known(deviation)
        yield ForeignRow(contract, label, test, "ttft_s", first / 1000, spread and spread / 1000, detail)
    if gap:
        yield ForeignRow(contract, label, test, "decode_tok_s", 1000 / gap, None, detail)
    if output_tok_s:
        yield ForeignRow(contract, label, test, "tok_s", output_tok_s, None, detail)


def _first_text(value: Any, names: Sequence[str]) -> str:
    """The first text under one of these names, however deep: versions put the model's name in different places."""
    if isinstance(value, Mapping):
        for name in names:
            named = value.get(name)
            named = named[0] if isinstance(named, list) and named else named
            if isinstance(named, str) and named:
                return named
        inner = (_first_text(each, names) for each in value.values() if isinstance(each, Mapping))
        return next((text for text in inner if text != "unnamed"), "unnamed")
    return "unnamed"


_READERS: tuple[tuple[tuple[str, ...], _Reader], ...] = (
    (("perfdata",), _llm_bench),
    (("1st_latency(ms)",), _llm_bench_csv),
    (("speed_tg", "S_TG t/s"), _batched_bench),
    (("metrics", "metrics.token_generation_throughput_tps"), _ort_genai),
    (("mean_tpot_ms", "mean_ttft_ms"), _vllm),
    (("inter_token_latency", "time_to_first_token"), _genai_perf),
)
"""Names of which a result has one -> who reads it; all others are llama-bench's."""


def _known(value: Any) -> float | None:
    """A number that a benchmark could tell."""
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
