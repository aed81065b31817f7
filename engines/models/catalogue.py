"""The catalogue: models worth comparing, and who publishes them ready to run.

The data is in catalogue.toml; this module reads and checks it. A model that is not in here works just as well:
it is then converted from its original weights.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import tomllib

from engines.models.folders import OPENVINO

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

    def ready_made(self, model_format: str, precision: str, device: str) -> Prebuilt | None:
        """The ready-made folder for a target, if anyone publishes one."""
        family = device.split(".")[0].upper()
        fitting = [p for p in self.prebuilt if p.format == model_format and p.precision == precision]
        for prebuilt in fitting:
            if prebuilt.device == family:
                return prebuilt
        if model_format == OPENVINO and family == "NPU" and precision == "int4":
            return None  # the NPU compiler needs symmetric int4 throughout; an IR made for the CPU is not
        return next((p for p in fitting if p.device is None), None)


@functools.cache
def load(path: Path = CATALOGUE) -> tuple[CatalogueModel, ...]:
    """All models of the catalogue, in its order."""
    with path.open("rb") as stream:
        entries = tomllib.load(stream)["model"]
    return tuple(
        CatalogueModel(**{**entry, "prebuilt": tuple(Prebuilt(**p) for p in entry.get("prebuilt", ()))})
        for entry in entries
    )


def find(model: str) -> CatalogueModel | None:
    """The entry of a Hugging Face id, whatever its capitals."""
    return next((entry for entry in load() if entry.id.lower() == model.strip().lower()), None)
