"""A thought on the page: one line, while it grows and for good, that opens and is there again after a reload."""

import shutil

import pytest

from tests.helpers.worlds import DEMO_WEIGHTS
from tests.ui.accessibility import serious
from tests.ui.compare.driver import Driver, words

AS_TYPED = "{{ messages[-1].content }}{# a thinking model: <think></think> #}"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory) -> str:
    """A model that says what it is asked, and knows the marks of a thought."""
    folder = shutil.copytree(DEMO_WEIGHTS, tmp_path_factory.mktemp("models") / "thinker")
    (folder / "chat_template.jinja").write_text(AS_TYPED)
    return str(folder)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_thought_is_one_line_that_opens(arena, new_page, thinker, width, scheme):
    arena.forget()
    arena.store.set_setting("compare.welcomed", True)
    arena.store.set_setting("compare.panels", [[1, "echo", "CPU", "20", thinker]])
    page = new_page(arena.address, width=width, scheme=scheme)
    driver = Driver(page)
    driver.send(f"<think>{words(16, 'hm')}</think>The answer.")
    page.wait_for_selector("#panel-1 .growing .thought summary:has-text('Thinking…')")
    assert page.locator("#panel-1 .growing .waiting-text").count() == 0
    assert not page.locator("#panel-1 .growing .thought-text").is_visible()
    page.click("#panel-1 .growing .thought summary")
    driver.wait_done()
    assert driver.reply(1) == "The answer."
    assert page.locator("#panel-1 .thought-text").inner_text() == words(
        16, "hm"
    )  # it stayed open while it grew
    summary = page.locator("#panel-1 .thought summary").inner_text()
    assert summary.startswith("Thought for ")
    assert summary.endswith(" tokens")
    assert "first answer" in page.locator("#panel-1 .numbers").inner_text()
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.reload()
    page.wait_for_selector("#panel-1 .thought summary")
    assert page.locator("#panel-1 .thought summary").inner_text() == summary
    assert not page.locator("#panel-1 .thought-text").is_visible()


def test_a_conversation_opens_with_the_settings_it_was_held_with(arena, new_page, thinker):
    arena.forget()
    arena.store.set_setting("compare.welcomed", True)
    arena.store.set_setting("compare.panels", [[1, "echo", "CPU", "fast", thinker]])
    page = new_page(arena.address)
    driver = Driver(page)
    page.click("#settings > button")
    page.fill("#system-prompt textarea", "Be brief.")
    page.fill("#max-new-tokens input", "33")
    page.locator("#thinking label").nth(2).click()
    driver.settle()
    driver.ask("Hello")
    note = page.locator("#panel-1 .reply .note").all_inner_texts()
    assert any("no place for a system prompt" in text for text in note)
    assert any("no switch for thinking" in text for text in note)
    other = Driver(new_page(page.url)).page
    other.click("#settings > button")
    assert other.locator("#system-prompt textarea").input_value() == "Be brief."
    assert other.locator("#max-new-tokens input").input_value() == "33"
    assert other.locator("#thinking input:checked").get_attribute("value") == "off"
