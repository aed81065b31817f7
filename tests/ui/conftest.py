"""One Chromium for all page tests, and one page on the test engines: real workers, no inference library."""

import dataclasses
from pathlib import Path

import gradio as gr
import pytest
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from engines.environments.environments import Environments
from engines.hardware import machine_facts
from engines.models.library import ModelLibrary
from engines.runtime.manager import EngineManager
from storage.store import Store
from tests.helpers import bad_engine, echo_engine
from tests.helpers.browser import launch
from ui.chat.turns import Turns
from ui.page import build
from ui.theme import launch_options

ABSENT = dataclasses.replace(
    echo_engine.SPEC,
    name="absent",
    title="Absent engine",
    module="tests.helpers.no_such_engine",
    devices=("NPU",),
)
PACES = ("fast", "5", "20", "100")
ECHO = dataclasses.replace(echo_engine.SPEC, precisions=PACES)
SPECS = (
    ECHO,
    dataclasses.replace(ECHO, name="echo-two", title="Second echo"),
    dataclasses.replace(ECHO, name="echo-three", title="Third echo", honours=()),
    bad_engine.SPEC,
    ABSENT,
)


@dataclasses.dataclass
class Arena:
    """A served page and what is behind it, for tests that look at both."""

    address: str
    store: Store
    manager: EngineManager
    turns: Turns

    def forget(self) -> None:
        """As on the first start: no panels kept, nobody welcomed."""
        for key in ("compare.panels", "compare.sets", "compare.welcomed"):
            self.store.set_setting(key, None)


def serve_page(
    data_dir: Path, manager: EngineManager | None = None, port: int | None = None
) -> tuple[gr.Blocks, Arena]:
    """Serve the whole page on a free port of this machine, on the test engines unless a manager is given."""
    store = Store(data_dir / "arena.sqlite3")
    library, environments = ModelLibrary(data_dir), Environments(data_dir)
    manager = manager or EngineManager(data_dir, library, environments, specs=SPECS)
    turns = Turns(manager, store, machine_facts)
    demo = build(manager, store, turns, library, environments)
    _, address, _ = demo.launch(
        server_name="127.0.0.1", server_port=port, quiet=True, prevent_thread_lock=True, **launch_options()
    )
    manager.availability()
    return demo, Arena(address, store, manager, turns)


@pytest.fixture(scope="session")
def playwright() -> Playwright:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="session")
def chromium(playwright) -> Browser:
    browser = launch(playwright)
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def arena(tmp_path_factory) -> Arena:
    demo, arena = serve_page(tmp_path_factory.mktemp("page"))
    yield arena
    arena.turns.stop_everything()
    demo.close(verbose=False)
    arena.manager.shutdown()
    arena.store.close()


@pytest.fixture
def new_page(chromium):
    """Opens pages that fail the test on a script error or a request to another host."""
    contexts, troubles = [], []

    def open_page(address: str, width: int = 1280, height: int = 900, scheme: str = "light") -> Page:
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: troubles.append(f"script error: {error}"))
        page.on("request", lambda request: troubles.extend(_outside(request.url)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not troubles


def _outside(url: str) -> list[str]:
    local = ("http://127.0.0.1:", "http://localhost:", "data:", "blob:")
    return [] if url.startswith(local) else [f"request to another host: {url}"]
