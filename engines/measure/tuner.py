"""Tries the settings that an engine declares (`EngineSpec.tunables`) and keeps what really is faster here.

Successive halving (Jamieson & Talwalkar, 2016): every candidate gets a short try; the better half gets one twice as
long; and so on until two are left, of which the best is measured in turn with the defaults and with what was kept
before. It is kept only if its interval lies apart from theirs, the medians differ by 3 % or more, and the answers
still begin as by default; what was kept before stays until the defaults or a better setting beat it in the same way.
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
from engines.measure.heartbeat import Linked
from engines.measure.instructions import INSTRUCTIONS
from engines.measure.records import Case, Figure
from engines.measure.spread import apart, figure
from engines.measure.verdict import LEAST_DIFFERENCE
from engines.measure.words import percent
from engines.protocol import EngineSpec, Failed, Finished, GenerationRequest, Message, Target, Token
from engines.runtime.activity import GaveUpError
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
    """To be kept from now on; empty: the defaults are as good as anything."""
    why: str
    trials: tuple[Trial, ...] = ()
    default: Figure | None = None
    chosen: Figure | None = None
    finals: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    stopped: bool = False
    """Ended by a person; what was kept before is kept."""


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
    kept: Settings | None = None,
    in_use: Settings | None = None,
    stop: threading.Event | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Tuned:
    """Find the settings that do the job fastest, within about so many seconds; raises EngineFailure if none do.

    `kept`: what was kept for this job before; it and what is `in_use` are tried first. Once `stop` is set the search
    ends and `kept` stays.
    """
    spec = manager.specs.get(target.engine)
    choices = candidates(spec, target.device) if spec else [{}]
    stop = stop or threading.Event()
    search = _Search(manager, target, JOBS[job], seconds, tell, clock, kept or {}, stop)
    tried_first = [dict(known) for known in (kept, in_use) if known]
    try:
        manager.prepare(target, lambda progress: tell(f"{target.spelling}: {progress.text}"), stop)
        if len(choices) == 1:
            return Tuned(
                kept or {}, f"This engine declares no settings for this device; {_stay(kept or {})}."
            )
        choices = [*tried_first, *(choice for choice in choices if choice not in tried_first)]
        with manager.activity.exclusive(
            f"tuning of {target.spelling}",
            cancelled=stop.is_set,
            on_wait=lambda holder: tell(f"Waiting for the machine: {holder}"),
        ):
            for state in manager.states():
                manager.unload(state.target)
            return search.run(choices)
    except (GaveUpError, EngineFailure, _StoppedError):
        if not stop.is_set():
            raise
        return search.stopped()


class _Search:
    def __init__(
        self,
        manager: EngineManager,
        target: Target,
        case: Case,
        seconds: float,
        tell: Callable[[str], None],
        clock: Callable[[], float],
        kept: Settings,
        stop: threading.Event,
    ):
        self._manager, self._target, self._case = manager, target, case
        self._kept, self._stop = dict(kept), stop
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
        if best is None and not self._kept:
            return self._done({}, "Nothing else runs here; the defaults stay.")
        return self._final(best)

    def stopped(self) -> Tuned:
        """What can be said when a person ends it: how far it came, and that nothing changes."""
        self._manager.unload(self._target)
        tried = [trial for trial in self._trials if trial.seconds is not None]
        said = f"Stopped after {len(self._trials)} tries; {_stay(self._kept)}."
        fastest = min(tried, key=lambda trial: trial.seconds or 0.0, default=None)
        if fastest is not None and fastest.settings:
            said += f" Fastest so far, unproven: {spelled(fastest.settings)}."
        return Tuned(self._kept, said, tuple(self._trials), stopped=True)

    def _fitting(self, choices: list[Settings], cost: float) -> list[Settings]:
        """As many as the time allows in a first round: what is kept, single settings, then pairs at random."""
        room = max(1, int(0.3 * self._seconds / cost))
        kept = [choice for choice in choices if choice == self._kept]
        singles = [choice for choice in choices if len(choice) == 1 and choice not in kept]
        pairs = [choice for choice in choices if len(choice) > 1 and choice not in kept]
        random.Random(_SEED).shuffle(pairs)
        return [*kept, *singles, *pairs][:room]

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
            self._check_stop()
            self._trials.append(Trial(settings, None, number, str(error)))
            self._manager.retry(self._target)
            return None
        self._trials.append(Trial(settings, took, number))
        return took

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _StoppedError

    @contextlib.contextmanager
    def _leased(self, settings: Settings) -> Iterator[Lease]:
        """The target with these settings; a load that outlasts the time is given up."""
        self._check_stop()
        late = threading.Event()
        given_up = Linked(late, self._stop)
        timer = threading.Timer(self._patience(), late.set)
        timer.daemon = True
        timer.start()
        try:
            with self._manager.lease(self._target, cancelled=given_up.event, tuning=settings) as lease:
                timer.cancel()
                yield lease
        finally:
            timer.cancel()
            given_up.close()

    def _patience(self) -> float:
        """Seconds that one step may take: what is left, but never so little that nothing could be tried."""
        return max(_LEAST_PATIENCE_S, self._seconds - (self._clock() - self._started))

    def _run(self, lease: Lease) -> float:
        """Seconds of one job: all of a prefill, the decoding of a decode."""
        request, run_id = prompts.request(self._case, next(self._variants)), uuid.uuid4().hex
        timer = threading.Timer(self._patience(), lease.cancel, [run_id])
        timer.daemon = True
        timer.start()
        stopper = Linked(self._stop, on_set=lambda: lease.cancel(run_id))
        try:
            outcome = lease.generate(run_id, request, lambda _event: None)
        finally:
            timer.cancel()
            stopper.close()
        self._check_stop()
        if isinstance(outcome, Failed):
            raise _TrialError(outcome.message)
        offsets = outcome.metrics.token_offsets_s
        if len(offsets) != self._case.new_tokens:
            raise _TrialError(f"it ended after {len(offsets)} of {self._case.new_tokens} tokens")
        return offsets[-1] - offsets[0] if self._case is DECODE else offsets[0]

    def _final(self, best: Settings | None) -> Tuned:
        """The best, the defaults and what was kept before, in turn, with the answers looked at."""
        contenders: dict[str, Settings] = {"default": {}}
        if self._kept:
            contenders["kept"] = self._kept
        if best and best != self._kept:
            contenders["best"] = best
        final = _Final(contenders)
        for number in range(_FINAL_REPEATS):
            order = [(name, settings) for name, settings in contenders.items() if name not in final.failed]
            for name, settings in order if number % 2 == 0 else order[::-1]:
                self._tell(f"{self._target.spelling}: {spelled(settings)}, final round {number + 1}")
                try:
                    with self._leased(settings) as lease:
                        if name not in final.answers:
                            final.answers[name] = self._answers(lease)
                        self._run(lease)
                        took = statistics.median(self._run(lease) for _ in range(2))
                        final.times[name].append(took)
                except (EngineFailure, _TrialError) as error:
                    self._check_stop()
                    final.failed[name] = str(error)
            if "default" in final.failed:
                said = f"The defaults do not run: {final.failed['default']}"
                raise EngineFailure(Failed("error", said))
            if number >= 2 and self._late(1.0):
                break
        chosen, why = final.decide()
        return self._done(
            contenders[chosen], why, final.figure("default"), final.figure(chosen), final.finals
        )

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
            self._check_stop()
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


class _Final:
    """What the last candidates did, and which of them is to be kept."""

    def __init__(self, contenders: Mapping[str, Settings]):
        """Of `default`, `kept` and `best`."""
        self._contenders = contenders
        self.times: dict[str, list[float]] = {name: [] for name in contenders}
        self.answers: dict[str, list[tuple[int, ...]]] = {}
        self.failed: dict[str, str] = {}

    @property
    def finals(self) -> dict[str, tuple[float, ...]]:
        return {name: tuple(values) for name, values in self.times.items()}

    def figure(self, name: str) -> Figure | None:
        return figure(self.times[name])

    def decide(self) -> tuple[str, str]:
        """Name of the one to be kept, and why."""
        stays, why = self._of_what_was_kept()
        if "best" not in self._contenders:
            return stays, why
        name, against = self._spelled("best"), self._spelled(stays)
        # Where what was kept before lost, that is said first: something changes, although the best is not kept.
        before, after = (f"{why} ", "") if self._lost(stays) else ("", f", so {self._stay(stays)}")
        if (problem := self._problem("best")) is not None:
            return stays, f"{before}{name} was fastest, but {problem}{after}."
        told = f"{name} was {self._gain('best', stays)} against {against}"
        if not self._better("best", stays):
            return stays, f"{before}{told}: not clearly better{after}."
        return "best", f"{told}, and its answers begin as before: kept."

    def _lost(self, stays: str) -> bool:
        """Whether what was kept before goes."""
        return "kept" in self._contenders and stays != "kept"

    def _of_what_was_kept(self) -> tuple[str, str]:
        if "kept" not in self._contenders:
            return "default", "The defaults stay."
        name = self._spelled("kept")
        if (problem := self._problem("kept")) is not None:
            return "default", f"{name} was kept before, but {problem}; the defaults are used again."
        gain = self._gain("kept", "default")
        if self._better("default", "kept"):
            return (
                "default",
                f"{name} was kept before, but is {gain} against the defaults, which are used again.",
            )
        return "kept", f"Nothing beats {name} ({gain} against the defaults): it stays."

    def _problem(self, name: str) -> str | None:
        """Why it cannot be kept, however fast."""
        if name in self.failed:
            return f"failed ({self.failed[name]})"
        expected = self.answers["default"]
        same = sum(_begin_alike(a, b) for a, b in zip(expected, self.answers[name], strict=True))
        if same < quality.SAME_START_SHARE * len(expected):
            return f"only {same} of {len(expected)} answers begin as by default"
        return None

    def _better(self, one: str, other: str) -> bool:
        a, b = self.figure(one), self.figure(other)
        return a is not None and b is not None and b.median / a.median - 1 >= LEAST_DIFFERENCE and apart(a, b)

    def _gain(self, one: str, other: str) -> str:
        a, b = self.figure(one), self.figure(other)
        return percent(b.median / a.median - 1 if a and b else 0.0, signed=True)

    def _spelled(self, name: str) -> str:
        return spelled(self._contenders[name])

    def _stay(self, name: str) -> str:
        return _stay(self._contenders[name])


class _TrialError(Exception):
    """A candidate does not do the job."""


class _StoppedError(Exception):
    """A person wants the end."""


def _stay(settings: Settings) -> str:
    return f"{spelled(settings)} stay{'s' if settings else ''}"


def _begin_alike(one: Sequence[int], other: Sequence[int]) -> bool:
    return tuple(one[:1]) == tuple(other[:1])


def spelled(settings: Settings) -> str:
    """`INFERENCE_PRECISION_HINT=f32, threads=2`, or `the defaults`."""
    return ", ".join(f"{name}={value}" for name, value in sorted(settings.items())) or "the defaults"
