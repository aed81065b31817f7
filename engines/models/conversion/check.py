"""Is a converted folder what it claims to be? Checked by its structure, before anything loads it.

A converter can end without an exception and still leave something unusable: a cut weight file, a graph for
another execution provider. Reading the graph's description is cheap and says so at once.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.engine import ModelError
from engines.models.folders import ONNXRUNTIME_GENAI, OPENVINO
from engines.toolkit.model_config import read_json


def check_converted(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Raises ModelError saying which file is wrong and how."""
    checks = {OPENVINO: check_openvino, ONNXRUNTIME_GENAI: check_onnxruntime_genai}
    checks[recipe["format"]](folder)
    if recipe["format"] == ONNXRUNTIME_GENAI:
        _check_provider(folder, recipe["options"]["execution_provider"])
    for name in ("tokenizer.json", "config.json"):
        read_json(folder / name)


def check_openvino(folder: Path) -> None:
    """The graph parses and its weight file is as long as the graph's constants need."""
    for name in ("openvino_model", "openvino_tokenizer"):
        graph, weights = folder / f"{name}.xml", folder / f"{name}.bin"
        if not graph.is_file() or not weights.is_file():
            raise ModelError(f"The folder lacks {name}.xml or {name}.bin.", "Convert or get the model again.")
        needed = 0
        try:
            for _, element in ElementTree.iterparse(graph):
                if element.tag == "data" and "offset" in element.attrib and "size" in element.attrib:
                    needed = max(needed, int(element.attrib["offset"]) + int(element.attrib["size"]))
                element.clear()
        except (ElementTree.ParseError, ValueError) as error:
            raise ModelError(
                f"{graph.name} is damaged: {error}.", "Convert or get the model again."
            ) from error
        found = weights.stat().st_size
        if needed == 0 or found < needed:
            raise ModelError(
                f"{weights.name} is damaged: {found:,} bytes where {graph.name} needs {needed:,}.",
                "Convert or get the model again.",
            )


def check_onnxruntime_genai(folder: Path) -> None:
    """The configuration is complete and names an existing graph with its weights."""
    model = read_json(folder / "genai_config.json").get("model", {})
    decoder = model.get("decoder", {})
    for key in ("type", "vocab_size", "context_length", "eos_token_id"):
        if not model.get(key):
            raise ModelError(f"genai_config.json has no model.{key}.", "Convert or get the model again.")
    for key in ("num_hidden_layers", "num_key_value_heads", "head_size"):
        if not decoder.get(key):
            raise ModelError(
                f"genai_config.json has no model.decoder.{key}.", "Convert or get the model again."
            )
    graph = folder / decoder.get("filename", "")
    if not graph.is_file():
        raise ModelError(f"{graph.name or 'The graph'} is missing.", "Convert or get the model again.")
    data = b"".join((graph.name + suffix).encode() for suffix in (".data",))
    weights = graph.with_name(graph.name + ".data")
    if data in graph.read_bytes()[: 64 * 2**20] and (not weights.is_file() or not weights.stat().st_size):
        raise ModelError(f"{weights.name} is missing or empty.", "Convert or get the model again.")


def _check_provider(folder: Path, provider: str) -> None:
    session = read_json(folder / "genai_config.json")["model"]["decoder"].get("session_options", {})
    found = [name.lower() for options in session.get("provider_options", []) for name in options]
    expected = [] if provider == "cpu" else [provider]
    if found != expected:
        raise ModelError(
            f"The model was built for {', '.join(found) or 'cpu'} instead of {provider}.", "Convert it again."
        )
