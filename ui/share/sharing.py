"""Sharing as the owner turns it on and off: the link, the visitors' password, who is there, and the end of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from ui.access import Login, Role
from ui.share.door import Door
from ui.share.hosts import is_loopback, machine_addresses
from ui.share.logins import new_password
from ui.share.settings import OWNER_NAME, VISITOR_NAME, Made, ShareSettings
from ui.share.tunnel import OpenTunnel, Tunnel, TunnelError, Watch


@dataclass(frozen=True)
class Guest:
    """A visitor who is there now."""

    name: str
    since: float
    """Seconds since the epoch."""
    silent_s: float
    pages: int


@dataclass(frozen=True)
class SharingView:
    """How sharing stands, for the owner's eyes only."""

    on: bool = False
    link: str | None = None
    """The public link, while there is one."""
    addresses: tuple[str, ...] = ()
    """Under which other machines of the network reach the app."""
    owner_password: str | None = None
    """As it was made up; None when the owner chose it or an auth file says it."""
    visitor_password: str | None = None
    """None: visitors need none, or an auth file names them."""
    anonymous: bool = False
    has_auth_file: bool = False
    problem: str | None = None
    """Why the last try to share came to nothing, in one sentence."""
    opening: bool = False
    guests: tuple[Guest, ...] = ()


class Sharing:
    """One app's sharing. Thread-safe."""

    def __init__(self, door: Door, settings: ShareSettings, made: Made, port: int, open_tunnel: OpenTunnel):
        self.door, self.settings = door, settings
        self._made, self._port, self._open_tunnel = made, port, open_tunnel
        self._tunnel: Tunnel | None = None
        self._watch: Watch | None = None
        self._lock = threading.RLock()
        self._view = SharingView(
            on=door.visitors_welcome,
            addresses=self._addresses(),
            owner_password=made.owner_password,
            visitor_password=made.visitor_password,
            anonymous=settings.anonymous_visitors,
            has_auth_file=settings.auth_file is not None,
        )

    def view(self) -> SharingView:
        """How it stands now."""
        present = self.door.logins.present(Role.VISITOR)
        guests = tuple(
            Guest(login.name, login.since, silent_s, self.door.sessions.of(login))
            for login, silent_s in present
        )
        with self._lock:
            return replace(self._view, guests=guests, on=self.door.visitors_welcome)

    def start(self, by: Login | None = None) -> SharingView:
        """Let visitors in: open the public link, unless the network reaches us anyway. Everyone logs in from then on.

        `by`: the owner's login that asks for it, which stays. What goes wrong is in the view's `problem`.
        """
        with self._lock:
            if self._view.opening or (self._view.on and self._view.link):
                return self._view
            self._view = replace(self._view, opening=True, problem=None)
        try:
            tunnel = None
            if not self.door.hosts.beyond_loopback or self.settings.share:
                self._close_tunnel()
                self._prepare(by)  # before anyone can come
                tunnel = self._open_tunnel(self._port)
            else:
                self._prepare(by)
            self._opened(tunnel)
        except TunnelError as error:
            self._failed(str(error))
        return self.view()

    def _prepare(self, by: Login | None) -> None:
        """Everyone logs in from here on, and there is an account for each role."""
        accounts = self.door.logins.accounts
        owner_password, visitor_password = self._view.owner_password, None
        if not accounts.has(Role.OWNER):
            owner_password = new_password()
            accounts.add(OWNER_NAME, Role.OWNER, owner_password)
        if not self.settings.auth_file and not self.settings.anonymous_visitors:
            visitor_password = new_password()
            accounts.add(VISITOR_NAME, Role.VISITOR, visitor_password)
        self.door.lock(keep=by)
        with self._lock:
            self._view = replace(self._view, owner_password=owner_password, visitor_password=visitor_password)

    def _opened(self, tunnel: Tunnel | None) -> None:
        link = tunnel.link if tunnel else None
        if tunnel is not None and link is not None:
            name = urlsplit(link).netloc
            self.door.hosts.allow(name)
            if link.startswith("https://"):
                self.door.secure_hosts = frozenset({urlsplit(link).hostname or ""})
            self._watch = Watch(tunnel, self._broke)
        with self._lock:
            self._tunnel = tunnel
            self._view = replace(self._view, on=True, opening=False, link=link, addresses=self._addresses())
        self.door.visitors_welcome = True

    def _failed(self, problem: str) -> None:
        with self._lock:
            on = self.door.hosts.beyond_loopback
            self._view = replace(self._view, opening=False, problem=problem, on=on, link=None)
        self.door.visitors_welcome = on
        self._unlock_if_alone()

    def _broke(self) -> None:
        self.end("The share link has closed by itself. Share again for a new one.")

    def end(self, problem: str | None = None) -> SharingView:
        """Visitors are out at once, the link is gone."""
        self.door.visitors_welcome = False
        self._close_tunnel()
        self.door.logins.close_visitors()
        if not self.settings.auth_file:
            self.door.logins.accounts.drop(VISITOR_NAME)
        with self._lock:
            self._view = replace(self._view, on=False, link=None, visitor_password=None, problem=problem)
        self._unlock_if_alone()
        return self.view()

    def _unlock_if_alone(self) -> None:
        """Without a password of the owner's choice, this computer alone needs none."""
        chosen = self.settings.password is not None or self.settings.auth_file is not None
        if not chosen and not self.door.hosts.beyond_loopback and not self.door.visitors_welcome:
            self.door.unlock()

    def _close_tunnel(self) -> None:
        with self._lock:
            tunnel, self._tunnel = self._tunnel, None
            watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()
        if tunnel is not None:
            tunnel.close()
            self.door.hosts.forget(urlsplit(tunnel.link).netloc)
            self.door.secure_hosts = frozenset()

    def _addresses(self) -> tuple[str, ...]:
        """http addresses for other machines of this network."""
        bound = self.settings.host
        if is_loopback(bound):
            return ()
        if bound not in ("0.0.0.0", "::"):
            return (f"http://{bound}:{self._port}",)
        names = [
            name for name in sorted(machine_addresses()) if name.count(".") == 3 and not is_loopback(name)
        ]
        return tuple(f"http://{name}:{self._port}" for name in names)

    def close(self) -> None:
        """The app ends."""
        self._close_tunnel()


def what_to_tell(view: SharingView, locked: bool) -> list[str]:
    """What the terminal says about getting in, one line each; passwords only where they were made up."""
    if view.problem:
        return [view.problem, *(_log_in(view) if locked else [])]
    lines = [f"Anyone can reach it at {view.link}"] if view.link else []
    lines += [f"Other machines of this network reach it at {address}" for address in view.addresses]
    return [*lines, *(_log_in(view) if locked else [])]


def _log_in(view: SharingView) -> list[str]:
    if view.has_auth_file:
        return ["Everyone has to log in, with a name and a password of the auth file."]
    chosen = "with the password you chose"
    owner = f"with {view.owner_password!r}" if view.owner_password else chosen
    lines = [f"Everyone has to log in: you as {OWNER_NAME!r} {owner}."]
    if view.on:
        lines.append(
            f"Visitors log in as {VISITOR_NAME!r} with {view.visitor_password!r}."
            if view.visitor_password
            else "Visitors need no password."
        )
    return lines
