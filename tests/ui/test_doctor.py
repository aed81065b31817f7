"""What `doctor` says, as text and as a document."""

import json

from engines.protocol import Availability, DeviceStatus
from engines.telemetry.sights import Sight
from ui.doctor import doctor_document, doctor_text

FACTS = {"processor": "A processor", "physical_cores": 4, "logical_cores": 8, "memory_bytes": 16_000_000_000}
ANSWERS = {
    "openvino-genai": Availability(
        True,
        (
            DeviceStatus("CPU", True, "A processor"),
            DeviceStatus("NPU", False, reason="No NPU.", remedy="Install the driver."),
        ),
        {"openvino": "2026.4.1"},
    ),
    "intel-npu": Availability(
        False, reason="It is not set up yet.", remedy="Run: python app.py setup intel-npu"
    ),
}


def test_the_document_lists_engines_and_each_device():
    document = json.loads(json.dumps(doctor_document(ANSWERS, FACTS)))
    assert document["machine"] == FACTS
    openvino, npu = document["engines"]
    assert (openvino["name"], openvino["ok"], openvino["devices"]) == ("openvino-genai", True, ["CPU"])
    assert openvino["device_status"][1] == {
        "device": "NPU",
        "ok": False,
        "title": None,
        "reason": "No NPU.",
        "remedy": "Install the driver.",
    }
    assert (npu["ok"], npu["devices"], npu["remedy"]) == (False, [], "Run: python app.py setup intel-npu")
    assert "archived upstream" in npu["advice"]


def test_the_text_says_the_same():
    text = doctor_text(ANSWERS, FACTS)
    assert "A processor, 4 cores, 8 threads" in text
    assert "16.0 GB memory" in text
    assert "OpenVINO GenAI (openvino-genai): available" in text
    assert "Intel NPU Acceleration Library (intel-npu): not available" in text
    for part in ("No NPU.", "→ Install the driver.", "It is not set up yet.", "prefer OpenVINO GenAI"):
        assert part in text
    assert max(len(line) for line in text.splitlines()) <= 118


def test_what_can_be_seen_is_told_too():
    seen = (Sight("Processor", True, "psutil"), Sight("NPU", False, "sysfs", "There is none.", "Buy one."))
    assert doctor_document(ANSWERS, FACTS, seen=seen)["readings"][1]["remedy"] == "Buy one."
    text = doctor_text(ANSWERS, FACTS, seen=seen)
    assert "yes  Processor (psutil)" in text
    assert "no   NPU (sysfs): There is none." in text
    assert "→ Buy one." in text
