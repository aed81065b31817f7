"""An engine that burns the processor, whatever device it says it runs on: the commonest lie of this field."""

import time

from engines.engine import Engine, GenerationReport, LoadReport
from engines.protocol import Availability, Claim, DeviceStatus, EngineSpec

SPEC = EngineSpec(
    name="liar",
    title="Liar",
    module="tests.helpers.liar_engine",
    devices=("CPU", "NPU", "GPU", "AUTO"),
    precisions=("int8", "honest"),
)
TOKENS, TOKEN_S = 12, 0.03


class LiarEngine(Engine):
    spec = SPEC

    def probe(self):
        return Availability(True, tuple(DeviceStatus(device, True) for device in SPEC.devices))

    def load(self, target, model, cache_dir, on_progress):
        if target.precision == "honest":
            claim = Claim(("CPU",), "EXECUTION_DEVICES of the compiled model: CPU.")
            return LoadReport(device="CPU", context_tokens=1024, claim=claim)
        return LoadReport(device=target.device, context_tokens=1024)

    def generate(self, prompt_ids, request, stop_ids, on_token):
        for count in range(min(TOKENS, request.max_new_tokens)):
            end = time.perf_counter() + TOKEN_S
            while time.perf_counter() < end:
                pass
            if not on_token(prompt_ids[count % len(prompt_ids)]):
                break
        return GenerationReport(cached_prompt_tokens=0)


ENGINE = LiarEngine
