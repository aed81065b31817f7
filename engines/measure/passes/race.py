"""Race tax: two lanes at once, and what is left of each one's rate while both write."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping

from engines.measure import prompts
from engines.measure.bench import Bench
from engines.measure.records import LaneResult, Together
from engines.measure.steps import Step
from engines.measure.verdict import decode_rate
from engines.protocol import Event, Failed, Finished, Prompted
from engines.runtime.lease import Lease


class Race:
    def __init__(self, bench: Bench):
        self._bench = bench

    def do(self, step: Step) -> None:
        bench, standing = self._bench, self._bench.standing
        one, other = standing.result(step.lane), standing.result(step.beside or "")
        case = bench.shortest()
        spans: dict[str, tuple[float, Finished | Failed]] = {}

        def work(result: LaneResult, lease: Lease) -> None:
            with bench.in_this_thread():
                started: list[float] = []

                def on_event(event: Event) -> None:
                    if isinstance(event, Prompted):
                        started.append(time.monotonic())

                outcome = lease.generate(uuid.uuid4().hex, prompts.request(case, 4000), on_event)
                spans[result.lane.key] = (started[0] if started else 0.0, outcome)

        with bench.lease(one) as first, bench.lease(other) as second:
            for lease in (first, second):
                bench.generate(lease, prompts.request(case, 3999))
            threads = [
                threading.Thread(target=work, args=pair, name="measure-race", daemon=True)
                for pair in ((one, first), (other, second))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        rates, measurement = _rates_while_both(spans), standing.measurement
        rows = [
            Together(a.lane.key, b.lane.key, rates.get(a.lane.key), decode_rate(a, measurement))
            for a, b in ((one, other), (other, one))
        ]
        standing.put(together=(*measurement.together, *rows))


def _rates_while_both(spans: Mapping[str, tuple[float, Finished | Failed]]) -> dict[str, float]:
    """Decode rate of each lane over the time in which all of them were decoding."""
    times = {
        key: [started + offset for offset in outcome.metrics.token_offsets_s]
        for key, (started, outcome) in spans.items()
        if isinstance(outcome, Finished) and len(outcome.metrics.token_offsets_s) > 1
    }
    if len(times) < 2:
        return {}
    begin, end = max(t[0] for t in times.values()), min(t[-1] for t in times.values())
    found = {}
    for key, stamps in times.items():
        inside = [stamp for stamp in stamps if begin <= stamp <= end]
        if len(inside) > 1 and inside[-1] > inside[0]:
            found[key] = (len(inside) - 1) / (inside[-1] - inside[0])
    return found
