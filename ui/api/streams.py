"""A streamed answer that notices when whoever asked for it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ui.api.running import until_gone


class Stream(Response):
    """Sends pieces as they come. `on_gone` is called once, when the client has closed the connection."""

    media_type = "text/event-stream"

    def __init__(
        self, pieces: AsyncIterator[bytes], on_gone: Callable[[], None], media_type: str | None = None
    ):
        super().__init__(None, 200, media_type=media_type)
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache, no-store"
        self.headers["x-accel-buffering"] = "no"
        self._pieces, self._on_gone = pieces, on_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self._on_gone()
            else:
                sending.result()
        except BaseException:
            self._on_gone()
            raise
        finally:
            sending.cancel()
            gone.cancel()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
