"""The page tests find a browser wherever its installer put it, and say what is missing where there is none."""

import types

import pytest
from playwright.sync_api import Error

from tests.helpers import browser


def playwright_with(*channels: str) -> types.SimpleNamespace:
    """Knows these channels only, as Playwright does where no browser is on the path."""

    def launch(channel: str, args: list[str]) -> str:
        if channel not in channels:
            raise Error(f"Chromium distribution '{channel}' is not found")
        return channel

    return types.SimpleNamespace(chromium=types.SimpleNamespace(launch=launch))


@pytest.fixture
def nothing_on_the_path(monkeypatch):
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)


@pytest.mark.usefixtures("nothing_on_the_path")
def test_chrome_or_edge_is_taken_from_where_windows_installs_it():
    assert browser.launch(playwright_with("chrome", "msedge")) == "chrome"
    assert browser.launch(playwright_with("msedge")) == "msedge"


@pytest.mark.usefixtures("nothing_on_the_path")
def test_without_any_browser_it_is_said_which_to_install():
    with pytest.raises(RuntimeError, match="Chromium, Chrome or Edge"):
        browser.launch(playwright_with())


@pytest.mark.usefixtures("nothing_on_the_path")
def test_playwright_itself_says_so_in_the_way_that_is_expected(playwright):
    try:
        launched = browser.launch(playwright)
    except RuntimeError as error:
        missing = str(error.__cause__)
    else:
        launched.close()
        pytest.skip("Chrome or Edge is installed here, so nothing is missing")
    assert "is not found" in missing
