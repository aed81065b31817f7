"""Other benchmarks' files in every form they write: the same figures whichever was chosen, under their own names."""

import csv
import io
import json
from dataclasses import replace

import pytest

from engines.measure import document, foreign, tables
from tests.engines.measure.test_verdict import measured, result

FIELDS = {
    "build_commit": "8a4e0a1", "build_number": 4950, "cpu_info": "AMD Ryzen 9, 16 cores", "gpu_info": "",
    "backends": "CPU", "model_filename": "models/qwen.gguf", "model_type": "qwen2 1.5B Q4_0",
    "model_size": 885097472, "model_n_params": 1543714304, "n_batch": 2048, "n_threads": 8, "type_k": "f16",
    "n_prompt": 512, "n_gen": 0, "n_depth": 0, "avg_ns": 69000000, "stddev_ns": 100000,
    "avg_ts": 7345.91, "stddev_ts": 65.72,
}  # fmt: skip
DECODE = {**FIELDS, "n_prompt": 0, "n_gen": 128, "n_depth": 512, "avg_ts": 120.6, "stddev_ts": 0.5}
MARKDOWN = """ggml_cuda_init: found 1 CUDA device
| model                          |       size |     params | backend    | threads |            test |                  t/s |
| ------------------------------ | ---------: | ---------: | ---------- | ------: | --------------: | -------------------: |
| qwen2 1.5B Q4_0                | 844.10 MiB |     1.54 B | CPU        |       8 |           pp512 |      7345.91 ± 65.72 |
| qwen2 1.5B Q4_0                | 844.10 MiB |     1.54 B | CPU        |       8 |    tg128 @ d512 |       120.60 {sign} 0.50 |

build: 8a4e0a1 (4950)
"""  # noqa: E501


def as_csv(rows):
    """As llama-bench does it: plain names, every value in quotes."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(rows[0])
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(row.values() for row in rows)
    return out.getvalue()


def as_sql(rows):
    head = f"CREATE TABLE IF NOT EXISTS llama_bench (\n  {' TEXT,'.join(rows[0])} TEXT\n);\n\n"
    return head + "".join(
        f"INSERT INTO llama_bench ({', '.join(row)}) VALUES ({', '.join(repr(str(v)) for v in row.values())});\n"
        for row in rows
    )


@pytest.mark.parametrize(
    "text",
    [
        as_csv([FIELDS, DECODE]),
        as_csv([FIELDS, DECODE]).replace("\n", "\r\n"),
        as_sql([FIELDS, DECODE]),
        json.dumps([FIELDS, DECODE]),
        MARKDOWN.format(sign="±"),
        MARKDOWN.format(sign="┬▒"),  # as PowerShell 5's `>` writes it
        MARKDOWN.format(sign="±")
        .replace("pp512", "pp 512")
        .replace("tg128", "tg 128"),  # as it was before 2024
    ],
)
def test_llama_bench_gives_the_same_in_every_form(text):
    prefill, decode = foreign.read(text)
    assert {prefill.contract, decode.contract} == {"llama-bench"}
    assert {prefill.label, decode.label} <= {"qwen.gguf", "models/qwen.gguf", "qwen2 1.5B Q4_0"}
    told = [(row.test, row.metric, row.value, row.deviation) for row in (prefill, decode)]
    assert told == [
        ("pp512", "prefill_tok_s", 7345.91, 65.72),
        ("tg128 @ d512", "decode_tok_s", 120.6, 0.5),
    ]
    assert prefill.detail["n_threads"] == 8


@pytest.mark.parametrize(
    "text",
    [
        as_csv([FIELDS]).rsplit(",", 1)[0],  # cut off in the middle
        as_csv([{**FIELDS, "avg_ts": "inf"}]),
        as_csv([{**FIELDS, "avg_ts": "nan"}]),
        "a,b\n1,2\n",
        as_sql([FIELDS]).replace("avg_ts", "average"),
        "CREATE TABLE x (y); ATTACH 'z' AS w;",
        MARKDOWN.format(sign="±").replace("pp512", "qq512"),
        "| a | b |\n|---|---|\n| 1 | 2 |\n",
        "[1, 2]",
        "a,b\n" + "x" * 200_000 + ",1\n",  # more than Python's csv takes as one value
    ],
)
def test_what_is_cut_off_or_of_another_kind_is_refused_with_what_is_known(text):
    with pytest.raises(foreign.ForeignError, match="llama-bench's JSON, JSON Lines, CSV, Markdown or SQL"):
        foreign.read(text)


def test_rows_of_a_sweep_are_told_apart():
    rows = foreign.read(json.dumps([{**DECODE, "n_threads": n, "avg_ts": 10.0 * n} for n in (2, 4)]))
    assert [row.label for row in rows] == ["models/qwen.gguf (n_threads=2)", "models/qwen.gguf (n_threads=4)"]
    shown = tables.text(replace(measured(result("100")), foreign=rows))
    assert "llama-bench  models/qwen.gguf (n_threads=4)  tg128 @ d512  decode rate: 40 ± 0.5 tok/s" in shown


def test_ours_in_llama_benchs_form_come_back_under_our_rules_lane_by_lane():
    lines = foreign.llama_bench_lines(measured(result("100"), result("20")))
    rows = foreign.read("\n".join(map(document.line, lines)))
    assert {row.contract for row in rows} == {"backend-arena-measure/1"}
    assert len({(row.label, row.test, row.metric) for row in rows}) == len(rows) == 8


BATCHED = {"n_kv_max": 8192, "n_threads": 8, "pp": 128, "tg": 64, "pl": 4, "n_kv": 768, "t_pp": 0.4,
           "speed_pp": 1280.0, "t_tg": 2.0, "speed_tg": 128.0, "t": 2.4, "speed": 320.0}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(BATCHED),
        "main: n_kv_max = 8192\n\n"
        "|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |\n"
        "|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|\n"
        "|   128 |     64 |    4 |    768 |    0.400 |  1280.00 |    2.000 |   128.00 |    2.400 |   320.00 |\n",
    ],
)
def test_llama_batched_bench_is_read_as_the_rate_of_all_its_sequences(text):
    prefill, decode = foreign.read(text)
    assert (prefill.contract, prefill.test, prefill.value) == (
        "llama-batched-bench",
        "pp128, 4 at once",
        1280,
    )
    assert (decode.test, decode.metric, decode.value) == ("tg64 @ d128, 4 at once", "decode_tok_s", 128)


def test_llm_benchs_table_gives_what_its_report_gives():
    latencies = "1st_latency(ms),2nd_avg_latency(ms)"
    head = f"iteration,model,framework,device,input_size,output_size,{latencies},precision,batch_size"
    text = "\r\n".join(
        [
            head,
            "0,phi-3,ov,CPU,100,20,999,99,INT4,1",
            "1,phi-3,ov,CPU,100,20,200.0,50.0,INT4,1",
            "2,phi-3,ov,CPU,100,20,250.0,40.0,INT4,1",
            "3,phi-3,ov,CPU,100,1,250.0,NA,INT4,1",
            "avg,phi-3,ov,CPU,100,20,225.0,45.0,INT4,1",
            ",,,,,,,,,",
            "input_size: Input token size,,,,,,,,,",
        ]
    )
    rows = foreign.read(text)
    assert {(row.contract, row.label) for row in rows} == {("llm_bench", "phi-3")}
    decode = next(row for row in rows if row.metric == "decode_tok_s")
    assert (decode.test, decode.value) == ("in 100, out 20", pytest.approx((20 + 25) / 2))


ORT = {
    "config": {"backend": "onnxruntime-genai", "batch_size": 1, "precision": "int4", "prompt_length": 64,
               "tokens_generated": 256, "model_info": {"full_name": "phi-3"}},
    "metadata": {"device": "cpu", "package_name": "onnxruntime-genai", "package_version": "0.9.0"},
    "metrics": {"prompt_processing_throughput_tps": 310.5, "token_generation_throughput_tps": 17.25},
}  # fmt: skip


@pytest.mark.parametrize("form", ["json", "csv"])
def test_onnxruntime_genais_benchmark_is_read(form):
    flat = dict(foreign._flat(ORT))
    text = json.dumps([ORT], indent=4) if form == "json" else as_csv([flat])
    prefill, decode = foreign.read(text)
    assert (prefill.label, prefill.test, prefill.value) == ("phi-3", "in 64", 310.5)
    assert (decode.contract, decode.test, decode.value) == (
        "onnxruntime-genai benchmark_e2e", "in 64, out 256", 17.25,
    )  # fmt: skip
    assert decode.detail["version"] == "0.9.0"


VLLM = {"date": "20260101-120000", "backend": "openai", "model_id": "org/model-3b", "num_prompts": 100,
        "request_rate": "inf", "max_concurrency": 4, "completed": 100, "total_input_tokens": 51200,
        "total_output_tokens": 12800, "output_throughput": 71.5, "mean_ttft_ms": 150.0, "std_ttft_ms": 12.0,
        "mean_tpot_ms": 50.0}  # fmt: skip
GENAI_PERF = {
    "time_to_first_token": {"unit": "ms", "avg": 150.0, "std": 12.0},
    "inter_token_latency": {"unit": "ms", "avg": 50.0},
    "output_token_throughput": {"unit": "tokens/sec", "avg": 71.5},
    "input_sequence_length": {"unit": "tokens", "avg": 512.0},
    "output_sequence_length": {"unit": "tokens", "avg": 128.0},
    "input_config": {"endpoint": {"model_names": ["org/model-3b"]}},
}


@pytest.mark.parametrize(("report", "contract"), [(VLLM, "vLLM bench serve"), (GENAI_PERF, "genai-perf")])
def test_what_was_measured_at_a_server_is_read_with_its_time_to_first_token(report, contract):
    rows = foreign.read(json.dumps(report))
    assert {(row.contract, row.label) for row in rows} == {(contract, "org/model-3b")}
    assert [(row.metric, row.value) for row in rows] == [
        ("ttft_s", 0.15),
        ("decode_tok_s", 20),
        ("tok_s", 71.5),
    ]
    assert "in 512, out 128" in rows[0].test
    assert tables.foreign_figure(rows[0]) == ("time to first token", "0.15 ± 0.012 s")
