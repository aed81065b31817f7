"""Windows: the graphics and compute adapters, and which of them is an NPU.

DXCore lists every adapter with its LUID, which is how the performance counters name it. Windows 11
24H2 says which is an NPU (`DXCORE_HARDWARE_TYPE_ATTRIBUTE_NPU`); before, an NPU is an adapter that computes
(`DXCORE_ADAPTER_ATTRIBUTE_D3D12_GENERIC_ML` or `…_CORE_COMPUTE`) but draws nothing (`…_D3D12_GRAPHICS`), and its
description says so ("Intel(R) AI Boost", "NPU Compute Accelerator Device").

https://learn.microsoft.com/windows/win32/dxcore/dxcore-enum-adapters
https://github.com/microsoft/DirectX-Headers/blob/main/include/directx/dxcore_interface.h
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

_NPU_WORDS = ("npu", "ai boost", "neural", "hexagon", "xdna", "compute accelerator")

_CARD_WORDS = ("nvidia", "radeon", "instinct", "arc")


@dataclass(frozen=True)
class Adapter:
    """One adapter."""

    luid: str
    """`0x00000000_0x0000C5D2`, as in the counters' instance names."""
    name: str
    draws: bool
    """Whether it has a graphics pipeline."""
    hardware: bool = True
    npu: bool = False
    """Whether the system itself calls it one."""

    @property
    def kind(self) -> str:
        """`GPU` or `NPU`."""
        said = any(word in self.name.lower() for word in _NPU_WORDS)
        card = any(word in self.name.lower() for word in _CARD_WORDS)  # one that only computes, in a server
        return "NPU" if self.npu or said or (not self.draws and not card) else "GPU"


def luid_text(high: int, low: int) -> str:
    """As the counters spell it."""
    return f"0x{high & 0xFFFFFFFF:08X}_0x{low & 0xFFFFFFFF:08X}"


def accelerators() -> frozenset[str] | None:
    """The kinds of hardware adapters here; None where DXCore cannot be asked."""
    found = adapters()
    return None if found is None else frozenset(adapter.kind for adapter in found if adapter.hardware)


if sys.platform == "win32":
    import ctypes
    import uuid
    from typing import Any

    _FACTORY = "78ee5945-c36e-4b13-a669-005dd11c0f06"
    _LIST = "526c7776-40e9-459b-b711-f32ad76dfc28"
    _ADAPTER = "f0db4c7f-fe5a-42a2-bd62-f2a6cf6fc83e"
    _GRAPHICS = "0c9ece4d-2f6e-4f01-8c96-e89e331b47b1"  # DXCORE_ADAPTER_ATTRIBUTE_D3D12_GRAPHICS
    _COMPUTE = "248e2800-a793-4724-abaa-23a6de1be090"  # DXCORE_ADAPTER_ATTRIBUTE_D3D12_CORE_COMPUTE
    _GENERIC_ML = "b71b0d41-1088-422f-a27c-0250b7d3a988"  # DXCORE_ADAPTER_ATTRIBUTE_D3D12_GENERIC_ML
    _NPU = "d46140c4-add7-451b-9e56-06fe8c3b58ed"  # DXCORE_HARDWARE_TYPE_ATTRIBUTE_NPU
    _INSTANCE_LUID, _DRIVER_DESCRIPTION, _IS_HARDWARE = 0, 2, 11  # DXCoreAdapterProperty

    def _guid(text: str) -> ctypes.Array[ctypes.c_ubyte]:
        return (ctypes.c_ubyte * 16)(*uuid.UUID(text).bytes_le)

    def _call(this: ctypes.c_void_p, slot: int, result: Any, *arguments: Any) -> int:
        """Call a COM method by its place in the virtual table; `arguments` are ctypes values."""
        table = ctypes.cast(this, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))).contents
        kinds = [type(argument) for argument in arguments]
        method = ctypes.WINFUNCTYPE(result, ctypes.c_void_p, *kinds)(table[slot])
        return int(method(this, *arguments) or 0)

    def _release(this: ctypes.c_void_p) -> None:
        if this:
            _call(this, 2, ctypes.c_ulong)

    def adapters() -> tuple[Adapter, ...] | None:
        """Every adapter that draws or computes, each once; None where there is no DXCore (before Windows 10 2004)."""
        try:
            create = ctypes.WinDLL("dxcore").DXCoreCreateAdapterFactory
        except (OSError, AttributeError):
            return None
        factory = ctypes.c_void_p()
        if create(_guid(_FACTORY), ctypes.byref(factory)) < 0:
            return None
        found: dict[str, Adapter] = {}
        try:
            for attribute in (_GRAPHICS, _COMPUTE, _GENERIC_ML):
                for adapter in _listed(factory, attribute):
                    found.setdefault(adapter.luid, adapter)
        finally:
            _release(factory)
        return tuple(found.values())

    def _listed(factory: ctypes.c_void_p, attribute: str) -> list[Adapter]:
        """IDXCoreAdapterFactory::CreateAdapterList is its first method, after IUnknown's three."""
        listed = ctypes.c_void_p()
        wanted, kind = ctypes.pointer(_guid(attribute)), ctypes.pointer(_guid(_LIST))
        if _call(factory, 3, ctypes.c_long, ctypes.c_uint32(1), wanted, kind, ctypes.pointer(listed)) < 0:
            return []
        try:
            count = _call(listed, 4, ctypes.c_uint32)  # IDXCoreAdapterList: GetAdapter, GetAdapterCount, …
            return [found for n in range(count) if (found := _adapter(listed, n)) is not None]
        finally:
            _release(listed)

    def _adapter(listed: ctypes.c_void_p, number: int) -> Adapter | None:
        adapter = ctypes.c_void_p()
        kind = ctypes.pointer(_guid(_ADAPTER))
        if _call(listed, 3, ctypes.c_long, ctypes.c_uint32(number), kind, ctypes.pointer(adapter)) < 0:
            return None
        try:
            luid = _property(adapter, _INSTANCE_LUID, 8)
            if luid is None:
                return None
            low, high = (int.from_bytes(luid[at : at + 4], "little") for at in (0, 4))
            name = (_property(adapter, _DRIVER_DESCRIPTION) or b"").split(b"\0")[0].decode("utf-8", "replace")
            hardware = (_property(adapter, _IS_HARDWARE, 1) or b"\1") != b"\0"
            # IDXCoreAdapter: IsValid, IsAttributeSupported, IsPropertySupported, GetProperty, GetPropertySize, …
            draws, npu = (
                bool(_call(adapter, 4, ctypes.c_bool, ctypes.pointer(_guid(attribute))))
                for attribute in (_GRAPHICS, _NPU)
            )
            return Adapter(luid_text(high, low), name or "adapter", draws, hardware, npu)
        finally:
            _release(adapter)

    def _property(adapter: ctypes.c_void_p, number: int, size: int | None = None) -> bytes | None:
        if size is None:
            length = ctypes.c_size_t()
            if _call(adapter, 7, ctypes.c_long, ctypes.c_uint32(number), ctypes.pointer(length)) < 0:
                return None
            size = length.value
        buffer = ctypes.create_string_buffer(size)
        kind = ctypes.cast(buffer, ctypes.c_void_p)
        if _call(adapter, 6, ctypes.c_long, ctypes.c_uint32(number), ctypes.c_size_t(size), kind) < 0:
            return None
        return buffer.raw

else:

    def adapters() -> tuple[Adapter, ...] | None:
        """Only Windows has DXCore."""
        return None
