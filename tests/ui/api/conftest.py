"""The whole server with the API beside the page, on the test engines: real workers, real HTTP, the real guard."""

import dataclasses
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines import endpoint_engine
from engines.endpoints.registry import SETTINGS, Endpoints
from engines.environments.environments import Environments
from engines.hardware import machine_facts
from engines.models.library import ModelLibrary
from engines.runtime.manager import EngineManager
from storage.store import Store
from tests.helpers import bad_engine, echo_engine
from tests.helpers.server_double import ServerDouble, doubles
from ui.api.api import Api
from ui.api.keys import ApiKeys
from ui.api.lanes import Lanes
from ui.api.server import build_api
from ui.chat.turns import Turns
from ui.page import build
from ui.share.door import Door
from ui.system.programs import Doors
from ui.theme import launch_options

SPECS = (
    dataclasses.replace(echo_engine.SPEC, precisions=("fast", "5", "20", "100", "400")),
    dataclasses.replace(echo_engine.SPEC, name="plain", title="Plain echo", honours=()),
    bad_engine.SPEC,
)
ECHO = "echo/CPU/fast@demo"
SLOW = "echo/CPU/20@demo"


@dataclasses.dataclass
class Served:
    """A served app, and what is behind it."""

    address: str
    store: Store
    manager: EngineManager
    turns: Turns
    keys: ApiKeys
    door: Door
    lanes: Lanes

    @property
    def base(self) -> str:
        return f"{self.address}v1"

    def rows(self, sql: str, *values: object) -> list[dict]:
        """From the log as it is on disk."""
        connection = sqlite3.connect(self.store.path)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(sql, values)]
        finally:
            connection.close()


def serve(data_dir: Path, specs=SPECS, servers: dict[str, str] | None = None, **options) -> Iterator[Served]:
    """`servers`: name -> address of servers whose models are lanes, too."""
    store, library = Store(data_dir / "arena.sqlite3"), ModelLibrary(data_dir)
    endpoints = Endpoints(data_dir, ring=lambda: None)
    for name, url in (servers or {}).items():
        endpoints.add(name, url)
    environments = Environments(data_dir)
    manager = EngineManager(
        data_dir,
        library,
        environments,
        specs=specs,
        remembered_peak=store.peak_rss,
        settings={SETTINGS: endpoints.for_workers},
    )
    turns, door, keys = Turns(manager, store, machine_facts), Door(), ApiKeys(data_dir)
    lanes = Lanes(manager, store, library)
    api = build_api(Api(manager, turns, lanes, keys, needs_key=lambda: door.locked, **options))
    doors = Doors(endpoints, keys, lanes)
    demo = build(manager, store, turns, library, environments, doors=doors)
    _, address, _ = demo.launch(
        server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, **launch_options(door, api)
    )
    manager.availability()
    yield Served(address, store, manager, turns, keys, door, lanes)
    turns.stop_everything()
    demo.close(verbose=False)
    manager.shutdown()
    store.close()


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> Iterator[Served]:
    yield from serve(tmp_path_factory.mktemp("api"), patience_s=0.5, ping_s=0.2)


@pytest.fixture(scope="session")
def double() -> Iterator[ServerDouble]:
    yield from doubles()


@pytest.fixture(scope="session")
def second(served, double, tmp_path_factory) -> Iterator[Served]:
    """A second instance of the app, with the first one and another server as its lanes."""
    servers = {"first": served.base, "double": double.url}
    specs = (endpoint_engine.SPEC, SPECS[0])
    yield from serve(tmp_path_factory.mktemp("second"), specs, servers, patience_s=0.5, ping_s=0.2)
