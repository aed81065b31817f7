"""The follower: one generator per tab that shows what changes while replies run.

It paints about ten times a second as long as something runs in the tab's conversation and ends with the last reply,
so a waiting page costs nothing. A newer follower of the same tab takes over: the older one gives its last painting to
the browser first, so no update overtakes another. It is asynchronous: a hundred open tabs hold no threads. Painting
itself happens in a thread, away from the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from ui.compare_page import Desk, Page, Painter

TICK_S = 0.1
HEARTBEAT_S = 0.4
"""Something is sent at least this often, so that a closed browser is noticed."""
HANDOVER_S = 3.0
"""A follower that has not let go by then belongs to a connection that is gone."""


class Follower:
    def __init__(self, desk: Desk, painter: Painter):
        self._desk, self._painter = desk, painter

    async def follow(self, page: Page) -> AsyncIterator[list[Any]]:
        """Paint until nothing runs any more, or a newer follower has taken over."""
        mine = self._desk.pages.new_follower(page)
        before, page.following = page.following, asyncio.Event()
        ended = page.following
        try:
            if before is not None and not await _ended(before):
                page.forget_painting()
            async for updates in self._paintings(page, mine):
                yield updates
        finally:
            ended.set()

    async def _paintings(self, page: Page, mine: int) -> AsyncIterator[list[Any]]:
        sent_at = 0.0
        while page.follower == mine:
            started = time.monotonic()
            running = await asyncio.to_thread(self._something_runs, page)
            updates = await asyncio.to_thread(self._painter.paint, page)
            changed = any(update != gr.skip() for update in updates)
            if changed or not running or started - sent_at > HEARTBEAT_S:
                sent_at = started
                yield updates
            if not running:
                return
            await asyncio.sleep(max(0.02, TICK_S - (time.monotonic() - started)))

    def _something_runs(self, page: Page) -> bool:
        talk = self._desk.talk(page)
        return bool(talk and talk.running())


async def _ended(event: asyncio.Event) -> bool:
    try:
        await asyncio.wait_for(event.wait(), HANDOVER_S)
    except asyncio.TimeoutError:
        return False
    return True
