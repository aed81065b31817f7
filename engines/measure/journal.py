"""Who keeps a measurement while it grows: what a session tells it, and one that keeps nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engines.measure.records import Case, Lane, Measurement, Repeat
from engines.protocol import Failed, Finished, Loaded, PreparedModel
from engines.telemetry.observer import Observed


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
