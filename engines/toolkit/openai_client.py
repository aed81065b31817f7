"""A server through the `openai` package: what it tells in its stream, and what went wrong in one sentence each."""

from __future__ import annotations

import asyncio
import http
import json
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from engines.engine import AnswerReport, EngineError, PromptError, ServerError

if TYPE_CHECKING:
    import openai

_T = TypeVar("_T")
OFFSETS_HEADER = "X-Backend-Arena"
"""Sent with every request: another Backend Arena then adds the time of each token to its `timings`."""
CONNECT_S = 5.0
LIST_S = 20.0
"""A server may look for its models when it is first asked: another Backend Arena asks every library."""
_FIRST_PIECE_S = 1800.0
"""A server may load a model first, or read a long prompt."""
_ROOTS = ("", "/v1", "/v3", "/api/v1")
"""Where servers keep the API when only host and port were given: /v3 is OpenVINO Model Server, /api/v1 lemonade."""
_OPTIONAL = (
    *("stream_options", "seed", "temperature", "top_p", "frequency_penalty", "presence_penalty", "stop"),
    "reasoning_effort",
)
"""Fields that a server may refuse and the request can do without; which of the person's it refused is told."""


_THOUGHT_FIELDS = ("reasoning_content", "reasoning")
"""Where servers put what the model thinks: llama.cpp, LM Studio and we the first, Ollama and vLLM the second."""


_TOO_LONG = re.compile(r"context (length|window|size)|maximum context", re.IGNORECASE)
"""What servers say of a prompt that does not fit: vLLM and OpenAI, llama.cpp's servers, LM Studio."""
_CUT = {
    "content_filter": "The server cut the reply: its content filter did not let it pass.",
    "tool_calls": "The server ended the reply to call a tool, which nobody here offers.",
    "error": "The server ended the reply with an error that it does not name.",
    "abort": "The server gave the reply up before its end.",
}
"""Why a reply ended that is neither its end nor the limit, in the servers' words -> in ours."""


@dataclass(frozen=True)
class Address:
    name: str
    url: str
    key: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.name} ({self.url})"


def is_sendable(key: str) -> bool:
    """Whether a key can stand in a header."""
    return key.isascii() and key.isprintable()


class Heard:
    """What a stream has told so far."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.pieces = 0
        self._usage: Any = None
        self._server: dict[str, Any] = {}
        self._offsets: tuple[float, ...] = ()

    def take(self, chunk: Any) -> tuple[str, str]:
        """The chunk's part of the answer, and of the thought before it; either may be empty."""
        self._usage = getattr(chunk, "usage", None) or self._usage
        extra = getattr(chunk, "model_extra", None) or {}
        timings = extra.get("timings")
        if isinstance(timings, dict):
            timings = dict(timings)
            offsets = timings.pop("token_offsets_s", None)
            if isinstance(offsets, list) and all(isinstance(offset, (int, float)) for offset in offsets):
                self._offsets = tuple(float(offset) for offset in offsets)
            self._server.update(_plain(timings))
        # Ollama's own durations are nanoseconds.
        durations = {name: value for name, value in extra.items() if name.endswith("_duration")}
        self._server.update(
            {f"{name}_s": value / 1e9 for name, value in durations.items() if isinstance(value, (int, float))}
        )
        choices = getattr(chunk, "choices", None)
        if not choices:
            return "", ""
        choice = choices[0]
        self.finish_reason = choice.finish_reason or self.finish_reason
        delta = getattr(choice, "delta", None) or getattr(choice, "message", None)
        text, thought = _parted(getattr(delta, "content", None))
        told = getattr(delta, "model_extra", None) or {}
        thought += next((t for name in _THOUGHT_FIELDS if isinstance(t := told.get(name), str) and t), "")
        self.pieces += bool(text or thought)
        return text, thought

    def report(self, refused: set[str]) -> AnswerReport:
        """`refused`: settings of the person's that the server does not take."""
        usage = self._usage
        made = _count(getattr(usage, "completion_tokens", None))
        details = getattr(usage, "prompt_tokens_details", None)
        return AnswerReport(
            finish_reason="length" if self.finish_reason == "length" else "stop",
            prompt_tokens=_count(getattr(usage, "prompt_tokens", None)) or None,
            cached_prompt_tokens=_count(getattr(details, "cached_tokens", None)),
            output_tokens=None if made == 0 and self.pieces else made,  # zeros stand for “not counted”
            reasoning_tokens=_reasoning_tokens(usage),
            token_offsets_s=self._offsets,
            server=self._server,
            warning=" ".join(filter(None, (_refusal(refused), _CUT.get(self.finish_reason or "")))) or None,
        )

    @property
    def is_whole(self) -> bool:
        """Whether the server has said that this is all: why it ended, or what it counted in the end."""
        return self.finish_reason is not None or self._usage is not None


def _refusal(fields: set[str]) -> str | None:
    return f"The server does not take: {', '.join(sorted(fields))}." if fields else None


def _parted(content: Any) -> tuple[str, str]:
    """Answer and thought of what a chunk holds: a text, or, as Mistral's models send it, a list of parts."""
    if isinstance(content, str):
        return content, ""
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    text = "".join(str(part.get("text") or "") for part in parts if part.get("type") == "text")
    thoughts = [
        inner for part in parts if part.get("type") == "thinking" for inner in part.get("thinking") or ()
    ]
    return text, "".join(str(inner.get("text") or "") for inner in thoughts if isinstance(inner, dict))


def _reasoning_tokens(usage: Any) -> int | None:
    """Those among the output tokens; None where it does not say, or counts them apart (then the total is larger)."""
    told = _count(getattr(getattr(usage, "completion_tokens_details", None), "reasoning_tokens", None))
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    prompt, made, total = (_count(getattr(usage, name, None)) for name in names)
    apart = prompt is not None and made is not None and total is not None and total > prompt + made
    return None if apart or told is None or made is None or told > made else told


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and short words only: what a server says goes into the log and onto the page."""
    return {
        str(name)[:60]: value if not isinstance(value, str) else value[:120]
        for name, value in list(values.items())[:40]
        if isinstance(value, (int, float, str)) and not isinstance(value, bool)
    }


class Client:
    """One server through the `openai` package; everything that goes wrong becomes a ServerError."""

    def __init__(self, address: Address, timeout_s: float = _FIRST_PIECE_S):
        import httpx2
        import openai

        self.address, self.url = address, address.url
        if not is_sendable(address.key or ""):
            raise ServerError(
                f"The key of {address} holds a character that no key can have, so it is not asked.",
                "Give its key again on the System tab, or correct the environment variable.",
            )
        host = httpx2.URL(address.url).host
        self._http = openai.DefaultAsyncHttpxClient(
            timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S)),
            trust_env=not _is_loopback(host),  # a proxy is for what is outside
            follow_redirects=False,
        )
        self._openai = openai.AsyncOpenAI(
            base_url=address.url,
            api_key=address.key or "none",
            http_client=self._http,
            max_retries=0,  # a second try would be measured as one slow answer
            default_headers={OFFSETS_HEADER: "token-offsets"},
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._openai.close()

    async def models(self) -> tuple[str, ...]:
        """Names of its models, none where it does not list them; finds out under which path its API is."""
        import httpx2

        bare = httpx2.URL(self.address.url).path in ("", "/")
        problem: ServerError | None = None
        for root in _ROOTS if bare else ("",):
            self._openai.base_url = self.url = self.address.url.rstrip("/") + root
            try:
                return await self._told(self._list())
            except _FailedError:
                return ()  # a list that fails says nothing about chats
            except ServerError as error:
                problem = problem or error
                if not isinstance(error, _NotTheApiError):
                    raise
        assert problem is not None
        if isinstance(problem, _NotTheApiError) and problem.status == 404 and not bare:
            return ()  # it may well answer all the same
        raise problem

    async def _list(self) -> tuple[str, ...]:
        raw = await self._openai.models.with_raw_response.list()
        try:
            listed = json.loads(raw.text)["data"]
            return tuple(str(entry["id"]) for entry in listed or ())  # Ollama without a model: null
        except (ValueError, KeyError, TypeError) as error:
            raise _NotTheApiError(*self._not_json(raw.headers), 200) from error

    def _not_json(self, headers: Mapping[str, str]) -> tuple[str, str]:
        kind = headers.get("content-type", "").split(";")[0]
        what = "a web page (HTML)" if "html" in kind else f"something else ({kind or 'no type'})"
        return (
            f"{self.address} answers with {what} where an OpenAI-compatible API should be.",
            "Correct its address: it usually ends in /v1.",
        )

    async def chunks(
        self, fields: dict[str, Any], refused: set[str], stall_s: float, heard: Heard
    ) -> AsyncIterator[Any]:
        """The answer, piece by piece; fields the server refuses by name are left out, and that is remembered.

        `heard`: what has been taken of it so far. Many servers say `role` at once and only then load or read, so
        it is the first text that ends the long patience.
        """
        stream = await self._told(self._open(fields, refused))
        try:
            while True:
                patience_s = stall_s if heard.pieces else _FIRST_PIECE_S
                try:
                    chunk = await self._told(
                        asyncio.wait_for(anext(stream, None), patience_s), streaming=True
                    )
                except TimeoutError as error:
                    raise self.stopped(f"nothing came for {patience_s:g} s") from error
                if chunk is None:
                    return
                if (problem := _error_in(chunk)) is not None:
                    raise self._gave_up(problem)
                yield chunk
        finally:
            if hasattr(stream, "close"):
                await stream.close()

    async def _open(self, fields: dict[str, Any], refused: set[str]) -> Any:
        import openai

        while True:
            sent = {name: value for name, value in fields.items() if name not in refused}
            if "max_tokens" in refused:
                sent["max_completion_tokens"] = fields["max_tokens"]
            try:
                raw = await self._openai.chat.completions.with_raw_response.create(**sent)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                told = error.response.text  # the error's own text holds one of the shapes only
                named = [n for n in ("max_tokens", *_OPTIONAL) if n in sent and re.search(rf"\b{n}\b", told)]
                if not named:
                    raise
                refused.add(named[0])
                continue
            kind = raw.headers.get("content-type", "")
            if "event-stream" in kind:
                return raw.parse()
            if "json" in kind:
                return _once(raw)
            raise ServerError(*self._not_json(raw.headers))

    def stopped(self, why: str) -> ServerError:
        return ServerError(
            f"The stream of {self.address} stopped before its end: {why}.",
            "Look into the server's own log; send the prompt again.",
        )

    async def _told(self, asking: Awaitable[_T], *, streaming: bool = False) -> _T:
        import httpx2
        import openai

        try:
            return await asking
        except openai.APIStatusError as error:
            raise self._status_error(error) from error
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            if streaming:
                raise self.stopped("the connection was lost") from error
            raise self._connection_error(error) from error
        except openai.APIError as error:  # an error object in mid-stream
            raise self._gave_up(_said(error)) from error
        except ValueError as error:
            raise ServerError(
                f"{self.address} sends what is no JSON: {_short(str(error))}.",
                "Look into the server's own log; something in between may have answered in its place.",
            ) from error

    def _gave_up(self, said: str) -> ServerError:
        return ServerError(f"{self.address} gave up: {said}.", "Look into its log.")

    def _status_error(self, error: openai.APIStatusError) -> EngineError:
        status, said = error.status_code, _said(error)
        html = "html" in error.response.headers.get("content-type", "")
        if status in (401, 403):
            what = "refuses the key" if self.address.key else "wants a key, and none is kept for it"
            return ServerError(
                f"{self.address} {what} ({status}).",
                "Give its key on the System tab, or in an environment variable.",
            )
        if status == 404:
            told = "." if html or not said else f": {said}."
            return _NotTheApiError(
                f"{self.address} does not know this address or model (404){told}",
                "Choose one of its models, and look whether its address ends as it should (usually in /v1).",
                404,
            )
        if status == 429:
            after = error.response.headers.get("retry-after")
            wait = f" in {after} s" if after and after.isdigit() else " later"
            return ServerError(
                f"{self.address} takes no more requests for now (429): {said}.", f"Try again{wait}."
            )
        if 300 <= status < 400:
            where = error.response.headers.get("location", "elsewhere")
            return ServerError(
                f"{self.address} sends us on to {where} ({status}).", "Give that address, if you trust it."
            )
        if status >= 500:
            return _FailedError(
                f"{self.address} failed ({status}): {said}.", "Look into the server's own log."
            )
        refused = f"{self.address} refuses the request ({status}): {said}."
        if error.code == "context_length_exceeded" or _TOO_LONG.search(said):
            return PromptError(refused, "Shorten the prompt or start a new conversation.")
        return ServerError(refused)

    def _connection_error(self, error: Exception) -> ServerError:
        if type(error).__name__.endswith("TimeoutError"):
            return ServerError(f"{self.address} did not answer in time.", _START_IT)
        causes = [cause for cause in _causes(error) if str(cause)]
        reason = _reason(causes)
        if any(isinstance(c, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in str(c) for c in causes):
            return ServerError(
                f"The certificate of {self.address} is not trusted: {_short(reason)}.",
                "Name its authority's certificate in SSL_CERT_FILE, or use an address whose certificate is trusted.",
            )
        return ServerError(f"{self.address} cannot be reached: {_short(reason)}.", _START_IT)


class _FailedError(ServerError):
    """The server itself gave up (5xx)."""


class _NotTheApiError(ServerError):
    """Nothing OpenAI-like is under this path; it may be under another."""

    def __init__(self, message: str, remedy: str, status: int):
        super().__init__(message, remedy)
        self.status = status


_START_IT = "Start the server, or correct its address on the System tab."


async def _once(raw: Any) -> AsyncIterator[Any]:
    """A server that does not stream: the whole answer is one piece."""
    from openai.types.chat import ChatCompletion

    yield ChatCompletion.construct(**json.loads(await raw.http_response.aread()))


def _error_in(chunk: Any) -> str | None:
    """What went wrong, where a server says so in place of a piece of the answer, with a status of success."""
    told = getattr(chunk, "model_extra", None) or {}
    error = told.get("error") or (told if getattr(chunk, "object", None) == "error" else None)
    if not error:
        return None
    return _short(_words(error) or "it does not say why")


def _reason(causes: list[BaseException]) -> str:
    """Why a connection did not come about, in words where we have some."""
    for cause in causes:
        if isinstance(cause, ConnectionRefusedError):
            return "nothing listens there"
        if isinstance(cause, socket.gaierror):
            return "nobody knows that name"
    return str(causes[-1]).strip() if causes else "no reason given"


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and len(found) < 10:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _said(error: openai.APIError) -> str:
    """What the server wrote, one line of it; where that is nothing for people, what its status means."""
    status = getattr(error, "status_code", None)
    meaning = next((known.phrase for known in http.HTTPStatus if known == status), None)
    return _short(_words(error.body) or meaning or error.message)


def _words(body: Any) -> str | None:
    """The sentence in an error's body: OpenAI's `message`, Ollama's and TGI's `error`, FastAPI's `detail`."""
    if isinstance(body, str):
        return body.strip() if body.strip() and not body.lstrip().startswith("<") else None
    if isinstance(body, list):
        return "; ".join(filter(None, map(_words, body))) or None
    if not isinstance(body, dict):
        return None
    found = next(
        filter(None, (_words(body.get(name)) for name in ("message", "error", "detail", "msg"))), None
    )
    place = body.get("loc")
    return f"{place[-1]}: {found}" if found and isinstance(place, list) and place else found


def _short(text: str, longest: int = 240) -> str:
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
