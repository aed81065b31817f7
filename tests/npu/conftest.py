"""One Chromium for this package's page tests; closed before the next package starts its own."""

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.helpers.browser import launch


@pytest.fixture(scope="package")
def browser() -> Browser:
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()
