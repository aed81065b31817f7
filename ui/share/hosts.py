"""Under which names the app may be asked for, and which pages may ask.

A browser that visits a hostile page can be made to send anything here: under that page's own name, re-pointed to
127.0.0.1 (DNS rebinding), or from another port of this computer. So a request must name one of our own addresses
in `Host`, and what comes from a page must come from that very origin, port included.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address

import psutil

_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.%]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<host>[^/\s]+)")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_EVERYWHERE = ("0.0.0.0", "::", "")
_LEFT_OUT = (80, 443)
"""Ports that an address and so a Host header does without."""
_LAN_KEPT_S = 10.0


def split_host(text: str) -> tuple[str, int | None] | None:
    """(name in lower case, port) of a Host header; None for what is none."""
    found = _HOST.fullmatch(text.strip())
    if found is None:
        return None
    name = found["name"].strip("[]").lower().rstrip(".")
    if ":" in name:
        try:
            name = ip_address(name).compressed  # one address has many spellings
        except ValueError:
            return None
    return name, int(found["port"]) if found["port"] else None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def machine_addresses() -> set[str]:
    """Every address and name by which other machines on the network know this one."""
    names = {socket.gethostname().lower()}
    names |= {f"{name}.local" for name in list(names) if "." not in name}
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family in (socket.AF_INET, socket.AF_INET6):
                names.add(address.address.partition("%")[0].lower())
    return names


class Hosts:
    """The names that are ours. Thread-safe."""

    def __init__(
        self,
        bound: str = "127.0.0.1",
        added: Iterable[str] = (),
        on_network: Callable[[], set[str]] = machine_addresses,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`bound`: the address the server listens on; `added`: what the owner named, `name` or `name:port`.

        Raises ValueError for an added name that is none.
        """
        written = split_host(f"[{bound}]" if ":" in bound else bound)
        self._bound = written[0] if written else bound.lower()
        self._on_network, self._clock = on_network, clock
        self._lan: tuple[float, set[str]] = (float("-inf"), set())
        self._lock = threading.Lock()
        self._added: set[tuple[str, int | None]] = set()
        for text in added:
            self.allow(text)

    @property
    def beyond_loopback(self) -> bool:
        """Whether the server listens for other machines."""
        return not is_loopback(self._bound)

    def allow(self, text: str) -> None:
        """Take `name` (any port) or `name:port` in; raises ValueError."""
        parts = split_host(text)
        if parts is None:
            raise ValueError(f"“{text}” is not a host name; write it as in an address: name or name:port.")
        with self._lock:
            self._added = self._added | {parts}

    def forget(self, text: str) -> None:
        with self._lock:
            self._added = self._added - {split_host(text) or ("", None)}

    def knows(self, host: str, port: int) -> bool:
        """Whether a Host header names us; `port` is the one that we listen on."""
        parts = split_host(host)
        if parts is None:
            return False
        name, named_port = parts
        ports = (None, named_port) if named_port else (None, *_LEFT_OUT)
        if any((name, port_added) in self._added for port_added in ports):
            return True
        if (named_port or 80) != port:
            return False
        own = name == self._bound and name not in _EVERYWHERE
        return own or name in _LOOPBACK or name in self._network()

    def _network(self) -> set[str]:
        """The machine's own addresses, when it listens on all of them; they may change while it runs."""
        if self._bound not in _EVERYWHERE:
            return set()
        looked_at, names = self._lan
        if self._clock() - looked_at > _LAN_KEPT_S:
            names = self._on_network()
            self._lan = (self._clock(), names)
        return names

    def is_own_origin(self, origin: str, host: str) -> bool:
        """Whether a page at `origin` was served under `host`, port included. `null` never was.

        The scheme may be either: a tunnel or a proxy adds the https, and no two servers share one port.
        """
        found = _ORIGIN.fullmatch(origin.strip().lower())
        if found is None:
            return False
        default = 443 if found["scheme"] == "https" else 80
        theirs, ours = split_host(found["host"]), split_host(host)
        if theirs is None or ours is None:
            return False
        return theirs[0] == ours[0] and (theirs[1] or default) == (ours[1] or default)
