"""The browser that the page tests drive: Chromium, Chrome or Edge, whichever is installed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from playwright.sync_api import Browser, Error, Playwright

ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
_SHELL = "chromium-headless-shell"
"""Chromium without its windows: a page is ready in three quarters of the time."""
_ON_THE_PATH = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "microsoft-edge",
)
_INSTALLED = ("chrome", "msedge")
"""Playwright's names of browsers that it finds where their installers put them: on Windows they are on no path."""


def launch(playwright: Playwright, arguments: Sequence[str] = ARGUMENTS, *, whole: bool = False) -> Browser:
    """Start one without a window; raises RuntimeError where there is none.

    `whole`: the browser as people have it, not the shell: for measuring.
    """
    for name in _ON_THE_PATH if whole else (_SHELL, *_ON_THE_PATH):
        if path := shutil.which(name):
            return playwright.chromium.launch(executable_path=path, args=arguments)
    for channel in _INSTALLED:
        try:
            return playwright.chromium.launch(channel=channel, args=arguments)
        except Error as error:
            missing = error
    raise RuntimeError(
        "The tests of the page need Chromium, Chrome or Edge; install one of them."
    ) from missing
