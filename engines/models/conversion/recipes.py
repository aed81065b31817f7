"""How a model is turned into the format of an engine, and what that costs.

A recipe is plain data: the converter, its options and the versions of the libraries behind it. Its hash, with
the hash of the source, names the result on disk and is stored with every run, so a number can always be traced
to the exact weights it was measured on. Estimates are linear in the size of the weights, fitted to measured peaks
(tests/benchmarks/real_size.py).
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.engine import ModelError
from engines.models.folders import (
    ONNXRUNTIME_GENAI,
    OPENVINO,
    SAFETENSORS,
    ModelFacts,
    hash_json,
)
from engines.protocol import DEMO_MODEL, EngineSpec, Target

_LIBRARIES = {
    OPENVINO: ("openvino", "openvino-tokenizers", "optimum-intel", "nncf", "transformers", "torch"),
    ONNXRUNTIME_GENAI: (
        "onnxruntime-genai",
        "onnxruntime-genai-directml",
        "onnx-ir",
        "transformers",
        "torch",
    ),
}
BITS = {"int4": 4.5, "int8": 8.1, "fp16": 16.0, "bf16": 16.0, "fp32": 32.0}
_LIBRARIES_BYTES = 600_000_000
"""What the conversion libraries take beside the model."""
_SMALL_FILES_BYTES = 10_000_000
_LOAD = {
    # format: (bytes for each byte of weights, bytes for the library), fitted to measured peaks. OpenVINO repacks the
    # weights for the processor while the file is still mapped, so both are resident at the peak.
    OPENVINO: (2.0, 250_000_000),
    ONNXRUNTIME_GENAI: (1.05, 450_000_000),
    SAFETENSORS: (1.15, 480_000_000),
}
_SMALLEST_WORKER_BYTES = 450_000_000
_CONVERTERS = {
    OPENVINO: "optimum-cli export openvino",
    ONNXRUNTIME_GENAI: "onnxruntime_genai.models.builder",
}
_LARGE_PARAMETERS = 1_000_000_000
_DEMO_OPTIONS = {"int4_block_size": 128}
"""The bundled model's weights were trained for groups of 128; any other model loses less with smaller blocks."""


@dataclass(frozen=True)
class Recipe:
    """One way to make a model folder."""

    format: str
    precision: str
    converter: str
    options: dict[str, Any]
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "precision": self.precision,
            "converter": self.converter,
            "options": self.options,
            "versions": self.versions,
        }

    @property
    def sha256(self) -> str:
        return hash_json(self.as_dict())

    @property
    def label(self) -> str:
        """Part of a folder's name: `openvino-int4`, `onnxruntime-genai-dml-int4`."""
        extra = self.options.get("execution_provider") or self.options.get("variant")
        return "-".join(part for part in (self.format, extra, self.precision) if part)


@dataclass(frozen=True)
class Cost:
    """What a conversion needs, roughly."""

    peak_bytes: int
    output_bytes: int
    seconds: float


def library_versions(model_format: str) -> dict[str, str]:
    """Versions of the converter's libraries, read from package metadata without importing them."""
    found = {name: _version(name) for name in _LIBRARIES.get(model_format, ())}
    return {name: version for name, version in found.items() if version is not None}


@functools.cache
def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def recipe_for(target: Target, spec: EngineSpec, facts: ModelFacts) -> Recipe:
    """The recipe for one target. Raises ModelError when the combination cannot be made."""
    build = spec.build_for(target.device, target.precision)
    if build is None or spec.model_format is None:
        raise ModelError(*_no_build(target, spec))
    if spec.model_format == ONNXRUNTIME_GENAI:
        refuse_ambiguous_lm_head(facts)
        refuse_unknown_to_builder(facts)
    options = dict(build.options)
    if facts.parameters > _LARGE_PARAMETERS:
        options |= build.large_options
    if target.model == DEMO_MODEL:
        options |= {name: value for name, value in _DEMO_OPTIONS.items() if name in options}
    versions = library_versions(spec.model_format)
    return Recipe(spec.model_format, build.precision, _CONVERTERS[spec.model_format], options, versions)


def _no_build(target: Target, spec: EngineSpec) -> tuple[str, str]:
    offered = (
        build.precision for build in spec.builds if spec.build_for(target.device, build.precision) == build
    )
    possible = list(dict.fromkeys(offered))
    if not possible:
        devices = dict.fromkeys(build.device for build in spec.builds if build.device)
        return (
            f"{spec.title} has no model build for the device {target.device}.",
            f"Choose one of {', '.join(devices)}.",
        )
    return (
        f"{spec.title} has no {target.precision} models for {target.device}.",
        f"Choose {' or '.join(possible)}.",
    )


def refuse_ambiguous_lm_head(facts: ModelFacts) -> None:
    """The model builder takes every linear layer with vocab_size outputs for the lm_head and builds garbage."""
    for name, shape in facts.shapes.items():
        is_embedding = any(part in name for part in ("embed", "lm_head", "wte", "output_layer"))
        if len(shape) == 2 and shape[0] == facts.vocab_size and not is_embedding:
            raise ModelError(
                f"ONNX Runtime GenAI's model builder cannot convert this model: its layer {name} has as many "
                f"outputs as the vocabulary has tokens ({facts.vocab_size}), so the builder would take it for the "
                "output layer and build garbage.",
                "Use another engine for this model, or pad its vocabulary.",
            )


def refuse_unknown_to_builder(facts: ModelFacts) -> None:
    """The model builder has a class for some architectures, and says so only when it is asked to build."""
    known = _builder_architectures()
    if known and facts.architecture is not None and facts.architecture not in known:
        version = _version("onnxruntime-genai") or _version("onnxruntime-genai-directml") or "here"
        raise ModelError(
            f"ONNX Runtime GenAI's model builder ({version}) does not know the architecture {facts.architecture}.",
            "Use another engine for this model.",
        )


@functools.cache
def _builder_architectures() -> frozenset[str]:
    """Those that its source compares with; empty where it is absent or written differently. Nothing is imported."""
    spec = importlib.util.find_spec("onnxruntime_genai")
    if spec is None or spec.origin is None:
        return frozenset()
    try:
        source = (Path(spec.origin).parent / "models" / "builder.py").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    return frozenset(re.findall(r'architectures\[0\] == "(\w+)"', source))


def cost(recipe: Recipe, facts: ModelFacts) -> Cost:
    """Estimated peak memory, output size and time of a conversion on the 2-core machine it was fitted on."""
    parameters, bits = facts.parameters, BITS[recipe.precision]
    billions = parameters / 1e9
    head = (facts.vocab_size or 0) * (facts.hidden_size or 0) or parameters // 20
    if recipe.format == ONNXRUNTIME_GENAI:
        # The embedding stays in full precision; quantising the head costs far more per weight than the layers do.
        # Fitted to four measured peaks from 0.28 B to 3.8 B, all within 16 %.
        embedding_bits = 32 if recipe.options["execution_provider"] == "cpu" else 16
        output = int((parameters * bits + (head * embedding_bits if recipe.precision == "int4" else 0)) / 8)
        peak = 5.5 * parameters + (40 * head if recipe.precision == "int4" else 0) + _LIBRARIES_BYTES
        return Cost(int(peak), output + _SMALL_FILES_BYTES, 8 + 90 * billions)
    if recipe.precision == "int4":
        # Embedding and head become int8; of the rest, `ratio` becomes int4 and what is left int8.
        ends = head * (2 if "lm_head.weight" in facts.shapes or not facts.shapes else 1)
        ratio = recipe.options["ratio"]
        bits = (8.1 * ends + (4.15 * ratio + 8.1 * (1 - ratio)) * (parameters - ends)) / parameters
    output = int(parameters * bits / 8) + _SMALL_FILES_BYTES
    return Cost(int(facts.weight_bytes + 1.25 * output + _LIBRARIES_BYTES), output, 10 + 100 * billions)


def load_peak_bytes(weight_bytes: int, model_format: str) -> int:
    """Estimated peak memory of a worker that loads weights of this size."""
    factor, library_bytes = _LOAD[model_format]
    return max(int(factor * weight_bytes) + library_bytes, _SMALLEST_WORKER_BYTES)
