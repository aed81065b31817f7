"""The ways from where a model is to what a target needs: one type each, which knows its steps, its cost and its walk.

`Workshop.find` picks the shortest way; `walk` goes it once and hands over the folder. A way never leads to another
round of looking: a download may be followed by a conversion, and what is still missing after that is named, not
fetched again.
No inference library and no hub client is imported here: that happens in child processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from engines.engine import ModelError, OutOfMemoryError
from engines.models import catalogue
from engines.models.catalogue import Prebuilt
from engines.models.conversion.conversion import Conversion, convert, finished_manifest, pace
from engines.models.conversion.recipes import BITS, Cost, Recipe, cost, load_peak_bytes, recipe_for
from engines.models.download import download, hub_cache
from engines.models.download.download import Listing, Wanted
from engines.models.folders import (
    FORMAT_TITLES,
    SAFETENSORS,
    ModelFacts,
    facts_from,
    file_sizes,
    hash_json,
    read_facts,
    stat_signature,
    total_weight_bytes,
)
from engines.models.judgement import judge_folder
from engines.models.model_names import Source, resolve
from engines.models.plan import (
    ASSUMED_BYTES_PER_S,
    DISK_MARGIN_BYTES,
    Step,
    disk_refusal,
    download_brief,
    duration,
    memory_refusal,
)
from engines.models.ready_made import assemble, find_assembled
from engines.models.source_hashes import SourceHashes
from engines.models.statements import require_fit
from engines.processes.jobs import CancelledError, OnProgress
from engines.processes.shared_jobs import SharedJobs
from engines.protocol import EngineSpec, PreparedModel, Progress, Target, model_label
from engines.runtime.activity import CONVERT, DOWNLOAD, Activity

_LISTING_LIFE_S = 600.0
_POLL_S = 0.2
_CLIENT_BYTES = 150_000_000
"""What a worker takes that only asks a server."""
_TRUST_REMEDY = (
    "If you trust its makers, allow it for this model on the Models tab (or: models get --trust-remote-code)."
)


@dataclass(frozen=True)
class Errand:
    """What is wanted, and what the person allowed."""

    target: Target
    spec: EngineSpec
    on_progress: OnProgress = lambda _progress: None
    cancelled: threading.Event = field(default_factory=threading.Event)
    trust_remote_code: bool = False
    override: bool = False
    """Go on although memory or disk seem too small."""
    use_prebuilt: bool = True
    hash_large: bool = True
    """Read gigabytes for their fingerprint if they were never seen; off for a quick look."""


@dataclass(frozen=True)
class Forecast:
    """What walking a way would take."""

    steps: tuple[Step, ...]
    load_bytes: int | None = None
    """Estimated memory of the worker that loads the result."""
    needs_remote_code: bool = False


class Way(ABC):
    """One way to get a target's model ready."""

    ready: ClassVar[bool] = False
    """Whether there is nothing left to do."""

    @abstractmethod
    def forecast(self, shop: Workshop, errand: Errand) -> Forecast:
        """Steps and cost; may ask the Hub. Raises ModelError when it turns out to lead nowhere."""

    def estimate(self, shop: Workshop, errand: Errand) -> Forecast:
        """The same without the network, by the catalogue's numbers."""
        return self.forecast(shop, errand)

    @abstractmethod
    def brief(self, shop: Workshop, errand: Errand) -> str | None:
        """One sentence for a panel, without the network; None when nothing is left to do."""

    @abstractmethod
    def walk(self, shop: Workshop, errand: Errand) -> PreparedModel:
        """Do it. Raises ModelError, OutOfMemoryError or CancelledError."""


@dataclass(frozen=True)
class Elsewhere(Way):
    """A model that a server has: nothing of it is here."""

    ready: ClassVar[bool] = True

    def forecast(self, shop: Workshop, errand: Errand) -> Forecast:
        step = Step("use", f"Use {errand.target.model} where it is, on {errand.target.device}")
        return Forecast((step,), _CLIENT_BYTES)

    def brief(self, shop: Workshop, errand: Errand) -> str | None:
        return None

    def walk(self, shop: Workshop, errand: Errand) -> PreparedModel:
        target = errand.target
        return PreparedModel(None, target.model, target.precision, None, estimated_peak_bytes=_CLIENT_BYTES)


@dataclass(frozen=True)
class UseFolder(Way):
    """A folder that the engine loads as it is."""

    folder: Path
    ready: ClassVar[bool] = True

    def forecast(self, shop: Workshop, errand: Errand) -> Forecast:
        prepared = shop.as_it_is(dataclasses.replace(errand, hash_large=False), self.folder)
        return Forecast((Step("use", f"Use {self.folder}"),), prepared.estimated_peak_bytes)

    def brief(self, shop: Workshop, errand: Errand) -> str | None:
        return None

    def walk(self, shop: Workshop, errand: Errand) -> PreparedModel:
        return shop.as_it_is(errand, self.folder)


@dataclass(frozen=True)
class UseMade(Way):
    """A folder that was made here earlier, with its manifest."""

    folder: Path
    manifest: dict[str, Any]
    ready: ClassVar[bool] = True

    def forecast(self, shop: Workshop, errand: Errand) -> Forecast:
        load = load_peak_bytes(self.manifest["weight_bytes"], self.manifest["format"])
        return Forecast((Step("use", f"Use {self.folder}"),), load)

    def brief(self, shop: Workshop, errand: Errand) -> str | None:
        return None

    def walk(self, shop: Workshop, errand: Errand) -> PreparedModel:
        return prepared_from(errand.target, self.folder, self.manifest)


@dataclass(frozen=True)
class LinkFiles(Way):
    """A snapshot made of links, to become files of one folder: ONNX Runtime refuses weights behind a link."""

    folder: Path
    prebuilt: Prebuilt
    ready: ClassVar[bool] = True

    def forecast(self, shop: Workshop, errand: Errand) -> Forecast:
        load = load_peak_bytes(total_weight_bytes(file_sizes(self.folder)), self.prebuilt.format)
        return Forecast((Step("use", f"Use {self.folder}"),), load)

    def brief(self, shop: Workshop, errand: Errand) -> str | None:
        return None

    def walk(self, shop: Workshop, errand: Errand) -> PreparedModel:
        return prepared_from(errand.target, *shop.assemble(errand.target, self.prebuilt, self.folder, None))


@dataclass(frozen=True)
class Convert(Way):
    """Original weights that are here, to be converted."""

    conversion: Conversion
    facts: ModelFacts

    @property
    def _trust_needed(self) -> bool:
        return self.facts.needs_remote_code and not self.conversion.trust_remote_code

    def forecast(self, shop: Workshop, errand: Errand) -> Forecast:
        step, load = conversion_step(shop, self.conversion.recipe, self.facts)
        return Forecast((step,), load, self._trust_needed)

    def brief(self, shop: Workshop, errand: Errand) -> str | None:
        need, available = shop.cost(self.conversion.recipe, self.facts), shop.memory()
        if need.peak_bytes > available:
            return " ".join(memory_refusal(need.peak_bytes, available, "Converting it"))
        return f"Not converted yet: the first prompt does it, in about {duration(need.seconds)}."

    def walk(self, shop: Workshop, errand: Errand) -> PreparedModel:
        if self._trust_needed:
            raise ModelError(
                f"{self.conversion.model} brings Python code of its own, which would have to run on this computer.",
                _TRUST_REMEDY,
            )
        shop.jobs.run(
            CONVERT,
            f"{model_label(self.conversion.model)} to {self.conversion.recipe.format}",
            str(self.conversion.folder),
            lambda report, stop: self._convert(shop, errand.override, report, stop),
            errand.on_progress,
            errand.cancelled,
        )
        manifest = finished_manifest(self.conversion.folder)
        if manifest is None:
            raise ModelError(
                f"{self.conversion.folder} is incomplete right after it was made.",
                f"See {self.conversion.log_path}, then try again.",
            )
        return prepared_from(errand.target, self.conversion.folder, manifest)

    def _convert(self, shop: Workshop, override: bool, report: OnProgress, stop: threading.Event) -> None:
        with shop.turn_to_convert(report, stop):  # memory is looked at once the other has given its back
            if not override:
                shop.refuse_too_large(shop.cost(self.conversion.recipe, self.facts), self.conversion.model)
            convert(self.conversion, report, stop)


@dataclass(frozen=True)
class GetReadyMade(Way):
    """A folder that its makers publish in the engine's own format."""

    prebuilt: Prebuilt
    instead: Way | None = None
    """What to do when the folder is not there after all; only for one that no public page confirms."""

    @property
    def _text(self) -> str:
        return f"Download {self.prebuilt.repository} (ready-made {self.prebuilt.precision})"

    def forecast(self, shop: Workshop, errand: Errand) -> Forecast:
        if shop.is_offline():
            return Forecast((Step("use", self._text),))
        try:
            listing = shop.listing(self._wanted, errand.cancelled)
        except ModelError:
            if self.instead is None:
                raise
            return self.instead.forecast(shop, errand)
        load = load_peak_bytes(total_weight_bytes(listing.files), self.prebuilt.format)
        return Forecast((download_step(listing, self._text),), load)

    def estimate(self, shop: Workshop, errand: Errand) -> Forecast:
        count = self.prebuilt.bytes or _stored_bytes(
            expected_size(errand.target.model), self.prebuilt.precision
        )
        load = load_peak_bytes(count, self.prebuilt.format)
        place = f"{self.prebuilt.repository}/{self.prebuilt.subfolder}"
        return Forecast((_download_of(place, count, self._text),), load)

    def brief(self, shop: Workshop, errand: Errand) -> str | None:
        return download_brief(f"downloads {self.prebuilt.repository}", self.prebuilt.bytes)

    @property
    def _wanted(self) -> Wanted:
        return Wanted(self.prebuilt.repository, subfolder=self.prebuilt.subfolder)

    def walk(self, shop: Workshop, errand: Errand) -> PreparedModel:
        if self.instead is not None:
            try:
                shop.listing(self._wanted, errand.cancelled)
            except ModelError:
                return self.instead.walk(shop, errand)
        made = shop.jobs.run(
            DOWNLOAD,
            model_label(errand.target.model),
            f"prebuilt {errand.target.model} {self.prebuilt}",
            lambda report, stop: self._get(
                shop, dataclasses.replace(errand, on_progress=report, cancelled=stop)
            ),
            errand.on_progress,
            errand.cancelled,
        )
        return prepared_from(errand.target, *made)

    def _get(self, shop: Workshop, errand: Errand) -> tuple[Path, dict[str, Any]]:
        folder = shop.get(self._wanted, errand)
        try:
            prompts = shop.get(download.prompt_files(errand.target.model), errand)
        except ModelError:
            prompts = None  # gated or gone: the maker's own tokenizer files have to do
        return shop.assemble(errand.target, self.prebuilt, folder, prompts)


@dataclass(frozen=True)
class Download(Way):
    """A repository of which nothing is here: judged first, then fetched, then used or converted."""

    wanted: Wanted

    def forecast(self, shop: Workshop, errand: Errand) -> Forecast:
        target, spec = errand.target, errand.spec
        listing = shop.listing(self.wanted, errand.cancelled)
        if listing.format != SAFETENSORS:
            step = download_step(listing, f"Download {target.model} ({FORMAT_TITLES[listing.format]})")
            return Forecast((step,), load_peak_bytes(total_weight_bytes(listing.files), listing.format))
        step = download_step(listing, f"Download {target.model} (original weights)")
        facts = expected_facts(listing, target.model)
        if spec.model_format == SAFETENSORS:
            return Forecast((step,), load_peak_bytes(_loaded_bytes(facts, target), SAFETENSORS))
        refuse_multimodal(listing.reads_images, target.model, spec)
        more, load = conversion_step(shop, recipe_for(target, spec, facts), facts)
        return Forecast((step, more), load, facts.needs_remote_code and not errand.trust_remote_code)

    def estimate(self, shop: Workshop, errand: Errand) -> Forecast:
        target, spec, parameters = errand.target, errand.spec, expected_size(errand.target.model)
        if not parameters:
            raise ModelError(
                f"The size of {target.model} is not known without asking the Hub.", "See its plan."
            )
        facts = facts_from({}, parameters, 2 * parameters, {})
        step = _download_of(target.model, facts.weight_bytes, f"Download {target.model} (original weights)")
        if spec.model_format == SAFETENSORS:
            return Forecast((step,), load_peak_bytes(_loaded_bytes(facts, target), SAFETENSORS))
        more, load = conversion_step(shop, recipe_for(target, spec, facts), facts)
        return Forecast((step, more), load)

    def brief(self, shop: Workshop, errand: Errand) -> str | None:
        entry = catalogue.find(errand.target.model)
        as_is = errand.spec.model_format == SAFETENSORS
        does = "downloads the original weights" if as_is else "downloads and converts it"
        return download_brief(does, entry.parameters * 2 if entry else None)

    def walk(self, shop: Workshop, errand: Errand) -> PreparedModel:
        folder = shop.get(self.wanted, errand)
        return shop.way_from(folder, errand).walk(shop, errand)


class Workshop:
    """Where ways are found and walked: the disk, the Hub, and the jobs that callers share. Thread-safe."""

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
        judgement = judge_folder(folder, None if folder == resolve(target.model).folder else target.model)
        found = judgement.require()
        if found == spec.model_format:
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
        return folder.is_dir() and self._hashes.of(folder, hash_large=False) is None

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
            f"download {dataclasses.replace(wanted, formats=None)}",
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
            weight_bytes, loaded_bytes = facts.weight_bytes, _loaded_bytes(facts, target)
            revision = self._revision(resolve(target.model), folder, hash_large=errand.hash_large)
        else:
            weight_bytes = loaded_bytes = total_weight_bytes(file_sizes(folder))
            revision = hash_json(stat_signature(p for p in sorted(folder.iterdir()) if p.is_file()))
        return PreparedModel(
            path=str(folder.resolve()),
            model=target.model,
            precision=target.precision,
            format=model_format,
            revision=revision,
            weight_bytes=weight_bytes,
            estimated_peak_bytes=load_peak_bytes(loaded_bytes, model_format),
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


def prepared_from(target: Target, folder: Path, manifest: dict[str, Any]) -> PreparedModel:
    """What an engine gets of a folder that was made here."""
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


def is_whole(folder: Path, model: str) -> bool:
    """Whether a downloaded snapshot can be used; a part of one is fetched again instead."""
    try:
        return judge_folder(folder, model).usable
    except (ModelError, OSError):
        return False


def refuse_multimodal(reads_images: bool, model: str, spec: EngineSpec) -> None:
    """No converter here takes the text part out of a model that reads pictures."""
    if reads_images and spec.model_format != SAFETENSORS:
        raise ModelError(
            f"{model} is a multimodal model, and the converter for {spec.title} makes text models only.",
            "Choose a text-only model of the family, or an engine that loads the original weights.",
        )


def expected_facts(listing: Listing, model: str) -> ModelFacts:
    """Facts before the weights are here: from the Hub, the catalogue, or the size of the files."""
    entry = catalogue.find(model)
    weight_bytes = total_weight_bytes(listing.files)
    parameters = listing.parameters or (entry.parameters if entry else weight_bytes // 2)
    return facts_from(listing.config, parameters, weight_bytes, {})


def download_step(listing: Listing, text: str) -> Step:
    missing = listing.missing_bytes
    files = {f"{listing.repository}/{name}": size for name, size in listing.missing_files.items()}
    return Step("download", text, missing, missing, 0, missing / ASSUMED_BYTES_PER_S, files)


def expected_size(model: str) -> int:
    """Parameters that the catalogue states; 0: not in it."""
    entry = catalogue.find(model)
    return entry.parameters if entry else 0


def _stored_bytes(parameters: int, precision: str) -> int:
    return int(parameters * BITS.get(precision, 16) / 8 * 1.1)


def _download_of(place: str, count: int, text: str) -> Step:
    return Step("download", text, count, count, 0, count / ASSUMED_BYTES_PER_S, {place: count})


def conversion_step(shop: Workshop, recipe: Recipe, facts: ModelFacts) -> tuple[Step, int]:
    """(the step, memory of the worker that loads the result)."""
    need = shop.cost(recipe, facts)
    text = f"Convert to {FORMAT_TITLES[recipe.format]} {recipe.precision} on this computer"
    step = Step("convert", text, 0, need.output_bytes, need.peak_bytes, need.seconds, makes=recipe.label)
    return step, load_peak_bytes(need.output_bytes, recipe.format)


def _loaded_bytes(facts: ModelFacts, target: Target) -> int:
    return int(facts.parameters * BITS.get(target.precision, 16) / 8)


def _format(spec: EngineSpec) -> str:
    """Of an engine that loads folders."""
    if spec.model_format is None:
        raise ModelError(f"{spec.title} loads no model folders.", "Choose another engine.")
    return spec.model_format


def _has_links(folder: Path) -> bool:
    """Whether an ONNX folder's files are links, as they are in the Hugging Face cache."""
    return any(path.is_symlink() for path in folder.glob("*.onnx*"))
