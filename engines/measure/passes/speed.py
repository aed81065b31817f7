"""Speed: one round of one lane, warmed up, then every case of it once, and again where it was disturbed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from engines.measure import limit, machine, prompts, steps
from engines.measure.bench import Bench
from engines.measure.journal import Ran
from engines.measure.quiet import Quiet
from engines.measure.records import Case, LaneResult, Repeat, utc_now
from engines.measure.repeats import changed_since, refusal, repeat_of
from engines.measure.standing import LaneEndsError
from engines.measure.steps import Step
from engines.protocol import Failed
from engines.runtime.lease import Lease

WARM_UP_TOKENS = 4


class Speed:
    def __init__(self, bench: Bench, quiet: Quiet, measure_bandwidth: Callable[[int], float | None]):
        self._bench, self._standing, self._quiet = bench, bench.standing, quiet
        self._measure_bandwidth = measure_bandwidth

    def do(self, step: Step) -> None:
        with self._bench.lease(self._standing.result(step.lane)) as lease:
            if changed := changed_since(self._standing.result(step.lane), lease.loaded):
                raise LaneEndsError(changed)
            for at, case in enumerate(self._open(step)):
                tokens = case.new_tokens if at == 0 else min(case.new_tokens, WARM_UP_TOKENS)
                self._standing.say(f"{step.lane}: round {step.round}, warming up for {case.title.lower()}")
                warm = self._bench.generate(lease, prompts.request(case, 1000 + step.round, tokens))
                if isinstance(warm, Failed):
                    ran = Ran(warm, lease.loaded, lease.model)
                    self._book(step, case, repeat_of(case, step.round, 1, warm), ran)
                    continue
                while any(open_.name == case.name for open_ in self._open(step)):
                    self._standing.check_wishes()
                    self._one_repeat(step, lease, case)

    def _open(self, step: Step) -> list[Case]:
        return steps.open_cases(self._standing.measurement, self._standing.result(step.lane), step.round)

    def _one_repeat(self, step: Step, lease: Lease, case: Case) -> None:
        result = self._standing.result(step.lane)
        attempt = 1 + sum(1 for r in result.repeats if (r.case, r.number) == (case.name, step.round))
        again = f", attempt {attempt}" if attempt > 1 else ""
        self._quiet.wait(result, self._standing.halting, self._standing.say)
        self._standing.say(f"{step.lane}: round {step.round}, {case.title.lower()}{again}")
        joules, at = self._quiet.energy_meter(), utc_now()
        outcome = self._bench.generate(lease, prompts.request(case, 10 * step.round + attempt))
        energy_j = joules()
        if isinstance(outcome, Failed) and outcome.kind == "cancelled":
            raise LaneEndsError(outcome)
        repeat = self._quiet.marked(repeat_of(case, step.round, attempt, outcome, at), lease)
        placement = lease.observed.placement if lease.observed else None
        result = self._with_its_limit(result, repeat)
        repeat = replace(
            repeat,
            energy_j=energy_j,
            temperature_c=machine.temperature_c(),
            clock_mhz=machine.clock_mhz(),
            refused=refusal(self._standing.measurement, result, case, repeat, placement),
        )
        self._book(step, case, repeat, Ran(outcome, lease.loaded, lease.model, lease.observed))

    def _with_its_limit(self, result: LaneResult, repeat: Repeat) -> LaneResult:
        """The lane; before its first rate is refused as impossible, with the memory measured once more.

        What reads memory beside the first look, even for a second, makes the limit too low for good.
        """
        if limit.impossible(result, repeat) is None or any(known.refused for known in result.repeats):
            return result
        self._standing.say("Measuring once more how fast this machine reads memory")
        again = self._measure_bandwidth(result.read_bytes_per_token or 0)
        if again is not None and again > (result.bandwidth_bytes_s or 0.0):
            self._standing.change(result.lane.key, bandwidth_bytes_s=again)
        return self._standing.result(result.lane.key)

    def _book(self, step: Step, case: Case, repeat: Repeat, ran: Ran) -> None:
        result = self._standing.result(step.lane)
        self._standing.change(step.lane, repeats=(*result.repeats, repeat))
        self._standing.journal.repeated(self._standing.measurement, result.lane, case, repeat, ran)
        self._standing.save()
        if steps.ends_the_lane(repeat) and repeat.failure is not None:
            raise LaneEndsError(repeat.failure)
