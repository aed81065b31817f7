"""OpenVINO's devices as both of its engines list them: what is here, and for the rest why not and what to do."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from engines.engine import UnavailableError
from engines.protocol import Claim, DeviceStatus

_MISSING = {
    "GPU": (
        "OpenVINO finds no Intel GPU on this machine.",
        {
            "win32": "On a PC with Intel graphics, install the current Intel graphics driver.",
            "linux": "On a machine with Intel graphics, install intel-opencl-icd (the Intel GPU compute "
            "runtime) and join the group “render”.",
        },
    ),
    "NPU": (
        "OpenVINO finds no Intel NPU on this machine.",
        {
            "win32": "An NPU comes with Intel Core Ultra processors; on such a PC install the Intel NPU driver.",
            "linux": "An NPU comes with Intel Core Ultra processors; on such a PC install the Linux NPU driver "
            "(intel/linux-npu-driver) and join the group “render”.",
        },
    ),
}
_AUTO_TITLE = "OpenVINO's own choice among the devices here"


def family(device: str) -> str:
    """`GPU.1` is a `GPU`."""
    return device.split(".")[0].split(":")[0].upper()


def list_devices(families: Sequence[str]) -> tuple[DeviceStatus, ...]:
    """Every device of these families that OpenVINO finds, and each family that it does not; AUTO last."""
    import openvino

    core = openvino.Core()
    found = [device for device in core.available_devices if family(device) in families]
    statuses = [DeviceStatus(device, ok=True, title=_full_name(core, device)) for device in found]
    for name in families:
        if name != "AUTO" and name not in map(family, found):
            reason, remedies = _MISSING.get(name, (f"OpenVINO finds no {name} on this machine.", {}))
            statuses.append(DeviceStatus(name, ok=False, reason=reason, remedy=remedies.get(sys.platform)))
    if "AUTO" in families:
        statuses.append(DeviceStatus("AUTO", ok=bool(found), title=_AUTO_TITLE))
    return tuple(statuses)


def require_device(device: str, families: Sequence[str]) -> None:
    """Raise UnavailableError, saying what is here, unless OpenVINO has `device` now."""
    statuses = list_devices(families)
    if any(status.ok and status.device == device for status in statuses):
        return
    here = ", ".join(
        f"{status.device} ({status.title})" for status in statuses if status.ok and status.device != "AUTO"
    )
    absent = next((s for s in statuses if s.device == family(device) and not s.ok), None)
    reason = absent.reason if absent else f"OpenVINO finds no device {device} on this machine."
    raise UnavailableError(
        f"{reason} It finds: {here or 'nothing'}.",
        (absent.remedy if absent else None) or "Choose a device that is here.",
    )


def model_cache(device: str, cache_dir: str) -> dict[str, str]:
    """Properties that keep compiled models in a folder, for devices where compiling takes long (GPU, NPU).

    Not for the CPU: it keeps its weights there too and packs them again all the same. Measured at 3.8 B parameters,
    int4: load 4.0 s with the folder and 1.7 s without (OpenVINO GenAI), 2.7 GB of disk a target, and 2.6 GB more
    memory from the second start on (Optimum Intel).
    """
    import openvino

    used = openvino.Core().available_devices if family(device) == "AUTO" else [device]
    return {} if all(family(name) == "CPU" for name in used) else {"CACHE_DIR": cache_dir}


def describe(device: str, properties: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where work given to `device` really runs, and the properties behind its speed.

    The pipelines do not show their compiled model, so a one-operation model is compiled with the same device
    properties (milliseconds) and asked instead; the plugin settles them per device, not per model.
    """
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    core = openvino.Core()
    parameter = ops.parameter([1], np.float32)
    tiny = openvino.Model([ops.relu(parameter)], [parameter], "describe")
    compiled = core.compile_model(tiny, device, dict(properties))
    running = [str(name).strip("()") for name in compiled.get_property("EXECUTION_DEVICES")]
    names = [f"{name} ({_full_name(core, name)})" for name in running]
    details: dict[str, Any] = {"execution_devices": running}
    for key, name in (
        ("INFERENCE_PRECISION_HINT", "inference_precision"),
        ("INFERENCE_NUM_THREADS", "threads"),
        ("KV_CACHE_PRECISION", "kv_cache_precision"),
        ("DYNAMIC_QUANTIZATION_GROUP_SIZE", "dynamic_quantization_group_size"),
    ):
        value = _property(compiled, key)
        if value is not None:
            details[name] = value
    driver = _property(core, "DRIVER_VERSION", running[0]) or _property(
        core, "NPU_DRIVER_VERSION", running[0]
    )
    if driver is not None:
        details["driver"] = str(driver)
    return ", ".join(names), details


def execution_devices(compiled: Any) -> Claim:
    """Where a compiled model says that it runs."""
    devices = tuple(str(name).strip("()") for name in compiled.get_property("EXECUTION_DEVICES"))
    return Claim(devices, f"EXECUTION_DEVICES of the compiled model: {', '.join(devices)}.")


def claim_of_stand_in(details: Mapping[str, Any]) -> Claim:
    """The same from `describe`, for a pipeline that does not show its compiled model."""
    devices = tuple(details["execution_devices"])
    return Claim(
        devices,
        f"EXECUTION_DEVICES of a small model compiled with the same properties: {', '.join(devices)}.",
    )


TELL_COMPILED = {"OPENVINO_LOG_LEVEL": "2"}
"""From this level on OpenVINO GenAI prints the properties of each model it has compiled, on stdout. Its pipelines
show their compiled models nowhere else."""


def claim_heard(text: str) -> Claim | None:
    """The devices of the language model in what OpenVINO GenAI has printed; None where it printed none.

    A block per compiled model: `Model: NAME`, its properties, and last `EXECUTION_DEVICES:` with a line per device.
    """
    for block in re.split(r"^Model: ", text, flags=re.MULTILINE)[1:]:
        title = block.partition("\n")[0].strip()
        if "tokenizer" in title.lower():
            continue
        last = re.search(r"^EXECUTION_DEVICES:\n((?: \S+: .*\n?)+)", block, re.MULTILINE)
        names = re.findall(r"^ (\S+): ", last.group(1), re.MULTILINE) if last else []
        devices = tuple(dict.fromkeys(name.strip("()") for name in names))
        if devices:
            return Claim(devices, f"EXECUTION_DEVICES of the compiled “{title}”: {', '.join(devices)}.")
    return None


def _full_name(core: Any, device: str) -> str | None:
    return _property(core, "FULL_DEVICE_NAME", device)


def _property(owner: Any, key: str, device: str | None = None) -> Any:
    """A property as plain text or number; None where the device does not know it."""
    try:
        value = owner.get_property(device, key) if device else owner.get_property(key)
    except RuntimeError:
        return None
    if isinstance(value, (int, float, str)):
        return value
    return value.get_type_name() if hasattr(value, "get_type_name") else str(value)
