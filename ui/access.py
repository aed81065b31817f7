"""Who may do what: one table for everything a browser can call, one decorator that asks it.

`HANDLERS` names every function of the page that a browser can call, `ROUTES` every path of the server. What is
not in the tables is refused, so nothing is open by accident; tests/test_access.py walks all that Gradio serves and
fails when something is missing here. Roles come from the login (ui/share/logins.py) and never from an address or a
header: a tunnel makes everyone local. While the app can be reached from this computer alone and has no password,
whoever opens it is its owner.

To add a handler: add its qualified name under its module. To add a route: add its path. To ask in code who is
asking: `who(request)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import wraps
from typing import Any

from starlette.routing import compile_path

SCOPE_KEY = "backend_arena.login"
"""Where the guard (ui/share/guard.py) leaves the login of a request, in the ASGI scope."""


class Role(Enum):
    OWNER = "owner"
    VISITOR = "visitor"


@dataclass(frozen=True)
class Login:
    """Somebody who has logged in; `id` names this one login, and is no secret that would let another in."""

    id: str
    name: str
    role: Role
    since: float = 0.0
    """Seconds since the epoch."""

    @property
    def is_owner(self) -> bool:
        return self.role is Role.OWNER

    @property
    def owns(self) -> str | None:
        """What conversations of this login are marked with in the history; None: the owner's, as ever."""
        return None if self.is_owner else f"visitor:{self.id}"


class NotAllowedError(Exception):
    """Somebody asked for what is not theirs to ask; the message is for them."""


# --- the table of handlers ---------------------------------------------------------------------------------

OWNER = frozenset({Role.OWNER})
VISITOR = frozenset({Role.VISITOR})

HANDLERS: Mapping[str, Mapping[frozenset[Role], str]] = {
    "ui.compare.tab": {
        OWNER: "Compare._send Compare._send_to Compare._stop_all Compare._attach Compare._edit Compare._set_blind "
        "Compare._toggle_sets Compare._save_set Compare._delete_set Compare._use_set Compare._vote Compare._settle "
        "Compare._offer_after_turn Compare._difference Compare._first_run Compare._dismiss Compare._load "
        "Compare._probe Compare._come_back Compare._unload Compare.open_conversation "
        "Compare._chooser.<locals>.choose Compare._doing.<locals>.do Compare.use_lane "
        "Compare._relaying.<locals>.do Compare._log_shower.<locals>.show Compare._wire_prompt.<locals>.<lambda> "
        "_rpc.<locals>.changes",
    },
    "ui.history.tab": {
        OWNER: "_Tab._first_page _Tab._turn_page.<locals>.<lambda> _Tab._refresh _Tab._rename _Tab._pin _Tab._delete "
        "_Tab._undo _Tab._saved.<locals>.save _Tab._export _Tab._import _Tab._keep_text _Tab._retention "
        "_Tab._ask.<locals>.<lambda> _Tab._sure _Tab._wire_list.<locals>.<lambda> "
        "_Tab._wire_opening.<locals>.<lambda> _Tab._wire_go_on.<locals>.<lambda> "
        "_Tab._wire_everything.<locals>.<lambda> "
        "_with_event.<locals>.handler",
    },
    "ui.history.trends_tab": {OWNER: "_Tab._refresh _Tab._charts"},
    "ui.models.tab": {
        OWNER: "ModelsTab._plan_all ModelsTab._get_all ModelsTab._get_some ModelsTab._pick ModelsTab._tick "
        "ModelsTab._lists ModelsTab._ask_trust ModelsTab._confirm_trust ModelsTab._withdraw_trust "
        "ModelsTab._ask_remove ModelsTab._remove ModelsTab._keep ModelsTab._import",
    },
    "ui.compare.model_menu": {
        OWNER: "ModelMenu._toggle ModelMenu._pick ModelMenu._timer_of ModelMenu._get "
        "ModelMenu._tick ModelMenu._no ModelMenu._models_changed",
    },
    "ui.models.background": {OWNER: "ModelWork.stop"},
    "engines.models.library": {OWNER: "ModelLibrary.latest_log"},
    "ui.measure.tab": {
        OWNER: "_Tab._open _Tab._lanes_of _Tab._said _Tab._all _Tab._none _Tab._take_suite _Tab._start _Tab._compare "
        "_Tab._comparable _Tab._save _Tab._import _with_event.<locals>.handler _rpc.<locals>.changes",
    },
    "ui.system.tab": {
        OWNER: "_Tab._show _Tab._show_anew _Tab._ask_again _Tab._start.<locals>.handler "
        "_Tab._cancel.<locals>.handler",
    },
    "ui.system.servers": {OWNER: "Servers._tick Servers._add Servers._remove Servers._find Servers._take"},
    "ui.system.programs": {
        OWNER: "Programs._first Programs._add Programs._revoke Programs._require Programs._give Programs._take "
        "Programs._lanes_now",
    },
    "ui.share.visitor_page": {
        VISITOR: "VisitorPage._load VisitorPage._come_back VisitorPage._send VisitorPage._open VisitorPage._new "
        "VisitorPage._edit VisitorPage._add VisitorPage._stop_all VisitorPage._unload "
        "VisitorPage._chooser.<locals>.choose VisitorPage._stopper.<locals>.stop "
        "VisitorPage._repeater.<locals>.again VisitorPage._remover.<locals>.remove _changes_of.<locals>.changes",
    },
    "ui.share.owner_panel": {
        OWNER: "OwnerPanel._toggle OwnerPanel._start OwnerPanel._end OwnerPanel._look OwnerPanel._open_mine "
        "OwnerPanel._limit OwnerPanel._keep OwnerPanel._name",
    },
    "ui.page": {OWNER: "build.<locals>.<lambda>"},
}
"""Module -> who -> the qualified names (`__qualname__`) of its handlers and of what its browser side may call."""

_ROLES_OF = {
    f"{module}:{name}": roles
    for module, rows in HANDLERS.items()
    for roles, names in rows.items()
    for name in names.split()
}


def handler_name(function: Callable[..., Any]) -> str:
    """What the table calls a handler: `module:qualified name`."""
    return f"{function.__module__}:{function.__qualname__}"


def allowed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The decorator: the handler runs for those whom the table names for it, and for nobody else.

    It asks at the moment of the call, so a login that has ended meanwhile is refused although it was queued.
    """
    roles = _ROLES_OF.get(handler_name(function), frozenset())

    @wraps(function)
    def asked(*values: Any, **named: Any) -> Any:
        login = _current()
        if login is None or login.role not in roles:
            raise _refusal(login)
        return function(*values, **named)

    asked.__dict__["authorised"] = True
    return asked


def is_authorised(function: Callable[..., Any]) -> bool:
    return bool(getattr(function, "authorised", False))


def authorise(page: Any) -> None:
    """Decorate every handler of a finished Blocks, and every function that its components offer to a browser."""
    for dependency in page.fns.values():
        if dependency.fn is not None and not is_authorised(dependency.fn):
            dependency.fn = allowed(dependency.fn)
    for component in page.blocks.values():
        for name, function in server_functions(component):
            setattr(component, name, allowed(function))


def server_functions(component: Any) -> list[tuple[str, Callable[..., Any]]]:
    """(name, function) of what a component lets a browser call (Gradio's `component_server` route)."""
    names = {*vars(component), *vars(type(component))}
    found = []
    for name in sorted(names):
        function = getattr(component, name, None)
        if getattr(function, "_is_server_fn", False) and callable(function):
            found.append((name, function))
    return found


# --- who is asking -----------------------------------------------------------------------------------------


def who(request: Any) -> Login | None:
    """The login behind a request (Gradio's, Starlette's, or an ASGI scope); None when there is none.

    `who(request).is_owner` is the question most code has. A login that has ended is None.
    """
    if request is None:
        return None
    scope = request if isinstance(request, Mapping) else getattr(_inner(request), "scope", {})
    seat = scope.get(SCOPE_KEY)
    return seat() if callable(seat) else None


def _inner(request: Any) -> Any:
    """The web server's own request: Gradio wraps it."""
    import gradio as gr

    return request.request if isinstance(request, gr.Request) else request


def _current() -> Login | None:
    """Who called the handler that runs in this thread."""
    from gradio.context import LocalContext

    return who(LocalContext.request.get(None))


def _refusal(login: Login | None) -> Exception:
    """The sentence for the person, in the form that Gradio shows."""
    import gradio as gr

    text = (
        "Log in again: this login has ended." if login is None else "Only the owner of this PC can do that."
    )
    return gr.Error(text, print_exception=False)


# --- the table of routes -----------------------------------------------------------------------------------


class Way(Enum):
    """Who may use a route."""

    EVERYONE = "everyone"
    LOGGED_IN = "logged in"
    OWNER = "owner"
    ITSELF = "itself"
    """The route asks for itself, by `who` and by its own keys: the API."""
    GUARD = "guard"
    """Answered by the guard; Gradio's own route of that name is never reached."""
    NOBODY = "nobody"
    """Gradio serves it, this page needs it not."""


@dataclass(frozen=True)
class Route:
    path: str
    """As Starlette spells it, with `{parameters}`."""
    methods: frozenset[str]
    way: Way


def _routes(way: Way, methods: str, *paths: str) -> tuple[Route, ...]:
    return tuple(Route(path, frozenset(methods.split()), way) for path in paths)


_API = "/gradio_api"
_EVERY = "GET HEAD POST PUT PATCH DELETE OPTIONS"

ROUTES: tuple[Route, ...] = (
    *_routes(Way.GUARD, "GET HEAD POST", "/login", "/login/", "/logout"),
    *_routes(Way.EVERYONE, "GET HEAD", "/favicon.ico", "/robots.txt"),
    *_routes(Way.EVERYONE, "GET HEAD", "/health"),
    *_routes(Way.ITSELF, _EVERY, "/v1/{path:path}", "/api/version", "/api/tags", "/api/ps", "/api/show"),
    *_routes(Way.ITSELF, _EVERY, "/api/chat", "/api/generate"),
    # The page itself. What is under assets and static is the same in every installation of Gradio.
    *_routes(Way.LOGGED_IN, "GET HEAD", "/"),
    *_routes(Way.LOGGED_IN, "GET HEAD", "/theme.css", f"{_API}/theme.css", "/manifest.json"),
    *_routes(Way.LOGGED_IN, "GET HEAD", "/assets/{path:path}", "/static/{path:path}", "/svelte/{path:path}"),
    *_routes(Way.LOGGED_IN, "GET HEAD", "/config", "/config/", f"{_API}/app_id", f"{_API}/app_id/"),
    *_routes(Way.LOGGED_IN, "GET HEAD", "/pwa_icon", "/pwa_icon/{size}"),
    # What the page calls. A session's name belongs to the login that used it first (the guard sees to it).
    *_routes(Way.LOGGED_IN, "POST", f"{_API}/queue/join"),
    *_routes(Way.LOGGED_IN, "GET", f"{_API}/queue/data", f"{_API}/heartbeat/{{session_hash}}"),
    *_routes(Way.LOGGED_IN, "POST", f"{_API}/component_server", f"{_API}/component_server/"),
    *_routes(Way.LOGGED_IN, "POST", f"{_API}/run/{{api_name}}", f"{_API}/run/{{api_name}}/"),
    *_routes(Way.LOGGED_IN, "POST", f"{_API}/cancel", f"{_API}/reset", f"{_API}/reset/"),
    *_routes(Way.LOGGED_IN, "POST", f"{_API}/upload"),
    *_routes(Way.LOGGED_IN, "GET", f"{_API}/upload_progress"),
    # Files that were made for this login's page; the guard lets nobody else have them.
    *_routes(Way.OWNER, "GET HEAD", f"{_API}/file={{path_or_url:path}}"),
    # Gradio's own extras.
    *_routes(Way.NOBODY, _EVERY, f"{_API}/startup-events", f"{_API}/openapi.json", "/openapi.json"),
    *_routes(Way.NOBODY, _EVERY, f"{_API}/info", f"{_API}/info/", f"{_API}/user", f"{_API}/user/"),
    *_routes(Way.NOBODY, _EVERY, f"{_API}/login_check", f"{_API}/login_check/"),
    *_routes(Way.NOBODY, _EVERY, f"{_API}/token", f"{_API}/token/", f"{_API}/dev/reload"),
    *_routes(Way.NOBODY, _EVERY, f"{_API}/deep_link", f"{_API}/runs", f"{_API}/runs/"),
    *_routes(Way.NOBODY, _EVERY, f"{_API}/run-history/{{path:path}}", f"{_API}/proxy={{url_path:path}}"),
    *_routes(Way.NOBODY, _EVERY, f"{_API}/api/{{api_name}}", f"{_API}/api/{{api_name}}/"),
    *_routes(Way.NOBODY, _EVERY, f"{_API}/call/{{path:path}}", f"{_API}/stream/{{path:path}}"),
    *_routes(Way.NOBODY, _EVERY, f"{_API}/file/{{path:path}}", f"{_API}/custom_component/{{path:path}}"),
    *_routes(Way.NOBODY, _EVERY, f"{_API}/queue/status", f"{_API}/process_recording"),
    *_routes(Way.NOBODY, _EVERY, f"{_API}/vibe-edit", f"{_API}/vibe-edit/", f"{_API}/undo-vibe-edit"),
    *_routes(Way.NOBODY, _EVERY, f"{_API}/undo-vibe-edit/", f"{_API}/vibe-code", f"{_API}/vibe-code/"),
    *_routes(Way.NOBODY, _EVERY, f"{_API}/vibe-starter-queries", f"{_API}/vibe-starter-queries/"),
    *_routes(
        Way.NOBODY, _EVERY, f"{_API}/mcp", f"{_API}/mcp/{{path:path}}", f"{_API}/profiling/{{path:path}}"
    ),
    *_routes(Way.NOBODY, _EVERY, "/monitoring", "/monitoring/summary", "/monitoring/{key}"),
)
"""Every path that the server answers, first match first. A path that is not here does not exist."""

_MATCHERS = tuple((compile_path(route.path)[0], route) for route in ROUTES)


def route_of(method: str, path: str) -> Route | None:
    """The row of the table for a request; None: there is no such path, or not by that method."""
    for pattern, route in _MATCHERS:
        if method in route.methods and pattern.match(path):
            return route
    return None
