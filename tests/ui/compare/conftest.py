"""A fresh tab on the session's page."""

import pytest

from tests.ui.compare.driver import Driver, panels_setting


@pytest.fixture
def driver(arena, new_page):
    """Opens a tab with these panels, (engine, precision) each; with none: as on a first start."""

    def open_with(*targets: tuple[str, str], welcomed: bool = True, **options) -> Driver:
        arena.forget()
        arena.store.set_setting("compare.welcomed", welcomed)
        arena.store.set_setting("compare.panels", panels_setting(*targets) if targets else None)
        return Driver(new_page(arena.address, **options))

    return open_with
