"""The follower: shows what changes in a tab while replies run, and nothing else while nothing runs.

Every action of a person is followed by three steps: `begin` paints the whole page, `stream` repaints heads and growing
replies about ten times a second until the last one has ended, `end` paints the whole page again. Streaming has few
outputs because a browser pays for every output of every update. Only one stream runs per tab: a newer action takes
over, after the older stream has given its last painting to the browser, so that no update overtakes another.
All of it is asynchronous: a hundred open tabs hold no threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from ui.compare_page import SLOTS, STREAMED, Desk, Page, Painter

TICK_S = 0.1
HEARTBEAT_S = 0.4
"""Something is sent at least this often, so that a closed browser is noticed."""
HANDOVER_S = 3.0
"""A stream that has not let go by then belongs to a connection that is gone."""


class Follower:
    def __init__(self, desk: Desk, painter: Painter):
        self._desk, self._painter = desk, painter

    async def begin(self, page: Page) -> list[Any]:
        """Take the page over from an older stream and paint all of it."""
        before = page.stream_ended if page.reserved is None else None
        page.reserved, page.stream_ended = self._desk.pages.next_stream(), asyncio.Event()
        page.stream = page.reserved
        if before is not None and not await _ended(before):
            page.forget_painting()
        return await asyncio.to_thread(self._painter.paint, page, SLOTS)

    async def stream(self, page: Page) -> AsyncIterator[list[Any]]:
        """Paint what grows until nothing runs any more, or a newer action has taken over."""
        mine, ended, page.reserved = page.reserved, page.stream_ended, None
        if mine is None or ended is None:
            return
        try:
            async for updates in self._paintings(page, mine):
                yield updates
        finally:
            ended.set()

    async def end(self, page: Page) -> list[Any]:
        """Paint all of the page, unless a newer stream does."""
        if page.streams:
            return [gr.skip()] * len(SLOTS)
        return await asyncio.to_thread(self._painter.paint, page, SLOTS)

    async def _paintings(self, page: Page, mine: int) -> AsyncIterator[list[Any]]:
        sent_at = 0.0
        while page.stream == mine and self._something_runs(page):
            started = time.monotonic()
            updates = await asyncio.to_thread(self._painter.paint, page, STREAMED)
            if started - sent_at > HEARTBEAT_S or any(update != gr.skip() for update in updates):
                sent_at = started
                yield updates
            await asyncio.sleep(max(0.02, TICK_S - (time.monotonic() - started)))

    def _something_runs(self, page: Page) -> bool:
        talk = self._desk.talks.known(page.conversation_id)
        return bool(talk and talk.running())


async def _ended(event: asyncio.Event) -> bool:
    try:
        await asyncio.wait_for(event.wait(), HANDOVER_S)
    except asyncio.TimeoutError:
        return False
    return True
