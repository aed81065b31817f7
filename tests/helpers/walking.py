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
from ui.share import visitor_page
from ui.share.door import Door
from ui.share.settings import Made, ShareSettings
from ui.share.sharing import Sharing
from ui.share.visitors import Visitors


def whole_pages(data_dir: Path) -> tuple[gr.Blocks, gr.Blocks]:
    """The owner's page and the visitors', with everything on them, not served."""
    store, library, door = Store(data_dir / "arena.sqlite3"), ModelLibrary(data_dir), Door()
    manager = manager_on(data_dir)
    turns = Turns(manager, store, machine_facts)
    visitors = Visitors(door, store, turns)
    sharing = Sharing(door, ShareSettings(), Made(), 0, None)
    owners = build(manager, store, turns, library, Environments(data_dir), (sharing, visitors))
    return owners, visitor_page.build(manager, store, turns, library, visitors, lambda: "a PC")


def routes_of(routes: list[Any]) -> Iterator[tuple[str, str]]:
    """(method, path) of every route, those of included routers, too."""
    for route in routes:
        if hasattr(route, "effective_candidates"):
            yield from routes_of([*route.effective_candidates(), *route.effective_low_priority_routes()])
            continue
        for method in sorted(getattr(route, "methods", None) or {"GET"}):
            yield method, route.path
