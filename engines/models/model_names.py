"""What a model's name means: the bundled model, a folder on disk, or a Hugging Face id."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from urllib.parse import urlsplit
from urllib.request import url2pathname

from engines.engine import ModelError
from engines.models.folders import hash_json
from engines.protocol import DEMO_MODEL

DEMO_FOLDER = Path(__file__).parents[1] / "demo_model" / "weights"

_SITE = re.compile(r"(https?://)?(www\.)?(huggingface\.co|hf\.co)/", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """Where a model comes from."""

    model: str
    slug: str
    """Name of its folder in the data directory."""
    folder: Path | None
    """Local folder; None for a Hugging Face id."""


def entered(model: str, *, look_around: bool = False) -> str:
    """A model's name as a person gave it, made to mean the same everywhere: a path becomes absolute.

    To be called where a name comes in (command line, page), and nowhere else: what is stored and handed on must not
    depend on anybody's working directory. `look_around`: an existing folder of this name is meant rather than a
    repository (`models/phi`), as the libraries themselves do it; for the command line, where one knows where one is.
    """
    name = _without_quotes(model.strip())
    if name.lower().startswith("file:"):
        name = _path_of(name)
    if site := _SITE.match(name):
        return "/".join(re.split(r"[?#]", name[site.end() :])[0].strip("/").split("/")[:2])
    # False, too, for what no file system takes as a name.
    is_folder = look_around and name not in ("", DEMO_MODEL) and os.path.isdir(Path(name).expanduser())  # noqa: PTH112
    if not is_path(name) and not is_folder:
        return name.rstrip("/")
    if _is_foreign(name):
        return name
    return os.path.normpath(Path(name).expanduser().absolute())  # symbolic links stay as they are


def _path_of(address: str) -> str:
    """The path that a file: address means; on Windows file://server/share is \\\\server\\share (RFC 8089, E.3)."""
    parts = urlsplit(address)
    shared = os.name == "nt" and parts.netloc.lower() not in ("", "localhost")
    return url2pathname(f"//{parts.netloc}{parts.path}" if shared else parts.path)


def _without_quotes(name: str) -> str:
    """Explorer's “Copy as path” puts quotes around it."""
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'" else name


def _is_foreign(name: str) -> bool:
    """A Windows path on another system: nothing here could make it absolute."""
    return (
        os.name != "nt"
        and (PureWindowsPath(name).drive != "" or "\\" in name)
        and not name.startswith(("/", "."))
    )


def resolve(model: str) -> Source:
    """Tell `demo`, a folder and a Hugging Face id apart; raises ModelError for anything else."""
    name = model.strip()
    if name == DEMO_MODEL:
        return Source(name, DEMO_MODEL, DEMO_FOLDER)
    if is_path(name):
        folder = Path(entered(name))
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
