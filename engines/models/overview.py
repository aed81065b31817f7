"""Models times the backends of this PC: what is here, ready-made, converted or too large, said without the network.

Sizes of what is not here come from the catalogue, so they are rounded; the plan that is shown before anything is
done asks the Hub. From the same numbers comes the best real model that fits this PC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from engines.models import catalogue
from engines.models.catalogue import CatalogueModel
from engines.models.inventory import Choice
from engines.models.model_names import is_path
from engines.models.plan import Plan, duration, size
from engines.models.together import Backend, JointPlan
from engines.protocol import DEMO_MODEL, EngineSpec, Target

HERE, READY_MADE, DOWNLOAD, CONVERT, UNFIT = "here", "ready-made", "download", "convert", "unfit"
_COMFORTABLE_PARAMETERS = 4_500_000_000
"""What a PC of this class answers with at reading speed; larger ones fit more often than they please."""


class Estimator(Protocol):
    """What is needed of the model library."""

    def as_stated(self, target: Target, spec: EngineSpec) -> Target: ...

    def estimate(self, target: Target, spec: EngineSpec) -> Plan: ...

    def models(self) -> Sequence[Choice]: ...


@dataclass(frozen=True)
class Cell:
    """One model on one backend."""

    backend: Backend
    state: str
    """`here`, `ready-made`, `download` (original weights), `convert` or `unfit`."""
    plan: Plan

    @property
    def text(self) -> str:
        """A few words: how, and what it costs."""
        plan = self.plan
        if self.state == HERE:
            return f"here, {size(plan.load_bytes)} loaded" if plan.load_bytes else "here"
        if self.state == UNFIT:
            return "does not fit" if plan.can_override else "not possible"
        if self.state == CONVERT:
            return f"converts here, {duration(plan.seconds)}, {size(plan.peak_bytes)} memory"
        return f"{'ready-made' if self.state == READY_MADE else 'original'}, {size(plan.download_bytes)}"


@dataclass(frozen=True)
class Row:
    """One model on all backends."""

    model: str
    title: str
    note: str
    cells: tuple[Cell, ...]
    parameters: int | None = None
    gated: bool = False

    @property
    def together(self) -> JointPlan:
        return JointPlan(self.model, tuple(cell.plan for cell in self.cells))

    @property
    def possible(self) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if cell.state != UNFIT)

    @property
    def ready(self) -> bool:
        return bool(self.possible) and all(cell.state == HERE for cell in self.possible)

    @property
    def summary(self) -> str:
        """`on 3 of 4 backends · 2.7 GB to download`."""
        parts = [f"on {len(self.possible)} of {len(self.cells)} backends"]
        together = self.together
        if self.ready:
            parts.append("here")
        elif self.possible:
            if together.download_bytes:
                parts.append(f"{size(together.download_bytes)} to download")
            if any(cell.state == CONVERT for cell in self.possible):
                parts.append(f"converts here, up to {size(together.peak_bytes)} memory")
        return " · ".join(parts)


def overview(library: Estimator, backends_of: Sequence[Backend]) -> tuple[Row, ...]:
    """A row for every model that panels can be set to, here or in the catalogue."""
    return tuple(_row(library, choice, backends_of) for choice in library.models())


def row_for(library: Estimator, model: str, backends_of: Sequence[Backend]) -> Row:
    """The row of any model, one that was typed included; cheap: what is here is not listed for it."""
    entry = catalogue.find(model)
    title = entry.title if entry else Path(model).name if is_path(model) else model
    return _row(library, Choice(model, title, "", is_here=False), backends_of)


def _row(library: Estimator, choice: Choice, backends_of: Sequence[Backend]) -> Row:
    entry = catalogue.find(choice.name)
    cells = tuple(
        _cell(library, Backend(library.as_stated(replace(b.target, model=choice.name), b.spec), b.spec))
        for b in backends_of
    )
    note = entry.note if entry else choice.note
    return Row(
        choice.name,
        choice.title,
        note,
        cells,
        entry.parameters if entry else None,
        bool(entry and entry.gated),
    )


def _cell(library: Estimator, backend: Backend) -> Cell:
    plan = library.estimate(backend.target, backend.spec)
    if plan.refusal is not None:
        return Cell(backend, UNFIT, plan)
    if plan.ready:
        return Cell(backend, HERE, plan)
    kinds = [step.kind for step in plan.steps]
    if "convert" in kinds:
        return Cell(backend, CONVERT, plan)
    return Cell(backend, READY_MADE if backend.spec.builds else DOWNLOAD, plan)


def best_for(library: Estimator, backends_of: Sequence[Backend]) -> Row | None:
    """The best real model that fits this PC: on the most backends, most of it ready-made, and the largest of those.

    Models that need a login are not offered, nor what is here already on every backend it can have.
    """
    rows = [
        _row(library, Choice(m.id, m.title, m.note), backends_of) for m in catalogue.load() if _is_offered(m)
    ]
    fitting = [row for row in rows if row.possible and row.together.refusal is None and not row.ready]
    return max(fitting, key=_merit, default=None)


def _is_offered(model: CatalogueModel) -> bool:
    return not model.gated and model.id != DEMO_MODEL and model.parameters <= _COMFORTABLE_PARAMETERS


def _merit(row: Row) -> tuple[int, int, int]:
    quick = sum(cell.state in (HERE, READY_MADE) for cell in row.cells)
    return len(row.possible), quick, row.parameters or 0
