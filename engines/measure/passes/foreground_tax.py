"""Foreground tax: a fixed processor task alone, then while the lane writes one reply after another."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator

from engines.measure import foreground, prompts
from engines.measure.bench import Bench
from engines.measure.records import Case, Foreground
from engines.measure.standing import LaneEndsError
from engines.measure.steps import Step
from engines.protocol import Event, Failed, Finished, Token
from engines.runtime.lease import Lease


class ForegroundTax:
    def __init__(self, bench: Bench):
        self._bench = bench

    def do(self, step: Step) -> None:
        standing = self._bench.standing
        idle = foreground.rates()
        with (
            self._bench.lease(standing.result(step.lane)) as lease,
            self._beside(lease, self._bench.shortest()),
        ):
            busy = foreground.rates()
        found = Foreground(idle, busy) if idle and busy else Foreground((1.0,), ())
        standing.change(step.lane, foreground=found)

    @contextlib.contextmanager
    def _beside(self, lease: Lease, case: Case) -> Iterator[None]:
        """Generate in a thread of its own, again and again, until the block ends; begun before it is entered."""
        end, begun = threading.Event(), threading.Event()
        run_ids: list[str] = []
        outcomes: list[Finished | Failed] = []

        def on_event(event: Event) -> None:
            if isinstance(event, Token):
                begun.set()

        def work() -> None:
            with self._bench.in_this_thread():
                number = 3000
                while not end.is_set() and not (outcomes and isinstance(outcomes[-1], Failed)):
                    number += 1
                    run_ids.append(uuid.uuid4().hex)
                    outcomes.append(lease.generate(run_ids[-1], prompts.request(case, number), on_event))
            begun.set()

        thread = threading.Thread(target=work, name="measure-beside", daemon=True)
        thread.start()
        begun.wait(self._bench.patience_s)
        try:
            yield
        finally:
            end.set()
            if run_ids:
                lease.cancel(run_ids[-1])
            thread.join(self._bench.patience_s)
        failed = next((o for o in outcomes if isinstance(o, Failed) and o.kind in ("crashed", "hung")), None)
        if failed is not None:
            raise LaneEndsError(failed)
