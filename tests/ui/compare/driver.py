"""Drives the Compare tab the way a person does; used by all its browser tests."""

import json
import re
import time
from collections.abc import Callable

from playwright.sync_api import Locator, Page

ECHO, ECHO_TWO, ECHO_THREE, BAD, ABSENT = "echo", "echo-two", "echo-three", "bad", "absent"


OPTION = "ul[role=listbox] li[role=option]"


RUNS = "[...document.querySelectorAll('.now .turn')].map(turn => turn.dataset.run)"


class Driver:
    def __init__(self, page: Page):
        self.page = page
        page.wait_for_selector("#panel-1 .ph, #panel-2 .ph")
        page.wait_for_selector("#live[data-loaded]", state="attached")
        page.wait_for_function(
            "![...document.querySelectorAll('.chip')].some(c => c.textContent.includes('Checking'))"
        )
        self.settle()

    def settle(self) -> None:
        """Wait until Gradio has nothing on the way."""
        self.page.wait_for_timeout(250)

    # --- panels ----------------------------------------------------------------------------------------

    def panels(self) -> list[int]:
        return self.page.evaluate(
            "[...document.querySelectorAll('.lane')].filter(e => e.offsetParent).map(e => +e.id.split('-')[1])"
        )

    def panel(self, number: int) -> Locator:
        return self.page.locator(f"#panel-{number}")

    def chip(self, number: int) -> str:
        return self.panel(number).locator(".chip").inner_text()

    def figures(self, number: int) -> list[str]:
        return self.panel(number).locator(".figures dd").all_inner_texts()

    def phase(self, number: int) -> str | None:
        turn = self.panel(number).locator(".now .turn")
        return turn.get_attribute("data-phase") if turn.count() else None

    def reply(self, number: int) -> str:
        reply = self.panel(number).locator(".now .reply .md")
        return reply.inner_text() if reply.count() else ""

    def prompts(self, number: int) -> list[str]:
        # not as seen: what is out of sight is not laid out, and then has no inner text
        return self.panel(number).locator(".msg.user .bubble").all_text_contents()

    def open_setup(self, number: int) -> None:
        if not self.page.locator(f"#engine-{number}").is_visible():
            self.page.click(f"#setup-{number} > button")
            self.page.wait_for_selector(f"#engine-{number} input", state="visible")

    def choose(self, what: str, number: int, label: str) -> None:
        """Pick an entry of a panel's menu by the beginning of its label."""
        self.open_setup(number)
        self.page.click(f"#{what}-{number} input")
        self.pick(label)

    def pick(self, label: str) -> None:
        """Choose in the menu that is open."""
        self.page.locator(OPTION).filter(has_text=re.compile(rf"^\W*{re.escape(label)}")).first.click()
        self.settle()

    # --- prompts ---------------------------------------------------------------------------------------

    def type(self, text: str) -> None:
        self.page.fill("#prompt textarea", text)

    def send(self, text: str) -> None:
        self.type(text)
        self.page.press("#prompt textarea", "Enter")

    def ask(self, text: str) -> None:
        """Send and wait for all replies."""
        before = self.runs()
        self.send(text)
        self.page.wait_for_function(f"() => JSON.stringify({RUNS}) !== {json.dumps(json.dumps(before))}")
        self.wait_done()

    def runs(self) -> list[str]:
        """Ids of the newest run of each panel."""
        return self.page.evaluate(RUNS)

    def wait_running(self) -> None:
        self.page.wait_for_selector(".now .growing .md p:not(.waiting-text)")

    def wait_done(self) -> None:
        self.page.wait_for_function(
            "() => document.querySelector('.now .turn') && !document.querySelector('.now .growing')"
        )
        self.settle()

    def until(self, look: Callable[[], object], expected: object, seconds: float = 30) -> None:
        """Wait until `look()` gives what is expected; the page follows a moment after."""
        deadline = time.monotonic() + seconds
        while (seen := look()) != expected and time.monotonic() < deadline:
            self.page.wait_for_timeout(100)
        assert seen == expected, (seen, expected)

    def notices(self) -> str:
        return " ".join(self.page.locator("#notices .notice").all_inner_texts())


def panels_setting(*targets: tuple[str, str]) -> list[list]:
    """A kept set of panels: (engine, precision) each, on the CPU with the bundled model."""
    return [[n, engine, "CPU", precision, "demo"] for n, (engine, precision) in enumerate(targets, start=1)]


def words(count: int, word: str = "word") -> str:
    """A prompt of `count` numbered words, so that an echo of it cannot be mistaken for another."""
    return " ".join(f"{word}{number}" for number in range(count))
