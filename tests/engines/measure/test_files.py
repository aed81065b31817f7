"""What comes in and goes out as files: suites, other benchmarks' results, comparisons, tables, the limit."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest

from engines.measure import comparison, document, foreign, limit, machine, prompts, suites, tables, words
from engines.measure.bandwidth import measured as measured_bandwidth
from engines.measure.privacy import without_private
from engines.measure.records import LaneResult, Repeat
from engines.protocol import Failed
from engines.toolkit import text_files
from tests.engines.measure.test_verdict import BOOK, CHAT, measured, result

LLAMA = {
    "build_commit": "8a4e0a1", "cpu_info": "Some CPU", "gpu_info": "", "backends": "CPU",
    "model_filename": "/home/me/models/qwen.gguf", "model_type": "qwen2 1.5B Q4_0", "model_size": 885097472,
    "model_n_params": 1543714304, "n_threads": 8, "n_prompt": 512, "n_gen": 0, "n_depth": 0,
    "test_time": "2025-03-13T20:03:00Z", "avg_ns": 69000000, "stddev_ns": 100000,
    "avg_ts": 7345.9, "stddev_ts": 65.7, "samples_ns": [69000000], "samples_ts": [7345.9],
}  # fmt: skip
LLAMA_TG = {**LLAMA, "n_prompt": 0, "n_gen": 128, "avg_ts": 120.6, "stddev_ts": 0.5}
LLM_BENCH = {
    "metadata": {"model": "phi-3", "framework": "ov", "device": "CPU", "precision": "INT4", "batch_size": 1},
    "perfdata": {
        "compile_time": 4.2,
        "results": [
            {
                "iteration": 0,
                "input_size": 100,
                "output_size": 20,
                "first_latency": 999.0,
                "second_avg_latency": 99.0,
            },
            {
                "iteration": 1,
                "input_size": 100,
                "output_size": 20,
                "first_latency": 200.0,
                "second_avg_latency": 50.0,
            },
            {
                "iteration": 2,
                "input_size": 100,
                "output_size": 20,
                "first_latency": 250.0,
                "second_avg_latency": 40.0,
            },
        ],
    },
}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([LLAMA, LLAMA_TG]),
        f"{json.dumps(LLAMA)}\n{json.dumps(LLAMA_TG)}\n",
        json.dumps([LLAMA, LLAMA_TG], indent=2),
    ],
)
def test_llama_bench_is_read_in_every_form_and_keeps_its_name(text):
    prefill, decode = foreign.read(text)
    assert (prefill.contract, prefill.label, prefill.test) == ("llama-bench", "qwen.gguf", "pp512")
    assert (prefill.metric, prefill.value, prefill.deviation) == ("prefill_tok_s", 7345.9, 65.7)
    assert (decode.test, decode.metric, decode.value) == ("tg128", "decode_tok_s", 120.6)


def test_llm_bench_is_read_without_its_warm_up():
    prefill, decode = foreign.read(json.dumps(LLM_BENCH))
    assert prefill.value == pytest.approx((1000 * 100 / 200 + 1000 * 100 / 250) / 2)
    assert decode.value == pytest.approx((20 + 25) / 2)
    assert (decode.contract, decode.metric) == ("llm_bench", "decode_tok_s")


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "nonsense", '{"perfdata": {"results": []}}', json.dumps([{**LLAMA, "avg_ts": "fast"}]),
     json.dumps([{**LLAMA, "avg_ts": -1}]), json.dumps([{**LLAMA, "n_prompt": True}]),
     '{"avg_ts": 1e999}', "[" * 5000],
)  # fmt: skip
def test_what_is_neither_is_refused(text):
    with pytest.raises(foreign.ForeignError):
        foreign.read(text)


def llm_bench(metadata=(), **fields):
    """The report with these fields in every result but the warm-up."""
    warm_up, *results = LLM_BENCH["perfdata"]["results"]
    changed = [result | fields for result in results]
    return json.dumps(
        {"metadata": LLM_BENCH["metadata"] | dict(metadata), "perfdata": {"results": [warm_up, *changed]}}
    )


def test_what_llm_bench_could_not_measure_is_left_out_and_the_rest_read():
    """It writes -1 where there was no second token, and empty texts for what a task has not."""
    (first,) = foreign.read(llm_bench(second_avg_latency=-1, output_size=1))
    assert (first.metric, first.value) == ("prefill_tok_s", pytest.approx(450))
    (second,) = foreign.read(llm_bench(first_latency="", input_size=""))
    assert (second.metric, second.value) == ("decode_tok_s", pytest.approx(22.5))
    (second,) = foreign.read(llm_bench(first_latency=float("nan")))
    assert second.metric == "decode_tok_s"
    with pytest.raises(foreign.ForeignError, match="no result"):
        foreign.read(llm_bench(first_latency=-1, second_avg_latency=-1))


def test_a_batchs_rate_is_that_of_all_its_sequences_as_llm_bench_says_it():
    _, decode = foreign.read(llm_bench({"batch_size": 4}))
    assert (decode.value, decode.detail["batch_size"]) == (pytest.approx(4 * 22.5), 4)


def test_a_separator_within_a_text_ends_no_line(tmp_path):
    """JSON allows U+2028 and its like inside a text, and web pages are full of them."""
    rows = [{**LLAMA, "model_filename": "a\u2028b\x85.gguf"}, LLAMA_TG]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert [row.label for row in foreign.read(text)] == ["a\u2028b\x85.gguf", "qwen.gguf"]
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "a\u2028b\x85c"}\r\n{"prompt": "d"}\r\n', encoding="utf-8", newline="")
    assert [case.text for case in suites.from_file(path).cases] == ["a\u2028b\x85c", "d"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_powershell_writes_is_read(tmp_path, encoding):
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "Grüße"}\r\n', encoding=encoding, newline="")
    assert [case.text for case in suites.from_file(path).cases] == ["Grüße"]
    assert text_files.read(path) == '{"prompt": "Grüße"}\n'


def test_foreign_rows_enter_no_median_and_no_verdict():
    plain = measured(result("100"), result("20", gap=0.1))
    with_rows = replace(plain, foreign=foreign.read(json.dumps([LLAMA])))
    before, after = document.to_document(plain), document.to_document(with_rows)
    assert before["lanes"] == after["lanes"]
    assert before["verdicts"] == after["verdicts"]
    assert "Other benchmarks" in tables.markdown(with_rows)


def test_ours_leave_as_llama_bench_writes_and_are_read_back():
    lines = "\n".join(
        document.line(row) for row in foreign.llama_bench_lines(measured(result("100", gap=0.05)))
    )
    rows = foreign.read(lines)
    assert [row.test for row in rows] == ["pp64", "tg3 @ d64", "pp512", "tg3 @ d512"]
    assert rows[1].value == pytest.approx(20.0)


# --- comparison --------------------------------------------------------------------------------------------


def test_slower_lanes_are_noted_and_alarmed_beyond_their_intervals_only():
    before = measured(result("100", gap=0.05), result("20", gap=0.05), result("fast", gap=0.05, wobble=0.1))
    now = measured(result("100", gap=0.054), result("20", gap=0.065), result("fast", gap=0.056, wobble=0.1))
    found = comparison.compare(before, now)
    levels = {d.lane: d.level for d in found.differences if (d.case, d.metric) == ("chat", "answer_s")}
    assert levels == {"echo/CPU/100": "same", "echo/CPU/20": "alarm", "echo/CPU/fast": "same"}
    decode = {d.lane: d.level for d in found.differences if (d.case, d.metric) == ("chat", "decode_tok_s")}
    assert decode["echo/CPU/100"] == "note"
    assert decode["echo/CPU/20"] == "alarm"


def test_own_prompts_are_compared_with_a_file_that_does_not_name_them():
    own = tuple(replace(case, category="own", text="mine") for case in (CHAT, BOOK))
    now = replace(measured(result("100")), suite=replace(measured().suite, cases=own), model="/models/demo/")
    published = without_private(now)
    for one, other in ((published, now), (now, published), (now, now), (published, published)):
        found = comparison.compare(one, other)
        assert found.comparable
        assert len(found.differences) == 6


def test_what_changed_came_went_and_fails_is_named():
    old = replace(result("100"), versions={"torch": "2.12"})
    new = replace(result("100"), versions={"torch": "2.13"})
    broken = replace(result("fast"), failure=Failed("crashed", "x"))
    before = measured(old, result("20"), result("fast"), environment={"power": "mains", "clock_mhz": 1})
    now = measured(new, broken, environment={"power": "battery", "clock_mhz": 2})
    found = comparison.compare(before, now)
    assert "power: mains → battery" in found.changes
    assert "echo/CPU/100: torch: 2.12 → 2.13" in found.changes
    assert not any("clock" in change for change in found.changes)
    assert (found.removed, found.failed, found.matched) == (
        ("echo/CPU/20",),
        ("echo/CPU/fast",),
        ("echo/CPU/100",),
    )
    assert "ALARM: lanes that fail now" in tables.comparison_text(found)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"contract": "another/1"}, "different contracts"),
        ({"model": "big"}, "different models"),
        ({"suite": replace(measured().suite, cases=(replace(CHAT, new_tokens=9),))}, "no case"),
    ],
)
def test_what_is_not_comparable_is_not_compared(change, says):
    found = comparison.compare(measured(result("100")), replace(measured(result("100")), **change))
    assert (found.comparable, found.differences) == (False, ())
    assert says in found.why_not


# --- suites ------------------------------------------------------------------------------------------------


def test_an_own_suite_is_read(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(
        '{"prompt": "Hello", "new_tokens": 8}\n\n{"prompt": "Bye", "prompt_tokens": 64, "name": "bye"}\n'
    )
    first, second = suites.named(str(path)).cases
    assert (first.name, first.text, first.prompt_tokens, first.new_tokens) == ("case-1", "Hello", 0, 8)
    assert (second.name, second.prompt_tokens, second.new_tokens) == ("bye", 64, 128)
    assert "Hello" in prompts.prompt_text(first, 3)
    assert prompts.request(first, 1).prompt_tokens is None
    assert prompts.request(second, 1).prompt_tokens == 64


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no case"),
        ("{}", "line 1"),
        ('{"prompt": " "}', "needs a text"),
        ('{"prompt": "x"}\nnonsense', "line 2: not JSON"),
        ('{"prompt": "x", "new_tokens": 1}', "2 or more"),
        ('{"prompt": "x", "new_tokens": true}', "whole number"),
        ('{"prompt": "x", "prompt_tokens": -5}', "whole number"),
        ('{"prompt": "x", "prompt_tokens": 1000000000000}', "at most"),
        ('{"prompt": "x\\ud800"}', "needs a text"),
        ('{"prompt": "x", "name": "\\ud800"}', "must be a text"),
        ('{"prompt": "x", "name": "a"}\n{"prompt": "y", "name": "a"}', "two cases alike"),
    ],
)
def test_a_suite_that_is_none_is_refused_with_its_line(tmp_path, text, says):
    path = tmp_path / "own.jsonl"
    path.write_text(text)
    with pytest.raises(suites.SuiteError, match=says):
        suites.named(str(path))


def test_a_suite_nobody_knows_is_refused(tmp_path):
    with pytest.raises(suites.SuiteError, match="quick, standard, sweep"):
        suites.named("quickly")


def test_standard_has_mlperfs_categories_and_sweep_goes_on_to_the_context():
    assert {case.category for case in suites.STANDARD.cases} == {
        *("content", "creative", "structured", "code", "summarisation"),
    }
    assert [case.prompt_tokens for case in suites.sweep().cases] == [128, 256, 512, 1024, 2048, 4096]
    assert suites.sweep(16_500).cases[-1].prompt_tokens == 16384
    own = replace(suites.sweep(), repeats=2)
    assert suites.to_the_context(own, 9000) == replace(suites.sweep(9000), repeats=2)
    assert suites.to_the_context(own, None) is own
    assert suites.to_the_context(suites.QUICK, 9000) is suites.QUICK


@pytest.mark.parametrize(
    "case", [*suites.STANDARD.cases, *suites.QUICK.cases, suites.sweep(40_000).cases[-1]]
)
def test_prompts_are_long_enough_and_differ_from_their_beginning(case):
    one, other = prompts.prompt_text(case, 11), prompts.prompt_text(case, 12)
    assert len(one) >= case.prompt_tokens * 4
    assert one[:2] != other[:2]
    assert one == prompts.prompt_text(case, 11)


# --- tables, limit, machine --------------------------------------------------------------------------------


def test_every_repeat_is_a_line_of_the_csv_and_no_formula():
    made = measured(replace(result("100"), lane=replace(result("100").lane, settings={"a": "=1+1"})))
    for formula in ("=cmd|' /C calc'!A0", " =1+1", "\n=1+1", "＝1+1"):
        made = replace(made, model=formula)
        lines = list(csv.DictReader(io.StringIO(tables.csv_text(made))))
        assert lines[0]["model"] == f"'{formula}"
    assert len(lines) == 10
    assert float(lines[0]["decode_tok_s"]) == pytest.approx(20.0)


def test_names_from_elsewhere_are_text_in_markdown_and_nothing_else():
    evil = "org/<img src=x>|a*b*`c`[d](javascript:e)\n# head"
    failed = replace(result("100"), failure=Failed("error", "first <b>\nsecond"), device=evil)
    row = foreign.ForeignRow("llama-bench", evil, "pp1", "tok_s", 1.0)
    made = replace(measured(failed, foreign=(row,), machine={"processor": evil}), model=evil)
    lines = tables.markdown(made).splitlines()
    assert lines[0] == (r"# Measurement of org/\<img src=x>\|a\*b\*\`c\`[d\](javascript:e) # head")
    assert not [line for line in lines[1:] if line.startswith(("# ", "second"))]
    assert not [line for line in lines if "<" in line.replace(r"\<", "")]


def test_an_excluded_lane_is_crossed_out_with_the_reason():
    bad = replace(result("fast"), asked_device=False)
    text = tables.markdown(measured(bad, result("20")))
    assert "~~echo/CPU/fast~~" in text
    assert "not on CPU" in text


def test_the_impossible_is_refused_and_the_possible_is_not():
    lane_ = LaneResult(result("100").lane, read_bytes_per_token=2_000_000_000, bandwidth_bytes_s=30e9)
    fast = Repeat("chat", 1, token_offsets_s=(0.0, 0.05))
    slow = Repeat("chat", 1, token_offsets_s=(0.0, 0.06))
    assert "impossible: 20 tok/s would read 40.0 GB/s" in limit.impossible(lane_, fast)
    assert limit.impossible(lane_, slow) is None
    assert limit.impossible(replace(lane_, bandwidth_bytes_s=None), fast) is None


SIZES = {"vocab_size": 100, "hidden_size": 10, "num_hidden_layers": 1, "intermediate_size": 10}


@pytest.mark.parametrize(
    ("config", "share"),
    [
        ({}, 1.0),
        ({"tie_word_embeddings": True, **SIZES}, 1.0),
        (SIZES, 1 - 1000 / 2700),
        ({"text_config": SIZES}, 1 - 1000 / 2700),
        ({"num_local_experts": 8}, None),
        ({"num_experts": 64, "vocab_size": 100}, None),
    ],
)  # fmt: skip
def test_bytes_per_token_leave_the_input_embedding_out_where_it_is_no_head(tmp_path, config, share):
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = limit.read_bytes_per_token(tmp_path, 1_000_000)
    assert found == (None if share is None else pytest.approx(share * 1_000_000, abs=1))


def test_bandwidth_is_measured_in_a_process_of_its_own_and_more_in_a_cache():
    assert measured_bandwidth(1 << 20) > 1e9


def test_energy_is_read_from_counters_that_wrap_and_absent_elsewhere(tmp_path):
    assert machine.EnergyMeter(tmp_path).source is None
    assert machine.EnergyMeter(tmp_path).since({}) is None
    package = tmp_path / "powercap" / "intel-rapl:0"
    package.mkdir(parents=True)
    (package / "energy_uj").write_text("9000000")
    (package / "max_energy_range_uj").write_text("10000000")
    meter = machine.EnergyMeter(tmp_path)
    mark = meter.mark()
    (package / "energy_uj").write_text("2000000")
    assert meter.source.startswith("RAPL")
    assert meter.since(mark) == pytest.approx(3.0)


def test_a_package_is_counted_once_beside_its_platform_and_its_second_door(tmp_path):
    zones = {"intel-rapl:0": "package-0", "intel-rapl:1": "psys", "intel-rapl-mmio:0": "package-0"}
    zones |= {"intel-rapl:0:0": "core", "intel-rapl:2": "package-1"}
    for zone, name in zones.items():
        (tmp_path / "powercap" / zone).mkdir(parents=True)
        (tmp_path / "powercap" / zone / "name").write_text(f"{name}\n")
        (tmp_path / "powercap" / zone / "energy_uj").write_text("0\n")  # just started
    meter = machine.EnergyMeter(tmp_path)
    mark = meter.mark()
    for zone in zones:
        (tmp_path / "powercap" / zone / "energy_uj").write_text("2000000\n")
    assert meter.since(mark) == pytest.approx(4.0)


def test_energy_is_absent_when_a_counter_goes_away_or_back_halfway(tmp_path):
    battery = tmp_path / "power_supply" / "BAT0"
    battery.mkdir(parents=True)
    (battery / "status").write_text("Discharging\n")
    (battery / "energy_now").write_text("50000000\n")
    meter = machine.EnergyMeter(tmp_path)
    mark = meter.mark()
    (battery / "energy_now").write_text("49990000\n")
    assert meter.since(mark) == pytest.approx(36.0)
    (battery / "energy_now").write_text("50010000\n")  # charging again
    assert meter.since(mark) is None
    (battery / "energy_now").unlink()  # taken out
    assert (meter.since(mark), meter.since(meter.mark())) == (None, None)
    for name in ("intel-rapl:0", "intel-rapl:1"):
        (tmp_path / "powercap" / name).mkdir(parents=True)
        (tmp_path / "powercap" / name / "energy_uj").write_text("9000000\n")
    meter = machine.EnergyMeter(tmp_path)
    mark = meter.mark()
    (tmp_path / "powercap" / "intel-rapl:1" / "energy_uj").unlink()  # or its right to be read
    assert (meter.since(mark), meter.since(meter.mark())) == (None, None)


def test_case_lengths_are_kept_in_scale(tmp_path):
    small = suites.scaled(suites.QUICK, 0.25)
    assert [(case.prompt_tokens, case.new_tokens) for case in small.cases] == [(64, 32), (224, 16)]
    assert "25 %" in small.note
    assert suites.scaled(suites.QUICK, 1.5) is suites.QUICK
    assert [case.name for case in suites.fitting(suites.STANDARD, 1024).cases] == [
        *("content-generation", "creative-writing", "structured-text"),
    ]
    assert BOOK.prompt_tokens == 512


def hurt(change):
    made = document.to_document(measured(result("100"), result("20")))
    change(made)
    return json.dumps(made)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(format="another"),
        lambda d: d.update(version=99),
        lambda d: d.update(version="1"),
        lambda d: d.pop("lanes"),
        lambda d: d.update(lanes="none"),
        lambda d: d["lanes"].append(d["lanes"][0]),
        lambda d: d["suite"].update(repeats="five"),
        lambda d: d["lanes"][0].update(weight_bytes=True),
        lambda d: d["lanes"][0]["repeats"][0].update(token_offsets_s=[0.2, 0.1]),
        lambda d: d["lanes"][0]["repeats"][0].update(token_offsets_s=[-1.0, 0.1]),
        lambda d: d["lanes"][0]["repeats"][0].update(token_offsets_s=[0.0, 0.1]),
        lambda d: d["lanes"][0]["repeats"][0].update(token_offsets_s=[float("nan")]),
        lambda d: d["lanes"][0]["repeats"][0].update(token_offsets_s=[float("inf")]),
        lambda d: d["lanes"][0]["repeats"][0].update(total_s=10**400),
        lambda d: d["lanes"][0].update(quality={"passed": "yes"}),
    ],
)
def test_a_document_that_is_none_is_refused_in_one_sentence(change):
    with pytest.raises(document.DocumentError):
        document.loads(hurt(change))


@pytest.mark.parametrize("text", ["", "[]", "null", "nonsense", "[" * 100_000])
def test_what_is_no_json_object_is_no_measurement(text):
    with pytest.raises(document.DocumentError):
        document.loads(text)


def test_what_is_derived_is_made_anew_and_never_believed():
    text = hurt(lambda d: (d["lanes"][1].update(medians={}), d["verdict"].update(winner="echo/CPU/20")))
    found = document.loads(text)
    assert document.to_document(found)["lanes"][1]["medians"]["chat"]
    assert found == measured(result("100"), result("20"))


def test_a_repeat_without_a_token_counts_nowhere_whatever_its_file_says():
    found = document.loads(hurt(lambda d: [r.update(token_offsets_s=[]) for r in d["lanes"][0]["repeats"]]))
    made = document.to_document(found)
    assert made["lanes"][0]["excluded"] == "no repeat was finished"
    assert len(list(foreign.llama_bench_lines(found))) == 4  # the other lane's


# --- figures in words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (12345.67, "12,346"), (9999.6, "10,000"), (1234.5, "1,234"), (999.96, "1,000"), (123.456, "123.5"),
        (17.5, "17.5"), (0.01234567, "0.01235"), (0.00001234567, "0.00001235"), (0.0, "0"), (1e9, "1,000,000,000"),
    ],
)  # fmt: skip
def test_a_figure_has_no_exponent_and_loses_nothing_before_its_point(value, shown):
    assert words.number(value) == shown


def test_a_fast_lanes_and_a_slow_lanes_figures_can_be_read_in_a_table():
    """A GPU takes in 20,000 tokens a second, a long document takes an old PC half an hour."""
    made = measured(
        result("100", ttft=0.0032, gap=0.001, wobble=0), result("20", ttft=1234.5, gap=0.5, wobble=0)
    )
    for text in (tables.text(made), tables.markdown(made)):
        assert not re.search(r"\de[+-]\d", text)
    assert "20,000 (20,000–20,000)" in tables.markdown(made)
    assert "1,236 s (1,236–1,236)" in tables.text(made)


def test_a_change_is_that_of_the_figure_beside_which_it_stands():
    before, now = measured(result("100", wobble=0)), measured(result("100", ttft=0.125, gap=0.0625, wobble=0))
    text = tables.comparison_text(comparison.compare(before, now))
    assert "chat  time to first token: 0.1 → 0.125 s (+25.0 %) ALARM: slower" in text
    assert "chat  decode rate: 20 → 16 tok/s (−20.0 %) ALARM: slower" in text


@pytest.mark.parametrize(
    "fields",
    [
        {"repeats": [{"case": "chat", "number": 1, "token_offsets_s": [1e-320, 2e-320]}]},
        {"repeats": [{"case": "chat", "number": 1, "token_offsets_s": [1e300, 1.7e308]}]},
        {"repeats": [{"case": "chat", "number": 1, "prompt_tokens": 10**400}]},
        {"ledger": {"load_s": 1e308, "warmup_s": 1e308}},
        {"bandwidth_bytes_s": 1e-320},
    ],
)
def test_a_file_with_figures_that_nothing_can_be_computed_of_is_refused(fields):
    made = json.loads(document.dumps(measured(result("100"))))
    made["lanes"][0] |= fields
    with pytest.raises(document.DocumentError, match="incomplete or damaged"):
        document.loads(json.dumps(made))
