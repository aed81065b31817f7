"""Ending a reply at words the person named: stop strings, found across token borders.

Text that may be the beginning of a stop string is held back until it is known not to be; the stop string itself is no
part of the reply.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Passes text on up to the first stop string."""

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found = False
        """Nothing comes after this."""

    def push(self, text: str) -> str:
        """The text that is certain to belong to the reply."""
        if self.found or not self._stops:
            return "" if self.found else text
        held = self._held + text
        at = min((place for stop in self._stops if (place := held.find(stop)) >= 0), default=None)
        if at is not None:
            self.found, self._held = True, ""
            return held[:at]
        keep = max(_overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
