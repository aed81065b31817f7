"""What Windows does when a virus scanner still looks at a new file: it refuses the rename, for a moment."""

import threading
from pathlib import Path

import pytest

from engines.models.folders import write_json
from engines.toolkit import putting
from engines.toolkit.putting import put_in_place


@pytest.fixture
def scanner(monkeypatch):
    """Someone who has every new file open until `letting_go` is set; renames are refused as Windows does it."""
    letting_go, rename = threading.Event(), Path.replace

    def refused(self, target):
        if not letting_go.is_set():
            raise PermissionError(13, "Access is denied", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refused)
    return letting_go


def test_a_refusal_that_passes_is_waited_for(tmp_path, scanner, monkeypatch):
    monkeypatch.setattr(putting, "PATIENCE_S", 10.0)
    threading.Timer(0.2, scanner.set).start()
    (tmp_path / "making").mkdir()
    (tmp_path / "making" / "weights.bin").write_bytes(b"new")
    put_in_place(tmp_path / "making", tmp_path / "made")
    write_json(tmp_path / "facts.json", {"made": True})
    assert (tmp_path / "made" / "weights.bin").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.json", "made"]


def test_a_refusal_that_stays_is_told(tmp_path, scanner, monkeypatch):
    monkeypatch.setattr(putting, "PATIENCE_S", 0.0)
    with pytest.raises(PermissionError):
        write_json(tmp_path / "facts.json", {})
