"""Gradio without what it does for editors each time it is imported.

For every component Gradio parses its source twice, to write a type stub beside it, and fills in a docstring template
for each of its events: about a third of its import time, for nothing that a page needs. `install` leaves both out. It
is called by the package (`ui/__init__.py`), since it has to come before the first `import gradio`; what is not found
under the name known here is left as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def _no_stubs(component_meta: ModuleType) -> None:
    if hasattr(component_meta, "create_or_modify_pyi"):
        component_meta.create_or_modify_pyi = _do_nothing  # type: ignore[attr-defined] # it was there


def _no_event_docs(events: ModuleType) -> None:
    listener = getattr(events, "EventListener", None)
    if listener is not None and hasattr(listener, "set_doc"):
        listener.set_doc = _do_nothing


def _do_nothing(*_arguments: Any, **_named: Any) -> None:
    pass


_CHANGES: dict[str, Callable[[ModuleType], None]] = {
    "gradio.component_meta": _no_stubs,
    "gradio.events": _no_event_docs,
}


class _Finder(MetaPathFinder):
    """Finds the modules as ever, and changes them right after they have been executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        change = _CHANGES.get(name)
        spec = PathFinder.find_spec(name, path, target) if change else None
        if spec is None or spec.loader is None or change is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Have Gradio imported without stubs and docstrings; does nothing where it has been imported already."""
    if "gradio" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
