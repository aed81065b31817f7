"""The System tab in a real chromium: what the engines say, and an environment set up by its button."""

import dataclasses
import re

import gradio as gr
import pytest
from playwright.sync_api import expect

from engines import intel_npu_engine
from engines.environments.environments import Environments
from engines.models.library import ModelLibrary
from engines.runtime.manager import EngineManager
from tests.engines.environments.test_environments import no_network, small_spec
from tests.helpers import echo_engine
from ui.system import tab as system_tab
from ui.theme import launch_options

SPECS = (
    dataclasses.replace(echo_engine.SPEC, title="An <b>echo</b>"),
    dataclasses.replace(echo_engine.SPEC, name="far-echo", title="Far echo", environment="small"),
    dataclasses.replace(intel_npu_engine.SPEC, environment="small"),
)
"""One that is here, and two that need the environment that is set up meanwhile; the last lacks its library there."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("system")


@pytest.fixture(scope="module")
def page(place, chromium):
    environments = Environments(place / "data", specs=(small_spec(place),))
    manager = EngineManager(place / "data", ModelLibrary(place / "data"), environments, specs=SPECS)
    with gr.Blocks(analytics_enabled=False) as demo:
        system_tab.build(manager, environments)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **launch_options())
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    page.goto(url)
    yield page
    page.close()
    demo.close()
    manager.shutdown()


def card(page, engine):
    return page.locator(f"section[aria-label='{engine}']")


def test_it_says_that_it_asks_and_then_what_it_heard(page):
    expect(page.locator("#system-machine")).to_contain_text("memory")
    echo = card(page, "echo")
    expect(echo).to_contain_text("An <b>echo</b>", timeout=60_000)
    expect(echo.locator("tbody tr").nth(0)).to_contain_text("Echo chamber")
    expect(echo.locator("tbody tr").nth(1)).to_contain_text("Use CPU.")
    expect(card(page, "far-echo")).to_contain_text("not available")
    expect(card(page, "intel-npu")).to_contain_text("prefer OpenVINO GenAI")
    expect(page.locator("#system-engines")).not_to_contain_text("Asking")
    page.locator("#system-refresh").click()
    expect(page.locator("#system-engines")).to_contain_text("Asking every engine", timeout=30_000)
    expect(page.locator("#system-engines")).not_to_contain_text("Asking", timeout=60_000)


def test_every_control_has_a_name(page):
    page.get_by_text("Log of the last set-up").first.click()
    nameless = page.evaluate(
        """[...document.querySelectorAll('#system button, #system input, #system textarea, #system progress')]
        .filter((e) => !(e.innerText || e.ariaLabel || e.labels?.[0]?.innerText || '').trim())
        .map((e) => e.outerHTML)"""
    )
    assert nameless == []


def test_a_set_up_that_fails_says_why_and_one_that_works_is_followed(page, monkeypatch):
    small = page.locator("#system-env-small")
    expect(small).to_contain_text("not set up")
    with monkeypatch.context() as away:
        no_network(away)
        page.locator("#system-set-up-small").click()
        expect(small.locator("progress")).to_be_visible(timeout=30_000)
        expect(page.locator("#system-set-up-small")).to_be_disabled()
        expect(small).to_contain_text("the package index could not be reached", timeout=90_000)
    page.locator("#system-set-up-small").click()
    expect(small).to_contain_text("six 1.17.0", timeout=90_000)
    expect(page.locator("#system-set-up-small")).to_have_text("Check and repair")
    expect(page.locator("#system-log-small textarea")).to_have_value(re.compile("six"), timeout=30_000)
    expect(card(page, "far-echo")).to_contain_text("Echo chamber", timeout=60_000)  # it was asked again
    expect(card(page, "intel-npu")).to_contain_text("not available")


def test_a_set_up_can_be_cancelled(page, place):
    (place / "small.txt").write_text("six==1.16.0\n")
    small = page.locator("#system-env-small")
    page.locator("#system-set-up-small").click()
    expect(page.locator("#system-cancel-small")).to_be_enabled(timeout=30_000)
    page.locator("#system-cancel-small").click()
    expect(small).to_contain_text("outdated", timeout=60_000)
    expect(page.locator("#system-cancel-small")).to_be_disabled()


def test_narrow_and_dark_fit(page):
    page.set_viewport_size({"width": 380, "height": 800})
    page.evaluate("document.body.classList.add('dark')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
