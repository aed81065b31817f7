"""Keys of other people's servers: in the system's keyring where there is one, else in a file only the owner can read.

A key belongs to a name and an address together, so that giving an old name a new address sends the old key nowhere.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Protocol

from engines.toolkit.putting import put_in_place

_SERVICE = "Backend Arena"
_USELESS_RINGS = ("keyring.backends.fail", "keyring.backends.null")


class Ring(Protocol):
    """What is needed of a keyring."""

    def get_password(self, service: str, username: str) -> str | None: ...

    def set_password(self, service: str, username: str, password: str) -> None: ...

    def delete_password(self, service: str, username: str) -> None: ...


def system_ring() -> Ring | None:
    """The system's keyring (Credential Manager, Keychain, Secret Service); None where there is none that works."""
    try:
        import keyring

        ring = keyring.get_keyring()
    except Exception:  # noqa: BLE001 - a broken desktop bus raises what it likes
        return None
    return None if type(ring).__module__.startswith(_USELESS_RINGS) else ring


class Keys:
    """Keeps keys; tells where, never what, unless asked for one."""

    def __init__(self, path: Path, ring: Ring | None):
        """`path`: the file that is used where the keyring is missing or refuses."""
        self._path, self._ring = path, ring

    def get(self, name: str, url: str) -> str | None:
        """The key, or None."""
        if self._ring is not None:
            with contextlib.suppress(Exception):  # locked, or gone: the file may have it
                if found := self._ring.get_password(_SERVICE, _entry(name, url)):
                    return found
        return self._read().get(_entry(name, url))

    def keep(self, name: str, url: str, key: str) -> str:
        """Keep a key; says where: `keyring` or `file`."""
        if self._ring is not None:
            with contextlib.suppress(Exception):
                self._ring.set_password(_SERVICE, _entry(name, url), key)
                self._write({entry: k for entry, k in self._read().items() if entry != _entry(name, url)})
                return "keyring"
        self._write({**self._read(), _entry(name, url): key})
        return "file"

    def forget(self, name: str, url: str) -> None:
        """Remove a key wherever it is."""
        if self._ring is not None:
            with contextlib.suppress(Exception):
                self._ring.delete_password(_SERVICE, _entry(name, url))
        self._write({entry: key for entry, key in self._read().items() if entry != _entry(name, url)})

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, keys: dict[str, str]) -> None:
        if not keys:
            self._path.unlink(missing_ok=True)
            return
        write_private(self._path, json.dumps(keys))


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read (on Windows the profile folder sees to that), whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    put_in_place(temporary, path)


def _entry(name: str, url: str) -> str:
    return f"{name} {url}"
