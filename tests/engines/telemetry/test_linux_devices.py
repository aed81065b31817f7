"""Linux's device files, on recorded trees in their documented formats: present, missing, forbidden, wrapping."""

from pathlib import Path

import pytest

from engines.telemetry import linux_devices as linux
from engines.telemetry.device_sources import LinuxDevices
from engines.telemetry.power import in_words, linux_profile, overlay_name
from engines.telemetry.sampler import Sample, weigh

# Documentation/gpu/i915.rst and proc_pid_fdinfo(5), which shows this sample.
I915 = """pos:    0
flags:  02100002
mnt_id: 26
ino:    284
drm-driver: i915
drm-client-id: 39
drm-pdev: 0000:00:02.0
drm-total-system0: 6044 KiB
drm-shared-system0: 0
drm-resident-system0: 6044 KiB
drm-purgeable-system0: 1688 KiB
drm-resident-stolen-system0: 0
drm-engine-render: 346249 ns
drm-engine-copy: 0 ns
drm-engine-video: 0 ns
drm-engine-capacity-video: 2
drm-engine-video-enhance: 0 ns
"""
# Documentation/gpu/xe/xe-drm-usage-stats.rst shows this sample.
XE = """pos:    0
flags:  0100002
drm-driver:     xe
drm-client-id:  3
drm-pdev:       0000:03:00.0
drm-resident-system:    0
drm-resident-gtt:       192 KiB
drm-resident-vram0:     23992 KiB
drm-cycles-rcs: 28257900
drm-total-cycles-rcs:   7655183225
drm-cycles-ccs: 0
drm-total-cycles-ccs:   7655183225
drm-engine-capacity-ccs:        4
"""
# Documentation/gpu/amdgpu/driver-misc.rst and amdgpu_fdinfo.c: `drm-memory-` beside `drm-engine-`.
AMDGPU = """drm-driver:\tamdgpu
drm-client-id:\t51
drm-pdev:\t0000:0a:00.0
pasid:\t32778
drm-memory-vram:\t1024 KiB
drm-memory-gtt: \t2 MiB
drm-memory-cpu: \t0 KiB
drm-engine-gfx:\t5000000 ns
drm-engine-compute:\t900000000 ns
"""


def test_i915_tells_time_per_engine():
    client = linux.parse_fdinfo(I915)
    assert (client.driver, client.device, client.client) == ("i915", "0000:00:02.0", "39")
    assert client.engine_ns == {"render": 346249, "copy": 0, "video": 0, "video-enhance": 0}
    assert client.capacity == {"video": 2}
    assert client.resident_bytes == 6044 * 1024


def test_xe_tells_cycles():
    client = linux.parse_fdinfo(XE)
    assert client.engine_ns == {}
    assert client.cycles == {"rcs": (28257900, 7655183225), "ccs": (0, 7655183225)}
    assert client.capacity == {"ccs": 4}
    assert client.resident_bytes == (192 + 23992) * 1024


def test_amdgpu_keeps_the_older_names_for_memory():
    client = linux.parse_fdinfo(AMDGPU)
    assert client.engine_ns["compute"] == 900_000_000
    assert client.resident_bytes == 3 * 2**20


@pytest.mark.parametrize("text", ["", "pos: 0\nflags: 02\n", "drm-pdev: 0000:00:02.0\n", "no colon at all"])
def test_other_descriptors_are_no_clients(text):
    assert linux.parse_fdinfo(text) is None


def test_what_is_no_number_is_left_out():
    client = linux.parse_fdinfo(
        "drm-driver: x\ndrm-engine-a: many ns\ndrm-engine-b: 5 s\ndrm-engine-c: 7 ns\n"
    )
    assert client.engine_ns == {"c": 7}
    assert client.device == "x"
    assert client.resident_bytes is None


def client(**changes):
    return linux.DrmClient("i915", "0000:00:02.0", "1", **changes)


def test_how_busy_a_client_was():
    assert linux.busy_share(
        client(engine_ns={"render": 10**9, "copy": 0}),
        client(engine_ns={"render": 15 * 10**8, "copy": 10**7}),
        1.0,
    ) == pytest.approx(0.5)
    assert linux.busy_share(
        client(cycles={"ccs": (100, 1000)}), client(cycles={"ccs": (500, 2000)}, capacity={"ccs": 4}), 1.0
    ) == pytest.approx(0.1)
    assert linux.busy_share(client(), client(), 1.0) is None
    # A counter that went back belongs to another client, or the driver began again.
    assert linux.busy_share(client(engine_ns={"render": 10**9}), client(engine_ns={"render": 5}), 1.0) is None
    assert linux.busy_share(client(engine_ns={"r": 0}), client(engine_ns={"r": 3 * 10**9}), 1.0) == 1.0


def put(root: Path, name: str, content: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")


NPU = "sys/class/accel/accel0/device/"
RAPL = "sys/class/powercap/intel-rapl:0/"


@pytest.fixture
def laptop(tmp_path):
    """A Core Ultra: ivpu_sysfs.c, powercap.rst, platform_profile."""
    put(tmp_path, NPU + "npu_busy_time_us", 1_000_000)
    put(tmp_path, NPU + "npu_memory_utilization", 268435456)
    put(tmp_path, NPU + "npu_current_frequency_mhz", 1400)
    put(tmp_path, RAPL + "name", "package-0")
    put(tmp_path, RAPL + "energy_uj", 262_143_000_000)
    put(tmp_path, RAPL + "max_energy_range_uj", 262_143_328_850)
    put(tmp_path, "sys/class/powercap/intel-rapl:0:0/name", "core")
    put(tmp_path, "sys/class/powercap/intel-rapl:0:0/energy_uj", 5)
    put(tmp_path, "sys/class/powercap/intel-rapl-mmio:0/energy_uj", 7)
    put(tmp_path, "sys/firmware/acpi/platform_profile", "balanced")
    put(tmp_path, "sys/bus/pci/devices/0000:00:02.0/class", "0x030000")
    put(tmp_path, "sys/bus/pci/devices/0000:00:0b.0/class", "0x120000")
    return tmp_path


def test_the_npus_files_are_read(laptop):
    assert linux.npus(laptop) == (linux.Npu("accel0", 1_000_000, 268435456, 1400),)


def test_an_older_driver_has_fewer_files_and_no_npu_has_none(laptop, tmp_path):
    (laptop / NPU / "npu_memory_utilization").unlink()
    (laptop / NPU / "npu_busy_time_us").write_text("garbage")
    assert linux.npus(laptop) == (linux.Npu("accel0", None, None, 1400),)
    assert linux.npus(tmp_path / "nothing") == ()


def test_what_may_not_be_read_is_absent(laptop, monkeypatch):
    """The kernel has made energy_uj readable by root only since 5.10 (CVE-2020-8694)."""
    read = Path.read_text

    def refuse(path, *arguments, **options):
        if path.name in ("energy_uj", "npu_busy_time_us"):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert linux.energy_zones(laptop) == ()
    assert linux.npus(laptop)[0].busy_us is None
    source = LinuxDevices(laptop)
    source.read(())
    assert [(device.kind, device.busy) for device in source.read(())] == [("NPU", None)]


def test_energy_becomes_power_also_where_the_counter_begins_again(laptop):
    (before, _core) = linux.energy_zones(laptop)
    put(laptop, RAPL + "energy_uj", 262_143_328_850 - 328_850 + 100_000)
    (later, _core) = linux.energy_zones(laptop)
    assert linux.watts(before, later, 0.5) == pytest.approx(0.2)
    put(laptop, RAPL + "energy_uj", 1_671_150)
    (wrapped, _core) = linux.energy_zones(laptop)
    assert linux.watts(before, wrapped, 0.5) == pytest.approx(4.0)  # 328,850 to the end, 1,671,150 from 0
    endless = linux.EnergyZone("x", 5, None)
    assert linux.watts(linux.EnergyZone("x", 9, None), endless, 1.0) is None


def test_the_source_gives_rates_between_two_calls(laptop):
    source = LinuxDevices(laptop)
    first = source.read(())
    assert [(device.name, device.busy) for device in first] == [("NPU accel0", None)]
    source._at -= 1.0  # a second ago
    put(laptop, NPU + "npu_busy_time_us", 1_500_000)
    put(laptop, RAPL + "energy_uj", 262_153_000_000)
    npu, package, core = source.read(())
    assert npu.busy == pytest.approx(0.5, abs=0.05)
    assert (npu.memory_bytes, npu.frequency_mhz) == (268435456, 1400)
    assert package.watts == pytest.approx(10, rel=0.1)
    assert core.watts == 0
    put(laptop, NPU + "npu_busy_time_us", 12)  # the driver was loaded again
    assert source.read(())[0].busy is None


def test_a_processs_gpus_are_found_by_their_device_files(tmp_path):
    proc = tmp_path / "proc" / "4242"
    (proc / "fd").mkdir(parents=True)
    for number, (target, text) in enumerate(
        [
            ("/dev/null", "pos: 0\n"),
            ("/dev/dri/renderD128", I915),
            ("/dev/dri/renderD128", I915),
            ("/dev/dri/card1", XE),
        ]
    ):
        (proc / "fd" / str(number)).symlink_to(target)
        put(tmp_path, f"proc/4242/fdinfo/{number}", text)
    found = linux.drm_clients(4242, tmp_path)
    assert sorted(client.driver for client in found) == ["i915", "xe"]  # a descriptor twice is one client
    assert linux.drm_clients(1, tmp_path) == ()
    source = LinuxDevices(tmp_path)
    source.read((4242,))
    source._at -= 1.0
    put(tmp_path, "proc/4242/fdinfo/1", I915.replace("346249 ns", "400346249 ns"))
    put(tmp_path, "proc/4242/fdinfo/2", I915.replace("346249 ns", "400346249 ns"))
    intel = next(device for device in source.read((4242,)) if device.name == "GPU 0000:00:02.0")
    assert intel.by_pid == {4242: pytest.approx(0.4, abs=0.05)}
    assert intel.sees_processes
    assert intel.busy is None


# xdna-driver, and amdgpu_top's recorded samples; Intel's NPU has the memory lines only.
XDNA = """drm-driver:\tamdxdna_accel_driver
drm-client-id:\t4
drm-pdev:\t0000:c5:00.1
drm-engine-npu-amdxdna:\t{ns} ns
drm-total-memory:\t16452 KiB
"""
IVPU = """drm-driver:\tintel_vpu
drm-client-id:\t5
drm-pdev:\t0000:00:0b.0
drm-resident-memory:\t96 MiB
"""


def opened(root, pid, *files):
    """A process with these device files open."""
    (root / f"proc/{pid}/fd").mkdir(parents=True, exist_ok=True)
    for number, (target, text) in enumerate(files):
        link = root / f"proc/{pid}/fd/{number}"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        put(root, f"proc/{pid}/fdinfo/{number}", text)


def test_an_accel_device_is_an_npu_and_no_gpu(tmp_path):
    source = LinuxDevices(tmp_path)
    opened(tmp_path, 7, ("/dev/accel/accel0", XDNA.format(ns=0)))
    source.read((7,))
    source._at -= 1.0
    opened(tmp_path, 7, ("/dev/accel/accel0", XDNA.format(ns=600_000_000)))
    (npu,) = source.read((7,))
    assert (npu.name, npu.kind, npu.sees_processes) == ("NPU 0000:c5:00.1", "NPU", True)
    assert npu.by_pid == {7: pytest.approx(0.6, abs=0.05)}


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("/dev/accel/accel0", IVPU, "NPU 0000:00:0b.0"),
        # xe before Linux 6.11 tells memory only, and amdgpu no engine that was not used: ROCm's work goes past it.
        ("/dev/dri/renderD128", XE.partition("drm-cycles")[0], "GPU 0000:03:00.0"),
    ],
)
def test_a_driver_that_tells_memory_only_does_not_say_that_the_device_stood_still(tmp_path, file, text, name):
    source = LinuxDevices(tmp_path)
    opened(tmp_path, 7, (file, text))
    source.read((7,))
    (reading,) = source.read((7,))
    assert (reading.name, reading.sees_processes, reading.busy) == (name, False, None)
    assert reading.memory_bytes > 0
    kind = reading.kind
    assert kind not in weigh([Sample(2.0, 1.0, {}, (reading,))], 7, (), None).busy


def test_two_processors_have_parts_of_the_same_names(tmp_path):
    for package in (0, 1):
        put(tmp_path, f"sys/class/powercap/intel-rapl:{package}/name", f"package-{package}")
        put(tmp_path, f"sys/class/powercap/intel-rapl:{package}/energy_uj", 0)
        put(tmp_path, f"sys/class/powercap/intel-rapl:{package}:0/name", "dram")
        put(tmp_path, f"sys/class/powercap/intel-rapl:{package}:0/energy_uj", 0)
    source = LinuxDevices(tmp_path)
    source.read(())
    source._at -= 1.0
    put(tmp_path, "sys/class/powercap/intel-rapl:1:0/energy_uj", 3_000_000)
    found = {reading.name: round(reading.watts) for reading in source.read(())}
    assert found == {"package-0": 0, "package-1": 0, "package-0 dram": 0, "package-1 dram": 3}


def test_amds_own_figure(tmp_path):
    put(tmp_path, "sys/class/drm/card0/device/gpu_busy_percent", 37)
    put(tmp_path, "sys/class/drm/card0-HDMI-A-1/status", "connected")
    put(tmp_path, "sys/class/drm/card1/device/vendor", "0x8086")
    assert linux.amd_busy_percent(tmp_path) == {"card0": 37}
    assert linux.amd_busy_percent(tmp_path / "none") == {}


def test_what_this_machine_has_is_on_the_pci_bus(laptop, tmp_path, monkeypatch):
    monkeypatch.setattr(linux.platform, "machine", lambda: "x86_64")
    assert linux.accelerators(laptop) == {"GPU", "NPU"}
    put(tmp_path, "bare/sys/bus/pci/devices/0000:00:00.0/class", "0x060000")
    assert linux.accelerators(tmp_path / "bare") == frozenset()
    assert linux.accelerators(tmp_path / "no bus") is None
    put(tmp_path, "bare/dev/dxg", "")  # WSL: the devices of Windows
    assert linux.accelerators(tmp_path / "bare") is None
    monkeypatch.setattr(linux.platform, "machine", lambda: "aarch64")
    assert linux.accelerators(laptop) is None


def test_the_power_profile_in_words(laptop, tmp_path):
    assert linux_profile(laptop) == "balanced"
    assert linux_profile(tmp_path / "nothing") is None
    put(tmp_path, "ppd/sys/devices/system/cpu/cpu0/cpufreq/energy_performance_preference", "balance_power")
    assert linux_profile(tmp_path / "ppd") == "balance_power"
    assert in_words(lambda: "mains", lambda: "balanced") == "mains, balanced"
    assert in_words(lambda: None, lambda: None) is None


def test_windows_power_modes_have_names():
    assert overlay_name("{DED574B5-45A0-4F42-8737-46345C09C238}") == "best performance"
    assert overlay_name("00000000-0000-0000-0000-000000000000") == "balanced"
    assert overlay_name("12345678-0000-0000-0000-000000000000").startswith("12345678")
