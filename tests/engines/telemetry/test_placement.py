"""Where a run ran: what was asked for, what the library says and what was seen, weighed."""

import pytest

from engines.protocol import Claim, Loaded
from engines.telemetry.devices_seen import DevicesSeen
from engines.telemetry.placement import hardware, judge


def loaded(device="", claim=None):
    return Loaded(1.0, None, None, None, None, device, {}, claim=claim)


def claims(*devices):
    return loaded("", Claim(devices, f"EXECUTION_DEVICES: {devices}."))


def seen(own=(), present=None, **busy):
    return DevicesSeen(busy, dict.fromkeys(busy, "a counter"), frozenset(own), present)


NO_NPU = frozenset({"GPU"})
BUSY_CPU, WAITING = 1.9, 0.01


@pytest.mark.parametrize(
    ("requested", "told", "cores", "sights", "badge", "observed"),
    [
        ("CPU", claims("CPU"), BUSY_CPU, seen(), "proven", "CPU"),
        ("AUTO", claims("CPU"), BUSY_CPU, seen(), "proven", "CPU"),
        ("CPU", claims("CPU"), WAITING, seen(), "claimed", None),
        ("CPU", claims("CPU"), None, seen(), "claimed", None),
        ("NPU", claims("NPU"), WAITING, seen(NPU=0.8), "proven", "NPU"),
        (
            "NPU",
            claims("NPU"),
            BUSY_CPU,
            seen(NPU=0.8),
            "proven",
            "NPU",
        ),  # attention on the processor, beside it
        ("NPU", claims("NPU"), BUSY_CPU, seen(NPU=0.0), "contradicted", "CPU"),
        ("NPU", claims("NPU"), BUSY_CPU, seen(present=NO_NPU), "contradicted", "CPU"),
        (
            "NPU",
            claims("NPU"),
            BUSY_CPU,
            seen(present=frozenset({"NPU"})),
            "claimed",
            "CPU",
        ),  # it has no counter
        ("NPU", claims("NPU"), WAITING, seen(NPU=0.0), "claimed", None),  # too short to be seen
        ("NPU", claims("CPU"), BUSY_CPU, seen(), "contradicted", "CPU"),
        ("GPU", claims("GPU.0"), 1.0, seen(own=["GPU"], GPU=0.9), "proven", "GPU"),
        ("GPU.1", claims("GPU.0"), 1.0, seen(GPU=0.9), "contradicted", "GPU"),
        ("GPU", claims("CPU", "GPU"), 1.0, seen(GPU=0.9), "contradicted", "GPU"),
        ("CUDA", claims("cuda:0"), 1.0, seen(own=["GPU"], GPU=0.5), "proven", "GPU"),
        ("XPU", claims("cpu"), 1.0, seen(), "contradicted", "CPU"),
        ("CPU", claims("CPU"), 1.0, seen(own=["GPU"], GPU=0.9), "contradicted", "GPU"),
        ("CPU", claims("CPU"), 1.0, seen(GPU=0.9), "proven", "CPU"),  # somebody's, perhaps the desktop's
        ("HETERO:GPU,CPU", claims("GPU", "CPU"), 1.0, seen(own=["GPU"], GPU=0.5), "proven", "GPU"),
        ("NPU", loaded("NPU"), BUSY_CPU, seen(present=NO_NPU), "contradicted", "CPU"),
        ("CPU", loaded("CPU (AMD EPYC, 9 cores)"), BUSY_CPU, seen(), "proven", "CPU"),
        ("AUTO", loaded("GPU (Arc), CPU (Core Ultra)"), 0.3, seen(GPU=0.4), "proven", "GPU"),
        (
            "AUTO",
            claims("CPU"),
            0.6,
            seen(own=["GPU"], GPU=0.9),
            "claimed",
            "GPU",
        ),  # moved since it was asked
        ("MULTI:CPU,GPU", claims("CPU", "GPU"), BUSY_CPU, seen(GPU=0.0), "claimed", "CPU"),
        ("AUTO", claims("GPU"), BUSY_CPU, seen(GPU=0.0), "contradicted", "CPU"),
        ("LM Studio", loaded("127.0.0.1:1234"), 0.01, seen(), None, None),  # a server
        ("NAME", loaded("http://[::1]:80/v1"), 0.5, seen(present=NO_NPU), None, None),
        ("CPU", loaded(""), BUSY_CPU, seen(), None, "CPU"),
    ],
)
def test_the_badge(requested, told, cores, sights, badge, observed):
    found = judge(requested, told, cores, sights)
    assert (found.badge, found.observed) == (badge, observed)
    assert found.requested == requested


def test_the_evidence_says_what_it_rests_on():
    found = judge("NPU", claims("NPU"), BUSY_CPU, seen(NPU=0.0))
    assert found.claimed == "NPU"
    assert found.evidence == (
        "Asked for NPU.",
        "EXECUTION_DEVICES: ('NPU',).",
        "The worker kept 1.90 processor cores busy.",
        "The NPU was busy 0% of the time in all (a counter).",
        "The NPU stood still while the processor worked.",
    )


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        ("GPU.1", "GPU"),
        ("cuda:0", "GPU"),
        ("DML", "GPU"),
        ("xpu", "GPU"),
        ("NPU", "NPU"),
        ("cpu", "CPU"),
        ("x", None),
    ],
)
def test_every_spelling_of_a_device_is_some_hardware(device, kind):
    assert hardware(device) == kind
