"""Conversions, seen from the app: one finished folder per (source, recipe), or nothing at all.

The work happens in `worker` beside this. The result's name contains the hash of the source and the recipe with
its library versions, so a changed source or an upgraded converter never meets an old result. A folder gets
its final name by one rename after it has been checked; what a killed conversion leaves carries another name and is
swept away by the next one.
"""

from __future__ import annotations

import statistics
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.models.conversion.recipes import Recipe
from engines.models.folders import MANIFEST, damage, hash_json, read_manifest, remove_folder
from engines.processes.jobs import OnProgress, run_job

TEMPORARY_PREFIX = ".making-"


@dataclass(frozen=True)
class Conversion:
    """One model folder to be made."""

    model: str
    source: Path
    revision: str
    recipe: Recipe
    models_dir: Path
    """Folder of all converted models; the result goes to `models_dir/slug/name`."""
    slug: str
    layers: int | None = None
    trust_remote_code: bool = False
    expected_s: float | None = None
    """What a conversion of this size takes on the computer that `recipes.cost` was fitted on."""

    @property
    def key(self) -> str:
        return hash_json({"revision": self.revision, "recipe": self.recipe.as_dict()})

    @property
    def folder(self) -> Path:
        return self.models_dir / self.slug / f"{self.recipe.label}-{self.key[:12]}"

    @property
    def temporary(self) -> Path:
        return self.folder.with_name(TEMPORARY_PREFIX + self.folder.name)

    @property
    def log_path(self) -> Path:
        return self.models_dir / "logs" / f"{self.slug}-{self.folder.name}.log"

    def as_job(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "source": str(self.source),
            "revision": self.revision,
            "recipe": self.recipe.as_dict(),
            "recipe_sha256": self.recipe.sha256,
            "models_dir": str(self.models_dir),
            "folder": str(self.folder),
            "temporary": str(self.temporary),
            "log_path": str(self.log_path),
            "layers": self.layers,
            "trust_remote_code": self.trust_remote_code,
            "expected_s": self.expected_s,
        }


def pace(models_dir: Path, model_format: str) -> float:
    """How many times longer than expected conversions into a format took on this computer; 1 before the first."""
    manifests = (
        read_manifest(path.parent) or {} for path in models_dir.glob(f"*/{model_format}-*/{MANIFEST}")
    )
    took = [(made.get("seconds"), made.get("expected_s")) for made in manifests]
    ratios = [seconds / expected for seconds, expected in took if seconds and expected]
    return statistics.median(ratios) if ratios else 1.0


def finished_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished, undamaged folder; None when there is none or it lost something."""
    manifest = read_manifest(folder)
    if manifest is None or damage(folder, manifest["files"]) is not None:
        return None
    return manifest


def convert(conversion: Conversion, on_progress: OnProgress, cancelled: threading.Event) -> dict[str, Any]:
    """Make the folder; returns its manifest.

    Raises ModelError with the library's own reason and the path of the log, OutOfMemoryError, or CancelledError;
    in every such case nothing of the folder is left.
    """
    conversion.folder.parent.mkdir(parents=True, exist_ok=True)
    conversion.log_path.unlink(missing_ok=True)
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        return run_job(
            "engines.models.conversion.worker",
            conversion.as_job(),
            conversion.log_path,
            on_progress,
            cancelled,
            {**offline, "HF_HUB_DISABLE_TELEMETRY": "1", "COLUMNS": "120"},
        )
    finally:
        remove_folder(conversion.temporary)
