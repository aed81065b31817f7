"""Which architectures the installed transformers can build, read from its source: to import it takes seconds.

Engines that load original weights go by it, and so do both converters. So a checkpoint that it cannot build is
refused before gigabytes of it are downloaded.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.engine import ModelError
from engines.models.other_tasks import reads_images

_CONFIGURATIONS = ("configuration_auto.py", "CONFIG_MAPPING_NAMES")
"""Every model type that the library has code for."""
_WRITERS = ("modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
"""Those that AutoModelForCausalLM builds, some of them as the text part of a model that also sees."""


@dataclass(frozen=True)
class Unbuildable:
    """A checkpoint that neither transformers nor a converter here does anything with."""

    what: str
    why: str
    """The rest of a sentence that begins with the model's name."""
    remedy: str


def unbuildable(config: Mapping[str, Any]) -> Unbuildable | None:
    """Why nothing here can build what a config.json describes; None: it can, its own code does, or nobody knows."""
    kind, library = config.get("model_type"), version()
    if library is None or not isinstance(kind, str) or config.get("auto_map") or writes(kind):
        return None
    if not is_known(kind):
        return Unbuildable(
            "original weights of an unknown architecture",
            f"is of an architecture ({kind}) that the installed transformers {library} does not know; it may be "
            "newer.",
            "Update the app if there is a newer version, choose another model, or run it on a server that knows it "
            "and add that on the System tab.",
        )
    if not reads_images(config):
        return None
    name = next(iter(config.get("architectures") or ()), kind)
    return Unbuildable(
        "original weights of a multimodal model",
        f"is a multimodal model ({name}) whose text part the installed transformers {library} does not run by "
        "itself.",
        "Choose a text-only model of the family: this app runs models that go from text to text.",
    )


def refuse_own_code(config: Mapping[str, Any], name: str) -> None:
    """For engines that load original weights as they are; raises ModelError."""
    if needs_own_code(config):
        raise ModelError(
            f"{name} brings Python code of its own ({config.get('model_type') or 'no type'} is no architecture that "
            "transformers has), and engines that load original weights run no such code.",
            "Choose an engine that it can be converted for, or another model.",
        )


def is_known(model_type: Any) -> bool:
    """Whether the library has code of its own for a type; many repositories ship outdated code beside it."""
    return model_type in _types(*_CONFIGURATIONS)


def writes(model_type: Any) -> bool:
    """Whether the library can build a model of this type, or its text part, to write text."""
    return model_type in _types(*_WRITERS)


def needs_own_code(config: Mapping[str, Any]) -> bool:
    """Whether nothing but the Python code that comes with a model can build it."""
    return bool(config.get("auto_map")) and not is_known(config.get("model_type"))


@functools.cache
def version() -> str | None:
    """Of the installed transformers; None: there is none, or its tables are not where they were."""
    try:
        return importlib.metadata.version("transformers") if _types(*_WRITERS) else None
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _types(file: str, table: str) -> frozenset[str]:
    """The keys of a table in transformers' models/auto; empty where there is no such table."""
    spec = importlib.util.find_spec("transformers")  # finds the package, does not import it
    if spec is None or spec.origin is None:
        return frozenset()
    try:
        source = (Path(spec.origin).parent / "models" / "auto" / file).read_text(encoding="utf-8")
        for statement in ast.parse(source).body:
            if isinstance(statement, ast.Assign) and _name(statement) == table:
                return frozenset(dict(ast.literal_eval(_pairs(statement.value))))
    except (OSError, SyntaxError, ValueError, TypeError):
        pass
    return frozenset()


def _name(statement: ast.Assign) -> str | None:
    target = statement.targets[0]
    return target.id if isinstance(target, ast.Name) else None


def _pairs(value: ast.expr) -> ast.expr:
    """What is in `OrderedDict([…])`, or a plain dict."""
    return value.args[0] if isinstance(value, ast.Call) and value.args else value
