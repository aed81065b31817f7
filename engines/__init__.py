"""The engines: `ENGINES` is the explicit list. Adding one is a module, a line here, and perhaps an environment."""

from engines.protocol import EngineSpec

ENGINES: tuple[EngineSpec, ...] = ()


def spec_by_name(name: str) -> EngineSpec | None:
    """The spec of an engine, or None when there is no such engine."""
    return next((spec for spec in ENGINES if spec.name == name), None)
