"""Two watchers in threads of their own: one gives up on what shows no sign of life, one passes a stop on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Heartbeat:
    """Calls `give_up` once when nobody has called `beat` for so long."""

    def __init__(self, patience_s: float, give_up: Callable[[], None]):
        self._patience_s, self._give_up = patience_s, give_up
        self._last = time.monotonic()
        self._over = threading.Event()
        self.given_up = False

    def beat(self) -> None:
        self._last = time.monotonic()

    def __enter__(self) -> Heartbeat:
        self._last = time.monotonic()
        threading.Thread(target=self._watch, name="measure-heartbeat", daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(max(0.01, self._last + self._patience_s - time.monotonic())):
            if time.monotonic() >= self._last + self._patience_s:
                self.given_up = True
                self._give_up()
                return


class Linked:
    """An event that is set when either of two is; or, with `on_set`, what to do when the first is."""

    def __init__(
        self,
        first: threading.Event,
        second: threading.Event | None = None,
        on_set: Callable[[], None] | None = None,
    ):
        self.event = threading.Event()
        self._sources, self._on_set = (first, second), on_set
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="measure-stop", daemon=True).start()

    def close(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            if any(source is not None and source.is_set() for source in self._sources):
                self.event.set()
                if self._on_set is not None:
                    self._on_set()
                return
