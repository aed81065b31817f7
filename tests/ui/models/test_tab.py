"""The Models tab in a real browser, on a real library: plan, get, list, remove, refuse."""

from types import SimpleNamespace

import gradio as gr
import pytest
from playwright.sync_api import expect

from engines import ENGINES, spec_by_name
from engines.models.library import ModelLibrary
from engines.models.model_names import DEMO_FOLDER
from engines.models.together import Backend
from engines.protocol import Target
from tests.engines.models.conftest import cache  # noqa: F401 - a fixture
from tests.engines.models.test_together import HERE
from ui.models import html
from ui.models import tab as models_tab
from ui.models.background import ModelWork, format_choices
from ui.theme import launch_options


@pytest.fixture
def work(tmp_path, cache):  # noqa: F811
    """What gets models, for all of the app."""
    return ModelWork(ModelLibrary(tmp_path / "data"))


@pytest.fixture
def address(tmp_path, cache, work):  # noqa: F811
    """The tab alone on a page; no target is loaded in this process."""
    idle = SimpleNamespace(
        states=lambda: (),
        unload=lambda target: None,
        specs={spec.name: spec for spec in ENGINES},
        availability=lambda: HERE,
    )
    with gr.Blocks(analytics_enabled=False) as demo, gr.Tabs():
        with gr.Tab("Other"):
            gr.Textbox(label="Nothing")
        with gr.Tab("Models"):
            models_tab.build(ModelLibrary(tmp_path / "data"), idle, work)
    _, url, _ = demo.queue().launch(prevent_thread_lock=True, quiet=True, inbrowser=False, **launch_options())
    yield url
    demo.close()


@pytest.fixture
def page(address, chromium):
    page = chromium.new_page(viewport={"width": 1200, "height": 1000})
    page.set_default_timeout(60_000)
    expect.set_options(timeout=120_000)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    page.get_by_role("tab", name="Models").click()
    yield page
    page.close()
    expect.set_options(timeout=5_000)


@pytest.mark.timeout(600)
def test_a_model_is_planned_made_ready_listed_and_removed(page):
    table, grid = page.locator("#models-table"), page.locator("#models-grid")
    expect(table).to_contain_text("comes with the app")
    row = grid.locator("tr", has_text="bundled, tiny")
    expect(row.locator(".is-here")).to_have_count(1)  # transformers loads it as it is
    row.get_by_role("button", name="Demo", exact=True).click()
    expect(page.locator("#models-plan-view")).to_contain_text("What backends share is counted once")
    expect(page.locator("#models-plan-view")).to_contain_text("convert here")
    row.get_by_role("button", name="Get demo for onnxruntime-genai/CPU/int4").click()
    expect(page.locator("#models-status progress")).to_be_visible()
    # A conversion leaves the processor to others: beside busy programs it takes minutes.
    expect(page.locator("#models-status")).to_contain_text(
        "Ready: onnxruntime-genai/CPU/int4 + demo", timeout=240_000
    )
    expect(row.locator(".is-here")).to_have_count(2)
    expect(table).to_contain_text("converted here")
    page.get_by_role("button", name="Remove…").click()
    page.get_by_role("button", name="Yes, remove").click()
    expect(table).not_to_contain_text("converted here")

    page.get_by_label("Search models").fill("smollm3")
    expect(grid.locator("tbody tr:visible")).to_have_count(1)
    page.get_by_label("Folder on this computer").fill(str(DEMO_FOLDER))
    page.get_by_role("button", name="Import").click()
    expect(table).to_contain_text("your folder")
    page.get_by_label("Folder on this computer").fill("/nowhere")
    page.get_by_role("button", name="Import").click()
    expect(page.get_by_role("alert")).to_contain_text("There is no folder /nowhere")
    page.get_by_label("Model: choose one").fill("no such model")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Get for all my backends").click()
    expect(page.locator("#models-status")).to_contain_text("neither a folder nor a Hugging Face id")
    assert page.errors == []


def test_getting_can_be_stopped(page):
    expect(page.locator("#models-table")).to_contain_text("comes with the app")
    page.get_by_label("Model: choose one").fill("demo")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Get for all my backends").click()
    expect(page.locator("#models-status progress").first).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#models-status")).to_contain_text("Stopped")


def test_what_was_begun_elsewhere_is_shown_and_stopped_here(page, work):
    """On Compare by the offer of a real model, or in another window."""
    expect(page.locator("#models-table")).to_contain_text("comes with the app")
    page.get_by_role("tab", name="Other").click()
    page.wait_for_timeout(1500)  # until the tab has seen that nothing is at work
    spec = spec_by_name("onnxruntime-genai")
    assert work.start([Backend(Target(spec.name, "CPU", "int4", "demo"), spec)])
    page.get_by_role("tab", name="Models").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#models-status")).to_contain_text("Stopped")


def test_formats_are_offered_once_however_many_engines_read_them():
    choices = format_choices(ENGINES)
    assert len({label for label, _ in choices}) == len(choices)
    assert ("OpenVINO IR int4" in choices[0][0]) or choices == []
    assert not any("fp16 for CPU" in label for label, _ in choices)


def test_a_count_of_parameters_does_not_reach_a_thousand_millions():
    assert [html.parameters(SimpleNamespace(parameters=n)) for n in (494e6, 999.9e6, 3.8e9, None)] == [
        "494 M",
        "1.0 B",
        "3.8 B",
        "",
    ]
