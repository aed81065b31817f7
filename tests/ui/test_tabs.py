"""Every tab, as assistive technology and small screens see it."""

import pytest

from tests.helpers.worlds import ECHO
from tests.ui.accessibility import serious
from ui.chat.settings import Settings

TABS = ("Compare", "Measure", "History", "Trends", "Models", "System")


def open_tab(page, name: str) -> None:
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.count() and tab.first.is_visible():
        tab.first.click()
    else:  # behind the “…” of a narrow screen
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()


@pytest.mark.parametrize(("width", "height", "scheme"), [(390, 844, "dark"), (1280, 900, "light")])
def test_every_tab_is_accessible_and_fits(arena, new_page, width, height, scheme):
    arena.turns.send("Hello there!", [(1, ECHO)], Settings()).wait(60)
    page = new_page(arena.address, width=width, height=height, scheme=scheme)
    page.locator("#composer").wait_for()
    for name in TABS:
        open_tab(page, name)
        page.wait_for_timeout(800)  # its content comes a moment later
        if name == "History":
            page.locator("[data-id]").first.click()
            page.get_by_role("button", name="Continue in Compare").wait_for()
        for section in page.locator("button.label-wrap:visible").all():
            if section.get_attribute("aria-expanded") != "true":
                section.click()
        page.wait_for_timeout(300)
        assert serious(page) == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} scrolls sideways"
