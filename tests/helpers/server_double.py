"""A server that speaks OpenAI's API well or badly: the model's name says how.

A real HTTP server in a thread of the test; what it was sent is kept in `requests`, and `gone` is set when a client
goes away in mid-stream.
"""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ("Hello", " from", " far", " away", ".")
USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 9,
    "total_tokens": 20,
    "prompt_tokens_details": {"cached_tokens": 4},
}
MODELS = (
    *(
        "good",
        "silent",
        "llama",
        "ollama",
        "arena",
        "whole",
        "old",
        "strict",
        "thinks",
        "thinks-aloud",
        "thinks-in-brackets",
        "ends-a-thought",
        "hides-its-thoughts",
        "role-first",
        "at-once",
        "tgi",
        "fastapi",
        "no-reason",
        "in-parts",
        "zeros",
    ),
    *(
        "no-key",
        "no-model",
        "too-many",
        "broken",
        "stops",
        "cut",
        "error-inside",
        "error-unnamed",
        "error-whole",
        "garbage",
        "gateway",
        "plain-words",
        "filtered",
        "too-long",
        "html",
        "hangs",
        "away",
        "slow",
    ),
)


class ServerDouble(ThreadingHTTPServer):
    """`with ServerDouble() as double: double.url`. `key`: the one it wants."""

    daemon_threads = True

    def __init__(self, key: str | None = None, root: str = "/v1", tls: Any = None, **habits: bool):
        """`html`: a web page; `listless`: its list of models fails; `empty`: it has none, as Ollama says it;
        `slow_list`: it looks for them first."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.key, self.root = key, root
        self.html, self.listless = habits.get("html", False), habits.get("listless", False)
        self.list_takes_s = 1.0 if habits.get("slow_list") else 0.0
        self.empty = habits.get("empty", False)
        self.requests: list[dict[str, Any]] = []
        self.gone = threading.Event()
        self.scheme = "https" if tls else "http"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return self.address + self.root

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients go away on purpose

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: ServerDouble
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        time.sleep(self.server.list_takes_s)
        if self.server.html:
            self._answer(200, b"<html><body>Welcome to my router</body></html>", "text/html")
        elif self.path != f"{self.server.root}/models":
            self._answer(404, b"<html>not found</html>", "text/html")
        elif self.server.listless:
            self._json(500, {"detail": "CacheNotFound"})
        elif self.server.empty:
            self._json(200, {"object": "list", "data": None})
        elif self._allowed():
            data = [{"id": name, "object": "model", "owned_by": "double"} for name in MODELS]
            self._json(200, {"object": "list", "data": data})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length))
        self.server.requests.append({"body": body, "headers": dict(self.headers)})
        if self._allowed():
            getattr(self, "_" + body["model"].replace("-", "_"))(body)

    def _allowed(self) -> bool:
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self._json(401, {"error": {"message": "Incorrect API key provided", "type": "auth"}})
            return False
        return True

    # --- habits ----------------------------------------------------------------------------------------

    def _good(self, _body: Any) -> None:
        self._stream([*_texts(), _end(), {"choices": [], "usage": USAGE}])

    def _silent(self, _body: Any) -> None:
        self._stream([*_texts(), _end("length")])

    def _llama(self, _body: Any) -> None:
        timings = {
            "prompt_n": 7,
            "prompt_ms": 35.5,
            "predicted_n": 9,
            "predicted_per_second": 61.5,
            "cache_n": 4,
        }
        self._stream([*_texts(), {**_end(), "timings": timings}, {"choices": [], "usage": USAGE}])

    def _ollama(self, _body: Any) -> None:
        durations = {"total_duration": 2_500_000_000, "load_duration": 1_250_000_000, "eval_count": 9}
        self._stream([*_texts(), {**_end(), **durations}, {"choices": [], "usage": USAGE}])

    def _arena(self, _body: Any) -> None:
        offsets = [0.5 + 0.125 * i for i in range(9)]
        asked = self.headers.get("X-Backend-Arena") == "token-offsets"
        timings = {"ttft_ms": 500.0, **({"token_offsets_s": offsets} if asked else {})}
        self._stream([*_texts(), _end(), {"choices": [], "usage": USAGE, "timings": timings}])

    def _whole(self, _body: Any) -> None:
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._json(200, {"object": "chat.completion", "choices": [choice], "usage": USAGE})

    def _old(self, body: Any) -> None:
        """Knows only the oldest fields."""
        for name in ("stream_options", "seed", "reasoning_effort"):
            if name in body:
                self._json(400, {"error": {"message": f"Unrecognized request argument: {name}"}})
                return
        self._good(body)

    def _strict(self, body: Any) -> None:
        if "max_tokens" in body:
            text = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            self._json(400, {"error": {"message": text}})
            return
        self._good(body)

    def _tgi(self, body: Any) -> None:
        if body.get("temperature") == 0:
            text = "Input validation error: `temperature` must be strictly positive"
            self._json(422, {"error": text, "error_type": "validation"})
            return
        self._good(body)

    def _fastapi(self, body: Any) -> None:
        """Forbids what it does not know, in its framework's own shape."""
        if "stream_options" in body:
            wrong = {
                "type": "extra_forbidden",
                "loc": ["body", "stream_options"],
                "msg": "Extra inputs are not permitted",
            }
            self._json(422, {"detail": [wrong]})
            return
        self._good(body)

    def _no_reason(self, _body: Any) -> None:
        """Never says why a reply ended, but counts it."""
        self._stream([*_texts(), {"choices": [], "usage": USAGE}])

    def _in_parts(self, _body: Any) -> None:
        """As Mistral's thinking models."""
        thought = [{"type": "thinking", "thinking": [{"type": "text", "text": "Let me see."}]}]
        answers = [_delta({"content": [{"type": "text", "text": word}]}) for word in WORDS]
        self._stream([_delta({"content": thought}), *answers, _end(), {"choices": [], "usage": USAGE}])

    def _zeros(self, _body: Any) -> None:
        nothing = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0)
        self._stream([*_texts(), _end(), {"choices": [], "usage": nothing}])

    def _filtered(self, _body: Any) -> None:
        self._stream([*_texts(2), _end("content_filter")])

    def _gateway(self, _body: Any) -> None:
        self._answer(502, b"<html><head><title>502 Bad Gateway</title></head></html>", "text/html")

    def _too_long(self, _body: Any) -> None:
        text = "the request exceeds the available context size (4096 tokens), try increasing it"
        self._json(400, {"error": {"code": 400, "message": text, "type": "exceed_context_size_error"}})

    def _plain_words(self, _body: Any) -> None:
        self._json(429, {"error": "Slow down, please."})

    def _thinks(self, _body: Any) -> None:
        thoughts = [_delta({"reasoning_content": text}) for text in ("Let me", " see.")]
        self._stream([*thoughts, *_texts(), _end(), {"choices": [], "usage": USAGE}])

    def _thinks_aloud(self, _body: Any) -> None:
        """Leaves the model's own marks in, cut anywhere."""
        texts = [_delta({"content": text}) for text in ("<th", "ink>Let me", " see.</thi", "nk>\n\n")]
        self._stream([*texts, *_texts(), _end(), {"choices": [], "usage": USAGE}])

    def _thinks_in_brackets(self, _body: Any) -> None:
        texts = [_delta({"content": text}) for text in ("[THINK]Let me", " see.[/TH", "INK]")]
        self._stream([*texts, *_texts(), _end(), {"choices": [], "usage": USAGE}])

    def _ends_a_thought(self, _body: Any) -> None:
        """Its template began the thought, and it says so to nobody."""
        texts = [_delta({"content": text}) for text in ("Let me", " see.\n</thi", "nk>\n\n")]
        self._stream([*texts, *_texts(), _end(), {"choices": [], "usage": USAGE}])

    def _hides_its_thoughts(self, _body: Any) -> None:
        details = {
            "completion_tokens": 109,
            "total_tokens": 120,
            "completion_tokens_details": {"reasoning_tokens": 100},
        }
        self._stream([*_texts(), _end(), {"choices": [], "usage": {**USAGE, **details}}])

    def _role_first(self, _body: Any) -> None:
        """Says that it is there, and only then loads the model."""
        self._stream(_texts(0), done=False, then=lambda: time.sleep(1.0), and_then=[*_texts(), _end()])

    def _at_once(self, _body: Any) -> None:
        """Something in between holds everything back until the end."""
        time.sleep(0.6)
        self._stream([*_texts(), _end(), {"choices": [], "usage": USAGE}], pause_s=0)

    def _no_key(self, _body: Any) -> None:
        self._json(401, {"error": {"message": "Incorrect API key provided"}})

    def _no_model(self, _body: Any) -> None:
        self._json(404, {"error": {"message": "The model `no-model` does not exist"}})

    def _too_many(self, _body: Any) -> None:
        self._json(429, {"error": {"message": "Rate limit reached"}}, {"Retry-After": "20"})

    def _broken(self, _body: Any) -> None:
        self._json(500, {"error": {"message": "CUDA error: out of memory"}})

    def _away(self, _body: Any) -> None:
        self._json(302, {}, {"Location": "http://elsewhere.example/v1"})

    def _html(self, _body: Any) -> None:
        self._answer(200, b"<html><body>Please log in to the Wi-Fi</body></html>", "text/html")

    def _stops(self, _body: Any) -> None:
        """Ends the stream politely, in the middle of a sentence."""
        self._stream(_texts(3), done=False)

    def _cut(self, _body: Any) -> None:
        """The connection breaks in the middle of a chunk."""
        self._stream(_texts(3), done=False, broken=True)

    def _error_inside(self, _body: Any) -> None:
        self._stream([*_texts(2), {"error": {"message": "The model runner has crashed", "type": "server"}}])

    def _error_unnamed(self, _body: Any) -> None:
        """As vLLM does."""
        self._stream(
            [*_texts(2), {"object": "error", "message": "The engine is dead", "code": 500}], done=False
        )

    def _error_whole(self, _body: Any) -> None:
        """As LM Studio does, with a status of success."""
        self._json(200, {"error": "Unexpected endpoint or method"})

    def _garbage(self, _body: Any) -> None:
        self._stream(["Internal Server Error"], done=False)

    def _hangs(self, _body: Any) -> None:
        """A few words, then silence; notices when the client goes."""
        self._stream(_texts(2), done=False, then=self._wait_until_gone)

    def _slow(self, _body: Any) -> None:
        """Never a word: as while a model loads."""
        self._wait_until_gone()

    # --- sending ---------------------------------------------------------------------------------------

    def _wait_until_gone(self) -> None:
        for _ in range(600):
            readable, _, _ = select.select([self.connection], [], [], 0.1)
            if readable and not self.connection.recv(1024):
                self.server.gone.set()
                return

    def _stream(
        self,
        chunks: Any,
        *,
        done: bool = True,
        broken: bool = False,
        then: Any = None,
        and_then: Any = (),
        pause_s: float = 0.02,
    ) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._events(chunks, pause_s)
        if then:
            then()
        self._events(and_then, pause_s)
        if broken:
            self.wfile.write(b"ff\r\ndata: {")
            self.close_connection = True
            return
        if done:
            self._chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _events(self, chunks: Any, pause_s: float) -> None:
        for chunk in chunks:
            named = {"id": "x", "object": "chat.completion.chunk"}
            self._chunk(f"data: {chunk if isinstance(chunk, str) else json.dumps({**named, **chunk})}\n\n")
            time.sleep(pause_s)

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _json(self, status: int, document: Any, headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(document).encode(), "application/json", headers)

    def _answer(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            **(headers or {}),
            "Content-Type": kind,
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _texts(count: int = len(WORDS)) -> list[dict[str, Any]]:
    return [_delta({"role": "assistant", "content": ""}), *(_delta({"content": w}) for w in WORDS[:count])]


def _delta(delta: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def _end(reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def doubles(**options: Any) -> Iterator[ServerDouble]:
    """For a fixture."""
    with ServerDouble(**options) as double:
        yield double
