"""The guard: the outermost layer of the server, before any routing of Gradio's, for pages, streams and the API alike.

In this order: does the request name one of our own addresses; does it come from our own page; is there such a
route; who is asking, and may they; does the session it names belong to them; is it too large or too slow. Then it
goes on, to the owner's page or to the visitors'. Every answer, a refusal too, carries the headers that keep the
page from loading anything from elsewhere and from being framed.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from ui.access import SCOPE_KEY, Login, Role, Way, route_of
from ui.api import ollama
from ui.api.errors import ApiError
from ui.share.bodies import (
    Message,
    NoJsonError,
    Receive,
    TooLargeError,
    TooSlowError,
    again,
    as_text,
    bounded_receive,
    sessions_named_in,
    whole,
)
from ui.share.door import Door
from ui.share.hosts import is_loopback, split_host
from ui.share.login_page import login_page
from ui.share.logins import HERE, LOGIN_LASTS_S

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio builds its templates with new Function
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "frame-src 'none'",
        "frame-ancestors 'none'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)
HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),  # under no-referrer a form of our own would come from “null”
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)
_ABSOLUTE = re.compile(r"https?://(?P<host>[^/?#]*)(?P<path>/.*)?", re.IGNORECASE | re.DOTALL)
_BESIDE_THE_API = re.compile(
    r"/{1,9}(v1|(v1/)?(chat/completions|completions|responses|embeddings|models(/.*)?))/?"
)
"""Where programs ask whose base URL lacks `/v1`, or has a slash too many."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
MOST_BODY_BYTES = 40 * 2**20
"""Of the owner's requests: the longest prompt, a few times over. A visitor's is a tenth of it."""
MOST_UPLOAD_BYTES = {Role.OWNER: 200 * 2**20, Role.VISITOR: 4 * 2**20}
MOST_OPEN_REQUESTS_OF_A_VISITOR = 32
LONGEST_SESSION_NAME = 64
_HEARTBEAT = "/gradio_api/heartbeat/"
_STARTUP = "/gradio_api/startup-events"
_UPLOAD = "/gradio_api/upload"


class Request:
    """What the guard reads of a request."""

    def __init__(self, scope: Scope):
        self.scope = scope
        self.method: str = scope.get("method", "GET")
        self.path: str = scope["path"]
        self.headers: list[tuple[bytes, bytes]] = list(scope.get("headers", ()))
        server = scope.get("server") or ("", None)
        self.port: int = server[1] or 0

    def header(self, name: str) -> str | None:
        """The header, if it was sent once; None when not at all. One sent twice counts as nonsense: ''."""
        found = [value for key, value in self.headers if key.lower() == name.encode()]
        if len(found) > 1:
            return ""
        return found[0].decode("latin-1") if found else None

    @property
    def cookie_name(self) -> str:
        return f"backend-arena-{self.port}"

    def cookie(self, name: str) -> str | None:
        try:
            morsel = SimpleCookie(self.header("cookie") or "").get(name)
        except CookieError:
            return None
        return morsel.value if morsel else None

    def query(self, name: str) -> str | None:
        values = parse_qs(self.scope.get("query_string", b"").decode("latin-1")).get(name, [])
        return values[0] if len(values) == 1 else None

    @property
    def peer(self) -> str:
        client = self.scope.get("client")
        return client[0] if client else ""


class Guard:
    """ASGI middleware around the whole server."""

    def __init__(self, app: App, door: Door, visitors: App | None = None):
        """`visitors`: the server of the visitors' page; without it visitors get nothing."""
        self._app, self._door, self._visitors = app, door, visitors
        self._started = False
        self._open_requests: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        _name_by_target(scope)
        request = Request(scope)
        send = _with_headers(send, request)
        refusal = self._stranger(request) or self._foreign_page(request)
        if refusal is not None:
            await _refuse(scope, send, *refusal)
        elif scope["type"] != "http":
            await _refuse(scope, send, 404, "There is nothing here.")
        else:
            self._trust_no_proxy(request)
            await self._answer(request, receive, send)

    # --- which address, which page ---------------------------------------------------------------------

    def _stranger(self, request: Request) -> tuple[int, str] | None:
        """Whether the request names an address that is not ours."""
        host = request.header("host") or ""
        if self._door.hosts.knows(host, request.port):
            return None
        shown = re.sub(r"[^A-Za-z0-9.:\[\]_-]", "", host)[:80] or "none"
        return 421, (
            f"This address ({shown}) is not one of Backend Arena's own. If it should be, "
            f"start the app with --allow-host {shown}."
        )

    def _foreign_page(self, request: Request) -> tuple[int, str] | None:
        """Whether another site's page is behind the request, by what browsers say about it."""
        refused = 403, "This request came from another site's page, which may not use Backend Arena."
        origin = request.header("origin")
        if origin is not None and not self._door.hosts.is_own_origin(origin, request.header("host") or ""):
            return refused
        site = request.header("sec-fetch-site")
        if site in (None, "same-origin", "none"):
            return self._odd_content(request)
        # A link on another page may be followed; everything else that starts there may not.
        follows_a_link = (
            request.method in ("GET", "HEAD")
            and request.header("sec-fetch-mode") == "navigate"
            and request.header("sec-fetch-dest") == "document"
            and request.path in ("/", "/login")
        )
        return None if follows_a_link else refused

    def _odd_content(self, request: Request) -> tuple[int, str] | None:
        """What a browser sends for another site without asking first: forms and plain text."""
        if request.method in SAFE_METHODS or request.scope["type"] != "http":
            return None
        kind = (request.header("content-type") or "").partition(";")[0].strip().lower()
        if kind == "application/json" or request.path.startswith("/v1/"):
            return None
        if request.path in ollama.PATHS and request.header("origin") is None:
            _call_it_json(request)
            return None
        if kind == "multipart/form-data" and request.path == _UPLOAD:
            return None
        if kind == "application/x-www-form-urlencoded" and request.path.startswith(("/login", "/logout")):
            return None
        return 415, "Only JSON is taken here."

    def _trust_no_proxy(self, request: Request) -> None:
        """Drop what would make Gradio write links to an address that is not ours."""
        kept = []
        for name, value in request.headers:
            lower = name.lower()
            if lower == b"x-forwarded-host" and not self._door.hosts.knows(
                value.decode("latin-1"), request.port
            ):
                continue
            if lower == b"x-forwarded-proto" and value.lower() not in (b"http", b"https"):
                continue
            if lower in (b"forwarded", b"x-forwarded-prefix", b"x-direct-url", b"x-gradio-server"):
                continue
            kept.append((name, value))
        request.headers = kept
        request.scope["headers"] = kept
        request.scope["root_path"] = ""

    # --- who, and whether they may ---------------------------------------------------------------------

    async def _answer(self, request: Request, receive: Receive, send: Send) -> None:
        route = route_of(request.method, request.path)
        if request.path == _STARTUP and not self._started:
            self._started = True  # the launch itself asks, once
            await self._app(request.scope, receive, send)
            return
        if route is None or route.way is Way.NOBODY:
            await self._nothing(request, send)
            return
        if route.way is Way.GUARD:
            await self._login_or_logout(request, receive, send)
            return
        token = request.cookie(request.cookie_name)
        login = self._door.comes(token)
        if login is None and route.way is Way.LOGGED_IN and request.path == "/" and self._is_welcome():
            token, login = self._door.logins.open("visitor", Role.VISITOR)
            send = _with_cookie(send, self._cookie(request, token))
        elif request.path == "/" and not self._door.locked and self._door.logins.find(token) is None:
            token, login = self._door.logins.open("owner", Role.OWNER, kept_open=True)
            send = _with_cookie(send, self._cookie(request, token))
        request.scope[SCOPE_KEY] = lambda: self._door.comes(token)
        if route.way in (Way.EVERYONE, Way.ITSELF):
            await self._forward(self._app, request, receive, send, login)
        elif login is None:
            await self._turn_away(request, send)
        elif route.way is Way.OWNER and not login.is_owner:
            await _refuse(request.scope, send, 403, "Only the owner of this PC can do that.")
        else:
            await self._serve(request, receive, send, login)

    async def _nothing(self, request: Request, send: Send) -> None:
        if not _BESIDE_THE_API.fullmatch(request.path):
            await _refuse(request.scope, send, 404, "There is nothing here.")
            return
        told = f"There is no {request.path} here. OpenAI's API is under /v1: end the base URL with it, as in http://HOST/v1."
        body = json.dumps(ApiError(404, told).document()).encode()
        await _reply(send, 404, body, [(b"content-type", b"application/json")])

    def _is_welcome(self) -> bool:
        door = self._door
        return door.locked and door.anonymous_visitors and door.visitors_welcome

    async def _turn_away(self, request: Request, send: Send) -> None:
        if request.path == "/" and request.method in ("GET", "HEAD"):
            await _reply(send, 303, b"", [(b"location", b"/login")])
        else:
            await _refuse(request.scope, send, 401, "Log in first.")

    async def _serve(self, request: Request, receive: Receive, send: Send, login: Login) -> None:
        app = self._app if login.is_owner else self._visitors
        if app is None:
            await _refuse(request.scope, send, 403, "Visitors are not welcome just now.")
            return
        open_now = self._open_requests.get(login.id, 0)
        if not login.is_owner and open_now >= MOST_OPEN_REQUESTS_OF_A_VISITOR:
            await _refuse(
                request.scope, send, 429, "Too many requests at once. Close other pages of this app."
            )
            return
        self._open_requests[login.id] = open_now + 1
        try:
            await self._forward(app, request, receive, send, login)
        finally:
            self._open_requests[login.id] -= 1
            if not self._open_requests[login.id]:
                del self._open_requests[login.id]
            if request.path.startswith(_HEARTBEAT):
                self._door.sessions.close(request.path.removeprefix(_HEARTBEAT), login)

    # --- the body --------------------------------------------------------------------------------------

    async def _forward(
        self, app: App, request: Request, receive: Receive, send: Send, login: Login | None
    ) -> None:
        most = MOST_BODY_BYTES if login is None or login.is_owner else MOST_BODY_BYTES // 10
        if request.path == _UPLOAD:
            most = MOST_UPLOAD_BYTES[login.role if login else Role.VISITOR]
        announced = request.header("content-length")
        started = asyncio.Event()

        async def note_start(message: Message) -> None:
            started.set()
            await send(message)

        try:
            if announced is not None and (not announced.isdigit() or int(announced) > most):
                raise TooLargeError
            bounded = bounded_receive(receive, most, from_a_stranger=login is None)
            if _brings_json(request):
                bounded = again(as_text(await whole(bounded)), bounded)
            if login is not None:
                names, bounded = await _session_names(request, bounded)
                if any(not self._owns(name, login) for name in names):
                    await _refuse(request.scope, send, 403, "That page belongs to somebody else.")
                    return
            await app(request.scope, bounded, note_start)
        except TooLargeError:
            if not started.is_set():
                await _refuse(
                    request.scope, send, 413, f"That is too large: at most {most // 2**20} MB are taken here."
                )
        except NoJsonError:
            await _refuse(request.scope, send, 400, "JSON comes in UTF-8 here.")
        except TooSlowError:
            if not started.is_set():
                await _refuse(request.scope, send, 408, "The request did not come to its end in time.")

    def _owns(self, name: str, login: Login) -> bool:
        return 0 < len(name) <= LONGEST_SESSION_NAME and self._door.sessions.use(name, login)

    # --- login and logout ------------------------------------------------------------------------------

    async def _login_or_logout(self, request: Request, receive: Receive, send: Send) -> None:
        token = request.cookie(request.cookie_name)
        if request.path == "/logout":
            if request.method != "POST":
                await _refuse(request.scope, send, 405, "Logging out takes a POST.")
                return
            self._door.logins.close(token)
            gone = self._cookie(request, "", lasts_s=0)
            await _reply(send, 303, b"", [(b"location", b"/login"), (b"set-cookie", gone)])
        elif request.method != "POST":
            if self._door.comes(token) is not None:
                await _reply(send, 303, b"", [(b"location", b"/")])
            else:
                ended = self._says("Your login has ended.") if token else None
                await self._login_page(request, send, 200, ended, request.query("name") or "")
        else:
            await self._log_in(request, receive, send)

    async def _log_in(self, request: Request, receive: Receive, send: Send) -> None:
        try:
            body = await whole(bounded_receive(receive, 8192, from_a_stranger=True))
        except (TooLargeError, TooSlowError):
            await _refuse(request.scope, send, 413, "That is no login.")
            return
        fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
        name, password = (fields.get(field, [""])[0] for field in ("name", "password"))
        browser = request.cookie(f"{request.cookie_name}-browser")
        attempt = await asyncio.to_thread(
            self._door.logins.attempt, name.strip(), password, self._place(request), browser
        )
        if attempt.wait_s > 0:
            seconds = max(1, round(attempt.wait_s + 0.5))
            text = f"Too many wrong passwords. Try again in {seconds} s."
            await self._login_page(request, send, 429, text, name, [(b"retry-after", str(seconds).encode())])
        elif attempt.token is None or self._door.comes(attempt.token) is None:
            text = self._says("That name and password do not belong together.")
            await self._login_page(request, send, 401, text, name)
        else:
            mark = self._door.logins.remember_browser(attempt.token)
            cookies = [
                self._cookie(request, attempt.token),
                self._cookie(request, mark, "-browser", 180 * 86400.0, "/login"),
            ]
            await _reply(
                send, 303, b"", [(b"location", b"/"), *((b"set-cookie", cookie) for cookie in cookies)]
            )

    def _says(self, text: str) -> str:
        """With what a visitor cannot know: that no password of theirs would do."""
        return text if self._door.visitors_welcome else f"{text} No visitors are let in just now."

    def _place(self, request: Request) -> str:
        """The way a login comes by, for counting wrong passwords only: this computer itself, or somewhere else."""
        host = split_host(request.header("host") or "")
        direct = request.header("x-forwarded-for") is None and is_loopback(request.peer)
        return HERE if direct and host is not None and is_loopback(host[0]) else request.peer or "unknown"

    async def _login_page(
        self,
        request: Request,
        send: Send,
        status: int,
        problem: str | None,
        name: str = "",
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        page = login_page(problem, name[:100]).encode("utf-8", "replace")
        await _reply(
            send,
            status,
            b"" if request.method == "HEAD" else page,
            [(b"content-type", b"text/html; charset=utf-8"), *(headers or [])],
        )

    def _cookie(
        self,
        request: Request,
        value: str,
        suffix: str = "",
        lasts_s: float = LOGIN_LASTS_S,
        path: str = "/",
    ) -> bytes:
        host = split_host(request.header("host") or "")
        encrypted = request.header("x-forwarded-proto") == "https" or request.scope.get("scheme") == "https"
        secure = "; Secure" if encrypted or (host and host[0] in self._door.secure_hosts) else ""
        text = (
            f"{request.cookie_name}{suffix}={value}; Path={path}; Max-Age={int(lasts_s)}; "
            f"HttpOnly; SameSite=Strict{secure}"
        )
        return text.encode("ascii")


def _name_by_target(scope: Scope) -> None:
    """A target that names a server (`GET http://host/path`, as to a proxy) says more than `Host`: RFC 9112, 3.2.2."""
    found = _ABSOLUTE.fullmatch(scope.get("path", ""))
    if found is None:
        return
    path = found["path"] or "/"
    others = [(name, value) for name, value in scope["headers"] if name.lower() != b"host"]
    scope.update(path=path, raw_path=path.encode(), headers=[(b"host", found["host"].encode()), *others])


def _call_it_json(request: Request) -> None:
    """Ollama's own examples (`curl -d`) send JSON under another name; a browser would have said whose page it is."""
    others = [(name, value) for name, value in request.headers if name.lower() != b"content-type"]
    request.headers = [*others, (b"content-type", b"application/json")]
    request.scope["headers"] = request.headers


# --- answers -----------------------------------------------------------------------------------------------


def _with_headers(send: Send, request: Request) -> Send:
    """Every answer says what the page may load and who may show it; Gradio's word to other sites is dropped."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [
                (name, value)
                for name, value in message.get("headers", [])
                if not name.lower().startswith(b"access-control-")
            ]
            names = {name.lower() for name, _ in kept}
            if b"cache-control" not in names and not request.path.startswith(("/assets/", "/static/")):
                kept.append((b"cache-control", b"no-store"))
            message["headers"] = [*kept, *HEADERS]
        await send(message)

    return send_with_headers


def _with_cookie(send: Send, cookie: bytes) -> Send:
    async def send_with_cookie(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"set-cookie", cookie)]
        await send(message)

    return send_with_cookie


async def _refuse(scope: Scope, send: Send, status: int, text: str) -> None:
    """One sentence, in the form that both people and Gradio's browser side read; on the API's paths, in OpenAI's."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": text[:120]})
        return
    told: dict[str, Any] = {"detail": text}
    if scope["path"].startswith(("/v1/", "/api/")):
        told = ApiError(status, text).document(scope["path"])
    await _reply(send, status, json.dumps(told).encode(), [(b"content-type", b"application/json")])


async def _reply(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


# --- sessions ----------------------------------------------------------------------------------------------

_JSON_KIND = re.compile(r"\s*application/([\w.-]+\+)?json\s*(;|$)", re.IGNORECASE)


async def _session_names(request: Request, receive: Receive) -> tuple[list[str], Receive]:
    """The sessions of Gradio's that a request names, and its body to be read again."""
    if request.path.startswith(_HEARTBEAT):
        return [request.path.removeprefix(_HEARTBEAT)], receive
    if request.path == "/gradio_api/queue/data":
        return [request.query("session_hash") or ""], receive
    if not _brings_json(request) or not request.path.startswith("/gradio_api/"):
        return [], receive
    body = await whole(receive)
    return sessions_named_in(body), again(body, receive)


def _brings_json(request: Request) -> bool:
    return request.method not in SAFE_METHODS and bool(_JSON_KIND.match(request.header("content-type") or ""))
