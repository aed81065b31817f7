"""Keys with which programs may use the API: shown once, stored hashed, with when they were last used.

They live in a file of their own, not in the history: a copy of the history is given away, this is not. The command
line and the serving app may write it at the same time, so each change is made under a lock between processes. A key
is 32 random bytes; nothing slower than SHA-256 is needed to keep it from being guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from filelock import FileLock

from engines.endpoints.keys import write_private

FILE_NAME = "api-keys.json"
PREFIX = "ba-"
_NAME = re.compile(r"[\w .@-]{1,60}")
_NOTED_EVERY = timedelta(minutes=1)


class KeyNameError(ValueError):
    """A key of that name cannot be made, or is not there; the message is for the person."""


@dataclass(frozen=True)
class ApiKey:
    """What is known of a key. The key itself is nowhere."""

    name: str
    sha256: str
    hint: str
    """Its last four characters, to tell it from others."""
    created_at: str
    last_used_at: str | None = None


class ApiKeys:
    """The keys of one data directory. Safe between threads and processes."""

    def __init__(self, data_dir: Path):
        self._path = data_dir / FILE_NAME
        self._lock = FileLock(data_dir / f".{FILE_NAME}.lock")
        self._read_at: tuple[int, int] | None = None
        self._known: tuple[bool, tuple[ApiKey, ...]] = (False, ())

    def all(self) -> tuple[ApiKey, ...]:
        """Every key, in the order in which they were made."""
        return self._read()[1]

    @property
    def required(self) -> bool:
        """Whether the owner wants a key even from programs on this computer."""
        return self._read()[0]

    def require(self, required: bool) -> None:
        with self._changing() as (_, keys):
            self._write(required, keys)

    def add(self, name: str) -> str:
        """Make a key; returns it, which nobody can do again. Raises KeyNameError."""
        name = name.strip()
        if not _NAME.fullmatch(name):
            raise KeyNameError("Give the key a name of up to 60 letters, digits, spaces, dots, dashes or @.")
        key = PREFIX + secrets.token_urlsafe(32)
        with self._changing() as (required, keys):
            if any(known.name == name for known in keys):
                raise KeyNameError(
                    f"There is a key called “{name}” already; revoke it, or take another name."
                )
            self._write(required, (*keys, ApiKey(name, _hash(key), key[-4:], _now())))
        return key

    def revoke(self, name: str) -> None:
        """From now on that key opens nothing. Raises KeyNameError when there is none of that name."""
        with self._changing() as (required, keys):
            left = tuple(known for known in keys if known.name != name)
            if len(left) == len(keys):
                names = ", ".join(known.name for known in keys) or "none"
                raise KeyNameError(f"There is no key called “{name}”; there are: {names}.")
            self._write(required, left)

    def find(self, key: str) -> ApiKey | None:
        """Whose key that is; None when it is nobody's. Notes that it was used, to the minute."""
        digest = _hash(key)
        found = next((known for known in self.all() if hmac.compare_digest(known.sha256, digest)), None)
        if found is not None and _is_old(found.last_used_at):
            with self._changing() as (required, keys):
                noted = (replace(k, last_used_at=_now()) if k.sha256 == digest else k for k in keys)
                self._write(required, tuple(noted))
        return found

    @contextmanager
    def _changing(self) -> Iterator[tuple[bool, tuple[ApiKey, ...]]]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            yield self._read()

    def _read(self) -> tuple[bool, tuple[ApiKey, ...]]:
        """The file is read again when it has changed: the command line may have."""
        try:
            stat = self._path.stat()
            if (stat.st_mtime_ns, stat.st_size) != self._read_at:
                found = json.loads(self._path.read_text(encoding="utf-8"))
                self._known = bool(found["required"]), tuple(ApiKey(**entry) for entry in found["keys"])
                self._read_at = stat.st_mtime_ns, stat.st_size
        except FileNotFoundError:
            self._read_at, self._known = None, (False, ())
        except (OSError, ValueError, KeyError, TypeError):
            self._read_at, self._known = None, (True, ())  # what cannot be read opens nothing
        return self._known

    def _write(self, required: bool, keys: tuple[ApiKey, ...]) -> None:
        entries = [asdict(key) for key in keys]
        write_private(self._path, json.dumps({"required": required, "keys": entries}, indent=1))


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _is_old(moment: str | None) -> bool:
    return moment is None or datetime.now(timezone.utc) - datetime.fromisoformat(moment) > _NOTED_EVERY
