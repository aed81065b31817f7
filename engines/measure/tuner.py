"""Tries the settings that an engine declares (`EngineSpec.tunables`) and keeps what really is faster here.

Successive halving (Jamieson & Talwalkar, 2016): every candidate gets a short try; the better half gets one twice as
long; and so on until two are left, which are measured in turn with the defaults. A setting is kept only if its
interval lies apart from the defaults', the medians differ by 3 % or more, and the answers still begin as they did.
Guesses about what helps are often wrong: nothing is assumed here but the list of what to try.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engines.measure import prompts, quality
from engines.measure.instructions import INSTRUCTIONS
from engines.measure.records import Case, Figure
from engines.measure.spread import apart, figure
from engines.measure.verdict import LEAST_DIFFERENCE
from engines.protocol import EngineSpec, Failed, Finished, GenerationRequest, Message, Target, Token
from engines.runtime.lease import Lease
from engines.runtime.manager import EngineFailure, EngineManager
from engines.telemetry.placement import family

DECODE = Case("tune-decode", "Decode", "chat", 64, 32)
PREFILL = Case("tune-prefill", "Prefill", "summarisation", 384, 4)
JOBS = {"decode": DECODE, "prefill": PREFILL}
_FINAL_REPEATS = 5
_LEAST_PATIENCE_S = 60.0
_CHECKED = 6
"""Instructions whose answers are held against the defaults'."""
_SEED = 1

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """One candidate and how long the job took with it, in seconds; None: it failed."""

    settings: Settings
    seconds: float | None
    round: int
    failure: str | None = None


@dataclass(frozen=True)
class Tuned:
    """What came of it."""

    best: Settings
    """Empty: the defaults are as good as anything."""
    why: str
    trials: tuple[Trial, ...] = ()
    default: Figure | None = None
    chosen: Figure | None = None
    finals: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def candidates(spec: EngineSpec, device: str) -> list[Settings]:
    """The defaults, every single setting, and every pair of settings that exist on this device."""
    known = [t for t in spec.tunables if t.devices is None or family(device) in t.devices]
    singles = [{tunable.name: value} for tunable in known for value in tunable.values]
    pairs = [
        {**one, **other}
        for one, other in itertools.combinations(singles, 2)
        if one.keys().isdisjoint(other.keys())
    ]
    return [{}, *singles, *pairs]


def tune(
    manager: EngineManager,
    target: Target,
    seconds: float,
    tell: Callable[[str], None] = lambda _text: None,
    *,
    job: str = "decode",
    clock: Callable[[], float] = time.monotonic,
) -> Tuned:
    """Find the settings that do the job fastest, within about so many seconds; raises EngineFailure if none do."""
    spec = manager.specs.get(target.engine)
    choices = candidates(spec, target.device) if spec else [{}]
    manager.prepare(target, lambda progress: tell(f"{target.spelling}: {progress.text}"))
    if len(choices) == 1:
        return Tuned({}, "This engine declares no settings for this device; the defaults stay.")
    with manager.activity.exclusive(f"tuning of {target.spelling}"):
        for state in manager.states():
            manager.unload(state.target)
        return _Search(manager, target, JOBS[job], seconds, tell, clock).run(choices)


class _Search:
    def __init__(
        self,
        manager: EngineManager,
        target: Target,
        case: Case,
        seconds: float,
        tell: Callable[[str], None],
        clock: Callable[[], float],
    ):
        self._manager, self._target, self._case = manager, target, case
        self._tell, self._clock = tell, clock
        self._started, self._seconds = clock(), seconds
        self._trials: list[Trial] = []
        self._variants = itertools.count(1)

    def run(self, choices: Sequence[Settings]) -> Tuned:
        began = self._clock()
        first = self._try({}, 1, 0)
        if first is None:
            raise EngineFailure(Failed("error", f"The defaults do not run: {self._trials[-1].failure}"))
        cost = max(0.01, self._clock() - began)
        left = self._fitting([choice for choice in choices if choice], cost)
        number, times = 1, 1
        ranked: list[tuple[float, Settings]] = [(first, {})]
        while left and not self._late(0.6):
            ranked = [(first, {})] if number == 1 else []
            for choice in left:
                if self._late(0.6):
                    break
                took = first if not choice and number == 1 else self._try(choice, times, number)
                if took is not None:
                    ranked.append((took, choice))
            ranked.sort(key=lambda pair: pair[0])
            if len(ranked) <= 2:
                break
            left = [choice for _, choice in ranked[: (len(ranked) + 1) // 2]]
            number, times = number + 1, times * 2
        best = next((choice for _, choice in ranked if choice), None)
        if best is None:
            return self._done({}, "Nothing else runs here; the defaults stay.")
        return self._final(best)

    def _fitting(self, choices: list[Settings], cost: float) -> list[Settings]:
        """As many as the time allows in a first round: single settings first, then pairs drawn at random."""
        room = max(1, int(0.3 * self._seconds / cost))
        singles = [choice for choice in choices if len(choice) == 1]
        pairs = [choice for choice in choices if len(choice) > 1]
        random.Random(_SEED).shuffle(pairs)
        return [*singles, *pairs][:room]

    def _late(self, share: float) -> bool:
        return self._clock() - self._started > share * self._seconds

    def _try(self, settings: Settings, times: int, number: int) -> float | None:
        """Median seconds of the job; None when it fails with these settings."""
        self._tell(f"{self._target.spelling}: trying {spelled(settings)}, round {number}")
        try:
            with self._leased(settings) as lease:
                self._run(lease)
                took = statistics.median(self._run(lease) for _ in range(times))
        except (EngineFailure, _TrialError) as error:
            self._trials.append(Trial(settings, None, number, str(error)))
            self._manager.retry(self._target)
            return None
        self._trials.append(Trial(settings, took, number))
        return took

    @contextlib.contextmanager
    def _leased(self, settings: Settings) -> Iterator[Lease]:
        """The target with these settings; a load that outlasts the time is given up."""
        late = threading.Event()
        timer = threading.Timer(self._patience(), late.set)
        timer.daemon = True
        timer.start()
        try:
            with self._manager.lease(self._target, cancelled=late, tuning=settings) as lease:
                timer.cancel()
                yield lease
        finally:
            timer.cancel()

    def _patience(self) -> float:
        """Seconds that one step may take: what is left, but never so little that nothing could be tried."""
        return max(_LEAST_PATIENCE_S, self._seconds - (self._clock() - self._started))

    def _run(self, lease: Lease) -> float:
        """Seconds of one job: all of a prefill, the decoding of a decode."""
        request, run_id = prompts.request(self._case, next(self._variants)), uuid.uuid4().hex
        timer = threading.Timer(self._patience(), lease.cancel, [run_id])
        timer.daemon = True
        timer.start()
        try:
            outcome = lease.generate(run_id, request, lambda _event: None)
        finally:
            timer.cancel()
        if isinstance(outcome, Failed):
            raise _TrialError(outcome.message)
        offsets = outcome.metrics.token_offsets_s
        if len(offsets) != self._case.new_tokens:
            raise _TrialError(f"it ended after {len(offsets)} of {self._case.new_tokens} tokens")
        return offsets[-1] - offsets[0] if self._case is DECODE else offsets[0]

    def _final(self, best: Settings) -> Tuned:
        """The best against the defaults, in turn, with the answers looked at."""
        times: dict[str, list[float]] = {"default": [], "best": []}
        answers: dict[str, list[tuple[int, ...]]] = {}
        for number in range(_FINAL_REPEATS):
            order: list[tuple[str, Settings]] = [("default", {}), ("best", best)]
            for name, settings in order if number % 2 == 0 else order[::-1]:
                self._tell(f"{self._target.spelling}: {spelled(settings)} against the defaults, {number + 1}")
                try:
                    with self._leased(settings) as lease:
                        if name not in answers:
                            answers[name] = self._answers(lease)
                        self._run(lease)
                        times[name].append(statistics.median(self._run(lease) for _ in range(2)))
                except (EngineFailure, _TrialError) as error:
                    return self._done(
                        {}, f"{spelled(best)} was fastest, then failed ({error}); the defaults stay."
                    )
            if number >= 2 and self._late(1.0):
                break
        default, chosen = figure(times["default"]), figure(times["best"])
        finals = {name: tuple(values) for name, values in times.items()}
        gain = default.median / chosen.median - 1 if default and chosen else 0.0
        told = f"{spelled(best)} was {gain:+.1%} against the defaults"
        same = sum(_begin_alike(a, b) for a, b in zip(answers["default"], answers["best"], strict=True))
        if same < quality.SAME_START_SHARE * len(answers["default"]):
            why = f"{told}, but only {same} of {len(answers['default'])} answers begin as before; the defaults stay."
            return self._done({}, why, default, chosen, finals)
        if default is None or chosen is None or gain < LEAST_DIFFERENCE or not apart(default, chosen):
            return self._done(
                {}, f"{told}: not clearly better, so the defaults stay.", default, chosen, finals
            )
        return self._done(best, f"{told}, and its answers begin as before: kept.", default, chosen, finals)

    def _answers(self, lease: Lease) -> list[tuple[int, ...]]:
        found = []
        for instruction in INSTRUCTIONS[:_CHECKED]:
            ids: list[int] = []

            def on_event(event: Any, ids: list[int] = ids) -> None:
                if isinstance(event, Token) and event.token_id is not None:
                    ids.append(event.token_id)

            request = GenerationRequest(
                (Message("user", instruction.prompt),), max_new_tokens=12, reuse_kv_cache=False
            )
            outcome = lease.generate(uuid.uuid4().hex, request, on_event)
            if not isinstance(outcome, Finished):
                raise _TrialError(outcome.message)
            found.append(tuple(ids))
        return found

    def _done(
        self,
        best: Settings,
        why: str,
        default: Figure | None = None,
        chosen: Figure | None = None,
        finals: Mapping[str, tuple[float, ...]] | None = None,
    ) -> Tuned:
        self._manager.unload(self._target)
        return Tuned(best, why, tuple(self._trials), default, chosen, finals or {})


class _TrialError(Exception):
    """A candidate does not do the job."""


def _begin_alike(one: Sequence[int], other: Sequence[int]) -> bool:
    return tuple(one[:1]) == tuple(other[:1])


def spelled(settings: Settings) -> str:
    """`INFERENCE_PRECISION_HINT=f32, threads=2`, or `the defaults`."""
    return ", ".join(f"{name}={value}" for name, value in sorted(settings.items())) or "the defaults"
