"""One request's run, followed from the server's event loop: what it says, as it says it, and how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from engines.protocol import Event, Failed, Finished, Target, Token
from ui.api.errors import ApiError, failure
from ui.api.requests import Chat
from ui.chat.live_turn import LiveTurn
from ui.chat.run_view import RunView
from ui.chat.settings import Settings
from ui.chat.turns import GivenChat, TurnError, Turns

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(frozen=True)
class Piece:
    """Text that has come; exactly one of the two is not empty."""

    text: str = ""
    thought: str = ""


class Running:
    """One run. Made by `start`; used by one task of the event loop."""

    def __init__(self) -> None:
        self._loop, self._began = asyncio.get_running_loop(), time.monotonic()
        self.waited_s: float | None = None
        """From being asked for until the worker took the request, loading included; None before the first token."""
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._turn: LiveTurn | None = None
        self._waiting: Event | None = None
        self._said = self._thought = ""
        self._over = False

    def hear(self, event: Event) -> None:
        """Take an event, on whatever thread it comes."""
        if isinstance(event, (Token, Finished, Failed)):
            if self.waited_s is None and isinstance(event, Token):
                self.waited_s = max(0.0, time.monotonic() - self._began - event.offset_s)
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def follow(self, turn: LiveTurn) -> None:
        self._turn = turn

    @property
    def view(self) -> RunView:
        assert self._turn is not None
        return self._turn.runs[0].view()

    def stop(self) -> None:
        """Whoever asked is gone: nobody needs the rest."""
        if self._turn is not None and not self._over:
            self._turn.stop()

    async def begin(self, patience_s: float) -> None:
        """Wait a moment for the first word, so that what fails at once fails with a status; raises ApiError."""
        try:
            self._waiting = await asyncio.wait_for(self._events.get(), patience_s)
        except asyncio.TimeoutError:
            return
        if isinstance(self._waiting, Failed):
            self._over = True
            raise failure(self._waiting)

    async def pieces(self, ping_s: float) -> AsyncIterator[Piece | None]:
        """What comes, piece by piece; None when nothing came for `ping_s`. Raises ApiError when the run fails."""
        while not self._over:
            event = await self._next(ping_s)
            if event is None:
                yield None
            elif isinstance(event, Token):
                if event.thought:
                    self._thought += event.thought
                    yield Piece(thought=event.thought)
                if event.text:
                    self._said += event.text
                    yield Piece(event.text)
            elif isinstance(event, Failed):
                self._over = True
                raise failure(event)
            elif isinstance(event, Finished):
                self._over = True
                if event.finish_reason == "cancelled":  # not by who asked: they would hear nothing any more
                    raise ApiError(503, "The reply was stopped before its end, here.", code="cancelled")
                for piece in self._rest(event):
                    yield piece

    def _rest(self, finished: Finished) -> list[Piece]:
        """What was held back until the end: the beginning of a character, or of a text that would have ended it."""
        rest: list[Piece] = []
        if not finished.text.startswith(
            self._said
        ):  # taken apart at the end: all of it has been said already
            return rest
        thought = finished.reasoning or ""
        if thought.startswith(self._thought) and thought != self._thought:
            rest.append(Piece(thought=thought[len(self._thought) :]))
        if finished.text != self._said:
            rest.append(Piece(finished.text[len(self._said) :]))
        return rest

    async def _next(self, patience_s: float) -> Event | None:
        if self._waiting is not None:
            event, self._waiting = self._waiting, None
            return event
        if not self._events.empty():
            return self._events.get_nowait()
        try:
            return await asyncio.wait_for(self._events.get(), patience_s)
        except asyncio.TimeoutError:
            return None

    async def to_the_end(self, receive: Receive) -> RunView:
        """Wait until it has ended, or stop it when whoever asked goes away. Raises ApiError."""

        async def listen() -> None:
            async for _ in self.pieces(3600.0):
                pass

        listening, gone = asyncio.ensure_future(listen()), asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait({listening, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not listening.done():
                self.stop()
                raise ApiError(499, "The client closed the connection.", code="cancelled")
            listening.result()
        finally:
            listening.cancel()
            gone.cancel()
        return self.view


async def until_gone(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def start(
    turns: Turns, target: Target, chat: Chat, settings: Settings, via: str, *, raw: bool = False
) -> Running:
    """Send a chat to one lane; its run is a row in the log like any other. Raises ApiError."""
    running = Running()
    given = GivenChat(chat.messages, via, running.hear, raw)
    try:
        turn = await asyncio.to_thread(
            turns.send, chat.messages[-1].content, [(1, target)], settings, given=given
        )
    except TurnError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_prompt") from error
    running.follow(turn)
    return running
