"""One measurement, from plan to end: does step after step, saves after each, and can be watched, paused and stopped.

`run` works in the thread that calls it; `watch`, `pause`, `go_on` and `stop` may be called from any other. Everything
that has been found is in the measurement, an immutable record that is replaced as it grows: what is left to do is
read from it (`steps`), so a session made from a saved measurement goes on where that one ended. A lane that crashes,
hangs or refuses ends by itself; that is a result.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from engines.measure import bandwidth, foreground, limit, machine, prompts, quality, steps, suites
from engines.measure.document import to_plain
from engines.measure.instructions import INSTRUCTIONS
from engines.measure.records import (
    Case,
    Foreground,
    Lane,
    LaneResult,
    Measurement,
    Repeat,
    Suite,
    Together,
    Watch,
)
from engines.measure.steps import Step
from engines.measure.verdict import decode_rate
from engines.protocol import (
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Loaded,
    Message,
    PreparedModel,
    Progress,
    Prompted,
    Scored,
    Token,
)
from engines.runtime.activity import Exclusive, GaveUpError
from engines.runtime.lease import Lease
from engines.runtime.manager import EngineFailure, EngineManager
from engines.telemetry.observer import Observed
from engines.telemetry.placement import CONTRADICTED, family

WARM_UP_TOKENS = 4
PATIENCE_S = 180.0
"""So long without a sign of life, and a lane counts as hung."""
QUIET_FOR_S = 0.5
WAIT_FOR_QUIET_S = 10.0
_WAIT_IN_ALL_S = 60.0
"""Waiting for a quiet machine ends here for the whole session: some machines never are, and the repeats say so."""
_PROBE = Case("probe", "Probe", "chat", 96, 16)


@dataclass(frozen=True)
class Ran:
    """What a row of the log knows about a repeat beside its figures."""

    outcome: Finished | Failed
    loaded: Loaded | None
    model: PreparedModel | None
    observed: Observed | None = None
    """What went on beside it, and where it ran."""


class Journal(Protocol):
    """Keeps a measurement while it grows; must not raise, must not take long."""

    def saved(self, measurement: Measurement) -> None:
        """The measurement as it is now, after every step and repeat."""

    def repeated(self, measurement: Measurement, lane: Lane, case: Case, repeat: Repeat, ran: Ran) -> None:
        """One repeat has been done, whatever came of it."""


class NoJournal:
    """Keeps nothing."""

    def saved(self, measurement: Measurement) -> None:
        pass

    def repeated(self, measurement: Measurement, lane: Lane, case: Case, repeat: Repeat, ran: Ran) -> None:
        pass


class _LaneEndsError(Exception):
    """This lane is done for; `failed` says why."""

    def __init__(self, failed: Failed):
        super().__init__(failed.message)
        self.failed = failed


class _HaltError(Exception):
    """The person wants a pause or the end."""


def plan(
    model: str,
    lanes: Sequence[Lane],
    suite: Suite,
    *,
    reference: Lane | None = None,
    machine_facts: Mapping[str, Any] | None = None,
) -> Measurement:
    """A measurement to be done. `reference`: the lane whose answers the others' are held against."""
    unique = {lane.key: lane for lane in lanes}
    results = [LaneResult(lane) for lane in unique.values()]
    if reference is not None and reference.key not in unique:
        results.append(LaneResult(reference, reference_only=True))
    first = reference or (results[0].lane if results else None)
    return Measurement(
        id=uuid.uuid4().hex,
        model=model,
        suite=suite,
        created_at=_now(),
        lanes=tuple(results),
        reference=first.key if first else None,
        machine=dict(machine_facts or {}),
    )


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
        self._measurement = replace(measurement, status="running")
        self._manager = manager
        self._journal: Journal = journal or NoJournal()
        self._surroundings: machine.Surroundings = surroundings or machine.Seen()
        self._energy = energy or machine.EnergyMeter()
        self._measure_bandwidth = measure_bandwidth
        self._keep_loaded, self._cooldown_s, self._patience_s = keep_loaded, cooldown_s, patience_s
        self._lock = threading.Condition()
        self._state = "waiting"
        self._wish: str | None = None
        self._cancelled = threading.Event()
        self._now = "Waiting"
        self._lane: str | None = None
        self._tokens = 0
        self._done = 0
        self._pace: list[tuple[float, float]] = []
        """Of the steps done: seconds estimated and taken."""
        self._bandwidths: dict[int, float | None] = {}
        self._expected: Scored | None = None
        self._idle_w: float | None = None
        self._waited_s = 0.0
        self._holder: Exclusive | None = None

    # --- from other threads ----------------------------------------------------------------------------

    @property
    def measurement(self) -> Measurement:
        """All that has been found so far."""
        with self._lock:
            return self._measurement

    def watch(self) -> Watch:
        """How it stands; cheap enough for several times a second."""
        with self._lock:
            measurement, state, now = self._measurement, self._state, self._now
            lane, tokens, done = self._lane, self._tokens, self._done
        left = steps.remaining(measurement) if state not in ("finished", "stopped", "failed") else []
        return Watch(
            state=state,
            now=now,
            lane=lane,
            done=done,
            total=done + len(left),
            left=tuple(step.title for step in left),
            left_s=self.left_s(),
            tokens=tokens,
            measurement=measurement,
        )

    def left_s(self) -> float | None:
        """Seconds left; None while a lane has not been tried yet."""
        measurement = self.measurement
        costs = [steps.seconds(step, measurement) for step in steps.remaining(measurement)]
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(costs):
            return None
        planned, taken = (sum(part) for part in zip(*self._pace, strict=True)) if self._pace else (0.0, 0.0)
        return sum(known) * (taken / planned if planned > 0 else 1.0) + self._cooldown_s * len(known)

    def pause(self) -> None:
        """Rest after the generation that runs now, and let others have the machine; `go_on` ends it."""
        self._wishes("pausing")

    def go_on(self) -> None:
        """End a pause."""
        with self._lock:
            if self._state in ("paused", "pausing"):
                self._wish, self._state = None, "running"
                self._lock.notify_all()

    def stop(self) -> None:
        """End now, and keep what is done."""
        self._wishes("stopping")
        self._cancelled.set()

    def _wishes(self, state: str) -> None:
        with self._lock:
            if self._state not in ("finished", "stopped", "failed", "stopping"):
                self._wish = self._state = state
                self._lock.notify_all()

    # --- the work --------------------------------------------------------------------------------------

    def run(self) -> Measurement:
        """Work until all is done or somebody says stop; returns what there is then."""
        with self._lock:
            if self._wish is None:
                self._state = "running"
        self._save()
        try:
            while not self._ended():
                self._hold_the_machine()
        except BaseException:
            self._finish("failed")
            raise
        self._finish("stopped" if self._wish == "stopping" else "finished")
        return self.measurement

    def _ended(self) -> bool:
        """Wait out a pause; then, whether there is nothing left to do, or no wish to."""
        with self._lock:
            if self._wish == "pausing":
                self._state, self._now, self._lane = "paused", "Paused", None
                self._put(status="paused")
                while self._wish == "pausing":
                    self._lock.wait()
                if self._wish is None:
                    self._put(status="running")
        return self._wish == "stopping" or not steps.remaining(self.measurement)

    def _hold_the_machine(self) -> None:
        """Everything that can be done in one go with the machine to itself."""
        self._prepare_models()
        what = f"a measurement of {self.measurement.model}"

        def waiting(holder: str) -> None:
            self._say(f"Waiting for the machine: {holder}")

        try:
            with self._manager.activity.exclusive(what, cancelled=self._halting, on_wait=waiting) as holder:
                self._holder = holder
                self._unload_others(())
                self._look_around()
                while todo := steps.remaining(self.measurement):
                    self._check_wishes()
                    self._fit_the_suite(todo)
                    for step in steps.remaining(self.measurement)[:1]:
                        self._step(step)
        except (GaveUpError, _HaltError):
            pass
        finally:
            self._holder = None

    def _halting(self) -> bool:
        return self._wish is not None

    def _check_wishes(self) -> None:
        if self._wish is not None:
            raise _HaltError

    def _prepare_models(self) -> None:
        """Download and convert before the machine is taken: such jobs of others may go on beside."""
        for result in steps.living(self.measurement):
            known = result.device is not None and self._manager.is_ready(result.lane.target)
            if self._wish is not None or known:
                continue
            spent: dict[str, float] = {}
            try:
                with _clocked(spent) as told:
                    self._manager.prepare(
                        result.lane.target, self._progress(result.lane.key, told), self._cancelled
                    )
            except EngineFailure as failure:
                if failure.failed.kind != "cancelled":
                    self._fail(result.lane.key, failure.failed)
                continue
            ledger = replace(
                result.ledger,
                download_s=spent.get("download", result.ledger.download_s),
                convert_s=spent.get("convert", result.ledger.convert_s),
            )
            self._change(result.lane.key, ledger=ledger)

    def _step(self, step: Step) -> None:
        expected = steps.seconds(step, self.measurement)
        started = time.monotonic()
        with self._lock:
            self._now, self._lane, self._tokens = step.title, step.lane, 0
        try:
            _STEPS[step.name](self, step)
        except _LaneEndsError as end:
            self._check_stopped(end.failed)
            self._fail(step.lane, end.failed)
        except EngineFailure as failure:
            self._check_stopped(failure.failed)
            self._fail(step.lane, failure.failed)
        if expected and step.name != "ready":
            self._pace.append((expected, time.monotonic() - started))
        with self._lock:
            self._done += 1
        for result in self.measurement.lanes:
            self._settle(result.lane.key)
        self._save()
        if not self._keep_loaded:
            self._unload_others(())
        if self._wish is None:
            time.sleep(self._cooldown_s)

    def _check_stopped(self, failed: Failed) -> None:
        """A lane that ended because everything ends has not failed."""
        if self._cancelled.is_set() and failed.kind in ("cancelled", "hung"):
            raise _HaltError

    # --- steps -----------------------------------------------------------------------------------------

    def _ready(self, step: Step) -> None:
        """Load once with nothing kept and once with what was compiled; find out what the lane is."""
        result = self._result(step.lane)
        target = result.lane.target
        self._unload_others(())
        self._manager.forget_compiled(target)
        with self._lease(result) as lease:
            first = self._generate(lease, prompts.request(_PROBE, 0))
            probe = self._repeat(_PROBE, 1, 1, self._generate(lease, prompts.request(_PROBE, 1)))
            loaded, model, observed = lease.loaded, lease.model, lease.observed
        if isinstance(first, Failed):
            raise _LaneEndsError(first)
        if probe.failure is not None:
            raise _LaneEndsError(probe.failure)
        ledger = replace(
            result.ledger,
            load_s=loaded.load_s,
            compile_s=loaded.compile_s,
            warmup_s=loaded.warmup_s,
            first_token_s=first.metrics.ttft_s,
        )
        if self._manager.keeps_compiled(target):
            self._manager.unload(target)
            with self._lease(result) as lease:
                again = lease.loaded
            ledger = replace(
                ledger,
                again_load_s=again.load_s,
                again_compile_s=again.compile_s,
                again_warmup_s=again.warmup_s,
            )
        self._change(step.lane, probe=probe, ledger=ledger, **self._identity(result, loaded, model, observed))

    def _identity(
        self, result: LaneResult, loaded: Loaded, model: PreparedModel, observed: Observed | None
    ) -> dict[str, Any]:
        target = result.lane.target
        spec = self._manager.specs.get(target.engine)
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
            self._say("Measuring how fast this machine reads memory")
            self._unload_others(())
            self._bandwidths[size] = self._measure_bandwidth(size)
        return self._bandwidths[size]

    def _quality(self, step: Step) -> None:
        """The twenty instructions and the bundled text, held against the reference lane's."""
        result = self._result(step.lane)
        reference = self._reference()
        is_reference = reference is None or reference.lane.key == step.lane
        replies = []
        with self._lease(result) as lease:
            for number, instruction in enumerate(INSTRUCTIONS, 1):
                self._check_wishes()
                self._say(f"{step.lane}: checking answers, {number} of {len(INSTRUCTIONS)}")
                ids: list[int] = []
                request = GenerationRequest(
                    (Message("user", instruction.prompt),),
                    max_new_tokens=self.measurement.suite.instruction_tokens,
                    reuse_kv_cache=False,
                )
                outcome = self._generate(lease, request, ids)
                if isinstance(outcome, Failed) and outcome.kind in ("crashed", "hung", "cancelled"):
                    raise _LaneEndsError(outcome)
                replies.append(quality.reply_of(instruction, outcome, ids))
            expected = self._expectations(lease)
        against = None if is_reference or reference is None else reference.quality
        given = quality.answers(replies, against.answers if against else None)
        found = quality.judge(
            given,
            reference.lane.key if reference and not is_reference else None,
            against,
            expected,
            None if is_reference else self._expected,
        )
        if is_reference:
            self._expected = expected
        self._change(step.lane, quality=found)

    def _reference(self) -> LaneResult | None:
        """The reference lane, or the next that can stand in for one that failed."""
        chosen = self._measurement.lane(self._measurement.reference or "")
        if chosen is not None and chosen.failure is None:
            return chosen
        alive = steps.living(self._measurement)
        return next((result for result in alive if result.quality is not None), alive[0] if alive else None)

    def _expectations(self, lease: Lease) -> Scored | None:
        outcome = lease.score(uuid.uuid4().hex, prompts.bundled("perplexity"), quality.SCORED_TOKENS)
        if isinstance(outcome, Failed) and outcome.kind in ("crashed", "hung"):
            raise _LaneEndsError(outcome)
        return outcome if isinstance(outcome, Scored) else None

    def _speed(self, step: Step) -> None:
        """One round of one lane: warmed up, then every case of it once, and again where it was disturbed."""
        result = self._result(step.lane)
        with self._lease(result) as lease:
            cases = steps.open_cases(self.measurement, result, step.round)
            for at, case in enumerate(cases):
                tokens = case.new_tokens if at == 0 else min(case.new_tokens, WARM_UP_TOKENS)
                self._say(f"{step.lane}: round {step.round}, warming up for {case.title.lower()}")
                warm = self._generate(lease, prompts.request(case, 1000 + step.round, tokens))
                if isinstance(warm, Failed):
                    self._book(
                        step,
                        case,
                        self._repeat(case, step.round, 1, warm),
                        Ran(warm, lease.loaded, lease.model),
                    )
                    continue
                while any(open_.name == case.name for open_ in self._open(step)):
                    self._check_wishes()
                    self._one_repeat(step, lease, case)

    def _open(self, step: Step) -> list[Case]:
        return steps.open_cases(self.measurement, self._result(step.lane), step.round)

    def _one_repeat(self, step: Step, lease: Lease, case: Case) -> None:
        result = self._result(step.lane)
        attempt = 1 + sum(1 for r in result.repeats if (r.case, r.number) == (case.name, step.round))
        again = f", attempt {attempt}" if attempt > 1 else ""
        self._wait_for_quiet(step)
        self._say(f"{step.lane}: round {step.round}, {case.title.lower()}{again}")
        energy, started = self._energy.mark(), time.monotonic()
        at = _now()
        variant = 10 * step.round + attempt
        outcome = self._generate(lease, prompts.request(case, variant))
        joules = self._energy.since(energy)
        if isinstance(outcome, Failed) and outcome.kind == "cancelled":
            raise _LaneEndsError(outcome)
        repeat = self._repeat(case, step.round, attempt, outcome, at)
        repeat = self._marked(repeat, lease)
        if joules is not None and self._idle_w is not None:
            repeat = replace(repeat, energy_j=max(0.0, joules - self._idle_w * (time.monotonic() - started)))
        repeat = replace(repeat, temperature_c=machine.temperature_c(), clock_mhz=machine.clock_mhz())
        repeat = replace(repeat, refused=self._refusal(result, case, repeat))
        self._book(step, case, repeat, Ran(outcome, lease.loaded, lease.model, lease.observed))

    def _marked(self, repeat: Repeat, lease: Lease) -> Repeat:
        """With what went on beside it."""
        seen = self._surroundings.during(lease)
        if seen is None:
            return repeat
        others = seen.other_load
        reasons = [*others.reasons, *(f"Meanwhile: {what}." for what in others.ours if seen.contended)]
        return replace(
            repeat,
            other_load_cores=round(others.foreign_cpu_cores, 3),
            disturbed=not seen.alone,
            disturbance=" ".join(reasons) or None,
        )

    def _book(self, step: Step, case: Case, repeat: Repeat, ran: Ran) -> None:
        result = self._result(step.lane)
        self._change(step.lane, repeats=(*result.repeats, repeat))
        self._journal.repeated(self.measurement, result.lane, case, repeat, ran)
        self._save()
        if steps.ends_the_lane(repeat) and repeat.failure is not None:
            raise _LaneEndsError(repeat.failure)

    def _refusal(self, result: LaneResult, case: Case, repeat: Repeat) -> str | None:
        """Why a finished repeat is no measurement; None when it is one."""
        if repeat.failure is not None:
            return None
        if len(repeat.token_offsets_s) != case.new_tokens:
            return f"ended after {len(repeat.token_offsets_s):,} of {case.new_tokens:,} tokens"
        if case.prompt_tokens and repeat.prompt_tokens != case.prompt_tokens:
            return f"its prompt had {repeat.prompt_tokens} of {case.prompt_tokens:,} tokens"
        if repeat.cached_prompt_tokens:
            return f"{repeat.cached_prompt_tokens:,} tokens of its prompt came from a kept cache"
        other = self._other_prompt(result, repeat)
        return other or limit.impossible(result, repeat)

    def _other_prompt(self, result: LaneResult, repeat: Repeat) -> str | None:
        for known in self.measurement.measured:
            for theirs in known.repeats:
                same = (theirs.case, theirs.number, theirs.attempt) == (
                    repeat.case,
                    repeat.number,
                    repeat.attempt,
                )
                if same and theirs.prompt_sha256 and theirs.prompt_sha256 != repeat.prompt_sha256:
                    return f"its prompt's token ids are not those of {known.lane.key}"
        return None

    def _memory(self, step: Step) -> None:
        """The longest case on a fresh worker, for its peak alone."""
        result = self._result(step.lane)
        self._manager.unload(result.lane.target)
        failed = {r.case for r in result.repeats if r.failure is not None}
        cases = [case for case in self.measurement.suite.cases if case.name not in failed]
        longest = max(cases or [_PROBE], key=lambda case: case.prompt_tokens + case.new_tokens)
        with self._lease(result) as lease:
            outcome = self._generate(lease, prompts.request(longest, 2000))
        if isinstance(outcome, Failed):
            raise _LaneEndsError(outcome)
        self._change(step.lane, peak_rss_bytes=outcome.metrics.peak_rss_bytes or 0)

    def _foreground(self, step: Step) -> None:
        """A fixed processor task alone, then while the lane writes one reply after another."""
        result = self._result(step.lane)
        idle = foreground.rates()
        case = self._shortest()
        with self._lease(result) as lease, self._beside(lease, case):
            busy = foreground.rates()
        if idle and busy:
            self._change(step.lane, foreground=Foreground(idle, busy))
        else:
            self._change(step.lane, foreground=Foreground((1.0,), ()))

    @contextlib.contextmanager
    def _beside(self, lease: Lease, case: Case) -> Iterator[None]:
        """Generate in a thread of its own, again and again, until the block ends; begun before it is entered."""
        end, begun = threading.Event(), threading.Event()
        run_ids: list[str] = []
        outcomes: list[Finished | Failed] = []
        holder = self._holder

        def on_event(event: Event) -> None:
            if isinstance(event, Token):
                begun.set()

        def work() -> None:
            with holder.in_this_thread() if holder else contextlib.nullcontext():
                number = 3000
                while not end.is_set() and not (outcomes and isinstance(outcomes[-1], Failed)):
                    number += 1
                    run_ids.append(uuid.uuid4().hex)
                    outcomes.append(lease.generate(run_ids[-1], prompts.request(case, number), on_event))
            begun.set()

        thread = threading.Thread(target=work, name="measure-beside", daemon=True)
        thread.start()
        begun.wait(self._patience_s)
        try:
            yield
        finally:
            end.set()
            if run_ids:
                lease.cancel(run_ids[-1])
            thread.join(self._patience_s)
        failed = next((o for o in outcomes if isinstance(o, Failed) and o.kind in ("crashed", "hung")), None)
        if failed is not None:
            raise _LaneEndsError(failed)

    def _race(self, step: Step) -> None:
        """Two lanes at once: what is left of each one's rate while both write."""
        one, other = self._result(step.lane), self._result(step.beside or "")
        case = self._shortest()
        spans: dict[str, tuple[float, Finished | Failed]] = {}
        holder = self._holder

        def work(result: LaneResult, lease: Lease) -> None:
            with holder.in_this_thread() if holder else contextlib.nullcontext():
                started: list[float] = []

                def on_event(event: Event) -> None:
                    if isinstance(event, Prompted):
                        started.append(time.monotonic())

                outcome = lease.generate(uuid.uuid4().hex, prompts.request(case, 4000), on_event)
                spans[result.lane.key] = (started[0] if started else 0.0, outcome)

        with self._lease(one) as first, self._lease(other) as second:
            for lease in (first, second):
                self._generate(lease, prompts.request(case, 3999))
            threads = [
                threading.Thread(target=work, args=pair, name="measure-race", daemon=True)
                for pair in ((one, first), (other, second))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        rates = _rates_while_both(spans)
        rows = [
            Together(a.lane.key, b.lane.key, rates.get(a.lane.key), decode_rate(a, self.measurement))
            for a, b in ((one, other), (other, one))
        ]
        with self._lock:
            self._measurement = replace(self._measurement, together=(*self._measurement.together, *rows))

    def _shortest(self) -> Case:
        return min(self.measurement.suite.cases, key=lambda case: case.prompt_tokens, default=_PROBE)

    # --- around the steps ------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """What state the machine is in before anything is measured."""
        energy, started = self._energy.mark(), time.monotonic()
        seen, joules = self._surroundings.now(QUIET_FOR_S), self._energy.since(energy)
        self._idle_w = None if joules is None else joules / (time.monotonic() - started)
        import platform

        found = {
            "power": seen.other_load.power_after,
            "python": platform.python_version(),
            "other_load_cores": round(seen.other_load.foreign_cpu_cores, 3),
            "other_programs": list(seen.other_load.programs),
            "disturbing_cores": machine.disturbing_cores(),
            "temperature_c": machine.temperature_c(),
            "clock_mhz": machine.clock_mhz(),
            "energy": self._energy.source,
            "idle_w": self._idle_w,
            "keep_loaded": self._keep_loaded,
            "cooldown_s": self._cooldown_s,
        }
        with self._lock:
            self._measurement = replace(
                self._measurement, environment={**self._measurement.environment, **found}
            )

    def _wait_for_quiet(self, step: Step) -> None:
        """Give a busy machine a few seconds to become quiet; if it does not, the repeat will be marked."""
        started = time.monotonic()
        deadline = started + min(WAIT_FOR_QUIET_S, _WAIT_IN_ALL_S - self._waited_s)
        last = next((r for r in reversed(self._result(step.lane).repeats)), None)
        if last is None or not last.disturbed:
            return
        while time.monotonic() < deadline and self._wish is None:
            seen = self._surroundings.now(QUIET_FOR_S)
            if not seen.disturbed:
                break
            cores, programs = seen.other_load.foreign_cpu_cores, ", ".join(seen.other_load.programs[:2])
            self._say(f"Waiting for a quiet machine: other programs keep {cores:.1f} cores busy ({programs})")
        self._waited_s += time.monotonic() - started

    def _fit_the_suite(self, todo: Sequence[Step]) -> None:
        """Once every lane has been tried: leave out what no context holds, shorten what would take too long."""
        measurement = self.measurement
        if measurement.fitted or any(step.name == "ready" for step in todo):
            return
        contexts = [r.context_tokens for r in steps.living(measurement) if not r.reference_only]
        known = [context for context in contexts if context is not None]
        roomiest = max(known) if known and len(known) == len(contexts) else None
        suite = suites.fitting(suites.to_the_context(measurement.suite, roomiest), roomiest)
        self._put(suite=suite)
        longest = max(
            (
                cost
                for key, cost in steps.lane_seconds(self.measurement).items()
                if not self._result(key).reference_only
            ),
            default=0.0,
        )
        if suite.target_s and longest > suite.target_s:
            suite = suites.scaled(suite, suite.target_s / longest)
        self._put(suite=suite, fitted=True)
        self._save()

    def _lease(self, result: LaneResult) -> contextlib.AbstractContextManager[Lease]:
        """The lane, loaded, with its settings and nothing else beside it; a load that hangs is ended."""
        return self._leased(result)

    @contextlib.contextmanager
    def _leased(self, result: LaneResult) -> Iterator[Lease]:
        given_up = threading.Event()
        alive = _Heartbeat(self._patience_s, given_up.set)
        told = self._progress(result.lane.key, lambda _progress: alive.beat())
        link = _Linked(self._cancelled, given_up)
        try:
            with alive:
                lease_context = self._manager.lease(
                    result.lane.target, told, link.event, tuning=result.lane.settings
                )
                lease = lease_context.__enter__()
        except EngineFailure as failure:
            if given_up.is_set():
                message = f"It did not load: no sign of life for {self._patience_s:.0f} s."
                raise _LaneEndsError(Failed("hung", message, failure.failed.remedy)) from failure
            raise
        finally:
            link.close()
        try:
            yield lease
        finally:
            lease_context.__exit__(None, None, None)

    def _generate(
        self, lease: Lease, request: GenerationRequest, ids: list[int] | None = None
    ) -> Finished | Failed:
        """One generation with the machine's other work aside; without a token for `patience_s` it counts as hung."""
        run_id = uuid.uuid4().hex
        alive = _Heartbeat(self._patience_s, lambda: lease.cancel(run_id))
        with self._lock:
            self._tokens = 0

        def on_event(event: Event) -> None:
            alive.beat()
            if isinstance(event, Token):
                self._tokens += 1
                if ids is not None and event.token_id is not None:
                    ids.append(event.token_id)

        stopper = _Linked(self._cancelled, on_set=lambda: lease.cancel(run_id))
        try:
            with alive:
                outcome = lease.generate(run_id, request, on_event)
        finally:
            stopper.close()
        if alive.given_up and not (isinstance(outcome, Failed) and outcome.kind == "crashed"):
            return Failed(
                "hung", f"No token came for {self._patience_s:.0f} s.", "Read its log.", run_id=run_id
            )
        if isinstance(outcome, Finished) and outcome.finish_reason == "cancelled":
            return Failed("cancelled", "Stopped.", run_id=run_id)
        return outcome

    def _repeat(
        self, case: Case, number: int, attempt: int, outcome: Finished | Failed, at: str | None = None
    ) -> Repeat:
        if isinstance(outcome, Failed):
            return Repeat(
                case.name, number, attempt, "failed", at or _now(), failure=replace(outcome, details=None)
            )
        metrics = outcome.metrics
        return Repeat(
            case.name,
            number,
            attempt,
            "finished",
            at or _now(),
            prompt_tokens=metrics.prompt_tokens,
            cached_prompt_tokens=metrics.cached_prompt_tokens,
            prompt_sha256=metrics.prompt_sha256,
            token_offsets_s=tuple(round(offset, 6) for offset in metrics.token_offsets_s),
            total_s=None if metrics.total_s is None else round(metrics.total_s, 6),
            peak_rss_bytes=metrics.peak_rss_bytes,
        )

    def _unload_others(self, kept: Sequence[Any]) -> None:
        for state in self._manager.states():
            if state.phase in ("ready", "busy") and state.target not in kept:
                self._manager.unload(state.target)

    def _progress(self, key: str, also: Callable[[Progress], None]) -> Callable[[Progress], None]:
        def tell(progress: Progress) -> None:
            also(progress)
            self._say(f"{key}: {progress.text}")

        return tell

    # --- the record ------------------------------------------------------------------------------------

    def _result(self, key: str) -> LaneResult:
        found = self.measurement.lane(key)
        if found is None:
            raise KeyError(key)
        return found

    def _say(self, text: str) -> None:
        with self._lock:
            self._now = text

    def _put(self, **fields: Any) -> None:
        with self._lock:
            self._measurement = replace(self._measurement, **fields)

    def _change(self, key: str, **fields: Any) -> None:
        with self._lock:
            lanes = tuple(
                replace(result, **fields) if result.lane.key == key else result
                for result in self._measurement.lanes
            )
            self._measurement = replace(self._measurement, lanes=lanes)

    def _fail(self, key: str, failed: Failed) -> None:
        """This lane is done for; the crash is told without the log, which names this computer's folders."""
        self._manager.retry(self._result(key).lane.target)  # the next person to ask gets a fresh start
        self._change(key, status="failed", failure=replace(failed, details=None))
        self._save()

    def _settle(self, key: str) -> None:
        """Mark the lane as measured once nothing of it is left."""
        result = self._result(key)
        if result.failure is None and result.device is not None:
            left = [s for s in steps.remaining(self.measurement) if key in (s.lane, s.beside)]
            self._change(key, status="partly" if left else "measured")

    def _save(self) -> None:
        self._put(updated_at=_now())
        self._journal.saved(self.measurement)

    def _finish(self, state: str) -> None:
        with self._lock:
            self._state, self._now, self._lane = state, state.capitalize(), None
            self._measurement = replace(self._measurement, status=state)
        self._save()


_STEPS: Mapping[str, Callable[[Session, Step], None]] = {
    "ready": Session._ready,
    "quality": Session._quality,
    "speed": Session._speed,
    "memory": Session._memory,
    "foreground": Session._foreground,
    "race": Session._race,
}


class _Heartbeat:
    """Calls `give_up` once when nobody has called `beat` for so long."""

    def __init__(self, patience_s: float, give_up: Callable[[], None]):
        self._patience_s, self._give_up = patience_s, give_up
        self._last = time.monotonic()
        self._over = threading.Event()
        self.given_up = False

    def beat(self) -> None:
        self._last = time.monotonic()

    def __enter__(self) -> _Heartbeat:
        self._last = time.monotonic()
        threading.Thread(target=self._watch, name="measure-heartbeat", daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(max(0.01, self._last + self._patience_s - time.monotonic())):
            if time.monotonic() >= self._last + self._patience_s:
                self.given_up = True
                self._give_up()
                return


class _Linked:
    """An event that is set when either of two is; or, with `on_set`, what to do when the first is."""

    def __init__(
        self,
        first: threading.Event,
        second: threading.Event | None = None,
        on_set: Callable[[], None] | None = None,
    ):
        self.event = threading.Event()
        self._sources, self._on_set = (first, second), on_set
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="measure-stop", daemon=True).start()

    def close(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            if any(source is not None and source.is_set() for source in self._sources):
                self.event.set()
                if self._on_set is not None:
                    self._on_set()
                return


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


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


__all__ = ["Journal", "NoJournal", "Ran", "Session", "plan"]
