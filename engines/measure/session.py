"""One measurement, from plan to end: does step after step, saves after each, and can be watched, paused and stopped.

`run` works in the thread that calls it; `watch`, `pause`, `go_on` and `stop` may be called from any other (they are
`standing`'s). Everything that has been found is in the measurement: what is left to do is read from it (`steps`), so
a session made from a saved measurement goes on where that one ended. A lane that crashes, hangs or refuses ends by
itself; that is a result.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from engines.measure import bandwidth, machine, steps, suites
from engines.measure.bench import Bench
from engines.measure.journal import Journal, NoJournal
from engines.measure.passes.answers import Answers
from engines.measure.passes.foreground_tax import ForegroundTax
from engines.measure.passes.memory import Memory
from engines.measure.passes.race import Race
from engines.measure.passes.ready import Ready
from engines.measure.passes.speed import Speed
from engines.measure.quiet import Quiet
from engines.measure.records import Measurement, Watch
from engines.measure.standing import HaltError, LaneEndsError, Standing
from engines.measure.steps import Step
from engines.protocol import Failed, Progress
from engines.runtime.activity import GaveUpError
from engines.runtime.manager import EngineFailure, EngineManager

PATIENCE_S = 180.0
"""So long without a sign of life, and a lane counts as hung."""


class Session:
    """Does a planned measurement, or the rest of one."""

    def __init__(
        self,
        measurement: Measurement,
        manager: EngineManager,
        *,
        journal: Journal | None = None,
        surroundings: machine.Surroundings | None = None,
        energy: machine.EnergyMeter | None = None,
        measure_bandwidth: Callable[[int], float | None] = bandwidth.measured,
        keep_loaded: bool = False,
        cooldown_s: float = 1.0,
        patience_s: float = PATIENCE_S,
    ):
        """`keep_loaded`: other lanes may stay in memory; else each is loaded for its visit and ended after it."""
        self._manager, self._keep_loaded, self._cooldown_s = manager, keep_loaded, cooldown_s
        self.standing = Standing(measurement, journal or NoJournal(), cooldown_s)
        self._bench = bench = Bench(manager, self.standing, patience_s)
        self._quiet = Quiet(surroundings or machine.Seen(), energy or machine.EnergyMeter())
        self._passes: Mapping[str, Callable[[Step], None]] = {
            "ready": Ready(bench, measure_bandwidth).do,
            "quality": Answers(bench).do,
            "speed": Speed(bench, self._quiet, measure_bandwidth).do,
            "memory": Memory(bench).do,
            "foreground": ForegroundTax(bench).do,
            "race": Race(bench).do,
        }

    # --- from other threads ----------------------------------------------------------------------------

    @property
    def measurement(self) -> Measurement:
        """All that has been found so far."""
        return self.standing.measurement

    def watch(self) -> Watch:
        """How it stands; cheap enough for several times a second."""
        return self.standing.watch()

    def left_s(self) -> float | None:
        """Seconds left; None while a lane has not been tried yet."""
        return self.standing.left_s()

    def pause(self) -> None:
        """Rest after the generation that runs now, and let others have the machine; `go_on` ends it."""
        self.standing.pause()

    def go_on(self) -> None:
        """End a pause."""
        self.standing.go_on()

    def stop(self) -> None:
        """End now, and keep what is done."""
        self.standing.stop()

    # --- the work --------------------------------------------------------------------------------------

    def run(self) -> Measurement:
        """Work until all is done or somebody says stop; returns what there is then."""
        standing = self.standing
        standing.begins()
        standing.save()
        try:
            while not self._ended():
                self._hold_the_machine()
        except BaseException:
            standing.ends("failed")
            raise
        standing.ends("stopped" if standing.stopping else "finished")
        return self.measurement

    def _ended(self) -> bool:
        """Wait out a pause; then, whether there is nothing left to do, or no wish to."""
        self.standing.rest()
        return self.standing.stopping or not steps.remaining(self.measurement)

    def _hold_the_machine(self) -> None:
        """Everything that can be done in one go with the machine to itself."""
        self._prepare_models()
        what = f"a measurement of {self.measurement.model}"

        def waiting(holder: str) -> None:
            self.standing.say(f"Waiting for the machine: {holder}")

        try:
            with self._manager.activity.exclusive(
                what, cancelled=self.standing.halting, on_wait=waiting
            ) as holder:
                self._bench.holder = holder
                self._bench.unload_all()
                self._look_around()
                while todo := steps.remaining(self.measurement):
                    self.standing.check_wishes()
                    self._fit_the_suite(todo)
                    for step in steps.remaining(self.measurement)[:1]:
                        self._step(step)
        except (GaveUpError, HaltError):
            pass
        finally:
            self._bench.holder = None

    def _prepare_models(self) -> None:
        """Download and convert before the machine is taken: such jobs of others may go on beside."""
        for result in steps.living(self.measurement):
            key, target = result.lane.key, result.lane.target
            known = result.device is not None and self._manager.is_ready(target)
            if self.standing.halting() or known:
                continue
            spent: dict[str, float] = {}
            try:
                with _clocked(spent) as told:
                    self._manager.prepare(target, self.standing.progress(key, told), self.standing.cancelled)
            except EngineFailure as failure:
                if failure.failed.kind != "cancelled":
                    self._fail(key, failure.failed)
                continue
            ledger = replace(
                result.ledger,
                download_s=spent.get("download", result.ledger.download_s),
                convert_s=spent.get("convert", result.ledger.convert_s),
            )
            self.standing.change(key, ledger=ledger)

    def _look_around(self) -> None:
        asked = {"keep_loaded": self._keep_loaded, "cooldown_s": self._cooldown_s}
        found = {**self.measurement.environment, **self._quiet.look_around(), **asked}
        self.standing.put(environment=found)

    def _step(self, step: Step) -> None:
        expected = steps.seconds(step, self.measurement)
        started = time.monotonic()
        self.standing.begins_step(step)
        try:
            self._passes[step.name](step)
        except (LaneEndsError, EngineFailure) as end:
            self._check_stopped(end.failed)
            self._fail(step.lane, end.failed)
        self.standing.did_step(expected if step.name != "ready" else None, time.monotonic() - started)
        self.standing.settle()
        self.standing.save()
        if not self._keep_loaded:
            self._bench.unload_all()
        if not self.standing.halting():
            time.sleep(self._cooldown_s)

    def _check_stopped(self, failed: Failed) -> None:
        """A lane that ended because everything ends has not failed."""
        if self.standing.cancelled.is_set() and failed.kind in ("cancelled", "hung"):
            raise HaltError

    def _fail(self, key: str, failed: Failed) -> None:
        """This lane is done for; the crash is told without the log, which names this computer's folders."""
        target = self.standing.result(key).lane.target
        self._manager.retry(target)  # the next person to ask gets a fresh start
        self.standing.change(key, status="failed", failure=replace(failed, details=None))
        self.standing.save()

    def _fit_the_suite(self, todo: Sequence[Step]) -> None:
        """Once every lane has been tried: leave out what no context holds, shorten what would take too long."""
        measurement = self.measurement
        if measurement.fitted or any(step.name == "ready" for step in todo):
            return
        contexts = [r.context_tokens for r in steps.living(measurement) if not r.reference_only]
        known = [context for context in contexts if context is not None]
        roomiest = max(known) if known and len(known) == len(contexts) else None
        suite = suites.fitting(suites.to_the_context(measurement.suite, roomiest), roomiest)
        self.standing.put(suite=suite)
        costs = steps.lane_seconds(self.measurement)
        longest = max(
            (cost for key, cost in costs.items() if not self.standing.result(key).reference_only), default=0.0
        )
        if suite.target_s and longest > suite.target_s:
            suite = suites.scaled(suite, suite.target_s / longest)
        self.standing.put(suite=suite, fitted=True)
        self.standing.save()


@contextlib.contextmanager
def _clocked(spent: dict[str, float]) -> Iterator[Callable[[Progress], None]]:
    """Adds up, by stage, the seconds between one progress event and the next."""
    since: list[tuple[str, float]] = []

    def told(progress: Progress) -> None:
        now = time.monotonic()
        if since:
            stage, before = since.pop()
            spent[stage] = spent.get(stage, 0.0) + now - before
        since.append((progress.stage, now))

    yield told
    if since:
        stage, before = since.pop()
        spent[stage] = spent.get(stage, 0.0) + time.monotonic() - before
