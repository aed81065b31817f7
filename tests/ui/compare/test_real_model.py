"""From the first start to a real model on every backend: the whole page, real engines, a local Hub, few clicks."""

import shutil

import pytest
from playwright.sync_api import expect

from engines.environments.environments import Environments
from engines.models import catalogue
from engines.models.catalogue import CatalogueModel
from engines.models.library import ModelLibrary
from engines.models.model_names import DEMO_FOLDER
from engines.runtime.manager import EngineManager
from tests.engines.models.conftest import cache, hub  # noqa: F401 - fixtures
from tests.ui.accessibility import serious
from tests.ui.conftest import serve_page

REAL = CatalogueModel(
    "arena/real", "Real Phi", 4_000_000, 1024, "MIT", "The shape is real, the weights are tiny"
)


@pytest.fixture
def served(tmp_path, hub, monkeypatch):  # noqa: F811
    """The page on the real engines; the Hub has one real model, and so has the catalogue."""
    hub.add(REAL.id, shutil.copytree(DEMO_FOLDER, tmp_path / "real"))
    monkeypatch.setattr(catalogue, "load", lambda path=None: (REAL,))
    data_dir = tmp_path / "data"
    library = ModelLibrary(data_dir)
    manager = EngineManager(data_dir, library, Environments(data_dir))
    demo, arena = serve_page(data_dir, manager)
    yield arena
    arena.turns.stop_everything()
    demo.close(verbose=False)
    manager.shutdown()
    arena.store.close()


@pytest.mark.timeout(600)
def test_a_real_model_runs_on_every_backend_within_three_clicks_of_the_first_comparison(served, new_page):
    page = new_page(served.address, width=390)
    expect.set_options(timeout=180_000)
    try:
        page.locator("#first-run").click()
        offer = page.locator("#offer")
        expect(offer).to_contain_text("Now a real model: Real Phi")
        expect(offer).to_contain_text("It runs on 4 of 4 backends here")
        assert serious(page) == []
        clicks = 0
        page.locator("#offer-get").click()
        clicks += 1
        expect(offer.locator("progress").first).to_be_visible()
        expect(page.locator("#model-button")).to_contain_text("Real Phi · on 4 of 4 backends · here")
        expect(offer).to_be_hidden()
        for panel in range(1, 5):
            expect(page.locator(f"#panel-{panel} .ph")).to_contain_text("· real")
            expect(page.locator(f"#panel-{panel} .ph")).to_contain_text("Ready")
            expect(page.locator(f"#panel-{panel} .now").first).to_contain_text(
                "Tell me a story about a lighthouse."
            )
        assert clicks <= 3
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.locator("#model-button").click()
        choice = page.locator("#model-list .choice", has_text="Demo")
        expect(choice).to_be_visible()
        assert (
            page.locator("#model-list").bounding_box()["y"]
            > page.locator("#model-button").bounding_box()["y"]
        )
        page.get_by_label("Search models").last.fill("demo")
        expect(page.locator("#model-list .choice:visible")).to_have_count(1)
        assert serious(page) == []
        choice.click()
        expect(page.locator("#model-button")).to_contain_text("Demo · on 4 of 4 backends · here")
        expect(page.locator("#model-list")).to_be_hidden()
    finally:
        expect.set_options(timeout=5_000)
