"""What a server's answer may be called: whether it was streamed at all, and what of it was never seen."""

from __future__ import annotations

from collections.abc import Sequence

_GAP_S = 0.001
_SHARE = 0.05

AT_ONCE = (
    "The text came all at once, at the end: the server, or something in between, does not stream. So there is no "
    "rate, and TTFT is the time of the whole reply."
)


def came_at_once(offsets_s: Sequence[float]) -> bool:
    """Whether pieces of text came as one, held back until the end: their gaps say nothing about how they were made.

    No server needs less than a millisecond for a piece, and twenty times as long as for all of them to begin.
    """
    if len(offsets_s) < 2:
        return False
    span_s = offsets_s[-1] - offsets_s[0]
    return span_s < _GAP_S * (len(offsets_s) - 1) and span_s < _SHARE * offsets_s[-1]


def unseen_words(tokens: int) -> str | None:
    """What is said of tokens that the server counted and did not send."""
    if not tokens:
        return None
    return f"The server thought {tokens:,} tokens that it did not send: count and rate are of the text alone."
