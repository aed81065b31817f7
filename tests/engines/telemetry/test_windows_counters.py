"""Windows' GPU counters by instance name, as PDH gives them: per process, adapter and engine; the NPU told apart."""

import pytest

from engines.telemetry.windows_adapters import Adapter, luid_text
from engines.telemetry.windows_counters import LIST_AGAIN_S, Instance, KnownAdapters, parse_instance, readings

# Instance names as `typeperf -qx "GPU Engine"` lists them (devblogs.microsoft.com/directx/gpus-in-the-task-manager).
GPU, NPU = "0x00000000_0x0000C5D2", "0x00000000_0x0000E1A7"
ARC = Adapter(GPU, "Intel(R) Arc(TM) Graphics", draws=True)
BOOST = Adapter(NPU, "Intel(R) AI Boost", draws=False)
BASIC = Adapter("0x00000000_0x0000FFFF", "Microsoft Basic Render Driver", draws=True, hardware=False)


def engine(pid, luid, number, kind):
    return f"pid_{pid}_luid_{luid}_phys_0_eng_{number}_engtype_{kind}"


@pytest.mark.parametrize(
    ("name", "instance"),
    [
        (engine(4242, GPU, 3, "Compute"), Instance(4242, GPU, "3 Compute")),
        (engine(4242, GPU, 0, "3D"), Instance(4242, GPU, "0 3D")),
        (engine(9, "0x00000000_0x0000c5d2", 12, "Video Decode"), Instance(9, GPU, "12 Video Decode")),
        (engine(9, NPU, 0, ""), Instance(9, NPU, "0")),  # an NPU's engines may have no type
        (engine(9, GPU, 1, "Copy") + "#1", Instance(9, GPU, "1 Copy")),
        (f"pid_4242_luid_{GPU}_phys_0", Instance(4242, GPU)),
        (f"luid_{GPU}_phys_0", None),
        ("_Total", None),
        ("", None),
        ("pid_x_luid_0_phys_0", None),
    ],
)
def test_an_instances_name(name, instance):
    assert parse_instance(name) == instance


def test_a_reading_per_adapter():
    utilisation = {
        engine(10, GPU, 0, "3D"): 12.5,
        engine(20, GPU, 0, "3D"): 30.0,
        engine(20, GPU, 3, "Compute"): 10.0,
        engine(10, NPU, 0, "Compute"): 80.0,
        engine(10, NPU, 1, "Copy"): -1.0,  # a counter that went back, as PDH gives it
        "_Total": 99.0,
    }
    memory = {
        f"pid_10_luid_{NPU}_phys_0#0": 2e9,
        f"pid_10_luid_{NPU}_phys_0#1": 5e8,
        f"pid_20_luid_{GPU}_phys_0#0": 1e8,
    }
    arc, boost = readings(utilisation, memory, (ARC, BOOST, BASIC))
    assert (arc.kind, boost.kind) == ("GPU", "NPU")
    assert arc.busy == pytest.approx(0.425)  # its busiest engine, all processes together
    assert arc.by_pid == {10: 0.125, 20: 0.3}
    assert boost.busy == pytest.approx(0.8)
    assert boost.by_pid == {10: 0.8}
    assert (arc.memory_bytes, boost.memory_bytes) == (100_000_000, 2_500_000_000)
    assert arc.sees_everybody


def test_an_adapter_without_instances_is_idle():
    (boost,) = readings({}, {}, (BOOST,))
    assert (boost.busy, boost.by_pid, boost.memory_bytes) == (0.0, {}, None)


@pytest.mark.parametrize(
    ("adapter", "kind"),
    [
        (ARC, "GPU"),
        (BOOST, "NPU"),
        (Adapter(NPU, "NPU Compute Accelerator Device", draws=False), "NPU"),
        (Adapter(NPU, "Snapdragon(R) X Elite - X1E80100 - Qualcomm(R) Hexagon(TM) NPU", draws=True), "NPU"),
        (Adapter(NPU, "AMD Accelerator", draws=False, npu=True), "NPU"),
        (Adapter(GPU, "NVIDIA A2", draws=False), "GPU"),  # computes only
        (Adapter(GPU, "AMD Radeon(TM) 890M", draws=True), "GPU"),
    ],
)
def test_the_npu_is_told_apart(adapter, kind):
    assert adapter.kind == kind


def test_a_luid_is_spelled_as_the_counters_do():
    assert luid_text(0, 0xC5D2) == GPU
    assert luid_text(-1, 5) == "0xFFFFFFFF_0x00000005"


def test_an_adapter_that_comes_later_is_found_and_one_that_nobody_lists_is_not_asked_for_at_every_sample():
    """As when a driver is restarted or an external GPU plugged in: the counters name a LUID that was not there."""
    moment, asked = [0.0], []
    here = [ARC]

    def listing():
        asked.append(moment[0])
        return tuple(here)

    known = KnownAdapters(listing, lambda: moment[0])
    names = [engine(10, GPU, 0, "3D"), "_Total"]
    assert known.named_in(names) == (ARC,)
    here.append(BOOST)
    names.append(engine(10, NPU, 0, "Compute"))
    assert known.named_in(names) == (ARC,)  # listed a moment ago
    moment[0] = LIST_AGAIN_S
    assert known.named_in(names) == (ARC, BOOST)
    assert known.named_in(names) == (ARC, BOOST)
    assert asked == [0.0, LIST_AGAIN_S]
    names.append(engine(10, "0x00000000_0x00001234", 0, "3D"))  # a remote session's, say
    for second in range(11, 40):
        moment[0] = float(second)
        assert known.named_in(names) == (ARC, BOOST)
    assert len(asked) == 4


def test_where_the_adapters_cannot_be_listed_any_more_those_known_stay():
    answers = [(ARC,), None]
    moment = [0.0]
    known = KnownAdapters(lambda: answers.pop(0), lambda: moment[0])
    moment[0] = LIST_AGAIN_S
    assert known.named_in([engine(10, NPU, 0, "")]) == (ARC,)
