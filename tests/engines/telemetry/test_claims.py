"""What libraries print about where they run, as they print it, turned into claims."""

import os
import subprocess
import sys

import pytest

from engines.onnxruntime_genai_engine import claim_heard as onnxruntime_claim
from engines.toolkit.openvino_devices import claim_heard
from engines.toolkit.overhearing import overhearing

# Printed by OpenVINO GenAI 2026.4 with OPENVINO_LOG_LEVEL=2, shortened; `print_compiled_model_properties` in its
# src/cpp/src/utils.cpp.
PAGED = """SchedulerConfig {{
  max_num_seqs: 256
 }}
Model: OV Tokenizer
  NETWORK_NAME: tokenizer
  EXECUTION_DEVICES: CPU
EXECUTION_DEVICES:
 CPU: AMD EPYC
Model: LLM with Paged Attention
  NETWORK_NAME: Model0
  EXECUTION_DEVICES: {device}
  MULTI_DEVICE_PRIORITIES: GPU,CPU
  CPU:
    EXECUTION_DEVICES: CPU
EXECUTION_DEVICES:
{lines}
"""


@pytest.mark.parametrize(
    ("lines", "devices"),
    [
        (" CPU: AMD EPYC", ("CPU",)),
        (" GPU.0: Intel(R) Arc(TM) Graphics (iGPU)", ("GPU.0",)),
        (" (CPU): AMD EPYC", ("CPU",)),  # AUTO, while the better device is still being compiled for
        (" GPU.0: Intel Arc\n CPU: Intel Core", ("GPU.0", "CPU")),
    ],
)
def test_openvinos_own_words(lines, devices):
    claim = claim_heard(PAGED.format(device=devices[0], lines=lines))
    assert claim.devices == devices
    assert claim.evidence.startswith("EXECUTION_DEVICES of the compiled “LLM with Paged Attention”")


def test_no_words_no_claim():
    assert claim_heard("") is None
    assert claim_heard("Model: OV Tokenizer\nEXECUTION_DEVICES:\n CPU: x\n") is None
    assert claim_heard("Model: LLM\n  EXECUTION_DEVICES: CPU\n") is None


# ONNX Runtime's log at severity 0: VerifyEachNodeIsAssignedToAnEp in onnxruntime/core/framework/session_state.cc.
HEAD = "2026-11-25 13:32:01.911 [V:onnxruntime:, session_state.cc:1601 VerifyEachNodeIsAssignedToAnEp] "


@pytest.mark.parametrize(
    ("text", "device", "said"),
    [
        (
            f"{HEAD} All nodes placed on [CPUExecutionProvider]. Number of nodes: 49",
            "CPU",
            "49 on CPUExecutionProvider",
        ),
        (
            f"{HEAD} Node(s) placed on [CPUExecutionProvider]. Number of nodes: 12\n"
            f"{HEAD}   Shape (Shape_1)\n{HEAD} Node(s) placed on [DmlExecutionProvider]. Number of nodes: 360",
            "DML",
            "360 on DmlExecutionProvider, 12 on CPUExecutionProvider",
        ),
        (
            f"{HEAD} Node(s) placed on [CUDAExecutionProvider]. Number of nodes: 3\n"
            f"{HEAD} Node(s) placed on [CPUExecutionProvider]. Number of nodes: 300",
            "CPU",  # asked for CUDA, computed on the processor
            "300 on CPUExecutionProvider, 3 on CUDAExecutionProvider",
        ),
    ],
)
def test_onnx_runtimes_own_words(text, device, said):
    claim = onnxruntime_claim(text)
    assert claim.devices == (device,)
    assert said in claim.evidence


def test_onnx_runtime_says_nothing():
    assert onnxruntime_claim("all quiet") is None


SPEAKER = """
import os, sys
from engines.toolkit.overhearing import overhearing
heard = []
with overhearing(heard, 1, {"SPEAK": "up"}):
    os.write(1, os.environ["SPEAK"].encode())
os.write(1, b"after " + heard[0].encode() + str("SPEAK" in os.environ).encode())
try:
    with overhearing(heard, 1):
        os.write(1, b" the reason")
        raise ValueError
except ValueError:
    pass
"""


def test_what_native_code_prints_is_heard_and_a_failures_words_go_on():
    said = subprocess.run(
        [sys.executable, "-c", SPEAKER], capture_output=True, check=True, env={**os.environ}
    )
    assert said.stdout == b"after upFalse the reason"


def test_the_descriptor_is_put_back():
    heard = []
    before = os.fstat(1)
    with overhearing(heard, 1):
        assert os.fstat(1) != before
    assert os.fstat(1) == before
    assert heard == [""]
