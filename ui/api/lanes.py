"""Which lanes programs can ask for, and what they call them: a target, an alias, a model's own name, or `auto`."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engines.models.library import ModelLibrary
from engines.protocol import DEMO_MODEL, Availability, EngineSpec, ProtocolError, Target
from engines.runtime.manager import EngineManager
from storage.measurements import Measurements
from storage.speeds import fastest_first, used_last
from storage.store import Store, StoreError
from ui.api.errors import ApiError

AUTO = "auto"
ALIASES = "api.aliases"
"""Setting: alias -> name of a lane."""
_KEPT_S = 10.0


def lane_name(target: Target) -> str:
    """`openvino-genai/CPU/int4@demo`: what a model is called in the API."""
    return f"{target.spelling}@{target.model}"


@dataclass(frozen=True)
class Lane:
    """One thing that can be asked for."""

    target: Target
    title: str
    """Of its engine."""
    ready: bool
    """False: the bundled model, still to be converted for it."""
    elsewhere: bool
    """Whether another server answers."""


class Lanes:
    """What can be asked for now. Thread-safe."""

    def __init__(self, manager: EngineManager, store: Store, library: ModelLibrary):
        self._manager, self._store, self._library = manager, store, library
        self._lock = threading.Lock()
        self._listed: tuple[float, tuple[Lane, ...]] | None = None

    # --- what there is ---------------------------------------------------------------------------------

    def all(self) -> tuple[Lane, ...]:
        """Every lane that can run here now without a download; may take seconds the first time."""
        with self._lock:
            if self._listed is None or time.monotonic() - self._listed[0] > _KEPT_S:
                self._listed = time.monotonic(), tuple(self._find())
            return self._listed[1]

    def _find(self) -> Iterator[Lane]:
        availability = self._availability()
        here = tuple(choice.name for choice in self._library.models() if choice.is_here)
        for spec in self._manager.specs.values():
            found = availability.get(spec.name)
            for status in found.device_status if found and found.ok else ():
                if not status.ok:
                    continue
                for precision in status.precisions or spec.precisions:
                    for model in here if status.models is None else status.models:
                        target = Target(spec.name, status.device, precision, model)
                        ready = self._library.is_ready(target, spec)
                        if ready or model == DEMO_MODEL:
                            yield Lane(target, spec.title, ready, spec.model_elsewhere)

    def _availability(self) -> Mapping[str, Availability]:
        return self._manager.known_availability or self._manager.availability()

    def aliases(self) -> dict[str, str]:
        """Alias -> name of a lane, as the owner gave them."""
        try:
            found = self._store.get_setting(ALIASES, {})
        except StoreError:
            return {}
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    def set_alias(self, alias: str, name: str | None) -> None:
        """Give a lane another name, or take it away; raises ApiError for a name that is none."""
        alias = alias.strip()
        if not alias or alias == AUTO or len(alias) > 100:
            raise ApiError(400, "An alias has 1 to 100 characters and is not “auto”.", param="alias")
        left = {known: lane for known, lane in self.aliases().items() if known != alias}
        if name is not None:
            left[alias] = lane_name(self.resolve(name))
        self._store.set_setting(ALIASES, left)

    # --- what is meant ---------------------------------------------------------------------------------

    def resolve(self, name: str) -> Target:
        """The target behind a name, whatever its capitals; raises ApiError (404) saying what there is."""
        name = name.strip()
        name = self.aliases().get(name, name)
        try:
            return self._named(name)
        except ApiError:
            spelled = self._spelled(name)
            if spelled is None:
                raise
        return self._named(spelled)

    def _spelled(self, name: str) -> str | None:
        """The one name here from which this differs in capitals only, as the Hub does not mind them either."""
        targets = [lane.target for lane in self.all()]
        known = {AUTO, *map(lane_name, targets), *(target.model for target in targets)}
        alike = {each for each in known - {name} if each.casefold() == name.casefold()}
        return alike.pop() if len(alike) == 1 else None

    def _named(self, name: str) -> Target:
        if name == AUTO:
            return self._best()
        if name.count("/") >= 2 and name.split("/", 1)[0] in self._manager.specs:
            return self._checked(name)
        if any(lane.target.model == name for lane in self.all()):
            return self._best(name)
        shown = ", ".join(lane_name(lane.target) for lane in self.all()[:4])
        raise _no_model(
            f"There is no model “{name[:120]}” here. Ask for auto, an alias, a model on this computer, or a lane "
            f"such as: {shown or 'none can run now'}."
        )

    def _checked(self, name: str) -> Target:
        try:
            target = Target.parse(name)
        except ProtocolError as error:
            raise _no_model(f"{error}.") from error
        spec = self._manager.specs[target.engine]
        if not spec.offers(target.precision):
            raise _no_model(
                f"{spec.title} has no precision “{target.precision}”; it has: {', '.join(spec.precisions)}."
            )
        self._require_device(spec, target.device)
        if target.model != DEMO_MODEL and not self._library.is_ready(target, spec):
            raise _no_model(
                f"{target.model} is not ready for {target.spelling} on this computer, and the API downloads nothing. "
                f"Get it first: python app.py models get {target.model} --on {target.spelling}"
            )
        return target

    def _require_device(self, spec: EngineSpec, device: str) -> None:
        found = self._availability().get(spec.name)
        status = next((s for s in found.device_status if s.device == device), None) if found else None
        if status is not None and status.ok:
            return
        problem: Any = status or found
        reason = (
            problem.reason if problem and problem.reason else f"{spec.title} has no device {device} here."
        )
        remedy = problem.remedy if problem and problem.remedy else ""
        raise _no_model(f"{spec.title} cannot run on {device}: {reason} {remedy}".strip())

    def _best(self, model: str | None = None) -> Target:
        """The lane that a verdict's “Use it” chose, else the fastest alone in the log, else the first that runs.

        `model`: of that model only; None: of the one that people here used last, the demo only if it is all there is.
        """
        lanes = {lane.target: lane for lane in self.all()}
        wanted = model or self._model_used_last(lanes)
        chosen = self._chosen(wanted or DEMO_MODEL)
        measured = [target for target in (*chosen, *self._fastest_first()) if target in lanes]
        for target in (*measured, *(t for t, lane in lanes.items() if lane.ready), *lanes):
            if wanted is None or target.model == wanted:
                return target
        raise ApiError(503, "No backend can run on this computer; the System tab says why.", code="no_lane")

    def _chosen(self, model: str) -> list[Target]:
        """The lane that the person made this model's first one on the Measure tab."""
        try:
            spelling = Measurements(self._store).preferred(model)
            return [Target.parse(spelling, model)] if spelling else []
        except (StoreError, ProtocolError):
            return []

    def _fastest_first(self) -> list[Target]:
        try:
            return fastest_first(self._store, platform.node())
        except StoreError:
            return []

    def _model_used_last(self, lanes: Mapping[Target, Lane]) -> str | None:
        try:
            found = used_last(self._store, platform.node())
        except StoreError:
            return None
        used = [target.model for target in found if target in lanes]
        return next((model for model in used if model != DEMO_MODEL), used[0] if used else None)


def _no_model(message: str) -> ApiError:
    return ApiError(404, message, param="model", code="model_not_found")
