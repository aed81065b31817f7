"""A shared app on echo workers: an owner, visitors, and everything that a stranger could try."""

import dataclasses
from dataclasses import asdict

import pytest

from engines.environments.environments import Environments
from engines.hardware import machine_facts
from engines.models.library import ModelLibrary
from engines.protocol import Target
from engines.runtime.manager import EngineManager
from storage.store import Store
from tests.helpers.http import ask
from tests.ui.conftest import SPECS
from ui.access import Role
from ui.chat.gates import Limits
from ui.chat.turns import Turns
from ui.page import build
from ui.share import visitor_page
from ui.share.door import Door
from ui.share.hosts import Hosts
from ui.share.logins import Accounts, Logins
from ui.share.settings import Made, ShareSettings
from ui.share.sharing import Sharing
from ui.share.visitors import Visitors
from ui.theme import launch_options

OWNER_PASSWORD = "the owner's own words"
VISITOR_PASSWORD = "come in and look"
FAST, SLOW = Target("echo", "CPU", "fast", "demo"), Target("echo-two", "CPU", "20", "demo")


@dataclasses.dataclass
class Shared:
    """A served and shared app, and what is behind it."""

    address: str
    store: Store
    door: Door
    visitors: Visitors
    sharing: Sharing
    turns: Turns
    manager: EngineManager
    owners_page: object
    visitors_page: object

    def login(self, name: str, password: str) -> str:
        """Log in as people do; returns the cookie."""
        answer = ask(self.address, "/login", form={"name": name, "password": password})
        assert answer.status == 303, answer.text
        return answer.cookie()

    def owner(self) -> str:
        return self.login("owner", OWNER_PASSWORD)

    def visitor(self) -> str:
        return self.login("visitor", VISITOR_PASSWORD)

    def fresh(self) -> None:
        """Shared, with two backends open and the limits as they are by default."""
        self.door.visitors_welcome = True
        self.door.logins.accounts.add("visitor", Role.VISITOR, VISITOR_PASSWORD)
        self.visitors.open_targets([FAST, SLOW])
        self.visitors.set_limits(**{**asdict(Limits()), "runs_per_minute": 600, "waiting_runs": 100})


@pytest.fixture(scope="session")
def shared_app(tmp_path_factory) -> Shared:
    data_dir = tmp_path_factory.mktemp("shared")
    store, library = Store(data_dir / "arena.sqlite3"), ModelLibrary(data_dir)
    manager = EngineManager(data_dir, library, Environments(data_dir), specs=SPECS)
    turns = Turns(manager, store, machine_facts)
    accounts = Accounts()
    accounts.add("owner", Role.OWNER, OWNER_PASSWORD)
    door = Door(Hosts(), Logins(accounts), locked=True)
    visitors = Visitors(door, store, turns)
    sharing = Sharing(door, ShareSettings(password=OWNER_PASSWORD), Made(), 0, lambda port: None)
    page = build(manager, store, turns, library, Environments(data_dir), (sharing, visitors))
    guests = visitor_page.build(manager, store, turns, library, visitors, lambda: "the test machine")
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        quiet=True,
        prevent_thread_lock=True,
        **launch_options(door, visitors_page=lambda: guests),
    )
    manager.availability()
    app = Shared(address.rstrip("/"), store, door, visitors, sharing, turns, manager, page, guests)
    app.fresh()
    assert not hasattr(guests, "server_app")  # made when the first visitor comes
    assert ask(app.address, "/", cookie=app.visitor()).status == 200
    assert guests.server_app is not None
    yield app
    turns.stop_everything()
    visitors.close()
    page.close(verbose=False)
    manager.shutdown()
    store.close()


@pytest.fixture
def shared(shared_app) -> Shared:
    shared_app.fresh()
    return shared_app
