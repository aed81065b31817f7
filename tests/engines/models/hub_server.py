"""A small Hugging Face Hub for the tests: the same paths, headers and status codes, over real HTTP, on local folders.

It can be told to misbehave: cut the connection, send wrong bytes, refuse, crawl.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

_LFS_FROM_BYTES = 100_000


@dataclass
class Fault:
    """Something that goes wrong for one file (or for `api`), `times` times."""

    status: int | None = None
    cut_after: int | None = None
    """Bytes of a reply after which the connection is dropped."""
    corrupt: bool = False
    bytes_per_s: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1_000_000


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None


class FakeHub:
    """Repositories by id, each a folder on disk; one commit, `main`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Path] = {}
        self.faults: dict[str, Fault] = {}
        self.requests: list[Request] = []
        self._lock = threading.Lock()

    def add(self, repository: str, folder: Path) -> None:
        self.repositories[repository] = folder

    def commit(self, repository: str) -> str:
        text = "".join(f"{path.name}{path.stat().st_size}" for path in self.files(repository))
        return hashlib.sha1(f"{repository}{text}".encode()).hexdigest()

    def files(self, repository: str) -> list[Path]:
        return sorted(path for path in self.repositories[repository].rglob("*") if path.is_file())

    def gets(self, name: str) -> list[Request]:
        """Requests for the contents of a file."""
        return [
            r for r in self.requests if r.method == "GET" and "/resolve/" in r.path and r.path.endswith(name)
        ]

    def note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def fault(self, name: str) -> Fault | None:
        with self._lock:
            fault = self.faults.get(name)
            if fault is None or fault.times <= 0:
                return None
            fault.times -= 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        headers = self.headers
        self.hub.note(Request(self.command, path, headers.get("Range"), headers.get("Authorization")))
        if path.startswith("/api/models/"):
            self._model_info(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            repository, _, rest = path.strip("/").partition("/resolve/")
            self._resolve(repository, rest.partition("/")[2])
        else:
            self._fail(404)

    def _model_info(self, rest: str) -> None:
        fault = self.hub.fault("api")
        if fault and fault.status:
            return self._fail(fault.status, fault.headers)
        repository = rest.partition("/revision/")[0]
        if repository not in self.hub.repositories:
            return self._fail(
                401 if repository.startswith("private/") else 404, {"X-Error-Code": "RepoNotFound"}
            )
        siblings = [_sibling(self.hub.repositories[repository], path) for path in self.hub.files(repository)]
        info = {
            "_id": "1",
            "id": repository,
            "modelId": repository,
            "tags": [],
            "downloads": 0,
            "private": False,
        }
        body = json.dumps({**info, "sha": self.hub.commit(repository), "siblings": siblings}).encode()
        self._send(200, {"Content-Type": "application/json"}, body)

    def _resolve(self, repository: str, name: str) -> None:
        folder = self.hub.repositories.get(repository)
        path = folder / name if folder else None
        if path is None or not path.is_file():
            return self._fail(404, {"X-Error-Code": "EntryNotFound"})
        fault = (self.command == "GET" and self.hub.fault(path.name)) or Fault()
        if fault.status:
            return self._fail(fault.status, fault.headers)
        content = path.read_bytes()
        if fault.corrupt:
            content = content[:-8] + b"\0wrong!\0"
        headers = {"ETag": f'"{_etag(path)[0]}"', "X-Repo-Commit": self.hub.commit(repository)}
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, headers, content[start:], fault)

    def _fail(self, status: int, headers: dict[str, str] | None = None) -> None:
        self._send(status, headers or {}, b'{"error": "no"}')

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None) -> None:
        fault = fault or Fault()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            self._write(body if fault.cut_after is None else body[: fault.cut_after], fault.bytes_per_s)
        except OSError:
            self.close_connection = True
        if fault.cut_after is not None:
            self.close_connection = True
            self.connection.close()

    def _write(self, body: bytes, bytes_per_s: int | None) -> None:
        if not bytes_per_s:
            self.wfile.write(body)
            return
        step = max(1, bytes_per_s // 20)
        for begin in range(0, len(body), step):
            self.wfile.write(body[begin : begin + step])
            self.wfile.flush()
            time.sleep(0.05)


def _sibling(root: Path, path: Path) -> dict:
    etag, is_lfs = _etag(path)
    size = path.stat().st_size
    sibling = {"rfilename": path.relative_to(root).as_posix(), "size": size, "blobId": etag}
    return sibling | ({"lfs": {"sha256": etag, "size": size, "pointerSize": 134}} if is_lfs else {})


def _etag(path: Path) -> tuple[str, bool]:
    content = path.read_bytes()
    if len(content) >= _LFS_FROM_BYTES:
        return hashlib.sha256(content).hexdigest(), True
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest(), False


@contextmanager
def serving(hub: FakeHub) -> Iterator[str]:
    """Serve the hub on a free local port; yields its address for HF_ENDPOINT."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
