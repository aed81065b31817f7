"""The System tab in a real chromium: what the engines say, and an environment set up by its button."""

import re
import threading

import gradio as gr
import pytest
from playwright.sync_api import expect

from engines.environments.environments import Environments
from engines.protocol import Availability, DeviceStatus
from tests.engines.environments.test_environments import no_network, small_spec
from ui.system import tab as system_tab
from ui.theme import launch_options

ANSWERS = {
    "openvino-genai": Availability(
        True,
        (
            DeviceStatus("CPU", True, "A <b>processor</b>"),
            DeviceStatus("NPU", False, reason="No NPU.", remedy="Install the driver."),
        ),
        {"openvino": "2026.4.1"},
    ),
    "intel-npu": Availability(
        False, reason="It is not set up yet.", remedy="Run: python app.py setup intel-npu"
    ),
}


class Answers:
    """In the manager's place: hands out answers when told to."""

    def __init__(self):
        self.asked = 0
        self.release = threading.Event()

    def availability(self, *, refresh=False):
        self.asked += 1
        assert self.release.wait(60)
        return ANSWERS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("system")


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers()


@pytest.fixture(scope="module")
def page(place, answers, chromium):
    with gr.Blocks(analytics_enabled=False) as demo:
        system_tab.build(answers, Environments(place / "data", specs=(small_spec(place),)))
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **launch_options())
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    page.goto(url)
    yield page
    page.close()
    demo.close()


def test_it_says_that_it_asks_and_then_what_it_heard(page, answers):
    expect(page.locator("#system-engines")).to_contain_text("Asking every engine", timeout=30_000)
    expect(page.locator("#system-machine")).to_contain_text("memory")
    answers.release.set()
    openvino = page.locator("section[aria-label='openvino-genai']")
    expect(openvino).to_contain_text("A <b>processor</b>", timeout=30_000)
    expect(openvino.locator("tr", has_text="NPU")).to_contain_text("Install the driver.")
    npu = page.locator("section[aria-label='intel-npu']")
    expect(npu).to_contain_text("python app.py setup intel-npu")
    expect(npu).to_contain_text("prefer OpenVINO GenAI")
    expect(page.locator("#system-engines")).not_to_contain_text("Asking")


def test_every_control_has_a_name(page):
    page.get_by_text("Log of the last set-up").first.click()
    nameless = page.evaluate(
        """[...document.querySelectorAll('#system button, #system input, #system textarea, #system progress')]
        .filter((e) => !(e.innerText || e.ariaLabel || e.labels?.[0]?.innerText || '').trim())
        .map((e) => e.outerHTML)"""
    )
    assert nameless == []


def test_a_set_up_that_fails_says_why_and_one_that_works_is_followed(page, answers, monkeypatch):
    card = page.locator("#system-env-small")
    expect(card).to_contain_text("not set up")
    with monkeypatch.context() as away:
        no_network(away)
        page.locator("#system-set-up-small").click()
        expect(card.locator("progress")).to_be_visible(timeout=30_000)
        expect(page.locator("#system-set-up-small")).to_be_disabled()
        expect(card).to_contain_text("the package index could not be reached", timeout=90_000)
    asked = answers.asked
    page.locator("#system-set-up-small").click()
    expect(card).to_contain_text("six 1.17.0", timeout=90_000)
    expect(page.locator("#system-set-up-small")).to_have_text("Check and repair")
    expect(page.locator("#system-log-small textarea")).to_have_value(re.compile("six"), timeout=30_000)
    assert answers.asked == asked + 1  # what became possible is asked for


def test_a_set_up_can_be_cancelled(page, place):
    (place / "small.txt").write_text("six==1.16.0\n")
    card = page.locator("#system-env-small")
    page.locator("#system-set-up-small").click()
    expect(page.locator("#system-cancel-small")).to_be_enabled(timeout=30_000)
    page.locator("#system-cancel-small").click()
    expect(card).to_contain_text("outdated", timeout=60_000)
    expect(page.locator("#system-cancel-small")).to_be_disabled()


def test_narrow_and_dark_fit(page):
    page.set_viewport_size({"width": 380, "height": 800})
    page.evaluate("document.body.classList.add('dark')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
