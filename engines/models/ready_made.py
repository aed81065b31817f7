"""Ready-made model folders: what a maker publishes, with the original's tokenizer beside it.

Makers convert at different times, so their copies of the tokenizer and chat template drift apart; with the original
repository's files in every format all engines see equal prompts. The weights are linked from the Hugging Face cache,
not copied.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.engine import ModelError
from engines.models.catalogue import Prebuilt
from engines.models.conversion.conversion import TEMPORARY_PREFIX, finished_manifest
from engines.models.download.hub_cache import link_or_copy
from engines.models.folders import (
    MANIFEST,
    MANIFEST_VERSION,
    OPENVINO,
    file_sizes,
    hash_json,
    read_manifest,
    remove_folder,
    take_prompt_files,
    total_weight_bytes,
    write_json,
)
from engines.models.graphs import check_onnxruntime_genai, check_openvino
from engines.models.statements import read_statement
from engines.protocol import EngineSpec, Target
from engines.toolkit.model_config import read_json
from engines.toolkit.putting import put_in_place

CONVERTER = "prebuilt"


def find_assembled(model_dir: Path, target: Target, spec: EngineSpec) -> tuple[Path, dict[str, Any]] | None:
    """A finished ready-made folder that fits the target, with its manifest."""
    build = spec.build_for(target.device, target.precision)
    if build is None:
        return None
    for path in sorted(model_dir.glob(f"*/{MANIFEST}")):
        manifest = read_manifest(path.parent)
        if manifest is None or (manifest.get("recipe") or {}).get("converter") != CONVERTER:
            continue
        fits = manifest["format"] == spec.model_format and manifest["precision"] == target.precision
        made_for = manifest["recipe"]["options"].get("device")
        if fits and made_for == build.device and finished_manifest(path.parent) is not None:
            return path.parent, manifest
    return None


def assemble(
    model_dir: Path, target: Target, prebuilt: Prebuilt, downloaded: Path, prompts: Path | None
) -> Path:
    """Put the downloaded weights and the original's prompt files into one checked folder.

    Raises ModelError when the downloaded folder is not what its name says; nothing is left then.
    """
    parts = prebuilt.subfolder.count("/") + 1 if prebuilt.subfolder else 0
    commit = downloaded.parents[parts - 1].name if parts else downloaded.name
    recipe = _recipe(prebuilt, commit)
    device = (prebuilt.device or "any").lower()
    name = f"{prebuilt.format}-ready-made-{device}-{prebuilt.precision}-{hash_json(recipe)[:12]}"
    temporary, folder = model_dir / f"{TEMPORARY_PREFIX}{name}", model_dir / name
    remove_folder(temporary)
    temporary.mkdir(parents=True)
    try:
        for path in sorted(downloaded.iterdir()):
            if path.is_file():
                link_or_copy(path, temporary / path.name)
        if prompts is not None:
            take_prompt_files(prompts, temporary, prebuilt.format)
        (check_openvino if prebuilt.format == OPENVINO else check_onnxruntime_genai)(temporary)
        read_json(temporary / "tokenizer.json")
        _require_precision(prebuilt, read_statement(temporary, prebuilt.format).precision)
        write_json(temporary / MANIFEST, _manifest(target, prebuilt, recipe, commit, temporary))
        remove_folder(folder)
        put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _require_precision(prebuilt: Prebuilt, stated: str | None) -> None:
    if stated is not None and stated != prebuilt.precision:
        raise ModelError(
            f"{prebuilt.repository} is {stated}, not {prebuilt.precision} as its entry in the catalogue says.",
            f"Choose {stated}, or convert it from the original weights (models convert).",
        )


def _recipe(prebuilt: Prebuilt, commit: str) -> dict[str, Any]:
    options = {
        "repository": prebuilt.repository,
        "subfolder": prebuilt.subfolder,
        "commit": commit,
        "device": prebuilt.device,
    }
    return {
        "format": prebuilt.format,
        "precision": prebuilt.precision,
        "converter": CONVERTER,
        "options": options,
        "versions": {},
    }


def _manifest(
    target: Target, prebuilt: Prebuilt, recipe: Mapping[str, Any], commit: str, folder: Path
) -> dict[str, Any]:
    sizes = file_sizes(folder)
    return {
        "manifest_version": MANIFEST_VERSION,
        "model": target.model,
        "format": prebuilt.format,
        "precision": prebuilt.precision,
        "revision": commit,
        "recipe": recipe,
        "recipe_sha256": hash_json(recipe),
        "files": sizes,
        "weight_bytes": total_weight_bytes(sizes),
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
