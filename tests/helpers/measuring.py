"""For tests of Measure: a meter that says what it is told, a short suite, weights that weigh what one likes."""

from engines.measure.plan import plan
from engines.measure.records import Case, Lane, Suite
from engines.measure.session import Session
from engines.protocol import PreparedModel, Target
from engines.runtime.manager import EngineManager
from engines.telemetry.disturbance import Conditions, OtherLoad
from tests.helpers.worlds import DEMO_WEIGHTS

SHORT = Case("short", "Short", "chat", 64, 16)
LONG = Case("long", "Long", "summarisation", 256, 16)
TINY = Suite("own", "Tiny", (SHORT, LONG), repeats=3, passes=("quality", "speed"), instruction_tokens=16)


class Told:
    """What goes on beside, as the test tells it: other programs' cores, one repeat after another, then quiet."""

    def __init__(self, *cores: float):
        self.coming = list(cores)

    def now(self, seconds):
        return self._conditions(0.0)

    def during(self, lease):
        return self._conditions(self.coming.pop(0) if self.coming else 0.0)

    def _conditions(self, cores: float) -> Conditions:
        reasons = (f"Other programs kept {cores:.2f} cores busy.",) if cores else ()
        return Conditions(False, bool(cores), OtherLoad(1.0, cores / 2, cores, 0.25, reasons=reasons))


class Weights:
    """A model source that has the bundled model under any name, and claims that it weighs so much."""

    def __init__(self, weight_bytes: int = 1000):
        self.weight_bytes = weight_bytes

    def is_ready(self, target, spec) -> bool:
        return True

    def prepare(self, target, spec, on_progress, cancelled) -> PreparedModel:
        return PreparedModel(
            str(DEMO_WEIGHTS),
            target.model,
            target.precision,
            spec.model_format,
            weight_bytes=self.weight_bytes,
        )


def lane(engine: str, precision: str, device: str = "CPU", **settings) -> Lane:
    return Lane(Target(engine, device, precision), settings)


def session(manager: EngineManager, *lanes: Lane, suite: Suite = TINY, **options) -> Session:
    """A session without waiting, on a quiet machine that reads 10 GB/s; workers stay loaded."""
    options = {
        "surroundings": Told(),
        "measure_bandwidth": lambda size: 10e9,
        "keep_loaded": True,
        "cooldown_s": 0.0,
        **options,
    }
    return Session(plan("demo", lanes, suite), manager, **options)
