"""Requests as no browser would send them: any header, any host, any body, on a bare connection."""

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    cookies: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def cookie(self) -> str | None:
        """The login's cookie as it is to be sent back; None when none was set."""
        named = [c.split(";")[0] for c in self.cookies]
        return next((c for c in named if c.startswith("backend-arena-") and "-browser=" not in c), None)


def ask(
    address: str,
    path: str = "/",
    *,
    method: str = "GET",
    body: bytes | str | None = None,
    json_body: Any = None,
    form: dict[str, str] | None = None,
    cookie: str | None = None,
    timeout: float = 30,
    **headers: str,
) -> Answer:
    """One request; header names are written with underscores, `host` replaces the real one."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if json_body is not None:
        body, method = json.dumps(json_body), "POST" if method == "GET" else method
        named.setdefault("content-type", "application/json")
    if form is not None:
        body, method = urlencode(form), "POST"
        named.setdefault("content-type", "application/x-www-form-urlencoded")
    if cookie:
        named["cookie"] = cookie
    try:
        connection.putrequest(method, path, skip_host="host" in named, skip_accept_encoding=True)
        for name, value in named.items():
            connection.putheader(name, value)
        data = body.encode() if isinstance(body, str) else body
        if data is not None and "content-length" not in named and "transfer-encoding" not in named:
            connection.putheader("content-length", str(len(data)))
        connection.endheaders()
        if data:
            connection.send(data)
        answer = connection.getresponse()
        cookies = tuple(answer.headers.get_all("set-cookie") or ())
        streams = "text/event-stream" in (answer.headers.get("content-type") or "")
        return Answer(
            answer.status,
            {name.lower(): value for name, value in answer.headers.items()},
            b"" if streams else answer.read(),
            cookies,
        )
    finally:
        connection.close()
