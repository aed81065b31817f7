"""Making ready: load once with nothing kept and once with what was compiled, and find out what the lane is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.measure import bandwidth, limit, prompts
from engines.measure.bench import PROBE, Bench
from engines.measure.document import to_plain
from engines.measure.records import LaneResult
from engines.measure.repeats import repeat_of
from engines.measure.standing import LaneEndsError
from engines.measure.steps import Step
from engines.protocol import Failed, Loaded, PreparedModel
from engines.telemetry.observer import Observed
from engines.telemetry.placement import CONTRADICTED, family


class Ready:
    def __init__(self, bench: Bench, measure_bandwidth: Callable[[int], float | None]):
        self._bench, self._measure_bandwidth = bench, measure_bandwidth
        self._bandwidths: dict[int, float | None] = {}

    def do(self, step: Step) -> None:
        bench = self._bench
        result = bench.standing.result(step.lane)
        target = result.lane.target
        bench.unload_all()
        bench.manager.forget_compiled(target)
        with bench.lease(result) as lease:
            first = bench.generate(lease, prompts.request(PROBE, 0))
            probe = repeat_of(PROBE, 1, 1, bench.generate(lease, prompts.request(PROBE, 1)))
            loaded, model, observed = lease.loaded, lease.model, lease.observed
        if isinstance(first, Failed):
            raise LaneEndsError(first)
        if probe.failure is not None:
            raise LaneEndsError(probe.failure)
        ledger = replace(
            result.ledger,
            load_s=loaded.load_s,
            compile_s=loaded.compile_s,
            warmup_s=loaded.warmup_s,
            first_token_s=first.metrics.ttft_s,
        )
        if bench.manager.keeps_compiled(target):
            bench.manager.unload(target)
            with bench.lease(result) as lease:
                again = lease.loaded
            ledger = replace(
                ledger,
                again_load_s=again.load_s,
                again_compile_s=again.compile_s,
                again_warmup_s=again.warmup_s,
            )
        identity = self._identity(result, loaded, model, observed)
        bench.standing.change(step.lane, probe=probe, ledger=ledger, **identity)

    def _identity(
        self, result: LaneResult, loaded: Loaded, model: PreparedModel, observed: Observed | None
    ) -> dict[str, Any]:
        target = result.lane.target
        spec = self._bench.manager.specs.get(target.engine)
        shared = spec is None or family(target.device) not in spec.own_memory
        per_token = limit.read_bytes_per_token(Path(model.folder), model.weight_bytes)
        return {
            "device": loaded.device,
            "asked_device": observed is None or observed.placement.badge != CONTRADICTED,
            "placement": to_plain(observed.placement) if observed else None,
            "context_tokens": loaded.context_tokens,
            "details": to_plain(loaded.details),
            "versions": dict(loaded.versions),
            "weight_bytes": model.weight_bytes,
            "read_bytes_per_token": per_token,
            "bandwidth_bytes_s": self._bandwidth(per_token) if shared and per_token else None,
            "revision": model.revision,
            "recipe_sha256": model.recipe_sha256,
        }

    def _bandwidth(self, working_set: int) -> float | None:
        size = min(max(working_set, bandwidth.SMALLEST_BYTES), bandwidth.LARGEST_BYTES)
        if size not in self._bandwidths:
            self._bench.standing.say("Measuring how fast this machine reads memory")
            self._bench.unload_all()
            self._bandwidths[size] = self._measure_bandwidth(size)
        return self._bandwidths[size]
