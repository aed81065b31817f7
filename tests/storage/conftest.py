"""Real stores on real files, and short ways to fill them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "arena.sqlite3")
    yield opened
    opened.close()
