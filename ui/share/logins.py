"""Accounts, passwords, and who is logged in.

Passwords are kept as Argon2 hashes only and compared by that library; an unknown name takes as long as a wrong
password. Guessing is slowed, first for the way it comes by and then for all strangers together; this computer
itself, and a browser that was logged in before, are counted apart, so nobody can lock the owner out by guessing.
Logins live in memory: they end on logout, after a day, when sharing ends, and with the app.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.toolkit import text_files
from ui.access import Login, Role

if TYPE_CHECKING:
    from argon2 import PasswordHasher

SHORTEST_PASSWORD = 8
LOGIN_LASTS_S = 24 * 3600.0
MOST_LOGINS = 500
"""Logins kept; beyond this the one that was silent longest ends, the owner's last of all."""
FREE_GUESSES = 5
LONGEST_WAIT_S = 60.0
FORGIVEN_AFTER_S = 900.0
MOST_PLACES = 10_000
HERE = "here"
"""The place of those who sit at this computer."""
LONGEST_PASSWORD = 1024


class PasswordError(ValueError):
    """A password or a file of accounts cannot be taken; the message says why and what to do."""


def check_password(password: str, what: str = "The password") -> str:
    """The password, if it is long enough; raises PasswordError."""
    if len(password) < SHORTEST_PASSWORD:
        raise PasswordError(
            f"{what} has {len(password)} characters; it must have at least {SHORTEST_PASSWORD}. "
            "Choose a longer one, or leave it out and one is made."
        )
    if len(password) > LONGEST_PASSWORD:
        raise PasswordError(f"{what} has more than {LONGEST_PASSWORD} characters; choose a shorter one.")
    return password


def new_password() -> str:
    """Easy to read out and to type, and 64 bits to guess."""
    letters = "abcdefghjkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(letters) for _ in range(4)) for _ in range(4))[:19]


def _hasher() -> PasswordHasher:
    from argon2 import PasswordHasher

    return PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)  # as OWASP advises


def _whole_hash(text: str, name: str) -> str:
    """An Argon2 hash, if it is one: cut off, or with its `$` eaten by a shell, no password would ever open it."""
    from argon2.exceptions import Argon2Error, InvalidHashError, VerifyMismatchError

    try:
        _hasher().verify(text, "")
    except VerifyMismatchError:
        pass
    except (Argon2Error, InvalidHashError) as error:
        raise PasswordError(
            f"What stands for the password of {name} begins like an Argon2 hash and is none; give it whole."
        ) from error
    return text


@dataclass(frozen=True)
class Account:
    name: str
    role: Role
    hash: str
    """Argon2's own spelling, with its parameters and salt."""


class Accounts:
    """Names, roles and hashed passwords."""

    def __init__(self, accounts: Iterable[Account] = ()):
        self._accounts = {account.name: account for account in accounts}
        self._hasher = _hasher()
        self._nobody = self._hasher.hash(secrets.token_urlsafe())
        self._one_at_a_time = threading.Semaphore(2)
        """Each check takes 19 MB for some 20 ms; a flood of guesses must not take more than that."""

    def add(self, name: str, role: Role, password: str) -> None:
        """Add or replace an account; `password` may be an Argon2 hash already. Raises PasswordError."""
        if password.startswith("$argon2"):
            hashed = _whole_hash(password, name)
        else:
            hashed = self._hasher.hash(check_password(password, f"The password of {name}"))
        self._accounts[name] = Account(name, role, hashed)

    def knows(self, name: str) -> bool:
        return name in self._accounts

    def drop(self, name: str) -> None:
        self._accounts.pop(name, None)

    def has(self, role: Role) -> bool:
        return any(account.role is role for account in self._accounts.values())

    def check(self, name: str, password: str) -> Account | None:
        """The account, if the password is its; takes the same time when there is no such name."""
        from argon2.exceptions import Argon2Error, InvalidHashError

        account = self._accounts.get(name)
        with self._one_at_a_time:
            try:
                self._hasher.verify(account.hash if account else self._nobody, password[:LONGEST_PASSWORD])
            except (Argon2Error, InvalidHashError):
                return None
        return account


def read_accounts(path: Path) -> Accounts:
    """Accounts from a file of lines `role name password`; raises PasswordError naming the line."""
    try:
        lines = text_files.read(path.expanduser()).splitlines()
    except (OSError, UnicodeError) as error:
        raise PasswordError(f"The file of accounts {path} cannot be read: {error}.") from error
    accounts = Accounts()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = line.split(maxsplit=2)
        if len(parts) != 3 or parts[0] not in ("owner", "visitor"):
            raise PasswordError(
                f"Line {number} of {path} is not an account. Write: owner NAME PASSWORD, or visitor NAME PASSWORD."
            )
        try:
            if accounts.knows(parts[1]):
                raise PasswordError(f"{parts[1]} has an account already; every name has one.")
            accounts.add(parts[1], Role(parts[0]), parts[2].strip())
        except PasswordError as error:
            raise PasswordError(f"Line {number} of {path}: {error}") from error
    if not accounts.has(Role.OWNER):
        raise PasswordError(f"{path} names no owner. Add a line: owner NAME PASSWORD.")
    return accounts


# --- guessing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """Tries that are counted together: `free` of them at once, then each must wait twice as long as the last."""

    name: str
    free: int = FREE_GUESSES
    longest_wait_s: float = LONGEST_WAIT_S


STRANGERS = Budget("strangers", free=60, longest_wait_s=1.0)
"""All who were never here before, however many addresses they use: in the end one guess a second."""


class Throttle:
    """How long somebody has to wait before the next try. Thread-safe; its memory is bounded."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self._tries: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def take(self, *budgets: Budget) -> float:
        """Book one try on every budget, or say how many seconds until that is possible (and book nothing).

        Booked before the password is looked at: a thousand tries at once are a thousand tries.
        """
        with self._lock:
            wait_s = max(self._wait_s(budget) for budget in budgets)
            if wait_s <= 0:
                for budget in budgets:
                    count, _ = self._tries.pop(budget.name, (0, 0.0))
                    self._tries[budget.name] = (count + 1, self._clock())
                while len(self._tries) > MOST_PLACES:
                    self._tries.popitem(last=False)
        return max(0.0, wait_s)

    def _wait_s(self, budget: Budget) -> float:
        count, last = self._tries.get(budget.name, (0, float("-inf")))
        if self._clock() - last > FORGIVEN_AFTER_S:
            self._tries.pop(budget.name, None)
            return 0.0
        if count < budget.free:
            return 0.0
        return last + min(budget.longest_wait_s, 2.0 ** min(count - budget.free, 10)) - self._clock()

    def succeeded(self, budget: Budget) -> None:
        with self._lock:
            self._tries.pop(budget.name, None)


@dataclass(frozen=True)
class Attempt:
    """What came of a login: a token for the cookie, or how long to wait, or neither (wrong)."""

    token: str | None = None
    login: Login | None = None
    wait_s: float = 0.0


@dataclass
class _Session:
    login: Login
    ends_at: float
    seen_at: float
    kept_open: bool = False
    """Made for a page that was opened while no login was asked for; ends when one is."""


class Logins:
    """Who is logged in: token -> login. Thread-safe."""

    def __init__(
        self,
        accounts: Accounts | None = None,
        clock: Callable[[], float] = time.time,
        lasts_s: float = LOGIN_LASTS_S,
    ):
        self.accounts = accounts or Accounts()
        self.throttle = Throttle()
        self._clock, self._lasts_s = clock, lasts_s
        self._lock = threading.RLock()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._known_browsers: OrderedDict[str, str] = OrderedDict()
        self.on_end: Callable[[Login], None] = lambda login: None
        """Called when a login ends, whichever way."""

    # --- coming in -------------------------------------------------------------------------------------

    def attempt(self, name: str, password: str, place: str, browser: str | None = None) -> Attempt:
        """A try with a name and a password.

        `place`: the way it came by, HERE for this computer itself; `browser`: its mark from an earlier login.
        """
        known = self._knows_browser(browser)
        own = Budget(f"browser:{_key(browser or '')}" if known else f"place:{place}")
        wait_s = self.throttle.take(*([own] if known or place == HERE else [own, STRANGERS]))
        if wait_s > 0:
            return Attempt(wait_s=wait_s)
        account = self.accounts.check(name, password)
        if account is None:
            return Attempt()
        self.throttle.succeeded(own)
        token, login = self.open(account.name, account.role)
        return Attempt(token, login)

    def open(self, name: str, role: Role, *, kept_open: bool = False) -> tuple[str, Login]:
        """Log somebody in; returns the secret for the cookie and the login."""
        token, moment = secrets.token_urlsafe(32), self._clock()
        login = Login(secrets.token_hex(8), name, role, moment)
        with self._lock:
            self._sessions[_key(token)] = _Session(login, moment + self._lasts_s, moment, kept_open)
            ended = self._over_the_brim()
        self._tell(ended)
        return token, login

    def remember_browser(self, token: str) -> str:
        """A mark for a browser that was logged in: its own later mistakes are counted apart from strangers'."""
        mark = secrets.token_urlsafe(24)
        login = self.find(token)
        with self._lock:
            self._known_browsers[_key(mark)] = login.name if login else ""
            while len(self._known_browsers) > MOST_LOGINS:
                self._known_browsers.popitem(last=False)
        return mark

    def _knows_browser(self, mark: str | None) -> bool:
        with self._lock:
            return bool(mark) and _key(mark or "") in self._known_browsers

    # --- being in --------------------------------------------------------------------------------------

    def find(self, token: str | None) -> Login | None:
        """The login of a cookie's secret, while it lasts."""
        if not token:
            return None
        with self._lock:
            session = self._sessions.get(_key(token))
            if session is None or session.ends_at <= self._clock():
                return None
            session.seen_at = self._clock()
            self._sessions.move_to_end(_key(token))
            return session.login

    def lives(self, login: Login) -> bool:
        """Whether this login has not ended."""
        with self._lock:
            return any(s.login.id == login.id and s.ends_at > self._clock() for s in self._sessions.values())

    def silent_s(self, login: Login) -> float:
        """Seconds since a login was last heard of; infinite when it has ended."""
        with self._lock:
            seen = [s.seen_at for s in self._sessions.values() if s.login.id == login.id]
        return self._clock() - max(seen) if seen else float("inf")

    def present(self, role: Role, within_s: float = 120.0) -> list[tuple[Login, float]]:
        """(login, seconds since it was last heard of) of those who are here now, who came first first."""
        moment = self._clock()
        with self._lock:
            sessions = [s for s in self._sessions.values() if s.login.role is role and s.ends_at > moment]
        here = [(s.login, moment - s.seen_at) for s in sessions if moment - s.seen_at <= within_s]
        return sorted(here, key=lambda pair: pair[0].since)

    # --- going -----------------------------------------------------------------------------------------

    def close(self, token: str | None) -> None:
        """Log out."""
        if token:
            self._end(lambda key, _: key == _key(token))

    def close_visitors(self) -> None:
        """Sharing has ended."""
        self._end(lambda _, session: session.login.role is Role.VISITOR)

    def keep_only(self, login_id: str | None) -> None:
        """From now on a login is asked for: pages that were open stay outside, but for the one that decided it."""
        self._end(lambda _, session: session.kept_open and session.login.id != login_id)
        with self._lock:
            for session in self._sessions.values():
                session.kept_open = False

    def sweep(self) -> None:
        """End what is past its time."""
        moment = self._clock()
        self._end(lambda _, session: session.ends_at <= moment)

    def _end(self, which: Callable[[str, _Session], bool]) -> None:
        with self._lock:
            keys = [key for key, session in self._sessions.items() if which(key, session)]
            ended = [self._sessions.pop(key).login for key in keys]
        self._tell(ended)

    def _over_the_brim(self) -> list[Login]:
        ended = []
        while len(self._sessions) > MOST_LOGINS:
            visitors = (k for k, s in self._sessions.items() if s.login.role is Role.VISITOR)
            key = next(visitors, None) or next(iter(self._sessions))
            ended.append(self._sessions.pop(key).login)
        return ended

    def _tell(self, ended: list[Login]) -> None:
        for login in ended:
            self.on_end(login)


def _key(token: str) -> str:
    """Tokens are looked up by their hash, so a comparison tells nothing about them by its time."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
