"""The door: what the guard asks about every request, in one object that the page can ask and turn, too.

While the app can be reached from this computer alone and has no password the door is open: whoever comes is the
owner. Each page that is opened then gets a login of its own all the same, so that the one which starts sharing stays
in when the door is locked.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from ui.access import Login, Role
from ui.share.hosts import Hosts
from ui.share.logins import Logins

LOCAL_OWNER = Login("local", "owner", Role.OWNER)
MOST_SESSIONS = 1000
"""Open pages that are kept track of; beyond this the one used longest ago is let go."""
MOST_PAGES_OF_A_VISITOR = 8


class PageSessions:
    """Which login each open page belongs to: Gradio lets any caller name any session. Thread-safe.

    A name belongs to the login that used it first, until the page is closed; the owner is one person, however
    often logged in.
    """

    def __init__(self, most: int = MOST_SESSIONS, most_of_a_visitor: int = MOST_PAGES_OF_A_VISITOR):
        self._most, self._most_of_a_visitor = most, most_of_a_visitor
        self._owners: OrderedDict[str, Login] = OrderedDict()
        self._lock = threading.Lock()
        self.on_close: list[Callable[[str], None]] = []
        """Called with the name of a session that nobody looks at any more."""

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, session: str) -> bool:
        return session in self._owners

    def use(self, session: str, login: Login) -> bool:
        """Whether this login may use the session; the first to name it owns it."""
        closed: list[str] = []
        with self._lock:
            owner = self._owners.setdefault(session, login)
            if not _same(owner, login):
                return False
            self._owners.move_to_end(session)
            if not login.is_owner:
                mine = [name for name, other in self._owners.items() if other.id == login.id]
                closed += mine[: max(0, len(mine) - self._most_of_a_visitor)]
            closed += list(self._owners)[: max(0, len(self._owners) - len(closed) - self._most)]
            for name in closed:
                self._owners.pop(name, None)
        self._tell(closed)
        return True

    def close(self, session: str, login: Login) -> None:
        """The page has been closed by whom it belongs to; nobody else can close it."""
        with self._lock:
            owner = self._owners.get(session)
            if owner is None or not _same(owner, login):
                return
            del self._owners[session]
        self._tell([session])

    def close_all_of(self, login: Login) -> None:
        with self._lock:
            mine = [name for name, owner in self._owners.items() if owner.id == login.id]
            for name in mine:
                del self._owners[name]
        self._tell(mine)

    def of(self, login: Login) -> int:
        """How many pages a login has open."""
        with self._lock:
            return sum(owner.id == login.id for owner in self._owners.values())

    def _tell(self, closed: list[str]) -> None:
        for name in closed:
            for listener in self.on_close:
                listener(name)


def _same(one: Login, other: Login) -> bool:
    return one.id == other.id or (one.is_owner and other.is_owner)


class Door:
    """Who may come in, and as whom. Thread-safe."""

    def __init__(
        self,
        hosts: Hosts | None = None,
        logins: Logins | None = None,
        *,
        locked: bool = False,
        anonymous_visitors: bool = False,
    ):
        """`locked`: everyone logs in; `anonymous_visitors`: but whoever comes without a login is a visitor."""
        self.hosts = hosts or Hosts()
        self.logins = logins or Logins()
        self.sessions = PageSessions()
        self.locked, self.anonymous_visitors = locked, anonymous_visitors
        self.visitors_welcome = locked and self.hosts.beyond_loopback
        """Whether visitors' logins are taken now."""
        self.secure_hosts: frozenset[str] = frozenset()
        """Names that are reached over https: the share link's."""
        self.on_end: list[Callable[[Login], None]] = [self.sessions.close_all_of]
        """Called when a login ends, whichever way."""
        self.logins.on_end = self._ended
        self._swept_at = time.monotonic()

    def comes(self, token: str | None) -> Login | None:
        """The login of whoever sends this cookie; None when one is needed and there is none."""
        self._sweep()
        login = self.logins.find(token)
        if not self.locked:
            return login if login is not None and login.is_owner else LOCAL_OWNER
        if login is not None and not login.is_owner and not self.visitors_welcome:
            return None
        return login

    def lock(self, keep: Login | None) -> None:
        """From now on everyone logs in; `keep`: the login that decided it, which stays."""
        self.logins.keep_only(keep.id if keep else None)
        self.locked = True

    def unlock(self) -> None:
        """Nobody but this computer can reach the app any more."""
        self.locked = False

    def _ended(self, login: Login) -> None:
        for listener in self.on_end:
            listener(login)

    def _sweep(self) -> None:
        if time.monotonic() - self._swept_at > 30.0:
            self._swept_at = time.monotonic()
            self.logins.sweep()
