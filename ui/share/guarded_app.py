"""Gradio's server with the guard around it, and with little kept for each open page.

Gradio adds its own layers around any middleware it is given, so the guard wraps the finished stack. It also keeps
a copy of every component's settings for each session it ever heard of (some 0.6 MB; 10,000 sessions), for links
that restore a page; we have none, so a session keeps its values only, and goes when its page is closed.
"""

from __future__ import annotations

from copy import copy
from typing import Any

from gradio.blocks import Blocks
from gradio.routes import App, ORJSONResponse
from gradio.state_holder import SessionState, StateHolder

from ui.api.server import BesidePage
from ui.share.door import MOST_SESSIONS, Door
from ui.share.guard import Guard


class _Nowhere(dict[Any, Any]):
    """Takes everything and keeps nothing."""

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: Any) -> Any:
        return {}

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class LeanSession(SessionState):
    """What Gradio keeps for one open page, without the copy of every component's settings."""

    def __init__(self, blocks: Blocks):
        # Gradio's own would first copy the settings of every component.
        self.blocks_config = copy(blocks.default_config)
        self.config_values = _Nowhere()
        self.state_data: dict[int, Any] = {}
        self._state_ttl: dict[int, Any] = {}
        self.is_closed = False
        self.STATE_TTL_WHEN_CLOSED = 3600


class LeanStates(StateHolder):
    """Gradio's sessions; each goes when its page is closed."""

    def __getitem__(self, session_id: str) -> SessionState:
        with self.lock:
            if session_id not in self.session_data:
                self.session_data[session_id] = LeanSession(self.blocks)
        return super().__getitem__(session_id)

    def set_blocks(self, blocks: Blocks) -> None:
        super().set_blocks(blocks)
        self.capacity: int = min(blocks.state_session_capacity, MOST_SESSIONS)

    def drop(self, session_id: str) -> None:
        with self.lock:
            self.session_data.pop(session_id, None)
            self.time_last_used.pop(session_id, None)


class GuardedApp(App):
    """The server of one page; give it to `launch` as `_app`."""

    def __init__(self, door: Door, api: Any = None, **options: Any):
        """`api`: the ASGI application that programs use (ui/api/), beside the page and behind the same guard."""
        super().__init__(default_response_class=ORJSONResponse, **options)
        self.state_holder = LeanStates()
        self.door, self._api = door, api
        self.visitors: App | None = None
        """The server of the visitors' page; set before the first request."""
        door.sessions.on_close.append(self._let_go)

    def build_middleware_stack(self) -> Any:
        page = super().build_middleware_stack()
        return Guard(BesidePage(page, self._api) if self._api else page, self.door, self.visitors)

    def _let_go(self, session: str) -> None:
        """Nobody looks at this page any more."""
        self.state_holder.drop(session)
        if self.blocks is None:
            return
        waiting = self.blocks._queue.pending_event_ids_session
        if not waiting.get(session):
            waiting.pop(session, None)
        self.blocks.pending_streams.pop(session, None)
