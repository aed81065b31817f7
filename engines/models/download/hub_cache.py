"""The standard Hugging Face cache, read and tidied without the hub client.

Layout (documented by huggingface_hub): `models--org--name/` with `refs/<revision>` (a commit), `blobs/<etag>` (the
contents) and `snapshots/<commit>/<path>` (links to the blobs; plain files where links are not possible). Reading it
directly keeps "is this model here?" cheap and free of imports.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from engines.toolkit.putting import put_in_place


def cache_dir() -> Path:
    """Where downloads go: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub."""
    if explicit := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(explicit).expanduser().absolute()  # children work elsewhere
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser().absolute() / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser().absolute() / "huggingface" / "hub"


def repository_dir(repository: str) -> Path:
    return cache_dir() / f"models--{repository.replace('/', '--')}"


def snapshot(repository: str, revision: str = "main") -> Path | None:
    """Folder of the downloaded revision; None when there is none. It may be incomplete."""
    root = repository_dir(repository)
    try:
        commit = (root / "refs" / revision).read_text(encoding="ascii").strip()
    except OSError:
        return None
    folder = root / "snapshots" / commit
    return folder if folder.is_dir() else None


def place_blob(blob: Path, pointer: Path) -> None:
    """Make `pointer` (in a snapshot) show the blob: a relative link, or the file itself where links are refused."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        put_in_place(blob, pointer)


def remove_files(repository: str, subfolder: str = "") -> None:
    """Remove a repository's downloaded files, or those of one of its folders; empty folders go with them."""
    root = repository_dir(repository)
    for pointer in sorted(root.glob(f"snapshots/*/{subfolder + '/' if subfolder else ''}**/*"), reverse=True):
        if pointer.is_dir() and not pointer.is_symlink():
            continue
        blob = pointer.resolve()
        pointer.unlink(missing_ok=True)
        if blob.parent == (root / "blobs").resolve() and not _is_used(root, blob.name):
            blob.unlink(missing_ok=True)
    if not subfolder:
        for partial in root.glob("blobs/*.partial"):
            partial.unlink(missing_ok=True)
    _prune(root)


def _is_used(root: Path, blob_name: str) -> bool:
    return any(
        pointer.is_symlink() and pointer.readlink().name == blob_name
        for pointer in root.glob("snapshots/**/*")
    )


def _prune(root: Path) -> None:
    if not any(path.is_file() or path.is_symlink() for path in root.glob("snapshots/**/*")):
        for reference in root.glob("refs/**/*"):
            if reference.is_file():
                reference.unlink()
    for folder in sorted((p for p in root.rglob("*") if p.is_dir()), reverse=True):
        _remove_if_empty(folder)
    _remove_if_empty(root)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass


def link_or_copy(source: Path, destination: Path) -> None:
    """Give a file a second place without a second copy where the file system allows.

    Hard links first: ONNX Runtime refuses external data that a symbolic link leads out of the model's folder.
    """
    real = source.resolve()
    try:
        os.link(real, destination)
        return
    except OSError:
        pass
    shutil.copyfile(real, destination)


def bytes_freed_by_removing(files: Iterable[Path]) -> int:
    """Disk space that comes back: a file with another hard link elsewhere frees nothing."""
    seen: dict[tuple[int, int], tuple[int, int, int]] = {}
    for path in files:
        stat = path.stat()
        key = (stat.st_dev, stat.st_ino)
        count = seen[key][2] + 1 if key in seen else 1
        seen[key] = (stat.st_size, stat.st_nlink, count)
    return sum(size for size, links, count in seen.values() if count >= links)
