"""How long a measurement will take, said before it starts: from what the same lanes did on this machine before.

A lane that never ran here is taken to be slow, and named; every lane is tried first, and then the time is known.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engines.measure import steps, suites
from engines.measure.plan import plan
from engines.measure.records import Lane, Measurement, Repeat, Suite
from engines.protocol import Target
from storage.database import StoreError
from storage.speeds import rates_of
from storage.store import Store
from ui import format as fmt

UNKNOWN_PREFILL_TOK_S, UNKNOWN_DECODE_TOK_S = 100.0, 10.0
PAUSE_S = 1.0
"""Cool-down after each step."""

Rates = tuple[float, float]
"""Prefill and decode rate, tok/s."""


@dataclass(frozen=True)
class Estimate:
    """What to expect of a measurement that was not started yet."""

    seconds: float
    lanes: int
    unknown: tuple[str, ...]
    """Lanes that never ran here."""
    note: str | None
    """Whether the suite will be shortened."""

    @property
    def text(self) -> str:
        """One sentence or two, for the person."""
        said = f"About {roughly(self.seconds)} for {fmt.counted(self.lanes, 'lane')}."
        if self.unknown:
            names = ", ".join(self.unknown)
            said += f" Never run here, so taken to write {UNKNOWN_DECODE_TOK_S:.0f} tok/s: {names}."
        said += " Each lane is tried first, and the time left is corrected then."
        if self.note is None:
            return said
        return f"{said} {self.note}" if not self.unknown else f"{said} A slow machine gets shorter cases."


def roughly(seconds: float) -> str:
    """`40 s`, `12 min`, `1 h 40 min`: no more precise than an estimate is."""
    if seconds < 55:
        return f"{max(10, round(seconds / 10) * 10)} s"
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(round(minutes / 5) * 5, 60)
    return f"{hours} h {rest:02d} min" if rest else f"{hours} h"


def estimate(targets: Sequence[Target], suite: Suite, known: Callable[[Target], Rates | None]) -> Estimate:
    """`known`: the rates a target reached here before; None: it never ran."""
    found = {target: known(target) for target in targets}
    planned = _tried(targets, suite, found)
    costs = _costs(planned)
    longest = max(costs.values(), default=0.0)
    note = None
    if suite.target_s and longest > suite.target_s:
        planned = _tried(targets, suites.scaled(suite, suite.target_s / longest), found)
        costs, note = _costs(planned), planned.suite.note
    unknown = tuple(target.spelling for target in targets if found[target] is None)
    total = sum(costs.values()) + PAUSE_S * len(steps.remaining(planned))
    return Estimate(total, len(targets), unknown, note)


def _tried(targets: Sequence[Target], suite: Suite, found: dict[Target, Rates | None]) -> Measurement:
    """The plan as if every lane had been tried already, at its known rates."""
    planned = plan("", [Lane(target) for target in targets], suite)
    lanes = tuple(replace(result, probe=_probe(found[result.lane.target])) for result in planned.lanes)
    return replace(planned, lanes=lanes)


def _probe(rates: Rates | None) -> Repeat:
    prefill, decode = rates or (UNKNOWN_PREFILL_TOK_S, UNKNOWN_DECODE_TOK_S)
    first = 100 / prefill
    return Repeat("probe", 1, prompt_tokens=100, token_offsets_s=(first, first + 1 / decode))


def _costs(planned: Measurement) -> dict[str, float]:
    return steps.lane_seconds(planned)


def rates_in(store: Store) -> Callable[[Target], Rates | None]:
    """Rates of a target's last undisturbed runs in the history."""

    def known(target: Target) -> Rates | None:
        try:
            return rates_of(store, target, platform.node())
        except StoreError:
            return None

    return known
