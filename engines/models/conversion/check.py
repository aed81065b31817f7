"""Is a converted folder what it claims to be? Checked by its structure, before anything loads it.

A converter can end without an exception and still leave something unusable: a cut weight file, a graph for
another execution provider. Reading the graph's description is cheap and says so at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.engine import ModelError
from engines.models.folders import ONNXRUNTIME_GENAI, OPENVINO
from engines.models.graphs import check_onnxruntime_genai, check_openvino
from engines.toolkit.model_config import genai_providers, read_json


def check_converted(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Raises ModelError saying which file is wrong and how."""
    checks = {OPENVINO: check_openvino, ONNXRUNTIME_GENAI: check_onnxruntime_genai}
    checks[recipe["format"]](folder)
    if recipe["format"] == ONNXRUNTIME_GENAI:
        _check_provider(folder, recipe["options"]["execution_provider"])
    for name in ("tokenizer.json", "config.json"):
        read_json(folder / name)


def _check_provider(folder: Path, provider: str) -> None:
    found = list(genai_providers(read_json(folder / "genai_config.json")))
    expected = [] if provider == "cpu" else [provider]
    if found != expected:
        raise ModelError(
            f"The model was built for {', '.join(found) or 'cpu'} instead of {provider}.", "Convert it again."
        )
