"""The Models tab in a real browser, on a real library: plan, get, list, remove, refuse."""

import shutil
from types import SimpleNamespace

import gradio as gr
import pytest

from engines.models.library import ModelLibrary
from engines.models.model_names import DEMO_FOLDER
from ui.models import tab as models_tab
from ui.models.background import format_choices
from ui.theme import launch_options

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture
def address(tmp_path, cache):
    """The tab alone on a page; no target is loaded in this process."""
    idle = SimpleNamespace(states=lambda: (), unload=lambda target: None)
    with gr.Blocks(analytics_enabled=False) as demo, gr.Tabs():
        with gr.Tab("Other"):
            gr.Textbox(label="Nothing")
        with gr.Tab("Models"):
            models_tab.build(ModelLibrary(tmp_path / "data"), idle)
    _, url, _ = demo.queue().launch(prevent_thread_lock=True, quiet=True, inbrowser=False, **launch_options())
    yield url
    demo.close()


@pytest.fixture
def page(address):
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(60_000)
        sync_api.expect.set_options(timeout=120_000)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(address)
        page.get_by_role("tab", name="Models").click()
        yield page
        browser.close()


def test_a_model_is_planned_made_ready_listed_and_removed(page):
    table = page.locator("#models-table")
    sync_api.expect(table).to_contain_text("comes with the app")
    page.get_by_label("Model: choose one").fill("demo")
    page.keyboard.press("Enter")
    page.get_by_role("checkbox", name="OpenVINO IR int4 (").first.uncheck()
    page.get_by_role("checkbox", name="ONNX Runtime GenAI int4 for CPU").check()
    page.get_by_role("button", name="Show the plan").click()
    sync_api.expect(page.locator("#models-plan-view")).to_contain_text("Convert to ONNX Runtime GenAI int4")
    page.get_by_role("button", name="Get ready").click()
    sync_api.expect(page.locator("#models-status progress")).to_be_visible()
    sync_api.expect(page.locator("#models-status")).to_contain_text(
        "Ready: onnxruntime-genai/CPU/int4 + demo"
    )
    sync_api.expect(table).to_contain_text("converted here")
    page.get_by_role("button", name="Remove…").click()
    page.get_by_role("button", name="Yes, remove").click()
    sync_api.expect(table).not_to_contain_text("converted here")

    page.get_by_label("Folder on this computer").fill(str(DEMO_FOLDER))
    page.get_by_role("button", name="Import").click()
    sync_api.expect(table).to_contain_text("your folder")
    page.get_by_label("Folder on this computer").fill("/nowhere")
    page.get_by_role("button", name="Import").click()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("There is no folder /nowhere")
    page.get_by_label("Model: choose one").fill("no such model")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Get ready").click()
    sync_api.expect(page.locator("#models-status")).to_contain_text("neither a folder nor a Hugging Face id")
    assert page.errors == []


def test_getting_can_be_stopped(page):
    page.get_by_label("Model: choose one").fill("demo")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Get ready").click()
    sync_api.expect(page.locator("#models-status progress")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    sync_api.expect(page.locator("#models-status")).to_contain_text("Stopped")


def test_formats_are_offered_once_however_many_engines_read_them():
    from engines import ENGINES

    choices = format_choices(ENGINES)
    assert len({label for label, _ in choices}) == len(choices)
    assert ("OpenVINO IR int4" in choices[0][0]) or choices == []
    assert not any("fp16 for CPU" in label for label, _ in choices)
