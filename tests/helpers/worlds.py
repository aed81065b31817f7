"""Managers and stores on the test engines: real worker processes, the bundled model's tokenizer, no library."""

import threading
from pathlib import Path

from engines.environments.environments import Environments
from engines.protocol import GenerationRequest, Message, PreparedModel, Target
from engines.runtime.manager import EngineManager
from tests.helpers import bad_engine, echo_engine

DEMO_WEIGHTS = Path(__file__).parents[2] / "engines" / "demo_model" / "weights"
SPECS = (echo_engine.SPEC, bad_engine.SPEC)
ECHO = Target("echo", "CPU", "fast")
SLOW_ECHO = Target("echo", "CPU", "20")


def bad(habit: str) -> Target:
    return Target("bad", "CPU", habit)


class DemoFolder:
    """A model source that has everything already; the model's name says how much memory it claims to need."""

    def __init__(self):
        self.prepared = 0

    def is_ready(self, target, spec) -> bool:
        return target.model != "far away"

    def prepare(self, target, spec, on_progress, cancelled: threading.Event) -> PreparedModel:
        self.prepared += 1
        claimed = int(target.model) if target.model.isdigit() else None
        return PreparedModel(
            str(DEMO_WEIGHTS),
            target.model,
            target.precision,
            spec.model_format,
            weight_bytes=8_000_000,
            estimated_peak_bytes=claimed,
        )


class OneFolder:
    """A model source that hands out one folder, whatever it holds: what the engines themselves say is tested."""

    def __init__(self, folder: Path):
        self._folder = folder

    def is_ready(self, target, spec) -> bool:
        return True

    def prepare(self, target, spec, on_progress, cancelled) -> PreparedModel:
        return PreparedModel(str(self._folder), target.model, target.precision, spec.model_format)


def manager_on(data_dir: Path, **options) -> EngineManager:
    return EngineManager(data_dir, DemoFolder(), Environments(data_dir), **{"specs": SPECS, **options})


def ask(text: str = "Tell me a story, please.", **options) -> GenerationRequest:
    return GenerationRequest((Message("user", text),), **options)
