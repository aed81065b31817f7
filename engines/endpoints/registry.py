"""The servers that the owner has added: names and addresses in a file of the data directory, keys apart from them."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from engines.endpoints.keys import Keys, Ring, system_ring, write_private
from engines.engine import EngineError
from engines.toolkit.openai_client import is_sendable

SETTINGS = "endpoints"
"""Name of these settings in `EngineSpec.settings`."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_ROUTE = re.compile(r"/(chat/completions|completions|responses|embeddings|models)/?$")
"""What is behind the address when a whole example was copied."""
_EVERYWHERE = {"//0.0.0.0": "//127.0.0.1", "//[::]": "//[::1]"}
"""Where a server says it listens, at every address of this computer -> where it can be asked, on Windows too."""
_VARIABLE = re.compile(r"\$?\{?([A-Za-z_][A-Za-z0-9_]*)\}?")


@dataclass(frozen=True)
class Endpoint:
    """One server. Its key is not in here."""

    name: str
    """As in a target: `endpoint/NAME/served`."""
    url: str
    key_variable: str | None = None
    """Environment variable that holds its key; None: the key is kept, or there is none."""
    lasting: bool = True
    """False: given on the command line, for this start of the app only."""


class Endpoints:
    """Added servers. Thread-safe."""

    def __init__(self, data_dir: Path, ring: Callable[[], Ring | None] = system_ring):
        self._path = data_dir / "endpoints.json"
        self._keys_path, self._find_ring = data_dir / "endpoint-keys.json", ring
        self._keys: Keys | None = None
        self._lock = threading.Lock()
        self._passing: dict[str, Endpoint] = {}

    def all(self) -> tuple[Endpoint, ...]:
        """Those kept, in the order of adding, then those of this start's command line."""
        with self._lock:
            kept = {entry.name: entry for entry in self._read()}
            return tuple({**kept, **self._passing}.values())

    def add(self, name: str, url: str, key: str | None = None, *, lasting: bool = True) -> Endpoint:
        """Add a server, or change one of that name. `key`: itself, or `$NAME` of an environment variable.

        Raises EngineError for what is no name or no address.
        """
        name, url = _checked_name(name), _checked_url(url)
        key = _checked_key(key)
        variable = _VARIABLE.fullmatch(key) if key.startswith("$") else None
        endpoint = Endpoint(name, url, variable.group(1) if variable else None, lasting)
        with self._lock:
            if lasting:
                others = [entry for entry in self._read() if entry.name != name]
                self._write([*others, endpoint])
                self._passing.pop(name, None)
            else:
                self._passing[name] = endpoint
        if key and variable is None:
            self._key_store().keep(name, url, key)
        return endpoint

    def remove(self, name: str) -> None:
        """Forget a server and its key."""
        with self._lock:
            known = [*self._read(), *self._passing.values()]
            self._passing.pop(name, None)
            self._write([entry for entry in self._read() if entry.name != name])
        for entry in known:
            if entry.name == name:
                self._key_store().forget(name, entry.url)

    def has_key(self, endpoint: Endpoint) -> bool:
        """Whether there is a key for it; which one is nobody's business."""
        return self._key_of(endpoint) is not None

    def for_workers(self) -> Mapping[str, Any]:
        """What the engine's workers are told, keys included: it goes through their private pipe only."""
        return {
            "endpoints": tuple(
                {"name": entry.name, "url": entry.url, "key": self._key_of(entry)} for entry in self.all()
            )
        }

    def _key_of(self, endpoint: Endpoint) -> str | None:
        if endpoint.key_variable is not None:
            return os.environ.get(endpoint.key_variable)
        usual = f"{re.sub('[^A-Z0-9]', '_', endpoint.name.upper())}_API_KEY"
        return self._key_store().get(endpoint.name, endpoint.url) or os.environ.get(usual)

    def _key_store(self) -> Keys:
        """Looking for the system's keyring takes a moment, so it is done when a key is wanted."""
        with self._lock:
            if self._keys is None:
                self._keys = Keys(self._keys_path, self._find_ring())
            return self._keys

    def _read(self) -> list[Endpoint]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return [Endpoint(entry["name"], entry["url"], entry.get("key_variable")) for entry in found]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _write(self, endpoints: list[Endpoint]) -> None:
        entries = [{k: v for k, v in asdict(entry).items() if k != "lasting"} for entry in endpoints]
        write_private(self._path, json.dumps(entries, indent=1))


def parse_option(text: str) -> tuple[str, str]:
    """`NAME=URL` of the command line; raises EngineError."""
    name, equals, url = text.partition("=")
    if not equals:
        raise EngineError(
            f"“{text}” names no server.", "Write NAME=URL, for example ollama=http://127.0.0.1:11434/v1"
        )
    return _checked_name(name), _checked_url(url)


def _checked_name(name: str) -> str:
    name = name.strip()
    if not _NAME.fullmatch(name):
        raise EngineError(
            f"“{name}” cannot be a server's name.",
            "Use up to 40 letters, digits, dots, dashes and underscores, for example ollama.",
        )
    return name


def _checked_key(key: str | None) -> str:
    key = (key or "").strip()
    if not is_sendable(key):
        raise EngineError(
            "The key holds a character that no key can have: a typographic quote, a line break, an unseen one.",
            "Copy it again, without what stands around it.",
        )
    return key


def _checked_url(url: str) -> str:
    url = _ROUTE.sub("", url.strip().rstrip("/"))
    for everywhere, here in _EVERYWHERE.items():
        if url.partition(":")[2].startswith(everywhere):
            url = url.replace(everywhere, here, 1)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = None, None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise EngineError(f"“{url}” is not a server's address.", "Write it like http://127.0.0.1:11434/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise EngineError(
            "A server's address may hold no user, password or parameters.",
            "Give the key in its own field, or in an environment variable.",
        )
    return url
