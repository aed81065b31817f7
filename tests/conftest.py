"""Shared by all tests: one data directory with the bundled model converted once, and one real manager on it.

BACKEND_ARENA_TEST_DATA names a folder to keep between runs, so that conversions and environments are made once
per machine. The isolated environment takes minutes, so it is set up only in runs that include tests/npu.

The whole suite runs in two processes, since the tests wait about half of their time; parts of it run in one, where
`-n 2` does not say otherwise. A test that counts what the whole machine does is marked `alone`.
"""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock
from xdist.scheduler import LoadFileScheduling

from engines.engine import EngineError
from engines.environments.environments import Environments
from engines.models.library import ModelLibrary
from engines.runtime.manager import EngineManager

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
_UPLOADS = tempfile.TemporaryDirectory(prefix="arena-uploads-", ignore_cleanup_errors=True)
os.environ["GRADIO_TEMP_DIR"] = _UPLOADS.name  # what another process's tests upload lies elsewhere


PROCESSES = 2


def pytest_xdist_auto_num_workers(config) -> int:
    """Two for the whole suite; what a person asks for by name is run where its output and its debugger are."""
    return PROCESSES if config.args == config.getini("testpaths") else 0


REAL_ENGINES = ("tests/engines", "tests/npu")
LONG_FILES = ("tests/ui/compare", "tests/engines/models", "tests/engines/measure", "tests/ui/measure")


class ByFile(LoadFileScheduling):
    """A file stays in one process; so do all that use the real engines, which are loaded there once."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        return "the real engines" if path.rpartition("/")[0] in REAL_ENGINES else path


def pytest_xdist_make_scheduler(config, log) -> ByFile:
    return ByFile(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before a test's time begins to run
def pytest_runtest_protocol(item):
    """A test marked `alone` runs while no other process does; the others wait for it only."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    own, count = item.config.workerinput["workerid"], item.config.workerinput["workercount"]
    folder = Path(item.config.option.basetemp).parent
    with contextlib.ExitStack() as held:
        with FileLock(folder / "next.lock"):  # whoever comes after one that waits to be alone waits behind it
            alone = item.get_closest_marker("alone")
            for name in [f"gw{number}" for number in range(count)] if alone else [own]:
                held.enter_context(FileLock(folder / f"{name}.lock"))
        return (yield)


@pytest.fixture(scope="session")
def data_dir(request, tmp_path_factory) -> Path:
    """A data directory for tests on the real engines; conversions in it are made once."""
    kept = os.environ.get("BACKEND_ARENA_TEST_DATA")
    if not kept:
        base = tmp_path_factory.getbasetemp()
        folder = (base.parent if hasattr(request.config, "workerinput") else base) / "arena"
    else:
        folder = Path(kept).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def library(data_dir) -> ModelLibrary:
    return ModelLibrary(data_dir)


def pytest_collection_modifyitems(config, items) -> None:
    """Whichever test comes first waits for the environment's set-up."""
    if hasattr(config, "workerinput"):  # what takes long comes first, so that both processes end together
        first_come = (*REAL_ENGINES, *LONG_FILES)
        items.sort(key=lambda item: (*first_come, _folder(item)).index(_folder(item)))
    first = next((item for item in items if "environments" in getattr(item, "fixturenames", ())), None)
    if first is not None and _about_environments(items):
        first.add_marker(pytest.mark.timeout(1200))


def _folder(item) -> str:
    return item.nodeid.split("::", 1)[0].rpartition("/")[0]


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
