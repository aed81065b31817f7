"""How a measurement stands: all that has been found, what runs now, what a person wishes, and the time that is left.

The thread that measures writes here; pages and commands read and wish from any other. What has been found is an
immutable record that is replaced as it grows and handed to the journal after every step, so whatever was saved last
is enough to go on from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engines.measure import steps
from engines.measure.journal import Journal
from engines.measure.records import LaneResult, Measurement, Watch, utc_now
from engines.measure.steps import Step
from engines.protocol import Failed, Progress

ENDED = ("finished", "stopped", "failed")


class HaltError(Exception):
    """The person wants a pause or the end."""


class LaneEndsError(Exception):
    """This lane is done for; `failed` says why."""

    def __init__(self, failed: Failed):
        super().__init__(failed.message)
        self.failed = failed


class Standing:
    """Thread-safe."""

    def __init__(self, measurement: Measurement, journal: Journal, cooldown_s: float):
        self._measurement = replace(measurement, status="running")
        self.journal, self._cooldown_s = journal, cooldown_s
        self._lock = threading.Condition()
        self._state = "waiting"
        self._wish: str | None = None
        self.cancelled = threading.Event()
        """Set for good once the end is wished for."""
        self._now = "Waiting"
        self._lane: str | None = None
        self._tokens = 0
        self._done = 0
        self._pace: list[tuple[float, float]] = []
        """Of the steps done: seconds estimated and taken."""

    # --- looking ---------------------------------------------------------------------------------------

    @property
    def measurement(self) -> Measurement:
        """All that has been found so far."""
        with self._lock:
            return self._measurement

    def result(self, key: str) -> LaneResult:
        """A lane of it; raises KeyError."""
        found = self.measurement.lane(key)
        if found is None:
            raise KeyError(key)
        return found

    def reference(self) -> LaneResult | None:
        """The reference lane, or the next that can stand in for one that failed."""
        measurement = self.measurement
        chosen = measurement.lane(measurement.reference or "")
        if chosen is not None and chosen.failure is None:
            return chosen
        alive = steps.living(measurement)
        return next((result for result in alive if result.quality is not None), alive[0] if alive else None)

    def watch(self) -> Watch:
        """How it stands; cheap enough for several times a second."""
        with self._lock:
            measurement, state, now = self._measurement, self._state, self._now
            lane, tokens, done = self._lane, self._tokens, self._done
        left = steps.remaining(measurement) if state not in ENDED else []
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

    # --- wishes ----------------------------------------------------------------------------------------

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
        self.cancelled.set()

    def _wishes(self, state: str) -> None:
        with self._lock:
            if self._state not in (*ENDED, "stopping"):
                self._wish = self._state = state
                self._lock.notify_all()

    def halting(self) -> bool:
        """Whether a pause or the end is wished for."""
        return self._wish is not None

    @property
    def stopping(self) -> bool:
        return self._wish == "stopping"

    def check_wishes(self) -> None:
        """Raises HaltError when a pause or the end is wished for."""
        if self.halting():
            raise HaltError

    def rest(self) -> None:
        """Wait out a pause, if one is wished for."""
        with self._lock:
            if self._wish != "pausing":
                return
            self._state, self._now, self._lane = "paused", "Paused", None
            self.put(status="paused")
            while self._wish == "pausing":
                self._lock.wait()
            if self._wish is None:
                self.put(status="running")

    # --- writing ---------------------------------------------------------------------------------------

    def begins(self) -> None:
        with self._lock:
            if self._wish is None:
                self._state = "running"

    def begins_step(self, step: Step) -> None:
        with self._lock:
            self._now, self._lane, self._tokens = step.title, step.lane, 0

    def did_step(self, expected_s: float | None, took_s: float) -> None:
        with self._lock:
            if expected_s:
                self._pace.append((expected_s, took_s))
            self._done += 1

    def ends(self, state: str) -> None:
        with self._lock:
            self._state, self._now, self._lane = state, state.capitalize(), None
            self._measurement = replace(self._measurement, status=state)
        self.save()

    def begins_reply(self) -> None:
        with self._lock:
            self._tokens = 0

    def token(self) -> None:
        """One more of the reply that is being written."""
        self._tokens += 1

    def say(self, text: str) -> None:
        """What runs now, for people."""
        with self._lock:
            self._now = text

    def progress(self, key: str, also: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Says a lane's loading or converting as it goes on."""

        def tell(progress: Progress) -> None:
            also(progress)
            self.say(f"{key}: {progress.text}")

        return tell

    def put(self, **fields: Any) -> None:
        """Replace parts of the measurement."""
        with self._lock:
            self._measurement = replace(self._measurement, **fields)

    def change(self, key: str, **fields: Any) -> None:
        """Replace parts of one lane."""
        with self._lock:
            lanes = tuple(
                replace(result, **fields) if result.lane.key == key else result
                for result in self._measurement.lanes
            )
            self._measurement = replace(self._measurement, lanes=lanes)

    def settle(self) -> None:
        """Mark the lanes as measured of which nothing is left."""
        for result in self.measurement.lanes:
            if result.failure is None and result.device is not None:
                key = result.lane.key
                left = [s for s in steps.remaining(self.measurement) if key in (s.lane, s.beside)]
                self.change(key, status="partly" if left else "measured")

    def save(self) -> None:
        """Hand the measurement as it is now to the journal."""
        self.put(updated_at=utc_now())
        self.journal.saved(self.measurement)
