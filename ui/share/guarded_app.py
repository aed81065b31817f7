"""Gradio's server with the guard around it, and with little kept for each open page.

Gradio adds its own layers around any middleware it is given, so the guard wraps the finished stack. It also keeps
a copy of every component's settings for each session it ever heard of (some 0.6 MB; 10,000 sessions), for links
that restore a page; we have none, so a session keeps its values only, and goes when its page is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from copy import copy
from typing import Any

from gradio import utils
from gradio.blocks import Blocks
from gradio.routes import App, ORJSONResponse
from gradio.state_holder import SessionState, StateHolder
from starlette.types import Receive, Scope, Send

from ui.access import Role
from ui.api.server import BesidePage
from ui.share.door import MOST_SESSIONS, Door
from ui.share.front_page import FrontPage
from ui.share.guard import MOST_UPLOAD_BYTES, Guard
from ui.share.idle_lines import IdleLines


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


class LeanApp(App):
    """Gradio's server of one page, forgetting what nobody looks at any more."""

    def __init__(self, door: Door):
        super().__init__(default_response_class=ORJSONResponse)
        self.state_holder = LeanStates()
        self._sessions, self._closed = door.sessions, set[str]()
        door.sessions.on_close.append(self._let_go)

    def configure_app(self, blocks: Blocks) -> None:
        super().configure_app(blocks)
        _calm(blocks)

    def build_middleware_stack(self) -> Any:
        return FrontPage(super().build_middleware_stack())

    def _let_go(self, session: str) -> None:
        """Nobody looks at this page any more. What still runs for it is waited for: the next to close clears it up.

        Gradio would keep what it had to tell 2,000 closed pages, and the numbers of their events for ever.
        """
        self.state_holder.drop(session)
        if self.blocks is None:
            return
        queue, streams = self.blocks._queue, self.blocks.pending_streams
        waiting = [event for line in queue.event_queue_per_concurrency_id.values() for event in line.queue]
        running = [event for job in queue.active_jobs for event in job or ()]
        busy = {event.session_hash for event in (*waiting, *running)}
        self._closed = {name for name in (*self._closed, session) if name not in self._sessions}
        over = self._closed - busy
        for name in over:
            self.state_holder.drop(name)
            for kept in (queue.pending_event_ids_session, queue.pending_messages_per_session, streams):
                kept.pop(name, None)
        self._closed -= over


def _calm(blocks: Blocks) -> None:
    """Outside Windows Gradio's queue looks for work a thousand times a second: 5 % of a core for an idle page. And
    it keeps notes about the last 10,000 events, for the monitoring page that is switched off.

    What Windows has is enough elsewhere, too; on the owner's page Send and Stop stand in no queue. Gradio has no
    public setting for it; `Blocks.queue` takes none of these.
    """
    queue = blocks._queue
    queue.sleep_when_free = max(queue.sleep_when_free, 0.05)
    queue.progress_update_sleep_when_free = max(queue.progress_update_sleep_when_free, 0.1)
    queue.ANALYTICS_MAX_EVENTS = 100


class GuardedApp(LeanApp):
    """The whole server, guard included; give it to `launch` as `_app`.

    `api`: the ASGI application that programs use (ui/api/), beside the page and behind the same guard; `visitors`:
    the server of the visitors' page, which ends with this one.
    """

    def __init__(self, door: Door, api: Any = None, visitors: VisitorsServer | None = None):
        super().__init__(door)
        self.door, self.visitors, self._api = door, visitors, api

    def build_middleware_stack(self) -> Any:
        page = super().build_middleware_stack()
        return Guard(BesidePage(page, self._api) if self._api else page, self.door, self.visitors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await super().__call__(scope, receive, send)
            return
        watching = asyncio.create_task(IdleLines(self._lines).watch())
        try:
            await super().__call__(scope, receive, send)
        finally:
            watching.cancel()

    def _lines(self) -> set[Any]:
        """The connections that are open; none before uvicorn is up."""
        server = getattr(self.blocks, "server", None)
        return server.server_state.connections if server is not None else set()


class VisitorsServer:
    """The server of the visitors' page, made when the first visitor comes: most starts never need it."""

    def __init__(self, page: Callable[[], Blocks], door: Door, options: Mapping[str, Any]):
        """`page` builds what visitors get; `options`: how the owner's page is launched."""
        self._page, self._door, self._options = page, door, options
        self._server: App | None = None
        self._making = asyncio.Lock()
        self._over = asyncio.Event()
        self._life: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._server is None:
            async with self._making:
                if self._server is None:
                    await self._start()
        assert self._server is not None
        await self._server(scope, receive, send)

    async def _start(self) -> None:
        """Make the server and keep it at work in a task of its own, whoever asked for it first."""
        server = await asyncio.to_thread(_visitors_server, self._page, self._door, self._options)
        ready = asyncio.get_running_loop().create_future()
        self._life = asyncio.create_task(self._live(server, ready))
        await ready
        self._server = server

    async def _live(self, server: App, ready: asyncio.Future[None]) -> None:
        try:
            async with _started(server):
                ready.set_result(None)
                await self._over.wait()
        except Exception as error:
            if ready.done():
                raise
            ready.set_exception(error)

    @contextlib.asynccontextmanager
    async def lifespan(self, _owners_app: Any) -> AsyncIterator[None]:
        """For as long as the owner's server runs."""
        try:
            yield
        finally:
            self._over.set()
            if self._life is not None:
                await self._life


def _visitors_server(build: Callable[[], Blocks], door: Door, options: Mapping[str, Any]) -> App:
    """A server for the visitors' page, set up as `launch` would with the same options, but not listening."""
    page = build()
    page.dev_mode = False
    page.theme = utils.get_theme(options["theme"])
    page.css, page.js, page.head = None, None, options["head"]
    page.css_paths, page.head_paths = options["css_paths"], None
    page._set_html_css_theme_variables()
    page.auth, page.auth_message = None, None
    page.show_error, page.favicon_path = False, options["favicon_path"]
    page.root_path, page.allowed_paths, page.blocked_paths = "", [], []
    page.run_history, page.footer_links, page.pwa = False, [], False
    page.ssr_mode, page.enable_monitoring, page.share = False, False, False
    page.node_server_name = page.node_process = page.node_port = None
    page.i18n_instance = None
    page.state_session_capacity = MOST_SESSIONS
    page.max_file_size = MOST_UPLOAD_BYTES[Role.VISITOR]
    page.validate_queue_settings()
    page.transpile_to_js(quiet=True)
    page.config = page.get_config_file()
    page.is_running = True
    page.has_launched = True  # else Gradio copies any file of this computer that a request names
    server = App.create_app(page, app=LeanApp(door), app_kwargs={}, mcp_server=False)
    page.server_app = page.app = server
    page._queue.set_server_app(server)
    return server


@contextlib.asynccontextmanager
async def _started(server: App) -> AsyncIterator[None]:
    """The visitors' server at work, for as long as the owner's is."""
    async with server.router.lifespan_context(server):
        blocks = server.get_blocks()
        blocks.run_startup_events()
        await blocks.run_extra_startup_events()
        try:
            yield
        finally:
            blocks._queue.close()
