"""Which exact weights a conversion was made from: content hashes of source folders, remembered.

Hashing gigabytes takes seconds each, so a hash is kept as long as every file keeps its size and time: of a large
folder on disk, of a small one in this process only. Every page that is opened asks for its model's.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from engines.models.folders import hash_files, source_files, stat_signature, write_json

_SMALL_BYTES = 64 * 2**20
"""Not worth a line on disk."""


class SourceHashes:
    """SHA-256 of checkpoint folders; thread-safe."""

    def __init__(self, models_dir: Path):
        self._path = models_dir / "source-hashes.json"
        self._lock = threading.Lock()
        self._small: dict[str, tuple[list[list[Any]], str]] = {}
        """Folder -> its files' signature and the hash."""

    def of(self, folder: Path, *, hash_large: bool = True) -> str | None:
        """The hash; None only when it is not known, the folder is large and `hash_large` is off."""
        files = source_files(folder)
        signature, place = stat_signature(files), str(folder.resolve())
        if sum(size for _, size, _ in signature) <= _SMALL_BYTES:
            seen = self._small.get(place)
            if seen is None or seen[0] != signature:
                seen = self._small[place] = signature, hash_files(files)
            return seen[1]
        known = self._read().get(place)
        if known and known["signature"] == signature:
            return known["sha256"]
        if not hash_large:
            return None
        digest = hash_files(files)
        self._remember(folder, signature, digest)
        return digest

    def _remember(self, folder: Path, signature: list, digest: str) -> None:
        with self._lock:
            hashes = self._read()
            hashes[str(folder.resolve())] = {"signature": signature, "sha256": digest}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, hashes)

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
