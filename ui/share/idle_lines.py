"""Connections that hold a place and ask for nothing: cut after a while.

The guard sees a request when its headers are complete; until then a connection is uvicorn's alone, which waits for
headers as long as it takes. A thousand clients that send theirs byte by byte would hold every place there is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

HEADERS_WITHIN_S = 15.0
"""From the connection's start, or the end of its last request, to the end of the next one's headers."""
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

    async def watch(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        now, waiting = self._clock(), {}
        for line in list(self._lines()):
            last = getattr(line, "cycle", None)  # a web socket, where such are installed, has no requests
            if last is not None and not last.response_complete and not line.transport.is_closing():
                continue  # a request is being answered: the guard's business
            before = self._waiting.get(line)
            waiting[line] = before if before is not None and before[0] is last else (last, now)
        self._waiting = dict(sorted(waiting.items(), key=lambda item: item[1][1]))
        too_many = max(0, len(waiting) - MOST_WAITING)
        for number, (line, (_, since)) in enumerate(self._waiting.items()):
            if number < too_many or now - since > HEADERS_WITHIN_S:
                line.transport.abort()
