"""Shared by all tests: one data directory with the bundled model converted once, and one real manager on it.

BACKEND_ARENA_TEST_DATA names a folder to keep between runs, so that conversions and environments are made once
per machine. The isolated environment takes minutes, so it is set up only in runs that include tests/npu.
"""

import contextlib
import os
from pathlib import Path

import pytest

from engines.engine import EngineError
from engines.environments.environments import Environments
from engines.models.library import ModelLibrary
from engines.runtime.manager import EngineManager

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


def pytest_collection_modifyitems(items) -> None:
    """Whichever test comes first waits for the environment's set-up."""
    first = next((item for item in items if "environments" in getattr(item, "fixturenames", ())), None)
    if first is not None and _about_environments(items):
        first.add_marker(pytest.mark.timeout(1200))


def _about_environments(items) -> bool:
    return any("npu" in item.path.parts for item in items)


@pytest.fixture(scope="session")
def environments(request, data_dir) -> Environments:
    """The isolated environments; what stands in their way is for tests/npu to say."""
    environments = Environments(data_dir)
    if _about_environments(request.session.items):
        for name in environments.names():
            with contextlib.suppress(EngineError):
                environments.create(name, lambda progress: None)
    return environments


@pytest.fixture(scope="session")
def manager(data_dir, library, environments) -> EngineManager:
    """The real engines on real workers; targets stay loaded for the tests that follow."""
    manager = EngineManager(data_dir, library, environments)
    yield manager
    manager.shutdown()
