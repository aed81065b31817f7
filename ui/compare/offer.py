"""What a panel can be set to: engines, devices, precisions and models, the unavailable ones listed with their reason.

Pure functions over what the engines declare (EngineSpec) and what their probes found (Availability); no Gradio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engines.protocol import DEMO_MODEL, Availability, DeviceStatus, EngineSpec, Target

DEFAULT_PANELS = 4
Choice = tuple[str, str]
"""Label for the person, value for the program."""


@dataclass(frozen=True)
class Trouble:
    """Why a target cannot run here, and what to do about it."""

    reason: str
    remedy: str | None = None


@dataclass(frozen=True)
class Offer:
    """Everything the panels' menus need; a snapshot of one probe of this machine."""

    specs: tuple[EngineSpec, ...]
    availability: Mapping[str, Availability]
    probing: bool = False
    """The engines have not answered yet, so nothing is known to be unavailable."""

    def spec(self, engine: str) -> EngineSpec | None:
        return next((spec for spec in self.specs if spec.name == engine), None)

    def title(self, engine: str) -> str:
        spec = self.spec(engine)
        return spec.title if spec else engine

    def usable(self) -> tuple[EngineSpec, ...]:
        return tuple(spec for spec in self.specs if self._ok(spec.name))

    def _ok(self, engine: str) -> bool:
        found = self.availability.get(engine)
        return bool(found and found.ok and found.devices)

    def engine_choices(self) -> list[Choice]:
        return [(spec.title + self._suffix(self._ok(spec.name)), spec.name) for spec in self.specs]

    def device_choices(self, engine: str) -> list[Choice]:
        """Devices found by the probe first, then those the library knows but this machine lacks."""
        spec = self.spec(engine)
        if spec is None:
            return []
        found = [(status.device, status.ok) for status in self._devices(engine)]
        families = {name.split(".")[0] for name, _ in found}
        missing = [(name, False) for name in spec.devices if name not in families]
        return [(name + self._suffix(ok), name) for name, ok in [*found, *missing]]

    def precision_choices(self, engine: str, device: str) -> list[Choice]:
        spec = self.spec(engine)
        status = self._device(engine, device)
        offered = (status.precisions if status else None) or (spec.precisions if spec else ())
        return [(name, name) for name in offered]

    def holding(self, choices: list[Choice], chosen: str) -> list[Choice]:
        """The choices of a menu, with what is chosen though it is not among them: a device that has been taken out,
        one of another machine's history, or that of an engine that has none."""
        known = chosen in (value for _, value in choices)
        return choices if known else [*choices, (chosen + self._suffix(False), chosen)]

    def _suffix(self, ok: bool) -> str:
        return "" if ok or self.probing else " — not available"

    def _devices(self, engine: str) -> tuple[DeviceStatus, ...]:
        found = self.availability.get(engine)
        return found.device_status if found else ()

    def _device(self, engine: str, device: str) -> DeviceStatus | None:
        return next((status for status in self._devices(engine) if status.device == device), None)

    def trouble(self, target: Target) -> Trouble | None:
        """Why this target cannot run here; None when it can, or while the engines are still being asked."""
        spec = self.spec(target.engine)
        if spec is None:
            return Trouble(f"There is no engine called “{target.engine}”.", "Choose another engine.")
        if self.probing:
            return None
        found = self.availability.get(target.engine)
        status = self._device(target.engine, target.device)
        if status and status.ok and found and found.ok:
            return None
        if status and not status.ok:
            return Trouble(status.reason or f"{target.device} cannot be used.", status.remedy)
        if found and not found.ok:
            return Trouble(found.reason or f"{spec.title} cannot run here.", found.remedy)
        return Trouble(
            f"{spec.title} found no device {target.device} on this PC.",
            "Choose another device; the System tab says what each one needs.",
        )

    def settle(self, engine: str, device: str, precision: str, model: str) -> Target:
        """The nearest target that makes sense: what the engine does not offer falls back to its first choice."""
        if self.spec(engine) is None and self.specs:
            engine = (self.usable() or self.specs)[0].name
        devices = [value for _, value in self.device_choices(engine)]
        if device not in devices and not (self.probing and device):
            device = self._first_device(engine) or device
        precisions = [value for _, value in self.precision_choices(engine, device)]
        if precision not in precisions and precisions:
            precision = precisions[0]
        served = self.models_of(engine, device)
        if served and model.strip() not in served:
            model = served[0]
        return Target(engine, device, precision, model.strip() or DEMO_MODEL)

    def models_of(self, engine: str, device: str) -> tuple[str, ...] | None:
        """Models that the device has of its own; None: it runs those on this computer."""
        status = self._device(engine, device)
        return status.models if status else None

    def _first_device(self, engine: str) -> str | None:
        found = self.availability.get(engine)
        ready = found.devices if found else ()
        if "CPU" in ready or not ready:
            choices = [value for _, value in self.device_choices(engine)]
            return "CPU" if "CPU" in choices else next(iter(choices), None)
        return ready[0]

    def best_target(self, spec: EngineSpec, model: str = DEMO_MODEL) -> Target:
        """The engine's default precision on the CPU, or on its first device where it has no CPU."""
        return self.settle(spec.name, self._first_device(spec.name) or "CPU", "", model)

    def default_targets(self) -> tuple[Target, ...]:
        """One panel per engine that can run here, on the bundled model."""
        specs = self.usable() or self.specs
        return tuple(self.best_target(spec) for spec in specs[:DEFAULT_PANELS])


def sharing_panels(targets: Mapping[int, Target]) -> list[tuple[str, list[int]]]:
    """Devices that more than one panel runs on: [(device, panels)]."""
    users: dict[str, list[int]] = {}
    for panel, target in sorted(targets.items()):
        users.setdefault(target.device.upper(), []).append(panel)
    return [(device, panels) for device, panels in users.items() if len(panels) > 1]


def ignored_settings(specs: Sequence[EngineSpec]) -> dict[str, list[str]]:
    """Sampling parameter -> titles of the engines among `specs` that do not obey it."""
    names = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
    ignored = {name: [spec.title for spec in specs if name not in spec.honours] for name in names}
    return {name: titles for name, titles in ignored.items() if titles}
