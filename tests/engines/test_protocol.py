"""What crosses the process boundary survives it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.protocol import (
    Availability,
    DeviceStatus,
    Failed,
    Finished,
    Generate,
    GenerationRequest,
    Load,
    Message,
    PreparedModel,
    Probed,
    ProtocolError,
    RunMetrics,
    Target,
    Token,
    decode,
    encode,
)

MESSAGES = [
    Generate("r", GenerationRequest((Message("user", "hi"),), temperature=0.5, seed=3)),
    Load(
        "m",
        Target("e", "GPU.0", "int4", "a/b"),
        PreparedModel("p", "a/b", "int4", "f", recipe={"k": [1]}),
        "c",
    ),
    Probed(Availability(False, (DeviceStatus("NPU", False, reason="none"),), {"x": "1"}, "r", "m")),
    Finished("r", "stop", "text", RunMetrics(3, None, 2, "ab", (0.5, 0.75), 1.0)),
    Failed("crashed", "it fell", exit_code=-9),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_messages_survive_the_pipe(message):
    received = decode(encode(message))
    assert type(received) is type(message)
    assert encode(received) == encode(message)


@given(st.text())
def test_any_text_is_one_line(text):
    line = encode(Token("r", 1, text, 0.5))
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line).text == text


def test_lone_surrogates_survive():
    assert decode(encode(Token("r", 1, "\ud83d", 0.5))).text == "\ud83d"


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"5", b'{"type":"Nothing"}', b'{"type":"Token"}', b"\xff\n"]
)
def test_foreign_lines_are_told_apart(line):
    with pytest.raises(ProtocolError):
        decode(line)


def test_a_target_is_read_as_it_is_written():
    target = Target.parse("openvino-genai/GPU.0/int4", "demo")
    assert target == Target("openvino-genai", "GPU.0", "int4", "demo")
    assert target.spelling == "openvino-genai/GPU.0/int4"


@pytest.mark.parametrize("spelling", ["", "openvino-genai", "a/b", "a/b/c/d", "a//c"])
def test_a_wrong_target_is_answered_with_the_form(spelling):
    with pytest.raises(ProtocolError, match="ENGINE/DEVICE/PRECISION"):
        Target.parse(spelling)


def test_rates_are_derived_from_the_offsets():
    metrics = RunMetrics(prompt_tokens=10, cached_prompt_tokens=0, token_offsets_s=(0.5, 0.6, 0.8, 1.5))
    assert metrics.ttft_s == 0.5
    assert metrics.prefill_tok_s == 20
    assert metrics.decode_tok_s == pytest.approx(3.0)
    assert metrics.itl_median_s == pytest.approx(0.2)
    assert metrics.itl_p95_s == pytest.approx(0.7)


@pytest.mark.parametrize("offsets", [(), (0.5,)])
def test_a_rate_without_two_tokens_is_missing(offsets):
    metrics = RunMetrics(token_offsets_s=offsets)
    assert metrics.decode_tok_s is None
    assert metrics.itl_p95_s is None


def test_a_kept_cache_leaves_no_prefill_rate():
    assert RunMetrics(prompt_tokens=10, cached_prompt_tokens=8, token_offsets_s=(0.1,)).prefill_tok_s is None


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ("demo", "demo"),
        ("microsoft/Phi-3-mini-4k-instruct", "microsoft/Phi-3-mini-4k-instruct"),
        ("/home/ann/models/mine", "mine"),
        ("./mine/", "mine"),
        ("~/models/mine", "mine"),
        ("C:\\Users\\ann\\mine", "mine"),
        ("\\\\server\\share\\mine\\", "mine"),
    ],
)
def test_a_label_never_tells_where_a_folder_lies(model, label):
    assert Target("engine", "CPU", "int4", model).label == f"engine/CPU/int4 + {label}"
