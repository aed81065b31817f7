"""Where ways are found and walked: the disk, the Hub, and the jobs that callers share.

`Workshop.find` picks the shortest way; `walk` goes it once and hands over the folder. A way never leads to another
round of looking: a download may be followed by a conversion, and what is still missing after that is named, not
fetched again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engines.engine import ModelError, OutOfMemoryError
from engines.models import catalogue
from engines.models.architectures import refuse_own_code
from engines.models.catalogue import Prebuilt
from engines.models.conversion.conversion import Conversion, finished_manifest, pace
from engines.models.conversion.recipes import Cost, Recipe, cost, load_peak_bytes, recipe_for
from engines.models.download import download, hub_cache
from engines.models.download.download import Listing, Wanted
from engines.models.folders import (
    FORMAT_TITLES,
    SAFETENSORS,
    ModelFacts,
    file_sizes,
    hash_json,
    read_facts,
    stat_signature,
    total_weight_bytes,
)
from engines.models.judgement import judge_folder
from engines.models.model_names import Source, resolve
from engines.models.plan import DISK_MARGIN_BYTES, disk_refusal, memory_refusal
from engines.models.ready_made import assemble, find_assembled
from engines.models.source_hashes import SourceHashes
from engines.models.statements import read_statement, require_fit
from engines.models.ways import (
    Convert,
    Download,
    Elsewhere,
    Errand,
    GetReadyMade,
    LinkFiles,
    UseFolder,
    UseMade,
    Way,
    loaded_bytes,
    refuse_multimodal,
)
from engines.processes.jobs import CancelledError, OnProgress
from engines.processes.shared_jobs import SharedJobs
from engines.protocol import EngineSpec, PreparedModel, Progress, Target
from engines.runtime.activity import DOWNLOAD, Activity
from engines.toolkit.model_config import read_json

_LISTING_LIFE_S = 600.0
_POLL_S = 0.2


class Workshop:
    """What ways are found and walked with, shared by all callers. Thread-safe."""

    def __init__(self, models_dir: Path, *, offline: bool, memory: Callable[[], int], activity: Activity):
        self.models_dir = models_dir
        self.memory = memory
        """Bytes of memory that can be had now."""
        self.jobs = SharedJobs(activity)
        self._converting = threading.Lock()
        self._offline = offline
        self._hashes = SourceHashes(models_dir)
        self._listings: dict[Wanted, tuple[float, Listing]] = {}

    # --- finding a way -------------------------------------------------------------------------------------

    def find(self, errand: Errand) -> Way:
        """The shortest way. Raises ModelError when there is none."""
        target, spec = errand.target, errand.spec
        if spec.model_elsewhere:
            return Elsewhere()
        source = resolve(target.model)
        if source.folder is not None:
            return self.way_from(source.folder, errand)
        if errand.use_prebuilt and (made := find_assembled(self.models_dir / source.slug, target, spec)):
            return UseMade(*made)
        local = self._from_snapshot(errand)
        if local is not None and local.ready:
            return local
        prebuilt = self._ready_made(target, spec) if errand.use_prebuilt else None
        if prebuilt is not None and prebuilt.confirmed:
            return GetReadyMade(prebuilt)
        if prebuilt is not None and not self.is_offline():
            return GetReadyMade(
                prebuilt, local or Download(download.original_weights(target.model, _format(spec)))
            )
        if local is not None:
            return local
        if self.is_offline():
            self._name_what_is_missing(target.model)
            raise ModelError(
                f"{target.model} is not on this computer, and the network is switched off (offline mode).",
                "Start without --offline and HF_HUB_OFFLINE, or import a folder.",
            )
        return Download(download.original_weights(target.model, _format(spec)))

    def _from_snapshot(self, errand: Errand) -> Way | None:
        """The way from what was downloaded earlier; None when it is not here or not whole."""
        folder = hub_cache.snapshot(errand.target.model)
        if folder is None or not is_whole(folder, errand.target.model):
            return None
        return self.way_from(folder, errand)

    def _name_what_is_missing(self, model: str) -> None:
        """Raise ModelError when something of it is here, but not enough."""
        folder = hub_cache.snapshot(model)
        if folder is not None:
            judge_folder(folder, model).require()

    def _ready_made(self, target: Target, spec: EngineSpec) -> Prebuilt | None:
        entry = catalogue.find(target.model)
        found = entry.ready_made(target, spec) if entry else None
        if found and self.is_offline() and hub_cache.snapshot(found.repository) is None:
            return None
        return found

    def way_from(self, folder: Path, errand: Errand) -> UseFolder | UseMade | LinkFiles | Convert:
        """From a folder that is here, which is judged first. Raises ModelError."""
        target, spec = errand.target, errand.spec
        name = None if folder == resolve(target.model).folder else target.model
        judgement = judge_folder(folder, name, (_format(spec), SAFETENSORS))
        found = judgement.require()
        if found == spec.model_format:
            if found == SAFETENSORS:
                refuse_own_code(read_json(folder / "config.json"), target.model)
            statement = require_fit(folder, found, target, spec)
            if not _has_links(folder):
                return UseFolder(folder)
            build, precision = spec.build_for(target.device, target.precision), statement.precision
            made_for = build.device if build else None
            return LinkFiles(
                folder, Prebuilt(found, precision or target.precision, target.model, device=made_for)
            )
        if found != SAFETENSORS:
            raise ModelError(
                f"{target.model} is a model in the {FORMAT_TITLES[found]} format; {spec.title} needs "
                f"{FORMAT_TITLES[_format(spec)]}, which can only be made from the original weights.",
                "Choose an engine for this format, or the original model.",
            )
        refuse_multimodal(judgement.reads_images, target.model, spec)
        return self._conversion(folder, errand)

    def stated_precision(self, target: Target, spec: EngineSpec) -> str | None:
        """Of a folder that is here and that the engine loads as it is; None: there is none, or it does not say.

        Raises ModelError.
        """
        source = resolve(target.model)
        folder = source.folder or hub_cache.snapshot(target.model)
        if folder is None or not spec.builds:
            return None
        found = judge_folder(folder, wanted=(_format(spec), SAFETENSORS)).require()
        return read_statement(folder, found).precision if found == spec.model_format else None

    def _conversion(self, folder: Path, errand: Errand) -> UseMade | Convert:
        target, source, facts = errand.target, resolve(errand.target.model), read_facts(folder)
        recipe = recipe_for(target, errand.spec, facts)
        revision = self._revision(source, folder, hash_large=errand.hash_large)
        conversion = Conversion(
            model=target.model,
            source=folder,
            revision=revision or "never hashed, so never converted",
            recipe=recipe,
            models_dir=self.models_dir,
            slug=source.slug,
            layers=facts.layers,
            trust_remote_code=errand.trust_remote_code,
            expected_s=cost(recipe, facts).seconds,
        )
        manifest = finished_manifest(conversion.folder)
        return UseMade(conversion.folder, manifest) if manifest is not None else Convert(conversion, facts)

    def _revision(self, source: Source, folder: Path, *, hash_large: bool = True) -> str | None:
        """The commit of a downloaded repository, or the hash of a local folder's files."""
        return folder.name if source.folder is None else self._hashes.of(folder, hash_large=hash_large)

    def will_hash(self, folder: Path) -> bool:
        """Whether gigabytes have to be read for their fingerprint, which takes a while."""
        try:
            return folder.is_dir() and self._hashes.of(folder, hash_large=False) is None
        except OSError:  # whoever judges the folder says what is wrong
            return False

    # --- the work ------------------------------------------------------------------------------------------

    def get(self, wanted: Wanted, errand: Errand) -> Path:
        """Download files, or take what is here when the network is off; returns their folder."""
        if self.is_offline():
            snapshot = hub_cache.snapshot(wanted.repository)
            if snapshot is None:
                raise ModelError(f"{wanted.repository} is not on this computer.", "Start without --offline.")
            return snapshot / wanted.subfolder
        log_path = self.models_dir / "logs" / f"download-{wanted.repository.replace('/', '--')}.log"
        return self.jobs.run(
            DOWNLOAD,
            wanted.repository,
            f"download {dataclasses.replace(wanted, formats=None, own_code=True)}",
            lambda report, stop: download.download(wanted, log_path, report, stop, override=errand.override),
            errand.on_progress,
            errand.cancelled,
        )

    def assemble(
        self, target: Target, prebuilt: Prebuilt, folder: Path, prompts: Path | None
    ) -> tuple[Path, dict[str, Any]]:
        """A checked folder in the data directory from downloaded files, with its manifest."""
        made = assemble(self.models_dir / resolve(target.model).slug, target, prebuilt, folder, prompts)
        manifest = finished_manifest(made)
        if manifest is None:
            raise ModelError(
                f"{made} is incomplete right after it was made.", "Check the disk and try again."
            )
        return made, manifest

    @contextlib.contextmanager
    def turn_to_convert(self, report: OnProgress, stop: threading.Event) -> Iterator[None]:
        """One conversion at a time: each may take all the memory there is. Raises CancelledError."""
        if not self._converting.acquire(blocking=False):
            report(Progress("queue", "Waiting for another conversion to end"))
            while not self._converting.acquire(timeout=_POLL_S):
                if stop.is_set():
                    raise CancelledError("Stopped.")
        try:
            yield
        finally:
            self._converting.release()

    def cost(self, recipe: Recipe, facts: ModelFacts) -> Cost:
        """What a conversion needs, its time corrected by what the ones before it took on this computer."""
        need = cost(recipe, facts)
        return dataclasses.replace(need, seconds=need.seconds * pace(self.models_dir, recipe.format))

    def refuse_too_large(self, need: Cost, model: str) -> None:
        available = self.memory()
        if need.peak_bytes > available:
            raise OutOfMemoryError(*memory_refusal(need.peak_bytes, available, f"Converting {model}"))
        free = self.disk_free()
        if need.output_bytes * 2 + DISK_MARGIN_BYTES > free:
            raise ModelError(*disk_refusal(need.output_bytes * 2, free, self.models_dir))

    def as_it_is(self, errand: Errand, folder: Path) -> PreparedModel:
        """A folder handed to the engine untouched, with what it states about itself."""
        target, model_format = errand.target, _format(errand.spec)
        if model_format == SAFETENSORS:
            facts = read_facts(folder)
            weight_bytes, loaded = facts.weight_bytes, loaded_bytes(facts, target)
            revision = self._revision(resolve(target.model), folder, hash_large=errand.hash_large)
        else:
            sizes = file_sizes(folder)  # the original weights may lie beside them
            graphs = {name: size for name, size in sizes.items() if not name.endswith(".safetensors")}
            weight_bytes = loaded = total_weight_bytes(graphs)
            revision = hash_json(stat_signature(p for p in sorted(folder.iterdir()) if p.is_file()))
        return PreparedModel(
            path=str(folder.resolve()),
            model=target.model,
            precision=target.precision,
            format=model_format,
            revision=revision,
            weight_bytes=weight_bytes,
            estimated_peak_bytes=load_peak_bytes(loaded, model_format),
        )

    # --- what can be had -----------------------------------------------------------------------------------

    def listing(self, wanted: Wanted, cancelled: threading.Event) -> Listing:
        """What a download would bring, as the Hub said within the last minutes."""
        known = self._listings.get(wanted)
        if known and time.monotonic() - known[0] < _LISTING_LIFE_S:
            return known[1]
        listing = self.jobs.run(
            DOWNLOAD,
            wanted.repository,
            f"list {wanted}",
            lambda _report, stop: download.list_files(wanted, self.models_dir / "logs" / "listing.log", stop),
            lambda _progress: None,
            cancelled,
        )
        self._listings[wanted] = (time.monotonic(), listing)
        return listing

    def forget_listings(self) -> None:
        self._listings.clear()

    def is_offline(self) -> bool:
        return self._offline or download.is_offline()

    def disk_free(self) -> int:
        folder = self.models_dir
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free


def walk(shop: Workshop, errand: Errand) -> PreparedModel:
    """Find the shortest way and go it, once."""
    folder = None if errand.spec.model_elsewhere else resolve(errand.target.model).folder
    if folder is not None and shop.will_hash(folder):
        errand.on_progress(Progress("convert", "Reading the weights once for their fingerprint"))
    way = shop.find(errand)
    if not way.ready and errand.cancelled.is_set():
        raise CancelledError("Stopped.")
    return way.walk(shop, errand)


def is_whole(folder: Path, model: str) -> bool:
    """Whether a downloaded snapshot can be used; a part of one is fetched again instead."""
    try:
        return judge_folder(folder, model).usable
    except (ModelError, OSError):
        return False


def _format(spec: EngineSpec) -> str:
    """Of an engine that loads folders."""
    if spec.model_format is None:
        raise ModelError(f"{spec.title} loads no model folders.", "Choose another engine.")
    return spec.model_format


def _has_links(folder: Path) -> bool:
    """Whether an ONNX folder's files are links, as they are in the Hugging Face cache."""
    return any(path.is_symlink() for path in folder.glob("*.onnx*"))
