"""The ways from where a model is to what a target needs: one type each, which knows its steps, its cost and its walk.

They are found by the workshop (`workshop`), which hands itself to them as the `Shop` with the disk and the Hub.
No inference library and no hub client is imported here: that happens in child processes.
"""

from __future__ import annotations

import dataclasses
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from engines.engine import ModelError
from engines.models import catalogue
from engines.models.catalogue import Prebuilt
from engines.models.conversion.conversion import Conversion, convert, finished_manifest
from engines.models.conversion.recipes import BITS, Cost, Recipe, load_peak_bytes, recipe_for
from engines.models.download import download
from engines.models.download.download import Listing, Wanted
from engines.models.folders import (
    FORMAT_TITLES,
    SAFETENSORS,
    ModelFacts,
    facts_from,
    file_sizes,
    total_weight_bytes,
)
from engines.models.plan import (
    ASSUMED_BYTES_PER_S,
    Step,
    download_brief,
    duration,
    memory_refusal,
)
from engines.processes.jobs import OnProgress
from engines.processes.shared_jobs import SharedJobs
from engines.protocol import EngineSpec, PreparedModel, Target, model_label
from engines.runtime.activity import CONVERT, DOWNLOAD

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


class Shop(Protocol):
    """What ways need to be walked: the disk, the Hub, and the jobs that callers share."""

    jobs: SharedJobs
    memory: Callable[[], int]
    """Bytes of memory that can be had now."""

    def is_offline(self) -> bool: ...

    def way_from(self, folder: Path, errand: Errand) -> Way:
        """From a folder that is here. Raises ModelError."""

    def listing(self, wanted: Wanted, cancelled: threading.Event) -> Listing:
        """What a download would bring. Raises ModelError."""

    def get(self, wanted: Wanted, errand: Errand) -> Path:
        """Download files; returns their folder."""

    def assemble(
        self, target: Target, prebuilt: Prebuilt, folder: Path, prompts: Path | None
    ) -> tuple[Path, dict[str, Any]]:
        """A checked folder in the data directory from downloaded files, with its manifest."""

    def as_it_is(self, errand: Errand, folder: Path) -> PreparedModel:
        """A folder handed to the engine untouched."""

    def cost(self, recipe: Recipe, facts: ModelFacts) -> Cost:
        """What a conversion needs on this computer."""

    def refuse_too_large(self, need: Cost, model: str) -> None:
        """Raise OutOfMemoryError or ModelError where memory or disk do not do."""

    def turn_to_convert(self, report: OnProgress, stop: threading.Event) -> AbstractContextManager[None]:
        """One conversion at a time. Raises CancelledError."""


class Way(ABC):
    """One way to get a target's model ready."""

    ready: ClassVar[bool] = False
    """Whether there is nothing left to do."""

    @abstractmethod
    def forecast(self, shop: Shop, errand: Errand) -> Forecast:
        """Steps and cost; may ask the Hub. Raises ModelError when it turns out to lead nowhere."""

    def estimate(self, shop: Shop, errand: Errand) -> Forecast:
        """The same without the network, by the catalogue's numbers."""
        return self.forecast(shop, errand)

    @abstractmethod
    def brief(self, shop: Shop, errand: Errand) -> str | None:
        """One sentence for a panel, without the network; None when nothing is left to do."""

    @abstractmethod
    def walk(self, shop: Shop, errand: Errand) -> PreparedModel:
        """Do it. Raises ModelError, OutOfMemoryError or CancelledError."""


@dataclass(frozen=True)
class Elsewhere(Way):
    """A model that a server has: nothing of it is here."""

    ready: ClassVar[bool] = True

    def forecast(self, shop: Shop, errand: Errand) -> Forecast:
        step = Step("use", f"Use {errand.target.model} where it is, on {errand.target.device}")
        return Forecast((step,), _CLIENT_BYTES)

    def brief(self, shop: Shop, errand: Errand) -> str | None:
        return None

    def walk(self, shop: Shop, errand: Errand) -> PreparedModel:
        target = errand.target
        return PreparedModel(None, target.model, target.precision, None, estimated_peak_bytes=_CLIENT_BYTES)


@dataclass(frozen=True)
class UseFolder(Way):
    """A folder that the engine loads as it is."""

    folder: Path
    ready: ClassVar[bool] = True

    def forecast(self, shop: Shop, errand: Errand) -> Forecast:
        prepared = shop.as_it_is(dataclasses.replace(errand, hash_large=False), self.folder)
        return Forecast((Step("use", f"Use {self.folder}"),), prepared.estimated_peak_bytes)

    def brief(self, shop: Shop, errand: Errand) -> str | None:
        return None

    def walk(self, shop: Shop, errand: Errand) -> PreparedModel:
        return shop.as_it_is(errand, self.folder)


@dataclass(frozen=True)
class UseMade(Way):
    """A folder that was made here earlier, with its manifest."""

    folder: Path
    manifest: dict[str, Any]
    ready: ClassVar[bool] = True

    def forecast(self, shop: Shop, errand: Errand) -> Forecast:
        load = load_peak_bytes(self.manifest["weight_bytes"], self.manifest["format"])
        return Forecast((Step("use", f"Use {self.folder}"),), load)

    def brief(self, shop: Shop, errand: Errand) -> str | None:
        return None

    def walk(self, shop: Shop, errand: Errand) -> PreparedModel:
        return prepared_from(errand.target, self.folder, self.manifest)


@dataclass(frozen=True)
class LinkFiles(Way):
    """A snapshot made of links, to become files of one folder: ONNX Runtime refuses weights behind a link."""

    folder: Path
    prebuilt: Prebuilt
    ready: ClassVar[bool] = True

    def forecast(self, shop: Shop, errand: Errand) -> Forecast:
        load = load_peak_bytes(total_weight_bytes(file_sizes(self.folder)), self.prebuilt.format)
        return Forecast((Step("use", f"Use {self.folder}"),), load)

    def brief(self, shop: Shop, errand: Errand) -> str | None:
        return None

    def walk(self, shop: Shop, errand: Errand) -> PreparedModel:
        return prepared_from(errand.target, *shop.assemble(errand.target, self.prebuilt, self.folder, None))


@dataclass(frozen=True)
class Convert(Way):
    """Original weights that are here, to be converted."""

    conversion: Conversion
    facts: ModelFacts

    @property
    def _trust_needed(self) -> bool:
        return self.facts.needs_remote_code and not self.conversion.trust_remote_code

    def forecast(self, shop: Shop, errand: Errand) -> Forecast:
        step, load = conversion_step(shop, self.conversion.recipe, self.facts)
        return Forecast((step,), load, self._trust_needed)

    def brief(self, shop: Shop, errand: Errand) -> str | None:
        need, available = shop.cost(self.conversion.recipe, self.facts), shop.memory()
        if need.peak_bytes > available:
            return " ".join(memory_refusal(need.peak_bytes, available, "Converting it"))
        return f"Not converted yet: the first prompt does it, in about {duration(need.seconds)}."

    def walk(self, shop: Shop, errand: Errand) -> PreparedModel:
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

    def _convert(self, shop: Shop, override: bool, report: OnProgress, stop: threading.Event) -> None:
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

    def forecast(self, shop: Shop, errand: Errand) -> Forecast:
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

    def estimate(self, shop: Shop, errand: Errand) -> Forecast:
        count = self.prebuilt.bytes or _stored_bytes(
            expected_size(errand.target.model), self.prebuilt.precision
        )
        load = load_peak_bytes(count, self.prebuilt.format)
        place = f"{self.prebuilt.repository}/{self.prebuilt.subfolder}"
        return Forecast((_download_of(place, count, self._text),), load)

    def brief(self, shop: Shop, errand: Errand) -> str | None:
        return download_brief(f"downloads {self.prebuilt.repository}", self.prebuilt.bytes)

    @property
    def _wanted(self) -> Wanted:
        return Wanted(self.prebuilt.repository, subfolder=self.prebuilt.subfolder)

    def walk(self, shop: Shop, errand: Errand) -> PreparedModel:
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

    def _get(self, shop: Shop, errand: Errand) -> tuple[Path, dict[str, Any]]:
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

    def forecast(self, shop: Shop, errand: Errand) -> Forecast:
        target, spec = errand.target, errand.spec
        listing = shop.listing(self.wanted, errand.cancelled)
        if listing.format != SAFETENSORS:
            step = download_step(listing, f"Download {target.model} ({FORMAT_TITLES[listing.format]})")
            return Forecast((step,), load_peak_bytes(total_weight_bytes(listing.files), listing.format))
        step = download_step(listing, f"Download {target.model} (original weights)")
        facts = expected_facts(listing, target.model)
        if spec.model_format == SAFETENSORS:
            return Forecast((step,), load_peak_bytes(loaded_bytes(facts, target), SAFETENSORS))
        refuse_multimodal(listing.reads_images, target.model, spec)
        more, load = conversion_step(shop, recipe_for(target, spec, facts), facts)
        return Forecast((step, more), load, facts.needs_remote_code and not errand.trust_remote_code)

    def estimate(self, shop: Shop, errand: Errand) -> Forecast:
        target, spec, parameters = errand.target, errand.spec, expected_size(errand.target.model)
        if not parameters:
            raise ModelError(
                f"The size of {target.model} is not known without asking the Hub.", "See its plan."
            )
        facts = facts_from({}, parameters, 2 * parameters, {})
        step = _download_of(target.model, facts.weight_bytes, f"Download {target.model} (original weights)")
        if spec.model_format == SAFETENSORS:
            return Forecast((step,), load_peak_bytes(loaded_bytes(facts, target), SAFETENSORS))
        more, load = conversion_step(shop, recipe_for(target, spec, facts), facts)
        return Forecast((step, more), load)

    def brief(self, shop: Shop, errand: Errand) -> str | None:
        entry = catalogue.find(errand.target.model)
        as_is = errand.spec.model_format == SAFETENSORS
        does = "downloads the original weights" if as_is else "downloads and converts it"
        return download_brief(does, entry.parameters * 2 if entry else None)

    def walk(self, shop: Shop, errand: Errand) -> PreparedModel:
        folder = shop.get(self.wanted, errand)
        return shop.way_from(folder, errand).walk(shop, errand)


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


def conversion_step(shop: Shop, recipe: Recipe, facts: ModelFacts) -> tuple[Step, int]:
    """(the step, memory of the worker that loads the result)."""
    need = shop.cost(recipe, facts)
    text = f"Convert to {FORMAT_TITLES[recipe.format]} {recipe.precision} on this computer"
    step = Step("convert", text, 0, need.output_bytes, need.peak_bytes, need.seconds, makes=recipe.label)
    return step, load_peak_bytes(need.output_bytes, recipe.format)


def loaded_bytes(facts: ModelFacts, target: Target) -> int:
    return int(facts.parameters * BITS.get(target.precision, 16) / 8)
