"""Which browser draws the page: drawing it is part of the app's work, not another program's.

Found by the connections to this process's own port: whoever holds the other end, the program it belongs to and all
its helpers. Looked up only when the figures would otherwise mark a run, because listing connections takes long.
"""

from __future__ import annotations

import os

import psutil

from engines.telemetry.processes import Snapshot


def page_processes(seen: Snapshot) -> set[int]:
    """Processes of the browsers that are connected to this app; empty where that cannot be told."""
    try:
        here = psutil.Process().net_connections(kind="tcp")
        served = {c.laddr.port for c in here if c.status == psutil.CONN_LISTEN}
        peers = {
            tuple(c.raddr)
            for c in here
            if c.raddr and c.status == psutil.CONN_ESTABLISHED and c.laddr.port in served
        }
        if not peers:
            return set()
        connected = {
            c.pid for c in psutil.net_connections(kind="tcp") if c.pid and c.laddr and tuple(c.laddr) in peers
        }
    except (psutil.Error, OSError):
        return set()
    above = _ancestors(seen, os.getpid())
    roots = {_program(seen, pid, above) for pid in connected if pid in seen.processes and pid not in above}
    return seen.family(roots)


def _ancestors(seen: Snapshot, pid: int) -> set[int]:
    """A process and what it comes from: nobody's browser, whatever its name."""
    found: set[int] = set()
    while pid in seen.processes and pid not in found:
        found.add(pid)
        pid = seen.processes[pid].parent
    return found


def _program(seen: Snapshot, pid: int, above: set[int]) -> int:
    """The topmost process of the same program: a browser's network service is a child of the browser."""
    known = seen.processes
    parent = known.get(known[pid].parent)
    if parent is None or parent.pid in above or parent.name != known[pid].name:
        return pid
    return _program(seen, parent.pid, above)
