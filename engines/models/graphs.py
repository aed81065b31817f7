"""Is a folder of graphs whole? Checked by its structure, before anything loads it.

A cut download or copy still has every name in its place, and a library that loads it may end the process. Reading the
graph's description is cheap and says which file is wrong and how.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.engine import ModelError
from engines.toolkit.model_config import genai_files, read_json


def check_openvino(folder: Path) -> None:
    """The graphs parse and their weight files are as long as the graphs' constants need.

    The tokenizer's graph may be missing: the worker makes prompts from tokenizer.json.
    """
    for name in ("openvino_model", "openvino_tokenizer"):
        if name == "openvino_tokenizer" and not (folder / f"{name}.xml").is_file():
            continue
        graph, weights = folder / f"{name}.xml", folder / f"{name}.bin"
        if not graph.is_file() or not weights.is_file():
            raise ModelError(f"The folder lacks {name}.xml or {name}.bin.", "Convert or get the model again.")
        found, stored = _read_graph(graph), weights.stat().st_size
        if found.needed_bytes == 0 or stored < found.needed_bytes:
            raise ModelError(
                f"{weights.name} is damaged: {stored:,} bytes where {graph.name} needs {found.needed_bytes:,}.",
                "Convert or get the model again.",
            )
        if name == "openvino_model":
            _require_text_with_state(folder, found)


@dataclass(frozen=True)
class _Graph:
    """What an OpenVINO graph says about itself."""

    needed_bytes: int
    """Of its weight file."""
    has_logits: bool
    has_state: bool


def _read_graph(graph: Path) -> _Graph:
    needed, has_logits, has_state = 0, False, False
    try:
        for _, element in ElementTree.iterparse(graph):
            stated = element.attrib
            if element.tag == "data" and "offset" in stated and "size" in stated:
                needed = max(needed, int(stated["offset"]) + int(stated["size"]))
            has_logits |= element.tag == "port" and "logits" in stated.get("names", "").split(",")
            has_state |= element.tag == "layer" and stated.get("type") == "ReadValue"
            element.clear()
    except (ElementTree.ParseError, ValueError) as error:
        raise ModelError(f"{graph.name} is damaged: {error}.", "Convert or get the model again.") from error
    return _Graph(needed, has_logits, has_state)


def _require_text_with_state(folder: Path, graph: _Graph) -> None:
    """Raises ModelError for a graph that writes no text, or keeps no state: the libraries load it and fail later."""
    if not graph.has_logits:
        raise ModelError(
            f"{folder} is an OpenVINO IR that writes no text: its graph has no output called logits.",
            "Choose a model that writes text, exported with --task text-generation-with-past.",
        )
    if not graph.has_state:
        raise ModelError(
            f"{folder} is an OpenVINO IR without a KV cache of its own (stateless), which no engine here runs.",
            "Export it again with optimum-cli export openvino --task text-generation-with-past and without "
            "--disable-stateful, or choose the original weights: they are converted here.",
        )


def check_onnxruntime_genai(folder: Path) -> None:
    """The configuration is complete and names an existing graph with its weights."""
    settings = read_json(folder / "genai_config.json")
    model = settings.get("model", {})
    decoder = model.get("decoder", {})
    _require_stated(model, "model", ("type", "vocab_size", "context_length", "eos_token_id"))
    _require_stated(decoder, "model.decoder", ("num_hidden_layers", "num_key_value_heads", "head_size"))
    graphs = genai_files(settings)
    if not graphs:
        raise ModelError("genai_config.json names no graph.", "Convert or get the model again.")
    for name in graphs:
        _check_graph(folder / name)


def _require_stated(part: Mapping[str, Any], where: str, keys: tuple[str, ...]) -> None:
    """Raises ModelError for a value that is not there; the id 0 is there."""
    for key in keys:
        if part.get(key) is None or part[key] == []:
            raise ModelError(f"genai_config.json has no {where}.{key}.", "Convert or get the model again.")


_EXTERNAL = re.compile(rb"\n[\x06\x08](location|offset|length)\x12([\x01-\x7f])")
"""Where an ONNX graph says which bytes of which file hold a tensor's weights: one StringStringEntryProto each."""


def _check_graph(graph: Path) -> None:
    if not graph.is_file():
        raise ModelError(f"{graph.name} is missing.", "Convert or get the model again.")
    with graph.open("rb") as stream:
        data = stream.read(64 * 2**20)
    needed: dict[str, int] = {}
    name, offset = "", 0
    for found in _EXTERNAL.finditer(data):
        value = data[found.end() : found.end() + found[2][0]].decode("utf-8", "replace")
        if found[1] == b"location":
            name, offset = value, 0
            needed.setdefault(name, 1)
        elif value.isdecimal() and name:
            offset = int(value) + (offset if found[1] == b"length" else 0)
            needed[name] = max(needed[name], offset)
    for name, size in sorted(needed.items()):
        weights = graph.parent / name
        there = weights.stat().st_size if weights.is_file() else 0
        if not there:
            raise ModelError(f"{name} is missing or empty.", "Convert or get the model again.")
        if there < size:
            raise ModelError(
                f"{name} is damaged: {there:,} bytes where {graph.name} needs {size:,}.",
                "Convert or get the model again.",
            )
