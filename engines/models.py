"""ModelLibrary: any model, in the format an engine needs, with the least download, disk and memory.

A target names a model (`demo`, a folder, or a Hugging Face id) and an engine names a format. The library finds
the shortest way between the two: already here, ready-made by its maker, converted from weights already here,
downloaded and converted. It can say beforehand what that costs, and it refuses what cannot fit.
No inference library and no hub client is imported here: that happens in child processes.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from engines.convert import Conversion, convert, finished_manifest
from engines.convert_recipes import load_peak_bytes, recipe_for
from engines.engine import ModelError
from engines.jobs import CancelledError, OnProgress, SharedJobs
from engines.model_files import (
    FORMAT_TITLES,
    SAFETENSORS,
    file_sizes,
    hash_files,
    hash_json,
    read_facts,
    require_format,
    source_files,
    stat_signature,
    total_weight_bytes,
    write_json,
)
from engines.protocol import DEMO_MODEL, EngineSpec, PreparedModel, Target

__all__ = ["CancelledError", "ModelLibrary"]

DEMO_FOLDER = Path(__file__).parent / "demo_model" / "weights"
_HASH_AT_ONCE_BYTES = 64 * 2**20
"""Folders up to this size are hashed even by the cheap `is_ready`."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from."""

    model: str
    slug: str
    """Name of its folder in the data directory."""
    folder: Path | None
    """Local folder; None for a Hugging Face id."""


def resolve(model: str) -> Source:
    """Tell `demo`, a folder and a Hugging Face id apart; raises ModelError for anything else."""
    name = model.strip()
    if name == DEMO_MODEL:
        return Source(name, DEMO_MODEL, DEMO_FOLDER)
    if is_path(name):
        folder = Path(name).expanduser()
        return Source(name, f"{_safe(folder.name)}-{hash_json(str(folder.resolve()))[:8]}", folder)
    parts = name.split("/")
    if len(parts) == 2 and all(parts) and not any(c.isspace() for c in name):
        return Source(name, _safe(name.replace("/", "--")), None)
    raise ModelError(
        f"“{model}” is neither a folder nor a Hugging Face id.",
        "Write an id like microsoft/Phi-3.5-mini-instruct, or the path of a folder.",
    )


def is_path(name: str) -> bool:
    """Whether a model's name is a folder on disk rather than a Hugging Face id."""
    return name.startswith((".", "~", "/", "\\")) or PureWindowsPath(name).drive != "" or "\\" in name


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:80]


class ModelLibrary:
    """Everything about models; thread-safe. Two callers that want the same thing share one job."""

    def __init__(self, data_dir: Path, *, offline: bool = False):
        self._models_dir = Path(data_dir) / "models"
        self._offline = offline
        self._jobs = SharedJobs()
        self._hash_lock = threading.Lock()

    # --- getting a model ready -----------------------------------------------------------------------------

    def prepare(
        self,
        target: Target,
        spec: EngineSpec,
        on_progress: OnProgress,
        cancelled: threading.Event,
        *,
        trust_remote_code: bool = False,
    ) -> PreparedModel:
        """The model folder for a target, downloaded or converted first if need be. Blocks.

        Raises ModelError, OutOfMemoryError or CancelledError.
        """
        source = resolve(target.model)
        if source.folder is None:
            raise ModelError("Models of the Hugging Face Hub are not available yet.")
        found = require_format(source.folder)
        if found == spec.model_format:
            return self._as_it_is(target, source, found)
        conversion = self._conversion(target, spec, source, found, trust_remote_code)
        manifest = finished_manifest(conversion.folder)
        if manifest is None:
            manifest = self._jobs.run(
                str(conversion.folder),
                lambda report, stop: convert(conversion, report, stop),
                on_progress,
                cancelled,
            )
        return _prepared(target, conversion.folder, manifest)

    def is_ready(self, target: Target, spec: EngineSpec) -> bool:
        """Whether nothing has to be downloaded or converted; cheap, never raises."""
        try:
            source = resolve(target.model)
            if source.folder is None:
                return False
            found = require_format(source.folder)
            if found == spec.model_format:
                return True
            if self._known_hash(source.folder) is None:
                return False
            conversion = self._conversion(target, spec, source, found, trust_remote_code=False)
        except (ModelError, OSError):
            return False
        return finished_manifest(conversion.folder) is not None

    def _conversion(
        self, target: Target, spec: EngineSpec, source: Source, found: str, trust_remote_code: bool
    ) -> Conversion:
        if found != SAFETENSORS:
            raise ModelError(
                f"{target.model} is a model in the {FORMAT_TITLES[found]} format; {spec.title} needs "
                f"{FORMAT_TITLES[spec.model_format]}, which can only be made from the original weights.",
                "Choose an engine for this format, or the original model.",
            )
        facts = read_facts(source.folder)
        if not (source.folder / "tokenizer.json").is_file():
            raise ModelError(
                f"{target.model} has no tokenizer.json, which every engine here needs for equal prompts.",
                "Save its tokenizer once with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…).",
            )
        recipe = recipe_for(target.model, spec.model_format, target.precision, target.device, facts)
        return Conversion(
            model=target.model,
            source=source.folder,
            revision=self._source_hash(source.folder),
            recipe=recipe,
            models_dir=self._models_dir,
            slug=source.slug,
            layers=facts.layers,
            trust_remote_code=trust_remote_code,
        )

    def _as_it_is(self, target: Target, source: Source, found: str) -> PreparedModel:
        if found == SAFETENSORS:
            facts = read_facts(source.folder)
            weight_bytes, revision = facts.weight_bytes, self._source_hash(source.folder)
            bits = {"fp32": 32}.get(target.precision, 16)
            loaded_bytes = facts.parameters * bits // 8
        else:
            sizes = file_sizes(source.folder)
            weight_bytes = loaded_bytes = total_weight_bytes(sizes)
            revision = hash_json(stat_signature(p for p in source.folder.iterdir() if p.is_file()))
        return PreparedModel(
            path=str(source.folder.resolve()),
            model=target.model,
            precision=target.precision,
            format=found,
            revision=revision,
            weight_bytes=weight_bytes,
            estimated_peak_bytes=load_peak_bytes(loaded_bytes),
        )

    # --- source hashes -------------------------------------------------------------------------------------

    def _source_hash(self, folder: Path) -> str:
        """SHA-256 of a checkpoint's files, remembered as long as their sizes and times stay the same."""
        known = self._known_hash(folder)
        if known is not None:
            return known
        files = source_files(folder)
        signature = stat_signature(files)
        digest = hash_files(files)
        with self._hash_lock:
            hashes = self._read_hashes()
            hashes[str(folder.resolve())] = {"signature": signature, "sha256": digest}
            self._models_dir.mkdir(parents=True, exist_ok=True)
            write_json(self._hashes_path, hashes)
        return digest

    def _known_hash(self, folder: Path) -> str | None:
        files = source_files(folder)
        signature = stat_signature(files)
        known = self._read_hashes().get(str(folder.resolve()))
        if known and known["signature"] == signature:
            return known["sha256"]
        small = sum(size for _, size, _ in signature) <= _HASH_AT_ONCE_BYTES
        return hash_files(files) if small else None

    @property
    def _hashes_path(self) -> Path:
        return self._models_dir / "source-hashes.json"

    def _read_hashes(self) -> dict[str, Any]:
        try:
            return json.loads(self._hashes_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}


def _prepared(target: Target, folder: Path, manifest: dict[str, Any]) -> PreparedModel:
    return PreparedModel(
        path=str(folder.resolve()),
        model=target.model,
        precision=target.precision,
        format=manifest["format"],
        revision=manifest["revision"],
        recipe=manifest.get("recipe"),
        recipe_sha256=manifest.get("recipe_sha256"),
        weight_bytes=manifest["weight_bytes"],
        estimated_peak_bytes=load_peak_bytes(manifest["weight_bytes"]),
    )
