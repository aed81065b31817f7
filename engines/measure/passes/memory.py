"""Memory: the longest case on a fresh worker, for its peak alone."""

from __future__ import annotations

from engines.measure import prompts
from engines.measure.bench import PROBE, Bench
from engines.measure.standing import LaneEndsError
from engines.measure.steps import Step
from engines.protocol import Failed


class Memory:
    def __init__(self, bench: Bench):
        self._bench = bench

    def do(self, step: Step) -> None:
        standing = self._bench.standing
        result = standing.result(step.lane)
        self._bench.manager.unload(result.lane.target)
        failed = {r.case for r in result.repeats if r.failure is not None}
        cases = [case for case in standing.measurement.suite.cases if case.name not in failed]
        longest = max(cases or [PROBE], key=lambda case: case.prompt_tokens + case.new_tokens)
        with self._bench.lease(result) as lease:
            outcome = self._bench.generate(lease, prompts.request(longest, 2000))
        if isinstance(outcome, Failed):
            raise LaneEndsError(outcome)
        standing.change(step.lane, peak_rss_bytes=outcome.metrics.peak_rss_bytes or 0)
