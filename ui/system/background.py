"""What the System tab has going on in the background: asking the engines, setting environments up.

Both take longer than a browser should wait for one answer, and neither belongs to one browser tab: a page that
is opened later, or reloaded, sees the same work. No Gradio in here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from engines.engine import EngineError
from engines.environments.environments import Environments
from engines.environments.spec import EnvironmentStatus, SetUpCancelledError
from engines.protocol import Availability, Progress

_LOG_TAIL_BYTES = 20_000


class Asks(Protocol):
    """What is needed of the EngineManager."""

    @property
    def known_availability(self) -> Mapping[str, Availability] | None: ...

    def availability(self, *, refresh: bool = False) -> Mapping[str, Availability]: ...


@dataclass(frozen=True)
class SetUpView:
    """One environment's set-up as it stands; `error` and `remedy` are the last one's."""

    status: EnvironmentStatus
    running: bool = False
    progress: Progress | None = None
    started: float | None = None
    """`time.monotonic()` of the start; None when nothing was started here."""
    error: str | None = None
    remedy: str | None = None

    @property
    def elapsed_s(self) -> float | None:
        return time.monotonic() - self.started if self.running and self.started else None


class SystemWork:
    """The engines' answers and the set-ups in progress. Thread-safe."""

    def __init__(self, manager: Asks, environments: Environments):
        self._manager = manager
        self.environments = environments
        self._lock = threading.Lock()
        self._availability: Mapping[str, Availability] | None = None
        self._asking = False
        self._trouble: str | None = None
        self._views: dict[str, SetUpView] = {}
        self._cancels: dict[str, threading.Event] = {}

    # --- the engines ---

    def ask(self, *, refresh: bool = False) -> None:
        """Start asking every engine, unless that is going on already."""
        with self._lock:
            if self._asking or (self._availability is not None and not refresh):
                return
            self._asking = True
        threading.Thread(target=self._ask, args=(refresh,), name="ask-engines", daemon=True).start()

    def _ask(self, refresh: bool) -> None:
        answers, trouble = None, None
        try:
            answers = self._manager.availability(refresh=refresh)
        except Exception as error:  # noqa: BLE001 - a thread's exception would vanish
            trouble = f"The engines could not be asked: {type(error).__name__}: {error}"
        with self._lock:
            self._asking, self._trouble = False, trouble
            self._availability = answers or self._availability

    def answers(self) -> tuple[Mapping[str, Availability] | None, bool, str | None]:
        """The latest answers, whether new ones are on their way, and what went wrong."""
        with self._lock:
            return self._availability, self._asking, self._trouble

    def renew(self) -> None:
        """One engine has been asked again meanwhile, because its settings have changed."""
        with self._lock:
            self._availability = self._manager.known_availability or self._availability

    # --- environments ---

    def view(self, name: str) -> SetUpView:
        """How an environment stands now."""
        status = self.environments.status(name)
        with self._lock:
            return replace(self._views.get(name, SetUpView(status)), status=status)

    def busy(self) -> bool:
        """Whether anything is going on that the page should follow."""
        with self._lock:
            return self._asking or any(view.running for view in self._views.values())

    def start_set_up(self, name: str) -> None:
        """Set an environment up (or verify and repair it) in the background; a second start changes nothing."""
        status = self.environments.status(name)
        with self._lock:
            if name in self._views and self._views[name].running:
                return
            self._cancels[name] = threading.Event()
            self._views[name] = SetUpView(status, True, Progress("set-up", "Starting"), time.monotonic())
        threading.Thread(target=self._set_up, args=(name,), name=f"set-up-{name}", daemon=True).start()

    def cancel_set_up(self, name: str) -> None:
        with self._lock:
            cancel = self._cancels.get(name)
        if cancel is not None:
            cancel.set()

    def _set_up(self, name: str) -> None:
        error, remedy = None, None
        try:
            self.environments.create(
                name, lambda progress: self._change(name, progress=progress), self._cancels[name]
            )
        except SetUpCancelledError:
            pass  # the person knows
        except EngineError as problem:
            error, remedy = str(problem), problem.remedy
        except Exception as problem:  # noqa: BLE001 - a thread's exception would vanish
            error = f"{type(problem).__name__}: {problem}"
        self._change(name, running=False, progress=None, error=error, remedy=remedy)
        if self.environments.status(name).ready:
            self.ask(refresh=True)

    def _change(self, name: str, **changes: Any) -> None:
        with self._lock:
            self._views[name] = replace(self._views[name], **changes)

    def log_tail(self, name: str) -> str:
        """The end of the last set-up's log."""
        path = self.environments.log_path(name)
        try:
            with path.open("rb") as log:
                log.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
                return log.read().decode("utf-8", "replace")
        except OSError:
            return "There is no log yet."
