"""Walks all that a Gradio server offers to a browser: its routes, its handlers, its components' own functions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from engines.environments.environments import Environments
from engines.hardware import machine_facts
from engines.models.library import ModelLibrary
from storage.store import Store
from tests.helpers.worlds import manager_on
from ui.chat.turns import Turns
from ui.page import build


def whole_page(data_dir: Path) -> gr.Blocks:
    """The owner's page with everything on it, not served."""
    store, library = Store(data_dir / "arena.sqlite3"), ModelLibrary(data_dir)
    manager = manager_on(data_dir)
    return build(manager, store, Turns(manager, store, machine_facts), library, Environments(data_dir))


def routes_of(routes: list[Any]) -> Iterator[tuple[str, str]]:
    """(method, path) of every route, those of included routers, too."""
    for route in routes:
        if hasattr(route, "effective_candidates"):
            yield from routes_of([*route.effective_candidates(), *route.effective_low_priority_routes()])
            continue
        for method in sorted(getattr(route, "methods", None) or {"GET"}):
            yield method, route.path
