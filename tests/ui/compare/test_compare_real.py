"""The Compare tab with the real engines on the bundled model: what a person sees after the first click."""

import pytest
from playwright.sync_api import expect

from engines.environments.environments import Environments
from engines.hardware import machine_facts
from storage.store import Store
from tests.ui.compare.driver import Driver
from ui.chat.turns import Turns
from ui.page import build
from ui.theme import launch_options


@pytest.fixture
def real_address(manager, library, data_dir, tmp_path):
    store = Store(tmp_path / "arena.sqlite3")
    turns = Turns(manager, store, machine_facts)
    demo = build(manager, store, turns, library, Environments(data_dir))
    _, address, _ = demo.launch(
        server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, **launch_options()
    )
    yield address
    turns.stop_everything()
    demo.close(verbose=False)
    store.close()


@pytest.mark.timeout(600)
def test_the_first_click_compares_every_engine_that_can_run_here(manager, real_address, new_page):
    able = [name for name, found in manager.availability().items() if found.ok and "CPU" in found.devices]
    if not able:
        pytest.skip("no engine can run on this CPU")
    page = Driver(new_page(real_address))
    expected = [manager.specs[name].title for name in able[:4]]
    assert [
        page.panel(n).locator(".ph-title").inner_text().split("\n")[-1] for n in page.panels()
    ] == expected
    page.page.click("#first-run")
    page.page.wait_for_selector(".now .turn")
    page.page.wait_for_function("!document.querySelector('.now .growing')", timeout=500_000)
    for panel in page.panels():
        assert page.phase(panel) == "finished", page.panel(panel).inner_text()
        assert len(page.reply(panel).split()) > 5
    if len(expected) > 1:
        summary = page.page.locator("#summary")
        expect(summary).to_contain_text("Fastest decode")
        expect(summary).not_to_contain_text("prompts differ")
