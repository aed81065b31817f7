"""Shared by all tests: one data directory with the bundled model converted once, and one real manager on it.

BACKEND_ARENA_TEST_DATA names a folder to keep between runs, so that conversions happen once per machine.
"""

import os
from pathlib import Path

import pytest

from engines.environments import Environments
from engines.manager import EngineManager
from engines.models import ModelLibrary

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A data directory for tests on the real engines; conversions in it are made once."""
    kept = os.environ.get("BACKEND_ARENA_TEST_DATA")
    if not kept:
        return tmp_path_factory.mktemp("arena")
    folder = Path(kept).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def library(data_dir) -> ModelLibrary:
    return ModelLibrary(data_dir)


@pytest.fixture(scope="session")
def manager(data_dir, library) -> EngineManager:
    """The real engines on real workers; targets stay loaded for the tests that follow."""
    manager = EngineManager(data_dir, library, Environments(data_dir))
    yield manager
    manager.shutdown()
