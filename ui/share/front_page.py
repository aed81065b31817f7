"""The page as it is first sent, made once and not for every visitor.

Gradio copies the settings of every component, renders them and sends some 660 kB as they are: a fifth of a second of
the processor for each page that is opened, and most of the wait for a visitor whose line is slow. What comes out is
the same for all of a server's visitors who use the same address, so it is kept, compressed as well. Cookies and other
headers are the guard's and are added to each answer.
"""

from __future__ import annotations

import gzip
from collections import OrderedDict
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_ADDRESSES = 8
_PARTS_OF_AN_ADDRESS = ("host", "x-forwarded-host", "x-forwarded-proto")
_FOR_THE_BROWSER_ONLY = {"c"}
"""Parameters that the page's script reads, and the server does not."""


@dataclass(frozen=True)
class _Made:
    """One address's page."""

    content_type: bytes
    plain: bytes
    packed: bytes


class FrontPage:
    """ASGI middleware around one page's server; the page must not change while it is served."""

    def __init__(self, app: ASGIApp):
        self._app = app
        self._made: OrderedDict[tuple[str, ...], _Made] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_asked_for(scope):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        address = (scope.get("scheme", "http"), *(headers.get(name, "") for name in _PARTS_OF_AN_ADDRESS))
        made = self._made.get(address)
        if made is None:
            made = await self._make(address, scope, receive, send)
            if made is None:  # some other answer, which has been sent
                return
        else:
            self._made.move_to_end(address)
        await _give(made, send, packed="gzip" in headers.get("accept-encoding", ""))

    async def _make(
        self, address: tuple[str, ...], scope: Scope, receive: Receive, send: Send
    ) -> _Made | None:
        said: list[Message] = []

        async def listen(message: Message) -> None:
            said.append(message)

        await self._app(scope, receive, listen)
        start = said[0]
        if start["status"] != 200:
            for message in said:
                await send(message)
            return None
        plain = b"".join(message.get("body", b"") for message in said[1:])
        content_type = Headers(raw=start["headers"]).get("content-type", "text/html; charset=utf-8")
        made = _Made(content_type.encode("latin-1"), plain, gzip.compress(plain, mtime=0))
        self._made[address] = made
        while len(self._made) > MOST_ADDRESSES:
            self._made.popitem(last=False)
        return made


def _is_asked_for(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
        return False
    query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
    return {name for name, _ in query} <= _FOR_THE_BROWSER_ONLY


async def _give(made: _Made, send: Send, *, packed: bool) -> None:
    body = made.packed if packed else made.plain
    headers = [
        (b"content-type", made.content_type),
        (b"content-length", str(len(body)).encode()),
        (b"vary", b"accept-encoding"),
    ]
    if packed:
        headers.append((b"content-encoding", b"gzip"))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
