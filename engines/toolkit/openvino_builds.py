"""The model folders that both OpenVINO engines load, as optimum-intel's exporter is told to make them."""

from __future__ import annotations

from typing import Any

from engines.protocol import Build


def _build(
    precision: str, device: str | None = None, large: dict[str, Any] | None = None, **more: Any
) -> Build:
    options = {"task": "text-generation-with-past", "weight_format": precision, **more}
    return Build(precision, device, options, large or {})


_INT4: dict[str, Any] = {"sym": True, "group_size_fallback": "adjust", "group_size": 128}
BUILDS = (
    _build("int4", **_INT4, ratio=0.6),
    # The NPU compiler takes symmetric int4 only, everywhere; above 1 B it wants one scale per channel.
    _build("int4", "NPU", {"group_size": -1}, **_INT4, variant="npu", ratio=1.0),
    _build("int8"),
    _build("fp16"),
    _build("fp32"),
)
