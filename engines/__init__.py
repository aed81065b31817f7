"""The engines: `ENGINES` is the explicit list. Adding one is a module, a line here, and perhaps an environment."""

from engines import (
    endpoint_engine,
    intel_npu_engine,
    onnxruntime_genai_engine,
    openvino_genai_engine,
    optimum_intel_engine,
    transformers_engine,
)
from engines.protocol import EngineSpec

ENGINES: tuple[EngineSpec, ...] = (
    openvino_genai_engine.SPEC,
    optimum_intel_engine.SPEC,
    onnxruntime_genai_engine.SPEC,
    intel_npu_engine.SPEC,
    transformers_engine.SPEC,
    endpoint_engine.SPEC,
)


def spec_by_name(name: str) -> EngineSpec | None:
    """The spec of an engine, or None when there is no such engine."""
    return next((spec for spec in ENGINES if spec.name == name), None)
