"""Bodies of requests as the guard reads them: bounded in size and time, JSON in UTF-8 only, and read again."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from storage.codec import readable

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

BODY_TIMEOUT_S = 30.0
"""The next piece of a body has to come within this, or the request is given up; a stranger's whole body, too."""


class TooLargeError(Exception):
    """More came than may come."""


class NoJsonError(Exception):
    """What is called JSON is not written in UTF-8."""


class TooSlowError(Exception):
    """The body did not come to its end in time."""


def bounded_receive(receive: Receive, most: int, *, from_a_stranger: bool = False) -> Receive:
    """`receive` that gives up on a body that is too large, or that stops coming; a stranger's may not drip either."""
    taken, complete, began = 0, False, time.monotonic()

    async def receive_bounded() -> Message:
        nonlocal taken, complete
        if complete:
            return await receive()
        try:
            left_s = BODY_TIMEOUT_S - (time.monotonic() - began if from_a_stranger and taken else 0.0)
            message = await asyncio.wait_for(receive(), left_s)
        except asyncio.TimeoutError as error:
            raise TooSlowError from error
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if taken > most:
                raise TooLargeError
        return message

    return receive_bounded


async def whole(receive: Receive) -> bytes:
    """The body to its end, or to the moment when its sender went away."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def as_text(body: bytes) -> bytes:
    """A JSON body as everybody behind the guard may read it: UTF-8, and no text in it that is none.

    Python's reader takes UTF-16, UTF-32 and lone surrogates, too, in which the guard would look for names in vain;
    RFC 8259 does not. Raises NoJsonError.
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NoJsonError from error
    if b"\0" in body:  # no JSON has one, except in UTF-16 and UTF-32
        raise NoJsonError
    return without_surrogates(body)


_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


def without_surrogates(body: bytes) -> bytes:
    """The JSON with U+FFFD for every lone surrogate: such text is no UTF-8, and breaks whatever it comes to."""
    if not _HALF_PAIR.search(body):
        return body
    try:
        return json.dumps(_readable(json.loads(body))).encode()
    except (ValueError, RecursionError):
        return body  # Gradio will say what is wrong with it


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, list):
        return [_readable(item) for item in value]
    if isinstance(value, dict):
        return {_readable(name): _readable(item) for name, item in value.items()}
    return value


def sessions_named_in(body: bytes) -> list[str]:
    """Every session named at the top of a JSON body, whichever of two equal keys a reader takes."""
    if b"session_hash" not in body and b"\\u" not in body:
        return []
    names: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        names.extend(str(value) for key, value in pairs if key == "session_hash" and value is not None)
        return found

    try:
        json.loads(body, object_pairs_hook=note)
    except (ValueError, RecursionError):
        return [""]  # whatever it is, Gradio must not be the one to find out
    return names


def again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already, and then what comes after it."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
