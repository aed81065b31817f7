"""What a model's name means: the bundled model, a folder on disk, or a Hugging Face id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from engines.engine import ModelError
from engines.models.folders import hash_json
from engines.protocol import DEMO_MODEL

DEMO_FOLDER = Path(__file__).parents[1] / "demo_model" / "weights"


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
    if len(parts) == 2 and all(_is_hub_name(part) for part in parts):
        return Source(name, _safe(name.replace("/", "--")), None)
    raise ModelError(
        f"“{model}” is neither a folder nor a Hugging Face id.",
        "Write an id like microsoft/Phi-3.5-mini-instruct, or the path of a folder (beginning with ./, ~ or /).",
    )


def is_path(name: str) -> bool:
    """Whether a model's name is a folder on disk rather than a Hugging Face id."""
    return name.startswith((".", "~", "/", "\\")) or PureWindowsPath(name).drive != "" or "\\" in name


def _is_hub_name(part: str) -> bool:
    return (
        0 < len(part) <= 96
        and all(c.isascii() and (c.isalnum() or c in "-_.") for c in part)
        and ".." not in part
    )


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:80]
