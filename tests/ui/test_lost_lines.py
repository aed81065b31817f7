"""What asyncio tells of connections that the other end has reset."""

import asyncio
import logging

import pytest

from tests.helpers.apart import run_apart
from ui.lost_lines import keep_quiet_about_them


class _ProactorBasePipeTransport:
    """As asyncio's on Windows: shuts down a socket that the other end has reset."""

    def __init__(self, error: Exception):
        self.error = error

    def _call_connection_lost(self) -> None:
        raise self.error


@pytest.fixture
def quiet():
    before = list(logging.getLogger("asyncio").filters)
    keep_quiet_about_them()
    yield
    logging.getLogger("asyncio").filters[:] = before


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionResetError(10054, "An existing connection was forcibly closed"), 0),
        (ValueError("a bug"), 1),
    ],
)
def test_only_a_lost_connection_is_no_news(quiet, caplog, error, told):
    async def lose() -> None:
        asyncio.get_running_loop().call_soon(_ProactorBasePipeTransport(error)._call_connection_lost)
        await asyncio.sleep(0.01)

    run_apart(lose())
    assert len([record for record in caplog.records if record.name == "asyncio"]) == told
