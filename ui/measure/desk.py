"""The desk: starts measurements in a thread of their own, one at a time, and finds them again; knows no page.

A measurement belongs to the app and not to the browser tab that started it: whoever opens the page sees it go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engines.measure import lanes
from engines.measure.plan import plan
from engines.measure.records import CONTRACT, Measurement, Suite
from engines.measure.session import Session
from engines.protocol import Target
from engines.runtime.manager import EngineManager
from storage.measurements import Measurements


class DeskError(ValueError):
    """The measurement cannot be started; the message is for the person."""


class Desk:
    """One per app. Thread-safe."""

    def __init__(
        self,
        manager: EngineManager,
        measurements: Measurements,
        machine: Callable[[], Mapping[str, Any]],
        make_session: Callable[..., Session] = Session,
    ):
        """`machine`: gives the facts about this machine."""
        self.manager, self.measurements = manager, measurements
        self._machine, self._make_session = machine, make_session
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._over = threading.Event()
        """Set while nothing runs. Not the thread's own end: a join that Ctrl+C interrupts takes it for ended."""
        self._over.set()
        self._error: BaseException | None = None

    @property
    def session(self) -> Session | None:
        """The measurement that runs, or the last that ran in this process."""
        with self._lock:
            return self._session

    @property
    def busy(self) -> bool:
        return not self._over.is_set()

    def targets(self, model: str) -> tuple[Target, ...]:
        """Every target that can be measured here; takes seconds the first time."""
        return lanes.available(self.manager, model)

    def variants(self, model: str) -> tuple[tuple[Target, str | None], ...]:
        """Targets with other weights, and what for (lanes.variants)."""
        return lanes.variants(self.manager, model)

    def check(self, targets: Sequence[Target]) -> None:
        """Raises DeskError where there is nothing to measure, or something that never can be."""
        if not targets:
            raise DeskError("No backend is chosen. Choose one or more first.")
        if len(models := list(dict.fromkeys(target.model for target in targets))) > 1:
            raise DeskError(
                f"A measurement is of one model, and these lanes name several ({', '.join(models)}). "
                "Measure each by itself; the reports can stand side by side."
            )
        for target in targets:
            if said := lanes.refusal(self.manager, target):
                raise DeskError(said)

    def start(
        self, model: str, targets: Sequence[Target], suite: Suite, *, keep_loaded: bool = False
    ) -> Session:
        """Begin a measurement; returns at once. Raises DeskError while another one runs."""
        self.check(targets)
        if targets[0].model != model:
            raise DeskError(f"These lanes run {targets[0].model}, not {model}.")
        if not suite.cases:
            raise DeskError("The suite has no case.")
        chosen = [lanes.lane_of(self.manager, target) for target in targets]
        reference = lanes.reference(self.manager, model, chosen)
        planned = plan(model, chosen, suite, reference=reference, machine_facts=self._machine())
        return self._begin(planned, keep_loaded=keep_loaded)

    def resume(self, measurement_id: str) -> Session:
        """Go on with a saved measurement where it ended; raises DeskError or StoreError."""
        saved = self.measurements.measurement(measurement_id)
        if saved is None:
            raise DeskError(f"There is no measurement {measurement_id}.")
        if saved.status == "finished":
            raise DeskError("This measurement is complete.")
        if said := self._not_to_be_mixed(saved):
            raise DeskError(f"{said} Start a new one here; the two can stand side by side.")
        return self._begin(saved, keep_loaded=bool(saved.environment.get("keep_loaded")))

    def _not_to_be_mixed(self, saved: Measurement) -> str | None:
        """Why repeats made here and now would be of another kind than those that are there; None: they would not."""
        here, there = self._machine().get("processor"), saved.machine.get("processor")
        if origin := self.measurements.origin(saved.id):
            return f"This measurement was begun on another computer ({origin})."
        if saved.contract != CONTRACT:
            return f"This measurement follows the rules {saved.contract}, this version {CONTRACT}."
        if here and there and here != there:
            return f"This measurement was begun on another processor ({there}; this is {here})."
        return None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; True once nothing runs. Raises what the session raised."""
        if not self._over.wait(timeout):
            return False
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return True

    def close(self, timeout: float | None = 20.0) -> None:
        """Stop what runs and keep what is done; for the end of the app."""
        session = self.session
        if session is not None and self.busy:
            session.stop()
            self._over.wait(timeout)

    def _begin(self, measurement: Measurement, **options: Any) -> Session:
        with self._lock:
            if self.busy:
                raise DeskError("A measurement is running. Stop it first, or wait.")
            session = self._session = self._make_session(
                measurement, self.manager, journal=self.measurements, **options
            )
            self._error = None
            self._over.clear()
            threading.Thread(target=self._work, args=(session,), name="measure", daemon=True).start()
        return session

    def _work(self, session: Session) -> None:
        try:
            session.run()
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            self._error = error
        finally:
            self._over.set()
