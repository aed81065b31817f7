"""Measurements made by hand of the real records, for pages that must show what no test machine can be made to do."""

from __future__ import annotations

import random
from dataclasses import replace

from engines.measure.records import (
    Case,
    Foreground,
    ForeignRow,
    Lane,
    LaneResult,
    Ledger,
    Measurement,
    Quality,
    Repeat,
    Suite,
    Together,
)
from engines.measure.suites import sweep
from engines.protocol import Failed, Target

CHAT = Case("chat", "Short chat", "chat", 128, 128)
SUMMARY = Case("summary-1k", "Summary of 1 k tokens", "summarisation", 1024, 64)
SUITE = Suite("quick", "Quick", (CHAT, SUMMARY))
MACHINE = {
    "name": "kitchen-pc", "processor": "Intel Core Ultra 7 155H", "physical_cores": 16, "logical_cores": 22,
    "memory_bytes": 32_000_000_000, "system": "Windows", "system_name": "Windows 11 Pro", "power": "mains",
}  # fmt: skip
OPENVINO = Target("openvino-genai", "CPU", "int4", "org/model-3b")
ONNX = Target("onnxruntime-genai", "CPU", "int4", "org/model-3b")
TORCH = Target("transformers", "CPU", "bf16", "org/model-3b")
NPU = Target("openvino-genai", "NPU", "int4", "org/model-3b")
GOOD = Quality(
    True, (), "transformers/CPU/fp32", 17, 20, (), 0, 41, 0.18, 38, 2.9, 8.61, 0.962, kl_divergence=0.0213
)
BAD = replace(
    GOOD, passed=False, reasons=("7 of 20 answers are garbage: they go round in circles",), instructions_passed=4,
    garbage=7, first_divergent_token=2, divergent_share=0.93,
)  # fmt: skip


def repeat(case: Case, number: int, ttft_s: float, tok_s: float, spread: float = 0.01, **more) -> Repeat:
    """A finished repeat at about these rates."""
    chance = random.Random(f"{case.name}{number}{tok_s}")
    at, offsets = ttft_s * (1 + chance.uniform(-spread, spread)), []
    pace = tok_s * (1 + chance.uniform(-spread, spread))
    for _ in range(case.new_tokens):
        offsets.append(round(at, 6))
        at += 1 / pace * (1 + chance.uniform(-0.1, 0.1))
    sha = f"{abs(hash((case.name, number))):064x}"[:64]
    return Repeat(
        case.name, number, prompt_tokens=case.prompt_tokens, prompt_sha256=sha, token_offsets_s=tuple(offsets),
        total_s=at, other_load_cores=0.03, **more,
    )  # fmt: skip


def repeats(
    tok_s: float, prefill_tok_s: float, cases=SUITE.cases, spread: float = 0.01, **more
) -> tuple[Repeat, ...]:
    return tuple(
        repeat(case, number, case.prompt_tokens / prefill_tok_s, tok_s, spread, **more)
        for number in range(1, 6)
        for case in cases
    )


def lane(
    target: Target, tok_s: float, prefill_tok_s: float, *, cases=SUITE.cases, spread=0.01, **more
) -> LaneResult:
    """A lane that was measured to the end and passed the gate."""
    whole = LaneResult(
        Lane(target),
        "measured",
        device=target.device,
        context_tokens=4096,
        versions={"openvino": "2026.4.1", "openvino-genai": "2026.4.1"}
        if "openvino" in target.engine
        else {"torch": "2.13.0"},
        weight_bytes=2_150_000_000,
        read_bytes_per_token=2_050_000_000,
        bandwidth_bytes_s=61e9,
        ledger=Ledger(None, 41.0, 6.2, 3.9, 1.4, 0.31, 1.9, 0.2, 0.6),
        repeats=repeats(tok_s, prefill_tok_s, cases, spread),
        peak_rss_bytes=3_400_000_000,
        quality=GOOD,
        foreground=Foreground((1000.0, 1004, 998), (640.0, 655, 620, 700, 648)),
    )
    return replace(whole, **more)


def measurement(*lanes: LaneResult, suite: Suite = SUITE, **more) -> Measurement:
    whole = Measurement(
        "m1",
        "org/model-3b",
        suite,
        "2026-11-25T10:04:00+00:00",
        lanes,
        status="finished",
        machine=MACHINE,
        environment={"power": "mains", "other_load_cores": 0.04, "temperature_c": 61.0, "clock_mhz": None},
    )
    return replace(whole, **more)


def clear(**more) -> Measurement:
    """One lane wins; another is disturbed once; one gives garbage at great speed; one failed."""
    fast, slow = (
        lane(OPENVINO, 17.2, 310),
        lane(ONNX, 12.1, 150, ledger=Ledger(None, None, 2.1, None, 0.4, 0.7)),
    )
    garbage = lane(TORCH, 31.0, 600, quality=BAD, foreground=None)
    disturbed = replace(
        repeat(CHAT, 2, 0.9, 8.0),
        disturbed=True,
        disturbance="1.4 cores kept busy by other programs",
        other_load_cores=1.4,
    )
    failed = LaneResult(
        Lane(NPU),
        "failed",
        failure=Failed(
            "crashed", "The worker ended while it compiled C:\\Users\\Jo Doe\\m\\x.xml", "Update it.", "Trace"
        ),
    )
    keys = [fast.lane.key, slow.lane.key]
    together = (
        Together(keys[0], keys[1], 9.9, 17.2), Together(keys[1], keys[0], 5.8, 12.1),
        Together(keys[0], keys[0], 8.4, 17.2), Together(keys[1], keys[1], 6.4, 12.1),
    )  # fmt: skip
    slow = replace(slow, repeats=(*slow.repeats, disturbed))
    return measurement(fast, slow, garbage, failed, together=together, **more)


def unclear() -> Measurement:
    """Two lanes whose intervals overlap."""
    return measurement(lane(OPENVINO, 12.3, 300, spread=0.08), lane(ONNX, 12.1, 300, spread=0.08))


def swept() -> Measurement:
    """Two lanes that cross between 512 and 1024 tokens; one fails at 4 k."""
    suite = sweep()
    fast = [
        repeat(c, n, c.prompt_tokens / 200, 20 - c.prompt_tokens / 180)
        for n in range(1, 6)
        for c in suite.cases[:5]
    ]
    refused = replace(repeat(suite.cases[5], 1, 9.0, 2.0), refused="too few tokens: 3 of 32")
    steady = [
        repeat(c, n, c.prompt_tokens / 150, 15 - c.prompt_tokens / 2000)
        for n in range(1, 6)
        for c in suite.cases
    ]
    return measurement(
        lane(OPENVINO, 1, 1, repeats=(*fast, refused)), lane(ONNX, 1, 1, repeats=tuple(steady)), suite=suite
    )


def own() -> Measurement:
    """A person's own prompt on a model in their home folder."""
    case = Case("diary", "My diary", "own", 16, 8, "Dear diary, nobody may read this.")
    target = replace(OPENVINO, model="/home/jo/secret models/phi")
    result = lane(target, 12, 300, cases=(case,), details={"cache": "/home/jo/cache/ov"})
    foreign = (ForeignRow("llama-bench", "model-3b Q4_0", "tg128", "decode_tok_s", 17.5, 0.2),)
    return measurement(
        result, suite=Suite("own", "Own: diary.jsonl", (case,)), model=target.model, foreign=foreign
    )
