"""The catalogue: models worth comparing, and who publishes them ready to run.

The data is in catalogue.toml; this module reads and checks it. A model that is not in here works just as well:
it is then converted from its original weights.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tomllib

from engines.protocol import EngineSpec, Target

CATALOGUE = Path(__file__).with_name("catalogue.toml")


@dataclass(frozen=True)
class Prebuilt:
    """A ready-made model folder on the Hub."""

    format: str
    precision: str
    repository: str
    subfolder: str = ""
    device: str | None = None
    """Only for this device family; None: for every device that has no entry of its own."""
    bytes: int | None = None
    """Download size as its page says, rounded."""
    confirmed: bool = True
    """Whether a public page, listing or guide shows it; if not, it follows its publisher's way of naming."""


@dataclass(frozen=True)
class CatalogueModel:
    id: str
    title: str
    parameters: int
    context_tokens: int
    licence: str
    note: str = ""
    gated: bool = False
    """Its licence must be accepted on the Hub first."""
    prebuilt: tuple[Prebuilt, ...] = ()
    limits: Mapping[str, str] = field(default_factory=dict)
    """Engine -> what it cannot do with this model, and why."""

    def ready_made(self, target: Target, spec: EngineSpec) -> Prebuilt | None:
        """The ready-made folder for a target of this engine, if anyone publishes one.

        A device that needs a folder of its own takes no other: an IR made for the CPU is of no use to the NPU.
        """
        build = spec.build_for(target.device, target.precision)
        fitting = (
            p for p in self.prebuilt if p.format == spec.model_format and p.precision == target.precision
        )
        return next((p for p in fitting if build is not None and p.device == build.device), None)


@functools.cache
def load(path: Path = CATALOGUE) -> tuple[CatalogueModel, ...]:
    """All models of the catalogue, in its order."""
    with path.open("rb") as stream:
        entries = tomllib.load(stream)["model"]
    return tuple(
        CatalogueModel(**{**entry, "prebuilt": tuple(Prebuilt(**p) for p in entry.get("prebuilt", ()))})
        for entry in entries
    )


def limit_of(model: str, engine: str) -> str | None:
    """Why an engine cannot run a model of the catalogue; None when nothing is known to be in the way."""
    entry = find(model)
    return entry.limits.get(engine) if entry else None


def find(model: str) -> CatalogueModel | None:
    """The entry of a Hugging Face id, whatever its capitals."""
    return next((entry for entry in load() if entry.id.lower() == model.strip().lower()), None)
