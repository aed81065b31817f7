"""What is known about a model before and after its files are here: facts, and the steps of a plan."""

from __future__ import annotations

from pathlib import Path

from engines.engine import ModelError
from engines.models import catalogue
from engines.models.conversion.recipes import Recipe, cost, load_peak_bytes
from engines.models.download import hub_cache
from engines.models.download.download import Listing
from engines.models.folders import (
    FORMAT_TITLES,
    SAFETENSORS,
    ModelFacts,
    facts_from,
    read_facts,
    require_format,
    total_weight_bytes,
)
from engines.models.plan import ASSUMED_BYTES_PER_S, Step


def complete_snapshot(repository: str) -> Path | None:
    """The downloaded original weights, if they are all here."""
    folder = hub_cache.snapshot(repository)
    if folder is None:
        return None
    try:
        if require_format(folder) != SAFETENSORS:
            return folder
        read_facts(folder)
        require_tokenizer(folder, repository)
    except ModelError:
        return None
    return folder


def require_tokenizer(folder: Path, model: str) -> None:
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{model} has no tokenizer.json, which every engine here needs for equal prompts.",
            "Save its tokenizer once with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…).",
        )


def expected_facts(listing: Listing, model: str) -> ModelFacts:
    """Facts before the weights are here: from the Hub, the catalogue, or the size of the files."""
    entry = catalogue.find(model)
    weight_bytes = total_weight_bytes(listing.files)
    parameters = listing.parameters or (entry.parameters if entry else weight_bytes // 2)
    return facts_from(listing.config, parameters, weight_bytes, {})


def download_step(listing: Listing, text: str) -> Step:
    missing = listing.missing_bytes
    return Step("download", text, missing, missing, 0, missing / ASSUMED_BYTES_PER_S)


def conversion_steps(recipe: Recipe, facts: ModelFacts) -> tuple[tuple[Step, ...], int]:
    need = cost(recipe, facts)
    text = f"Convert to {FORMAT_TITLES[recipe.format]} {recipe.precision} on this computer"
    step = Step("convert", text, 0, need.output_bytes, need.peak_bytes, need.seconds)
    return (step,), load_peak_bytes(need.output_bytes, recipe.format)
