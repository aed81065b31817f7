"""Shared by the model tests: a local Hub with the bundled model on it, and a cache of its own."""

import threading
from pathlib import Path

import pytest

from engines import onnxruntime_genai_engine, openvino_genai_engine, transformers_engine
from engines.models.library import ModelLibrary
from engines.models.model_names import DEMO_FOLDER
from tests.engines.models.hub_server import FakeHub, serving

OPENVINO, ONNX, PLAIN = openvino_genai_engine.SPEC, onnxruntime_genai_engine.SPEC, transformers_engine.SPEC
REPOSITORY = "arena/demo"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty Hugging Face cache."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hf" / "hub"


@pytest.fixture
def hub(cache, monkeypatch):
    """A Hub with the bundled model as arena/demo, and nothing else reachable."""
    hub = FakeHub()
    hub.add(REPOSITORY, DEMO_FOLDER)
    with serving(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "5")
        yield hub


@pytest.fixture
def fresh(tmp_path) -> ModelLibrary:
    """A library on an empty data directory."""
    return ModelLibrary(tmp_path / "data")


class Watcher:
    """Collects progress; can cancel when something is reported."""

    def __init__(self, cancel_when=lambda progress: False):
        self.seen = []
        self.cancelled = threading.Event()
        self._cancel_when = cancel_when

    def __call__(self, progress) -> None:
        self.seen.append(progress)
        if self._cancel_when(progress):
            self.cancelled.set()

    @property
    def stages(self) -> set[str]:
        return {progress.stage for progress in self.seen}
