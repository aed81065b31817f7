"""Downloads, seen from the app: which files of a repository are wanted, how large they are, get them.

The hub client runs in `worker` beside this, so cancelling is immediate and the page's process stays small. The
files go to the standard Hugging Face cache (HF_HOME), where every other program finds them too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engines.engine import ModelError
from engines.models.download.hub_cache import cache_dir
from engines.models.folders import PROMPT_FILES, SAFETENSORS, SOURCE_PATTERNS
from engines.processes.jobs import OnProgress, run_job

SMALL_FILES = ("config.json", *PROMPT_FILES)
"""Enough to make prompts: taken from the original repository even when the weights come ready-made."""


@dataclass(frozen=True)
class Wanted:
    """Files of one repository."""

    repository: str
    revision: str = "main"
    subfolder: str = ""
    patterns: tuple[str, ...] | None = None
    """File name patterns directly in `subfolder`; None: everything below it."""
    formats: tuple[str, ...] | None = None
    """What the repository has to be, judged before anything is fetched; None: it is known."""
    own_code: bool = True
    """Whether it may need the Python code that comes with it."""


def original_weights(repository: str, model_format: str) -> Wanted:
    """What an engine's folder is made from; a repository that already is such a folder is taken whole."""
    formats = tuple(dict.fromkeys((SAFETENSORS, model_format)))
    converted = model_format != SAFETENSORS
    return Wanted(repository, patterns=SOURCE_PATTERNS, formats=formats, own_code=converted)


def prompt_files(repository: str) -> Wanted:
    return Wanted(repository, patterns=SMALL_FILES)


@dataclass(frozen=True)
class Listing:
    """What a download would bring."""

    repository: str
    commit: str
    files: dict[str, int]
    missing_bytes: int
    """Not in the cache yet."""
    parameters: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    """The model's config.json."""
    missing_files: Mapping[str, int] = field(default_factory=dict)
    """Files of which something is not in the cache yet, with the bytes that are missing."""
    format: str = SAFETENSORS
    reads_images: bool = False


def is_offline() -> bool:
    """Whether the environment forbids the network (the hub client's own switch)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def list_files(wanted: Wanted, log_path: Path, cancelled: threading.Event) -> Listing:
    """Ask the Hub for names and sizes. Raises ModelError with a clear sentence, or CancelledError."""
    answer = _run("list", wanted, log_path, lambda _: None, cancelled)
    return Listing(
        repository=wanted.repository,
        commit=answer["commit"],
        files=answer["files"],
        missing_bytes=answer["missing_bytes"],
        parameters=answer.get("parameters"),
        config=answer.get("config") or {},
        missing_files=answer["missing_files"],
        format=answer.get("format") or SAFETENSORS,
        reads_images=bool(answer.get("reads_images")),
    )


def download(
    wanted: Wanted,
    log_path: Path,
    on_progress: OnProgress,
    cancelled: threading.Event,
    *,
    override: bool = False,
) -> Path:
    """Get the files; returns the snapshot's folder (with the subfolder). What was already here is kept.

    `override` tries it although the disk seems too small. Raises ModelError with a clear sentence, or
    CancelledError; what has arrived is kept and used the next time.
    """
    answer = _run("get", wanted, log_path, on_progress, cancelled, override=override)
    return Path(answer["folder"]) / wanted.subfolder


def _run(
    action: str,
    wanted: Wanted,
    log_path: Path,
    on_progress: OnProgress,
    cancelled: threading.Event,
    *,
    override: bool = False,
) -> dict[str, Any]:
    if is_offline():
        raise ModelError(
            f"{wanted.repository} is not here, and the network is switched off (offline mode).",
            "Start without --offline and HF_HUB_OFFLINE, or import a folder.",
        )
    job = {"action": action, "wanted": asdict(wanted), "cache_dir": str(cache_dir()), "override": override}
    return run_job(
        "engines.models.download.worker",
        job,
        log_path,
        on_progress,
        cancelled,
        {"HF_HUB_DISABLE_TELEMETRY": "1"},
        needs_token=True,
    )
