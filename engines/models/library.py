"""ModelLibrary: any model, in the format an engine needs, with the least download, disk and memory.

A target names a model (`demo`, a folder, or a Hugging Face id) and an engine names a format. The library finds
the shortest way between the two: already here, ready-made by its maker, converted from weights already here,
downloaded and converted. It can say beforehand what that costs, and it refuses what cannot fit.
No inference library and no hub client is imported here: that happens in child processes.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.engine import ModelError, OutOfMemoryError
from engines.models import catalogue
from engines.models.catalogue import Prebuilt
from engines.models.conversion.conversion import Conversion, convert, finished_manifest
from engines.models.conversion.recipes import BITS, Cost, cost, load_peak_bytes, recipe_for
from engines.models.download import download, hub_cache
from engines.models.download.download import Listing, Wanted
from engines.models.folders import (
    FORMAT_TITLES,
    SAFETENSORS,
    ModelFacts,
    file_sizes,
    hash_json,
    read_facts,
    require_format,
    stat_signature,
    total_weight_bytes,
)
from engines.models.inventory import Choice, Installed, Inventory
from engines.models.model_names import Source, resolve
from engines.models.plan import (
    DISK_MARGIN_BYTES,
    Plan,
    Step,
    disk_refusal,
    download_brief,
    duration,
    memory_refusal,
)
from engines.models.ready_made import assemble, find_assembled
from engines.models.source_hashes import SourceHashes
from engines.models.steps import (
    complete_snapshot,
    conversion_steps,
    download_step,
    expected_facts,
    require_tokenizer,
)
from engines.models.trust import Trust
from engines.processes.jobs import CancelledError, OnProgress
from engines.processes.shared_jobs import SharedJobs
from engines.protocol import EngineSpec, PreparedModel, Progress, Target
from engines.runtime.activity import CONVERT, DOWNLOAD, Activity

__all__ = ["CancelledError", "ModelLibrary", "Plan"]

_LISTING_LIFE_S = 600.0
_CLIENT_BYTES = 150_000_000
"""What a worker takes that only asks a server."""


def available_memory() -> int:
    """Bytes that a new process can have without swapping."""
    import psutil

    return psutil.virtual_memory().available


@dataclasses.dataclass(frozen=True)
class _Way:
    """The shortest way from where a model is to what a target needs. Exactly one of the first four is set."""

    here: Path | None = None
    """Folder to use as it is."""
    finished: tuple[Path, dict[str, Any]] | None = None
    """A folder made earlier, with its manifest."""
    conversion: Conversion | None = None
    fetch: Wanted | None = None
    """Original weights to download first."""
    prebuilt: Prebuilt | None = None
    facts: ModelFacts | None = None
    trust_needed: bool = False


class ModelLibrary:
    """Everything about models; thread-safe. Callers that want the same thing share one job."""

    def __init__(
        self,
        data_dir: Path,
        *,
        offline: bool = False,
        memory: Callable[[], int] = available_memory,
        activity: Activity | None = None,
    ):
        self._models_dir = Path(data_dir) / "models"
        self.trust = Trust(Path(data_dir))
        self._offline = offline
        self._memory = memory
        self._jobs = SharedJobs(activity or Activity())
        self._hashes = SourceHashes(self._models_dir)
        self._listings: dict[Wanted, tuple[float, Listing]] = {}
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
        if spec.model_elsewhere:
            return _elsewhere(target)
        self._announce_hashing(target, on_progress)
        while True:
            way = self._way(target, spec, trust_remote_code, use_prebuilt)
            if way.here is not None:
                return self._as_it_is(target, way.here)
            if way.finished is not None:
                return _prepared(target, *way.finished)
            if cancelled.is_set():
                raise CancelledError("Stopped.")
            if way.prebuilt is not None:
                prebuilt = way.prebuilt
                key = f"prebuilt {target.model} {prebuilt}"
                self._jobs.run(
                    DOWNLOAD,
                    key,
                    lambda r, c, p=prebuilt: self._get_prebuilt(target, p, override, r, c),
                    on_progress,
                    cancelled,
                )
            elif way.fetch is not None:
                self._fetch(way.fetch, override, on_progress, cancelled)
            else:
                folder = self._convert(way, override, on_progress, cancelled)
                return _prepared(target, folder, finished_manifest(folder) or {})

    def _announce_hashing(self, target: Target, on_progress: OnProgress) -> None:
        """Gigabytes that were never seen before are read once for their hash; that takes a while."""
        folder = resolve(target.model).folder
        if folder is not None and folder.is_dir() and self._hashes.of(folder, hash_large=False) is None:
            on_progress(Progress("convert", "Reading the weights once for their fingerprint"))

    def is_ready(self, target: Target, spec: EngineSpec) -> bool:
        """Whether nothing has to be downloaded or converted; cheap, never raises."""
        if spec.model_elsewhere:
            return True
        try:
            way = self._way(target, spec, hash_large=False)
        except (ModelError, OSError, ValueError):
            return False
        return way.here is not None or way.finished is not None

    def _way(
        self,
        target: Target,
        spec: EngineSpec,
        trust_remote_code: bool = False,
        use_prebuilt: bool = True,
        *,
        hash_large: bool = True,
    ) -> _Way:
        """Raises ModelError when there is none."""
        source = resolve(target.model)
        if source.folder is not None:
            return self._way_from(source.folder, target, spec, source, trust_remote_code, hash_large)
        if use_prebuilt and (found := find_assembled(self._models_dir / source.slug, target, spec)):
            return _Way(finished=found)
        weights = complete_snapshot(target.model)
        way = None
        if weights is not None:
            way = self._way_from(weights, target, spec, source, trust_remote_code, hash_large)
            if way.conversion is None:
                return way
        ready_made = self._ready_made(target, spec) if use_prebuilt else None
        if ready_made is not None:
            return _Way(prebuilt=ready_made)
        if way is not None:
            return way
        if self._is_offline():
            raise ModelError(
                f"{target.model} is not on this computer, and the network is switched off (offline mode).",
                "Start without --offline and HF_HUB_OFFLINE, or import a folder.",
            )
        return _Way(fetch=download.original_weights(target.model))

    def _ready_made(self, target: Target, spec: EngineSpec) -> Prebuilt | None:
        entry = catalogue.find(target.model)
        found = entry and entry.ready_made(spec.model_format, target.precision, target.device)
        if found and self._is_offline() and hub_cache.snapshot(found.repository) is None:
            return None
        return found

    def _way_from(
        self,
        folder: Path,
        target: Target,
        spec: EngineSpec,
        source: Source,
        trust_remote_code: bool,
        hash_large: bool,
    ) -> _Way:
        found = require_format(folder)
        if found == spec.model_format:
            return _Way(here=folder)
        if found != SAFETENSORS:
            raise ModelError(
                f"{target.model} is a model in the {FORMAT_TITLES[found]} format; {spec.title} needs "
                f"{FORMAT_TITLES[spec.model_format]}, which can only be made from the original weights.",
                "Choose an engine for this format, or the original model.",
            )
        facts = read_facts(folder)
        require_tokenizer(folder, target.model)
        recipe = recipe_for(target.model, spec.model_format, target.precision, target.device, facts)
        revision = self._revision(source, folder, hash_large=hash_large) or "never hashed, so never converted"
        conversion = Conversion(
            model=target.model,
            source=folder,
            revision=revision,
            recipe=recipe,
            models_dir=self._models_dir,
            slug=source.slug,
            layers=facts.layers,
            trust_remote_code=trust_remote_code,
        )
        manifest = finished_manifest(conversion.folder)
        if manifest is not None:
            return _Way(finished=(conversion.folder, manifest))
        return _Way(
            conversion=conversion, facts=facts, trust_needed=facts.needs_remote_code and not trust_remote_code
        )

    def _revision(self, source: Source, folder: Path, *, hash_large: bool = True) -> str | None:
        """The commit of a downloaded repository, or the hash of a local folder's files."""
        return folder.name if source.folder is None else self._hashes.of(folder, hash_large=hash_large)

    # --- the work ------------------------------------------------------------------------------------------

    def _convert(
        self, way: _Way, override: bool, on_progress: OnProgress, cancelled: threading.Event
    ) -> Path:
        conversion, facts = way.conversion, way.facts
        if way.trust_needed:
            raise ModelError(
                f"{conversion.model} brings Python code of its own, which would have to run on this computer.",
                "If you trust its makers, allow it for this model on the Models tab "
                "(or: models get --trust-remote-code).",
            )
        if not override:
            self._refuse_too_large(cost(conversion.recipe, facts), conversion.model)
        self._jobs.run(
            CONVERT,
            str(conversion.folder),
            lambda report, stop: convert(conversion, report, stop),
            on_progress,
            cancelled,
        )
        return conversion.folder

    def _refuse_too_large(self, need: Cost, model: str) -> None:
        available = self._memory()
        if need.peak_bytes > available:
            raise OutOfMemoryError(*memory_refusal(need.peak_bytes, available, f"Converting {model}"))
        free = self._disk_free(self._models_dir)
        if need.output_bytes * 2 + DISK_MARGIN_BYTES > free:
            raise ModelError(*disk_refusal(need.output_bytes * 2, free, self._models_dir))

    def _fetch(
        self, wanted: Wanted, override: bool, on_progress: OnProgress, cancelled: threading.Event
    ) -> Path:
        log_path = self._models_dir / "logs" / f"download-{wanted.repository.replace('/', '--')}.log"
        return self._jobs.run(
            DOWNLOAD,
            f"download {wanted}",
            lambda report, stop: download.download(wanted, log_path, report, stop, override=override),
            on_progress,
            cancelled,
        )

    def _get_prebuilt(
        self,
        target: Target,
        prebuilt: Prebuilt,
        override: bool,
        on_progress: OnProgress,
        cancelled: threading.Event,
    ) -> None:
        folder = self._get(
            Wanted(prebuilt.repository, subfolder=prebuilt.subfolder), override, on_progress, cancelled
        )
        try:
            prompts = self._get(download.prompt_files(target.model), override, on_progress, cancelled)
        except ModelError:
            prompts = None  # gated or gone: the maker's own tokenizer files have to do
        slug = resolve(target.model).slug
        assemble(self._models_dir / slug, target, prebuilt, folder, prompts)

    def _get(
        self, wanted: Wanted, override: bool, on_progress: OnProgress, cancelled: threading.Event
    ) -> Path:
        if self._is_offline():
            snapshot = hub_cache.snapshot(wanted.repository)
            if snapshot is None:
                raise ModelError(f"{wanted.repository} is not on this computer.", "Start without --offline.")
            return snapshot / wanted.subfolder
        return self._fetch(wanted, override, on_progress, cancelled)

    def _as_it_is(self, target: Target, folder: Path, *, hash_large: bool = True) -> PreparedModel:
        found = require_format(folder)
        require_tokenizer(folder, target.model)
        if found == SAFETENSORS:
            facts = read_facts(folder)
            weight_bytes = facts.weight_bytes
            revision = self._revision(resolve(target.model), folder, hash_large=hash_large)
            loaded_bytes = int(facts.parameters * BITS.get(target.precision, 16) / 8)
        else:
            sizes = file_sizes(folder)
            weight_bytes = loaded_bytes = total_weight_bytes(sizes)
            revision = hash_json(stat_signature(p for p in sorted(folder.iterdir()) if p.is_file()))
        return PreparedModel(
            path=str(folder.resolve()),
            model=target.model,
            precision=target.precision,
            format=found,
            revision=revision,
            weight_bytes=weight_bytes,
            estimated_peak_bytes=load_peak_bytes(loaded_bytes, found),
        )

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
        plan = Plan(target, False, (), self._disk_free(self._models_dir), self._memory())
        if spec.model_elsewhere:
            step = Step("use", f"Use {target.model} where it is, on {target.device}")
            return dataclasses.replace(plan, ready=True, steps=(step,), load_bytes=_CLIENT_BYTES)
        try:
            way = self._way(target, spec, trust_remote_code, use_prebuilt, hash_large=False)
            steps, load_bytes = self._steps(way, target, spec, cancelled or threading.Event())
        except ModelError as error:
            return dataclasses.replace(plan, refusal=str(error), remedy=error.remedy)
        if way.fetch is not None and spec.model_format != SAFETENSORS and not trust_remote_code:
            facts = expected_facts(self._listing(way.fetch, threading.Event()), target.model)
            way = dataclasses.replace(way, trust_needed=facts.needs_remote_code)
        ready = way.here is not None or way.finished is not None
        plan = dataclasses.replace(
            plan, ready=ready, steps=steps, load_bytes=load_bytes, needs_remote_code=way.trust_needed
        )
        return plan if ready else self._with_refusal(plan)

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

    def _steps(
        self, way: _Way, target: Target, spec: EngineSpec, cancelled: threading.Event
    ) -> tuple[tuple[Step, ...], int | None]:
        """(steps, estimated memory once loaded)."""
        if way.here is not None:
            prepared = self._as_it_is(target, way.here, hash_large=False)
            return (Step("use", f"Use {way.here}"),), prepared.estimated_peak_bytes
        if way.finished is not None:
            folder, manifest = way.finished
            load = load_peak_bytes(manifest["weight_bytes"], manifest["format"])
            return (Step("use", f"Use {folder}"),), load
        if way.prebuilt is not None:
            return self._prebuilt_steps(way.prebuilt, cancelled)
        if way.conversion is not None:
            return conversion_steps(way.conversion.recipe, way.facts)
        listing = self._listing(way.fetch, cancelled)
        steps: tuple[Step, ...] = (download_step(listing, f"Download {target.model} (original weights)"),)
        facts = expected_facts(listing, target.model)
        if spec.model_format == SAFETENSORS:
            loaded_bytes = int(facts.parameters * BITS.get(target.precision, 16) / 8)
            return steps, load_peak_bytes(loaded_bytes, SAFETENSORS)
        recipe = recipe_for(target.model, spec.model_format, target.precision, target.device, facts)
        more, load = conversion_steps(recipe, facts)
        return steps + more, load

    def _prebuilt_steps(
        self, prebuilt: Prebuilt, cancelled: threading.Event
    ) -> tuple[tuple[Step, ...], int | None]:
        text = f"Download {prebuilt.repository} (ready-made {prebuilt.precision})"
        if self._is_offline():
            return (Step("use", text),), None
        listing = self._listing(Wanted(prebuilt.repository, subfolder=prebuilt.subfolder), cancelled)
        load = load_peak_bytes(total_weight_bytes(listing.files), prebuilt.format)
        return (download_step(listing, text),), load

    def brief(self, target: Target, spec: EngineSpec) -> str | None:
        """One sentence for a panel whose model is not ready; None when it is. Cheap, without the network."""
        if spec.model_elsewhere:
            return None
        try:
            way = self._way(target, spec, hash_large=False)
        except (ModelError, OSError) as error:
            return f"{error} {getattr(error, 'remedy', None) or ''}".strip()
        if way.here is not None or way.finished is not None:
            return None
        if way.prebuilt is not None:
            return download_brief(f"downloads {way.prebuilt.repository}", way.prebuilt.bytes)
        if way.fetch is not None:
            entry = catalogue.find(target.model)
            does = (
                "downloads the original weights"
                if spec.model_format == SAFETENSORS
                else "downloads and converts it"
            )
            return download_brief(does, entry and entry.parameters * 2)
        need = cost(way.conversion.recipe, way.facts)
        if need.peak_bytes > self._memory():
            return " ".join(memory_refusal(need.peak_bytes, self._memory(), "Converting it"))
        return f"Not converted yet: the first prompt does it, in about {duration(need.seconds)}."

    def _listing(self, wanted: Wanted, cancelled: threading.Event) -> Listing:
        known = self._listings.get(wanted)
        if known and time.monotonic() - known[0] < _LISTING_LIFE_S:
            return known[1]
        listing = download.list_files(wanted, self._models_dir / "logs" / "listing.log", cancelled)
        self._listings[wanted] = (time.monotonic(), listing)
        return listing

    def _is_offline(self) -> bool:
        return self._offline or download.is_offline()

    @staticmethod
    def _disk_free(folder: Path) -> int:
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    # --- what is here --------------------------------------------------------------------------------------

    def models(self) -> tuple[Choice, ...]:
        """What panels can offer: what is here first, then the catalogue."""
        return self.inventory.choices()

    def installed(self) -> tuple[Installed, ...]:
        """Every model folder on this computer, with format, size and place."""
        return self.inventory.installed()

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
        self._listings.clear()
        return self.inventory.remove(what)


def _elsewhere(target: Target) -> PreparedModel:
    """A model that a server has: nothing of it is here."""
    return PreparedModel(
        path=None,
        model=target.model,
        precision=target.precision,
        format=None,
        estimated_peak_bytes=_CLIENT_BYTES,
    )


def _prepared(target: Target, folder: Path, manifest: dict[str, Any]) -> PreparedModel:
    return PreparedModel(
        path=str(folder.resolve()),
        model=target.model,
        precision=target.precision,
        format=manifest["format"],
        revision=manifest["revision"],
        recipe=manifest.get("recipe"),
        recipe_sha256=manifest.get("recipe_sha256"),
        weight_bytes=manifest["weight_bytes"],
        estimated_peak_bytes=load_peak_bytes(manifest["weight_bytes"], manifest["format"]),
    )
