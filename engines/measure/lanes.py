"""Which lanes there are on this machine, and which of them the others' answers are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engines.measure.records import Lane
from engines.protocol import Target
from engines.runtime.manager import EngineManager
from engines.telemetry.placement import OWN_CHOICE, family

_BEST_FIRST = ("fp32", "bf16", "fp16", "int8", "int4")


def available(manager: EngineManager, model: str) -> tuple[Target, ...]:
    """Every target that can run here. Asks every library, which takes seconds the first time.

    Left out: devices that are a library's own choice among the others (they would be measured twice), and servers,
    whose tokenizer and clock are somebody else's.
    """
    found = []
    for name, availability in manager.availability().items():
        spec = manager.specs[name]
        if not availability.ok or spec.model_elsewhere:
            continue
        for status in availability.device_status:
            if status.ok and family(status.device) not in OWN_CHOICE:
                precisions = status.precisions or spec.precisions
                found += [Target(name, status.device, precision, model) for precision in precisions]
    return tuple(found)


def variants(manager: EngineManager, model: str) -> tuple[tuple[Target, str | None], ...]:
    """Targets with other weights than the usual ones, and what for: offered only to who looks for them."""
    found = []
    for target in available(manager, model):
        for variant in manager.specs[target.engine].variants:
            if variant.precision == target.precision:
                found.append((replace(target, precision=variant.spelling), variant.why))
    return tuple(found)


def refusal(manager: EngineManager, target: Target) -> str | None:
    """Why a target can never be measured; None when it may be tried."""
    spec = manager.specs.get(target.engine)
    if spec is None or not spec.model_elsewhere:
        return None
    return (
        f"{target.spelling} runs on a server with a tokenizer of its own: whether it works on the others' tokens "
        "cannot be known, so it cannot be measured. The Compare tab sets it beside them."
    )


def lane_of(manager: EngineManager, target: Target) -> Lane:
    """The lane as it would run: with the settings the target was tuned to, where it was."""
    return Lane(target, dict(manager.tuned(target)))


def reference(manager: EngineManager, model: str, lanes: Sequence[Lane]) -> Lane | None:
    """The lane with the model's own weights where it runs here and they are on disk; else the most exact of `lanes`.

    One that is measured anyway is preferred, the most exact first; else the engine's own best precision here.
    """
    measured = [lane for lane in lanes if (spec := manager.specs.get(lane.target.engine)) and spec.reference]
    if measured:
        return min(measured, key=_coarseness)
    for name, availability in manager.availability().items():
        spec = manager.specs[name]
        status = next((status for status in availability.device_status if status.ok), None)
        if spec.reference and availability.ok and status is not None:
            target = Target(name, status.device, (status.precisions or spec.precisions)[0], model)
            if manager.is_ready(target):
                return Lane(target)
    return min(lanes, key=_coarseness, default=None)


def _coarseness(lane: Lane) -> int:
    precision = lane.target.precision
    return next((at for at, name in enumerate(_BEST_FIRST) if precision.startswith(name)), len(_BEST_FIRST))
