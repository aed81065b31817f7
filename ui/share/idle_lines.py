"""Connections that hold a place, and ask for nothing or read nothing of what they asked for: cut after a while.

The guard sees a request when its headers are complete; until then a connection is uvicorn's alone, which waits for
headers as long as it takes, and for a reader of an answer as well. A thousand clients that send theirs byte by byte
would hold every place there is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

HEADERS_WITHIN_S = 15.0
"""From the connection's start, or the end of its last request, to the end of the next one's headers."""
UNREAD_FOR_S = 20.0
"""So long an answer may stand still, sent but not taken: even a slow line takes some of it by then."""
MOST_WAITING = 250
"""Beyond this those that have waited longest are cut at once: an ordinary request's headers come in one piece."""
LOOK_EVERY_S = 1.0


class IdleLines:
    """Watches a server's connections, which are uvicorn's protocols of HTTP."""

    def __init__(self, lines: Callable[[], Iterable[Any]], clock: Callable[[], float] = time.monotonic):
        """`lines`: the connections that are open now."""
        self._lines, self._clock = lines, clock
        self._waiting: dict[Any, tuple[Any, float]] = {}
        """Connection -> its last request, and since when it has been seen to wait for the next, oldest first."""
        self._unread: dict[Any, tuple[int, float]] = {}
        """Connection -> bytes of its answer that nobody has taken, and since when they are as many."""

    async def watch(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        now, waiting, unread = self._clock(), {}, {}
        for line in list(self._lines()):
            last = getattr(line, "cycle", None)  # a web socket, where such are installed, has no requests
            if last is not None and not last.response_complete and not line.transport.is_closing():
                size = line.transport.get_write_buffer_size()
                if size:
                    stood = self._unread.get(line)
                    unread[line] = stood if stood is not None and stood[0] == size else (size, now)
                continue  # a request is being answered: the guard's business
            before = self._waiting.get(line)
            waiting[line] = before if before is not None and before[0] is last else (last, now)
        self._unread = unread
        for line, (_, since) in unread.items():
            if now - since > UNREAD_FOR_S:
                line.transport.abort()
        self._waiting = dict(sorted(waiting.items(), key=lambda item: item[1][1]))
        too_many = max(0, len(waiting) - MOST_WAITING)
        for number, (line, (_, since)) in enumerate(self._waiting.items()):
            if number < too_many or now - since > HEADERS_WITHIN_S:
                line.transport.abort()
