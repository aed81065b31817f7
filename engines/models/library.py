"""ModelLibrary: any model, in the format an engine needs, with the least download, disk and memory.

A target names a model (`demo`, a folder, or a Hugging Face id) and an engine names a format. The library finds
the shortest way between the two: already here, ready-made by its maker, converted from weights already here,
downloaded and converted. It can say beforehand what that costs, and it refuses what cannot fit. The ways themselves
are in ways.py; workshop.py finds and walks them.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

from engines.engine import ModelError
from engines.hardware import available_memory_bytes
from engines.models import catalogue
from engines.models.inventory import Choice, Installed, Inventory
from engines.models.plan import DISK_MARGIN_BYTES, Plan, disk_refusal, memory_refusal
from engines.models.trust import Trust
from engines.models.ways import Errand, Forecast, Way
from engines.models.workshop import Workshop, walk
from engines.processes.jobs import CancelledError, OnProgress
from engines.protocol import EngineSpec, PreparedModel, Target
from engines.runtime.activity import Activity

__all__ = ["CancelledError", "ModelLibrary", "Plan"]


class ModelLibrary:
    """Everything about models; thread-safe. Callers that want the same thing share one job."""

    def __init__(
        self,
        data_dir: Path,
        *,
        offline: bool = False,
        memory: Callable[[], int] = available_memory_bytes,
        activity: Activity | None = None,
    ):
        data_dir = Path(data_dir).absolute()
        self._models_dir = data_dir / "models"
        self.trust = Trust(data_dir)
        self._shop = Workshop(
            self._models_dir, offline=offline, memory=memory, activity=activity or Activity()
        )
        self.inventory = Inventory(self._models_dir)

    # --- getting a model ready -----------------------------------------------------------------------------

    def prepare(
        self,
        target: Target,
        spec: EngineSpec,
        on_progress: OnProgress,
        cancelled: threading.Event,
        *,
        trust_remote_code: bool = False,
        override: bool = False,
        use_prebuilt: bool = True,
    ) -> PreparedModel:
        """The model folder for a target, downloaded or converted first if need be. Blocks.

        `override` goes on although memory or disk seem too small; `trust_remote_code` lets Python code that comes
        with the model run here. Raises ModelError, OutOfMemoryError or CancelledError.
        """
        errand = Errand(
            target,
            spec,
            on_progress,
            cancelled,
            trust_remote_code=trust_remote_code,
            override=override,
            use_prebuilt=use_prebuilt,
        )
        return walk(self._shop, errand)

    def is_ready(self, target: Target, spec: EngineSpec) -> bool:
        """Whether nothing has to be downloaded or converted; cheap, never raises."""
        if spec.model_elsewhere:
            return True
        try:
            return self._shop.find(Errand(target, spec, hash_large=False)).ready
        except (ModelError, OSError, ValueError):
            return False

    def as_stated(self, target: Target, spec: EngineSpec) -> Target:
        """The target in the precision of a ready folder that is here; any other model may have any. Never raises."""
        try:
            stated = self._shop.stated_precision(target, spec)
        except (ModelError, OSError):
            stated = None
        offered = stated is not None and spec.offers(stated)
        return dataclasses.replace(target, precision=stated) if stated and offered else target

    # --- saying it before doing it -------------------------------------------------------------------------

    def plan(
        self,
        target: Target,
        spec: EngineSpec,
        *,
        trust_remote_code: bool = False,
        use_prebuilt: bool = True,
        cancelled: threading.Event | None = None,
    ) -> Plan:
        """What `prepare` would do and cost; may ask the Hub for sizes. Never raises: a problem is the refusal."""
        errand = Errand(
            target,
            spec,
            cancelled=cancelled or threading.Event(),
            trust_remote_code=trust_remote_code,
            use_prebuilt=use_prebuilt,
            hash_large=False,
        )
        return self._plan(errand, lambda way: way.forecast(self._shop, errand))

    def estimate(self, target: Target, spec: EngineSpec) -> Plan:
        """Like `plan`, at once and without the network: what is not here is estimated by the catalogue."""
        errand = Errand(target, spec, hash_large=False)
        return self._plan(errand, lambda way: way.estimate(self._shop, errand))

    def _plan(self, errand: Errand, forecast_of: Callable[[Way], Forecast]) -> Plan:
        plan = Plan(errand.target, False, (), self._shop.disk_free(), self._shop.memory())
        try:
            way = self._shop.find(errand)
            forecast = forecast_of(way)
        except ModelError as error:
            return dataclasses.replace(plan, refusal=str(error), remedy=error.remedy)
        plan = dataclasses.replace(
            plan,
            ready=way.ready,
            steps=forecast.steps,
            load_bytes=forecast.load_bytes,
            needs_remote_code=forecast.needs_remote_code,
        )
        if way.ready:
            return plan
        limit = catalogue.limit_of(errand.target.model, errand.spec.name)
        if limit is not None:
            remedy = "Choose another engine for this model; or try it all the same."
            return dataclasses.replace(plan, refusal=limit, remedy=remedy, can_override=True)
        return self._with_refusal(plan)

    def _with_refusal(self, plan: Plan) -> Plan:
        if plan.peak_bytes > plan.available_bytes:
            refusal = memory_refusal(plan.peak_bytes, plan.available_bytes, f"Converting {plan.target.model}")
        elif plan.disk_bytes is not None and plan.disk_bytes + DISK_MARGIN_BYTES > plan.disk_free_bytes:
            refusal = disk_refusal(plan.disk_bytes, plan.disk_free_bytes, self._models_dir)
        elif plan.load_bytes is not None and plan.load_bytes > plan.available_bytes:
            refusal = memory_refusal(plan.load_bytes, plan.available_bytes, f"Loading {plan.target.model}")
        else:
            return plan
        return dataclasses.replace(plan, refusal=refusal[0], remedy=refusal[1], can_override=True)

    def brief(self, target: Target, spec: EngineSpec) -> str | None:
        """One sentence for a panel whose model is not ready; None when it is. Cheap, without the network."""
        errand = Errand(target, spec, hash_large=False)
        try:
            return self._shop.find(errand).brief(self._shop, errand)
        except (ModelError, OSError) as error:
            return f"{error} {getattr(error, 'remedy', None) or ''}".strip()

    # --- what is here --------------------------------------------------------------------------------------

    def models(self) -> tuple[Choice, ...]:
        """What panels can offer: what is here first, then the catalogue."""
        return self.inventory.choices()

    def installed(self) -> tuple[Installed, ...]:
        """Every model folder on this computer, with format, size and place."""
        return self.inventory.installed()

    def stamp(self) -> int:
        """Another number whenever what is on this computer has changed; cheap enough to ask every few seconds."""
        return self.inventory.stamp()

    def latest_log(self, characters: int = 20_000) -> str:
        """The end of the newest log of a download or conversion."""
        logs = sorted((self._models_dir / "logs").glob("*.log"), key=lambda path: path.stat().st_mtime)
        if not logs:
            return "Nothing has been downloaded or converted yet."
        return f"{logs[-1]}\n\n{logs[-1].read_text(encoding='utf-8', errors='replace')[-characters:]}"

    def import_folder(self, folder: Path) -> Installed:
        """Offer a folder on disk as a model; it stays where it is. Raises ModelError saying what it lacks."""
        return self.inventory.import_folder(folder)

    def remove(self, what: str) -> int:
        """Remove one entry (its id) or everything of a model; returns the bytes of disk space that came back."""
        self._shop.forget_listings()
        return self.inventory.remove(what)
