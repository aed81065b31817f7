"""What is left to do of a measurement, read from what has been done: that is all that resuming takes.

Making ready comes first, the reference's answers before the others', then the rounds: every lane once in each, in an
order that turns, so that a machine that warms up or slows down does so for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.measure.records import Case, LaneResult, Measurement, Repeat
from engines.measure.suites import ordered_passes

MOST_ATTEMPTS = 3
"""A disturbed repeat is done again so often; after that it stays, marked."""
_ENDS_THE_CASE = ("prompt", "memory")
"""Failures of one case on one lane: too long, too large. All others end the lane."""


@dataclass(frozen=True)
class Step:
    """One visit to one lane (or, in a race, to two)."""

    name: str
    """Of PASSES."""
    lane: str
    round: int = 0
    beside: str | None = None

    @property
    def title(self) -> str:
        """For people."""
        return {
            "ready": f"{self.lane}: making ready",
            "quality": f"{self.lane}: checking answers",
            "speed": f"{self.lane}: round {self.round}",
            "memory": f"{self.lane}: memory",
            "foreground": f"{self.lane}: what it costs other programs",
            "race": f"{self.lane} together with {self.beside}",
        }[self.name]


def remaining(measurement: Measurement) -> list[Step]:
    """Every step still to be done, in order."""
    steps: list[Step] = []
    for name in ordered_passes(measurement.suite):
        steps += _PASSES[name](measurement)
    return steps


def living(measurement: Measurement) -> list[LaneResult]:
    """Lanes that have not failed."""
    return [result for result in measurement.lanes if result.failure is None]


def _measured(measurement: Measurement) -> list[LaneResult]:
    return [result for result in living(measurement) if not result.reference_only]


def _ready(measurement: Measurement) -> list[Step]:
    return [Step("ready", result.lane.key) for result in living(measurement) if result.device is None]


def _quality(measurement: Measurement) -> list[Step]:
    waiting = [result for result in living(measurement) if result.quality is None]
    first = measurement.reference
    ordered = sorted(waiting, key=lambda result: result.lane.key != first)
    return [Step("quality", result.lane.key) for result in ordered]


def _speed(measurement: Measurement) -> list[Step]:
    lanes = [result for result in measurement.lanes if not result.reference_only]
    steps = []
    for number in range(1, measurement.suite.repeats + 1):
        turn = (number - 1) % max(1, len(lanes))
        for result in (*lanes[turn:], *lanes[:turn]):
            if result.failure is None and open_cases(measurement, result, number):
                steps.append(Step("speed", result.lane.key, number))
    return steps


def open_cases(measurement: Measurement, result: LaneResult, number: int) -> list[Case]:
    """The cases of a round that a lane has still to do."""
    return [case for case in measurement.suite.cases if not _settled(result.repeats, case, number)]


def _settled(repeats: Sequence[Repeat], case: Case, number: int) -> bool:
    ofcase = [repeat for repeat in repeats if repeat.case == case.name]
    if any(r.failure is not None and r.failure.kind in _ENDS_THE_CASE for r in ofcase):
        return True
    mine = [repeat for repeat in ofcase if repeat.number == number]
    return any(not repeat.disturbed for repeat in mine) or len(mine) >= MOST_ATTEMPTS


def ends_the_lane(repeat: Repeat) -> bool:
    """Whether a failed repeat is the end of its lane, and not only of its case."""
    return repeat.failure is not None and repeat.failure.kind not in _ENDS_THE_CASE


def _memory(measurement: Measurement) -> list[Step]:
    return [Step("memory", r.lane.key) for r in _measured(measurement) if r.peak_rss_bytes is None]


def _foreground(measurement: Measurement) -> list[Step]:
    return [Step("foreground", r.lane.key) for r in _measured(measurement) if r.foreground is None]


def _race(measurement: Measurement) -> list[Step]:
    done = {(row.lane, row.beside) for row in measurement.together}
    keys = [result.lane.key for result in _measured(measurement)]
    return [
        Step("race", one, beside=other)
        for at, one in enumerate(keys)
        for other in keys[at + 1 :]
        if (one, other) not in done
    ]


_PASSES = {
    "ready": _ready,
    "quality": _quality,
    "speed": _speed,
    "memory": _memory,
    "foreground": _foreground,
    "race": _race,
}


# --- how long it will take ---------------------------------------------------------------------------------

_UNKNOWN_LOAD_S = 10.0
_INSTRUCTIONS = 20
_INSTRUCTION_SHARE = 0.6
"""Of the longest reply: how long an answer to an instruction is, on average."""


def seconds(step: Step, measurement: Measurement) -> float | None:
    """What a step will take, from the lane's probe; None while there was none."""
    result = measurement.lane(step.lane)
    probe = result.probe if result else None
    if result is None or (step.name != "ready" and (probe is None or not probe.prefill_tok_s)):
        return None
    load = result.ledger.start_s or _UNKNOWN_LOAD_S
    if step.name == "ready" or probe is None:
        return 2 * load
    cases = measurement.suite.cases
    if step.name == "quality":
        return load + _INSTRUCTIONS * _work(
            probe, 40, measurement.suite.instruction_tokens * _INSTRUCTION_SHARE
        )
    if step.name == "speed":
        warm_up = sum(_work(probe, case.prompt_tokens, 4) for case in cases)
        return load + warm_up + sum(_work(probe, case.prompt_tokens, case.new_tokens) for case in cases)
    if step.name == "memory":
        return load + max((_work(probe, case.prompt_tokens, case.new_tokens) for case in cases), default=0.0)
    return (2 if step.name == "race" else 1) * load + 8.0


def _work(probe: Repeat, prompt_tokens: float, new_tokens: float) -> float:
    prefill, decode = probe.prefill_tok_s, probe.decode_tok_s
    return prompt_tokens / (prefill or 100.0) + new_tokens / (decode or 10.0)


def lane_seconds(measurement: Measurement) -> dict[str, float]:
    """Lane -> seconds that all its remaining steps will take, where that is known."""
    found: dict[str, float] = {}
    for step in remaining(measurement):
        cost = seconds(step, measurement)
        if cost is not None:
            found[step.lane] = found.get(step.lane, 0.0) + cost
    return found
