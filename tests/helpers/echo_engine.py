"""An engine without a library: it answers with the prompt's own ids, at a chosen pace.

Real worker, real pipe, real clock; only the model is missing. The precision says the pace: `fast` as fast as it
goes, `100` tokens a second, and so on.
"""

import itertools
import os
import time

from engines.engine import Engine, GenerationReport, LoadReport
from engines.protocol import Availability, DeviceStatus, EngineSpec, Tunable, WeightVariant

SPEC = EngineSpec(
    name="echo",
    title="Echo",
    module="tests.helpers.echo_engine",
    devices=("CPU", "GPU"),
    precisions=("fast", "20", "100"),
    model_format="safetensors",
    honours=("temperature", "seed"),
    distributions=("pip", "no-such-distribution"),
    reuses_kv_cache=True,
    tunables=(
        Tunable("pace", ("400",)),
        Tunable("crash", (True,), None, "breaks"),
        Tunable("elsewhere", (1,), ("GPU",)),
    ),
    variants=(WeightVariant("coarse", "100", {}),),
)


class EchoEngine(Engine):
    spec = SPEC

    def probe(self):
        absent = DeviceStatus("GPU", False, reason="An echo has no GPU.", remedy="Use CPU.")
        return Availability(True, (DeviceStatus("CPU", True, "Echo chamber"), absent), {"echo": "1.0"})

    def load(self, target, model, cache_dir, on_progress):
        pace = self.tuning.get("pace", target.precision)
        self._pause_s = 0.0 if pace == "fast" else 1 / float(pace.partition("-")[0])
        self._crashes = bool(self.tuning.get("crash"))
        return LoadReport(device=target.device, context_tokens=4096, details={"pause_s": self._pause_s})

    def generate(self, prompt_ids, request, stop_ids, on_token):
        if self._crashes and request.max_new_tokens > 4:
            os._exit(3)
        started = time.perf_counter()
        ids = [i for i in prompt_ids if i not in stop_ids]
        source = itertools.cycle(ids) if request.ignore_eos else itertools.chain(ids, sorted(stop_ids)[:1])
        for count, token_id in enumerate(itertools.islice(source, request.max_new_tokens), start=1):
            if self._pause_s:
                time.sleep(max(0.0, started + count * self._pause_s - time.perf_counter()))
            if not on_token(token_id):
                break
        return GenerationReport(cached_prompt_tokens=0)


ENGINE = EchoEngine
