"""What the command line says about who may reach the app, and as whom.

Every option is honoured or refused with one sentence, never passed over in silence: somebody who gives a password
relies on it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.toolkit import text_files
from ui.access import Role
from ui.share.door import Door
from ui.share.hosts import Hosts
from ui.share.logins import Accounts, Logins, PasswordError, check_password, new_password, read_accounts

PASSWORD_VARIABLE = "BACKEND_ARENA_PASSWORD"
OWNER_NAME = "owner"
VISITOR_NAME = "visitor"
OPTIONS = ("share", "password", "password_file", "auth_file", "allow_anonymous_visitors", "allow_host")
"""Options that mean something only while the page is served."""


@dataclass(frozen=True)
class ShareSettings:
    """As the command line had it; raises nothing any more."""

    host: str = "127.0.0.1"
    share: bool = False
    password: str | None = None
    """The owner's, as it was chosen; None: none was."""
    auth_file: Path | None = None
    allow_hosts: tuple[str, ...] = ()
    anonymous_visitors: bool = False


@dataclass(frozen=True)
class Made:
    """What was made up for this start, to be printed once; None: nothing."""

    owner_password: str | None = None
    visitor_password: str | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of serving that decide who may come in."""
    sharing = parser.add_argument_group("sharing")
    sharing.add_argument("--share", action="store_true", help="make a public link (through Gradio's tunnel)")
    sharing.add_argument(
        "--password", metavar="TEXT", help="the owner's password; a list of processes shows it to others"
    )
    sharing.add_argument(
        "--password-file", type=Path, metavar="FILE", help="read the owner's password from a file"
    )
    sharing.add_argument(
        "--auth-file", type=Path, metavar="FILE", help="accounts: lines of “owner|visitor NAME PASSWORD”"
    )
    sharing.add_argument(
        "--allow-anonymous-visitors", action="store_true", help="visitors need no password (the owner does)"
    )
    sharing.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="another name under which this PC is reached, of a proxy for example; may be repeated",
    )


def unused_options(arguments: argparse.Namespace) -> list[str]:
    """The options about serving that were given to a command which serves nothing."""
    given = [name for name in OPTIONS if getattr(arguments, name, None)]
    return [f"--{name.replace('_', '-')}" for name in given]


def read_settings(
    arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ
) -> ShareSettings:
    """The settings of `app.py`'s options; raises PasswordError where they cannot be followed."""
    return ShareSettings(
        arguments.host,
        arguments.share,
        _password(arguments, environment),
        arguments.auth_file,
        tuple(arguments.allow_host),
        arguments.allow_anonymous_visitors,
    )


def _password(arguments: argparse.Namespace, environment: Mapping[str, str]) -> str | None:
    sources = {
        "--password": arguments.password,
        "--password-file": arguments.password_file,
        PASSWORD_VARIABLE: environment.get(PASSWORD_VARIABLE),
    }
    given = {name: value for name, value in sources.items() if value is not None}
    if arguments.auth_file is not None:
        given["--auth-file"] = arguments.auth_file
    if len(given) > 1:
        raise PasswordError(f"{' and '.join(given)} were both given; use one of them.")
    if arguments.password_file is not None:
        return check_password(
            _from_file(arguments.password_file), f"The password in {arguments.password_file}"
        )
    found = arguments.password if arguments.password is not None else environment.get(PASSWORD_VARIABLE)
    if found is None:
        return None
    return check_password(found, "The password" if arguments.password is not None else PASSWORD_VARIABLE)


def _from_file(path: Path) -> str:
    try:
        return text_files.read(path.expanduser()).strip("\n")
    except (OSError, UnicodeError) as error:
        raise PasswordError(f"The password file {path} cannot be read: {error}.") from error


def make_door(settings: ShareSettings) -> tuple[Door, Made]:
    """The door as the settings want it, and the passwords that were made for it. Raises PasswordError."""
    try:
        hosts = Hosts(settings.host, settings.allow_hosts)
    except ValueError as error:
        raise PasswordError(f"--allow-host: {error}") from error
    made = Made()
    accounts = read_accounts(settings.auth_file) if settings.auth_file else Accounts()
    reachable = settings.share or hosts.beyond_loopback
    if not settings.auth_file:
        if settings.password is not None:
            accounts.add(OWNER_NAME, Role.OWNER, settings.password)
        elif reachable:
            made = Made(owner_password=new_password())
            accounts.add(OWNER_NAME, Role.OWNER, made.owner_password or "")
        if hosts.beyond_loopback and not settings.anonymous_visitors:
            made = Made(made.owner_password, new_password())
            accounts.add(VISITOR_NAME, Role.VISITOR, made.visitor_password or "")
    locked = bool(settings.auth_file or settings.password is not None or reachable)
    door = Door(hosts, Logins(accounts), locked=locked, anonymous_visitors=settings.anonymous_visitors)
    return door, made
