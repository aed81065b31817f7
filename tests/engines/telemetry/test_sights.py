"""What can be seen of a machine is said, and for the rest why not and what to do."""

import pytest

from engines.telemetry.sights import _nvidia, linux_sights, sights


def put(root, name, content=""):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_every_kind_is_listed_with_its_source_and_what_is_missing_with_its_reason():
    found = sights()
    assert found[0].ok
    assert len({sight.name for sight in found}) == len(found)
    for sight in found:
        assert sight.source
        assert sight.ok == (sight.reason is None)


def test_a_bare_linux_machine(tmp_path):
    npu, gpu, energy = linux_sights(tmp_path)
    assert [sight.ok for sight in (npu, gpu, energy)] == [False, False, False]
    assert "render node" in gpu.reason
    assert gpu.remedy


def test_a_laptop_has_them(tmp_path):
    put(tmp_path, "sys/class/accel/accel0/device/npu_busy_time_us", "12\n")
    put(tmp_path, "dev/dri/renderD128")
    put(tmp_path, "sys/class/powercap/intel-rapl:0/energy_uj", "12\n")
    assert [sight.ok for sight in linux_sights(tmp_path)] == [True, True, True]


def test_an_energy_counter_that_only_root_may_read_names_the_remedy(tmp_path):
    put(tmp_path, "sys/class/powercap/intel-rapl:0/name", "package-0\n")
    energy = linux_sights(tmp_path)[2]
    assert "Only root" in energy.reason
    assert "chmod" in energy.remedy


@pytest.mark.parametrize(
    "error", [RuntimeError("Driver Not Loaded."), ImportError("No module named 'pynvml'")]
)
def test_nvml_gives_its_own_reason(error):
    def refuse():
        raise error

    sight = _nvidia(refuse)
    assert not sight.ok
    assert str(error).rstrip(".") in sight.reason
