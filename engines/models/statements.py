"""What a ready model folder states about itself: the precision of its weights, and the devices it was built for.

Whoever made it. OpenVINO's graph lists its constants with their types; an ONNX graph tells by its quantised operators
or the type of its KV cache, and genai_config.json names the execution provider. So a number is never filed under a
precision that the weights do not have.
"""

from __future__ import annotations

import functools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from engines.engine import ModelError
from engines.models.judgement import ONNXRUNTIME_GENAI, OPENVINO
from engines.protocol import EngineSpec, Target
from engines.toolkit.model_config import context_tokens, genai_files, genai_providers, read_config, read_json

_PROVIDER_DEVICES = {"dml": "DML", "cuda": "CUDA"}
_LARGE_CONSTANT = 4096
"""Bytes from which a constant counts as weights: shapes, axes and scalars are smaller."""
_GRAPH_BYTES = 64 * 2**20
"""How much of an ONNX graph is searched for its operators; weights that follow are not."""
_ONNX_TYPES = {1: "fp32", 10: "fp16", 16: "bf16"}
_OPENVINO_TYPES = {
    "f32": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "i8": "int8",
    "u8": "int8",
    "i4": "int4",
    "u4": "int4",
}


@dataclass(frozen=True)
class Statement:
    """None: the folder does not say."""

    precision: str | None = None
    device: str | None = None
    """The device family it was built for; None: any that its engine has."""
    provider: str | None = None
    """Execution provider in its maker's words, for a sentence."""
    context_tokens: int | None = None


def read_statement(folder: Path, model_format: str) -> Statement:
    """Read it, once for each version of the folder's description."""
    names = {OPENVINO: "openvino_model.xml", ONNXRUNTIME_GENAI: "genai_config.json"}
    if model_format not in names:
        return Statement()
    stat = (folder / names[model_format]).stat()
    return _read(folder, model_format, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _read(folder: Path, model_format: str, _size: int, _changed_ns: int) -> Statement:
    if model_format == OPENVINO:
        context = context_tokens(read_config(folder)) if (folder / "config.json").is_file() else None
        return Statement(_openvino_precision(folder / "openvino_model.xml"), context_tokens=context)
    settings = read_json(folder / "genai_config.json")
    providers = genai_providers(settings)
    provider = next((name for name in providers if name != "cpu"), "cpu")
    graphs = genai_files(settings)
    return Statement(
        precision=_onnx_precision(folder / graphs[0]) if graphs else None,
        device="CPU" if provider == "cpu" else _PROVIDER_DEVICES.get(provider, provider),
        provider=provider,
        context_tokens=(settings.get("model") or {}).get("context_length"),
    )


def require_fit(folder: Path, model_format: str, target: Target, spec: EngineSpec) -> Statement:
    """The folder's statement; raises ModelError when it is for another precision or device than the target's."""
    statement = read_statement(folder, model_format)
    if statement.precision is not None and statement.precision != target.precision:
        raise ModelError(
            f"The weights in {folder} are {statement.precision}, not {target.precision}.",
            f"Choose {statement.precision}: {spec.name}/{target.device}/{statement.precision}.",
        )
    family = target.device.split(".")[0].upper()
    if statement.device is not None and statement.device != family:
        known = statement.device in spec.devices
        raise ModelError(
            f"{folder} was built for {statement.provider} (genai_config.json), not for {target.device}.",
            f"Choose {spec.name}/{statement.device}/{statement.precision or target.precision}."
            if known
            else f"{spec.title} is offered here on {', '.join(spec.devices)}; get the build for one of them.",
        )
    return statement


# --- OpenVINO ----------------------------------------------------------------------------------------------


def _openvino_precision(graph: Path) -> str | None:
    """The smallest type that a real share of the weights has: mixed int4 models keep some layers in int8."""
    stored: dict[str, int] = {}
    try:
        for _, element in ElementTree.iterparse(graph):
            size = int(element.attrib.get("size") or 0) if element.tag == "data" else 0
            if size >= _LARGE_CONSTANT and "offset" in element.attrib:
                kind = _OPENVINO_TYPES.get(element.attrib.get("element_type", ""))
                if kind is not None:
                    stored[kind] = stored.get(kind, 0) + size
            element.clear()
    except (ElementTree.ParseError, ValueError):
        return None
    total = sum(stored.values())
    for kind, least in (("int4", 0.05), ("int8", 0.2)):
        if total and stored.get(kind, 0) >= least * total:
            return kind
    return max(stored, key=lambda kind: stored[kind]) if stored else None


# --- ONNX --------------------------------------------------------------------------------------------------


def _onnx_precision(graph: Path) -> str | None:
    """`bits` of the quantised matrix products, else the type of the KV cache."""
    try:
        with graph.open("rb") as stream:
            data = stream.read(_GRAPH_BYTES)
            if b"MatMulNBits" in data:
                # An AttributeProto: field 1 is the name, field 3 the integer.
                bits = [match[1][0] for match in re.finditer(rb"\n\x04bits\x18(.)", data, re.DOTALL)]
                common = max(set(bits), key=bits.count) if bits else 4
                return {4: "int4", 8: "int8"}.get(common, f"int{common}")
            stream.seek(0)
            return _cache_type(stream, graph.stat().st_size)
    except (OSError, ValueError):
        return None


def _cache_type(stream: BinaryIO, size: int) -> str | None:
    """Element type of the first `past…` input: ModelProto.graph (7), its input (11), there type (2), tensor_type (1),
    elem_type (1)."""
    for start, end in _fields(stream, 0, size, 7):
        for begin, stop in _fields(stream, start, end, 11):
            stream.seek(begin)
            text = stream.read(stop - begin)
            match = re.search(rb"\x12.\n.\x08(.)", text, re.DOTALL)
            if b"past" in text and match:
                return _ONNX_TYPES.get(match[1][0])
    return None


def _fields(stream: BinaryIO, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each length-delimited field with this number in a protobuf message; the others are skipped."""
    position = start
    while position < end:
        stream.seek(position)
        tag = _varint(stream)
        if tag & 7 == 0:
            _varint(stream)
            position = stream.tell()
        elif tag & 7 == 2:
            length = _varint(stream)
            begin = stream.tell()
            position = begin + length
            if tag >> 3 == wanted:
                yield begin, position
        elif tag & 7 in (1, 5):
            position = stream.tell() + (8 if tag & 7 == 1 else 4)
        else:
            raise ValueError("not a protobuf message")


def _varint(stream: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = stream.read(1)
        if not byte or shift > 63:
            raise ValueError("cut off")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7
