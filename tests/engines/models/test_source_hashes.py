"""Which weights a folder holds: hashed once, and again when they change."""

import os

from engines.models import source_hashes
from engines.models.source_hashes import SourceHashes


def test_a_small_folder_is_read_once_until_a_file_changes(tmp_path, monkeypatch):
    read = []

    def hash_files(paths):
        read.append([path.name for path in paths])
        return original(paths)

    original = source_hashes.hash_files
    monkeypatch.setattr(source_hashes, "hash_files", hash_files)
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"one")
    hashes = SourceHashes(tmp_path / "models")
    first = hashes.of(weights.parent)
    assert [hashes.of(weights.parent) for _ in range(5)] == [first] * 5
    assert read == [["model.safetensors"]]
    weights.write_bytes(b"two")
    os.utime(weights, ns=(1, 1))
    assert hashes.of(weights.parent) != first
    assert not (tmp_path / "models").exists()
