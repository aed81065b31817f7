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
        peers = {tuple(c.raddr) for c in here if c.raddr and c.status == psutil.CONN_ESTABLISHED}
        if not peers:
            return set()
        connected = {
            c.pid for c in psutil.net_connections(kind="tcp") if c.pid and c.laddr and tuple(c.laddr) in peers
        }
    except (psutil.Error, OSError):
        return set()
    roots = {_program(seen, pid) for pid in connected if pid in seen.processes and pid != os.getpid()}
    return seen.family(roots)


def _program(seen: Snapshot, pid: int) -> int:
    """The topmost process of the same program: a browser's network service is a child of the browser."""
    known = seen.processes
    parent = known.get(known[pid].parent)
    if parent is None or parent.name != known[pid].name:
        return pid
    return _program(seen, parent.pid)
