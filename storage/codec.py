"""How Python values become columns that read well in any SQLite tool and still come back exactly.

Token offsets are packed as five big-endian bytes of whole microseconds each, counted from the start of the run:
5 kB per 1,000 tokens, up to 12 days, and fixed width, so that plain SQL can unpack them (view `token_times`).
Text with lone surrogates cannot be UTF-8: the column gets U+FFFD in their place, `exact` keeps the original.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from typing import Any, TypeVar

OFFSET_BYTES = 5
_MAX_US = 256**OFFSET_BYTES - 1
Kept = TypeVar("Kept")

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def pack_offsets(offsets_s: Sequence[float]) -> bytes:
    """Seconds from start to each token, to bytes; rounded to a microsecond."""
    return b"".join(
        min(max(round(offset * 1e6), 0), _MAX_US).to_bytes(OFFSET_BYTES, "big") for offset in offsets_s
    )


def unpack_offsets_us(packed: bytes | None) -> tuple[int, ...]:
    """Whole microseconds from start to each token."""
    packed = packed or b""
    return tuple(
        int.from_bytes(packed[at : at + OFFSET_BYTES], "big") for at in range(0, len(packed), OFFSET_BYTES)
    )


def unpack_offsets(packed: bytes | None) -> tuple[float, ...]:
    """Seconds from start to each token."""
    return tuple(offset / 1e6 for offset in unpack_offsets_us(packed))


def readable(text: str | None) -> str | None:
    """The text as any SQLite tool can read it: lone surrogates become U+FFFD."""
    if text is None:
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
    return text


def exact(**texts: str | None) -> str | None:
    """JSON (ASCII) of those texts that `readable` had to change; None, as good as always, when it changed none."""
    changed = {
        # not JSON's own escapes: they would merge two surrogates that happen to stand next to each other
        name: text.encode("unicode_escape").decode("ascii")
        for name, text in texts.items()
        if text is not None and readable(text) != text
    }
    return json.dumps(changed) if changed else None


def restored(row: Mapping[str, Any], name: str) -> str | None:
    """The original of column `name` of a row that has an `exact` column."""
    kept = json.loads(row["exact"]) if row["exact"] else {}
    text: str | None = row[name]
    try:
        text = kept[name].encode("ascii").decode("unicode_escape")
    except (KeyError, AttributeError, UnicodeError):
        pass  # unchanged; or written by somebody else
    return text


def to_json(value: Any) -> str:
    """Canonical JSON: equal values give equal text, so it can be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def read_back(kind: type[Kept], text: str | None) -> Kept | None:
    """A frozen dataclass from its JSON; None where there is none or it is not as ours would be.

    Fields that this version does not know are left out: a newer one may have written them.
    """
    try:
        kept = json.loads(text or "null")
        known = {field.name for field in fields(kind)}  # type: ignore[arg-type] # it is a dataclass
        values = {name: value for name, value in kept.items() if name in known}
        return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    except (ValueError, TypeError, AttributeError):
        return None


def read_ids(text: str | None) -> tuple[int, ...]:
    """Token ids from their JSON; () where there are none, or somebody else has written something there."""
    try:
        found = json.loads(text or "[]")
    except (TypeError, ValueError):
        return ()
    sound = isinstance(found, list) and all(type(each) is int and each >= 0 for each in found)
    return tuple(found) if sound else ()


def content_id(*values: Any) -> str:
    """64 bits of SHA-256 over the canonical JSON: the same content has the same id on every machine."""
    return hashlib.sha256(to_json(values).encode("ascii")).hexdigest()[:16]


def now() -> str:
    """The present, UTC, ISO 8601 with milliseconds: sorts as text, and SQLite's date functions read it."""
    return timestamp(datetime.now(timezone.utc))


def timestamp(moment: datetime) -> str:
    """A moment as the database spells it; one without a time zone is local."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class _Ids:
    """ULIDs: 48 bits of milliseconds and 80 random ones; ascending within one process, whatever the clock does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def new(self, after: str | None = None) -> str:
        """`after`: an id that this one must follow even if the clock was set back since, in another process."""
        chance = int.from_bytes(os.urandom(10), "big")
        fresh = (time.time_ns() // 1_000_000) << 80 | chance
        with self._lock:
            self._last = fresh if fresh >> 80 > self._last >> 80 else self._last + 1
            value = self._last
        if after is not None and (before := _milliseconds(after)) is not None and before >= value >> 80:
            value = (before + 1) << 80 | chance
        return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


def _milliseconds(ulid: str) -> int | None:
    """When an id was made; None for what is none of ours, or could have no follower."""
    if len(ulid) != 26 or not set(ulid) <= set(_CROCKFORD):
        return None
    found = functools.reduce(lambda value, char: value << 5 | _CROCKFORD.index(char), ulid, 0) >> 80
    return found if found + 1 < 1 << 48 else None


new_id = _Ids().new
