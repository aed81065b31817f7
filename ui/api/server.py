"""The API as an ASGI application of its own, put beside the page's by ui/share/guarded_app.py.

It stands behind the same guard as the page (own addresses only, no foreign page), and asks for a key as soon as the
app can be reached from other machines. Nothing here loads, downloads or configures anything that a chat would not.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from ui.api import ollama, responses, shapes
from ui.api.api import Api, Caller
from ui.api.errors import ApiError, ErrorDocument, described
from ui.api.lanes import AUTO, lane_name
from ui.api.requests import (
    ChatRequest,
    CompletionRequest,
    ResponsesRequest,
    chat_of,
)
from ui.api.running import Running
from ui.api.streams import Stream


def build_api(api: Api) -> FastAPI:
    """The application: routes, and errors in OpenAI's shape."""
    app = FastAPI(
        title="Backend Arena",
        description="OpenAI's API for the backends of this computer.",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=described(ErrorDocument),
    )
    _add_models(app, api)
    _add_chat(app, api)
    _add_completions(app, api)
    _add_responses(app, api)
    ollama.add_ollama(app, api)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    app.add_exception_handler(ApiError, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _bug)
    return app


class BesidePage:
    """ASGI: what the API has a path for is the API's, everything else the page's."""

    PATHS = ("/v1/", "/health", *ollama.PATHS)

    def __init__(self, page: ASGIApp, api: ASGIApp):
        self._page, self._api = page, api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(self.PATHS):
            await self._page(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # the same answer; the web server leaves its body out
            scope["method"] = "GET"
        await self._api(scope, receive, send)


# --- routes ------------------------------------------------------------------------------------------------


def _add_models(app: FastAPI, api: Api) -> None:
    def entry(name: str, owner: str, **more: Any) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": owner, **more}

    def listed(caller: Caller) -> list[dict[str, Any]]:
        lanes = [lane for lane in api.lanes.all() if not (caller.is_arena and lane.elsewhere)]
        auto = [entry(AUTO, "backend-arena")] if lanes else []
        aliases = [
            entry(alias, "backend-arena", alias_of=lane) for alias, lane in api.lanes.aliases().items()
        ]
        known = [entry(lane_name(lane.target), lane.title, ready=lane.ready) for lane in lanes]
        return [*auto, *aliases, *known]

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        caller = await api.caller(request)
        return {"object": "list", "data": await asyncio.to_thread(listed, caller)}

    @app.get("/v1/models/{model:path}")
    async def model(model: str, request: Request) -> dict[str, Any]:
        caller = await api.caller(request)
        target = await api.lane(model, caller)
        found = next((e for e in await asyncio.to_thread(listed, caller) if e["id"] == model), None)
        return found or entry(model, api.manager.specs[target.engine].title, alias_of=lane_name(target))


def _add_chat(app: FastAPI, api: Api) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        caller = await api.caller(request)
        target = await api.lane(body.model, caller)
        asked = chat_of([message.message() for message in body.messages])
        running = await api.run(target, asked, body.settings(asked.system_prompt), caller)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": shapes.now_s(), "model": lane_name(target)}
        if body.stream:
            await running.begin(api.patience_s)
            return Stream(_chat_chunks(running, head, body.wants_usage, caller, api.ping_s), running.stop)
        view = await running.to_the_end(request.receive)
        message: dict[str, Any] = {"role": "assistant", "content": view.text, "refusal": None}
        if view.reasoning:
            message["reasoning_content"] = view.reasoning
        return JSONResponse(
            {
                **head,
                "object": "chat.completion",
                "choices": [
                    {
                        "index": 0,
                        "message": message,
                        "finish_reason": shapes.finish_reason(view),
                        "logprobs": None,
                    }
                ],
                "usage": shapes.usage(view.metrics),
                "timings": shapes.timings(view, offsets=caller.is_arena),
            }
        )


async def _chat_chunks(
    running: Running, head: dict[str, Any], wants_usage: bool, caller: Caller, ping_s: float
) -> AsyncIterator[bytes]:
    head = {**head, "object": "chat.completion.chunk"}

    def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
        return shapes.sse(
            {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}
        )

    yield chunk({"role": "assistant", "content": ""})
    try:
        async for piece in running.pieces(ping_s):
            if piece is None:
                yield shapes.PING
            elif piece.thought:
                yield chunk({"reasoning_content": piece.thought})
            else:
                yield chunk({"content": piece.text})
    except ApiError as error:
        yield shapes.sse(error.document())
        return
    view = running.view
    told = shapes.timings(view, offsets=caller.is_arena)
    yield chunk({}, shapes.finish_reason(view), timings=told)
    if wants_usage:
        yield shapes.sse({**head, "choices": [], "usage": shapes.usage(view.metrics), "timings": told})
    yield shapes.DONE


def _add_completions(app: FastAPI, api: Api) -> None:
    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        caller = await api.caller(request)
        target = await api.lane(body.model, caller)
        asked = chat_of([_user(body.text())], "prompt")
        running = await api.run(target, asked, body.settings(None), caller, raw=True)
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": shapes.now_s(),
            "model": lane_name(target),
        }
        if body.stream:
            await running.begin(api.patience_s)
            chunks = _completion_chunks(running, head, body.wants_usage, caller, api.ping_s)
            return Stream(chunks, running.stop)
        view = await running.to_the_end(request.receive)
        choice = _completion_choice(view.reasoning + view.text, shapes.finish_reason(view))
        counts = {"usage": shapes.usage(view.metrics), "timings": shapes.timings(view)}
        return JSONResponse({**head, "choices": [choice], **counts})


async def _completion_chunks(
    running: Running, head: dict[str, Any], wants_usage: bool, caller: Caller, ping_s: float
) -> AsyncIterator[bytes]:
    try:
        async for piece in running.pieces(ping_s):
            if piece is None:
                yield shapes.PING
            else:
                text = piece.thought or piece.text  # a raw prompt's answer is given as it came
                yield shapes.sse({**head, "choices": [_completion_choice(text, None)]})
    except ApiError as error:
        yield shapes.sse(error.document())
        return
    view = running.view
    told = shapes.timings(view, offsets=caller.is_arena)
    yield shapes.sse(
        {**head, "choices": [_completion_choice("", shapes.finish_reason(view))], "timings": told}
    )
    if wants_usage:
        yield shapes.sse({**head, "choices": [], "usage": shapes.usage(view.metrics), "timings": told})
    yield shapes.DONE


def _completion_choice(text: str, reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}


def _add_responses(app: FastAPI, api: Api) -> None:
    @app.post("/v1/responses", response_model=None)
    async def create(body: ResponsesRequest, request: Request) -> Response:
        caller = await api.caller(request)
        target = await api.lane(body.model, caller)
        asked = body.chat()
        running = await api.run(target, asked, body.settings(asked.system_prompt), caller)
        writer = responses.Writer(body, lane_name(target))
        if body.stream:
            await running.begin(api.patience_s)
            return Stream(writer.events(running, api.ping_s), running.stop)
        return JSONResponse(writer.document(await running.to_the_end(request.receive)))


def _user(text: str) -> Any:
    from engines.protocol import Message

    return Message("user", text)


# --- errors ------------------------------------------------------------------------------------------------


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
    if error.status >= 500:
        # The `openai` package asks twice more by itself: each time the same model would be loaded to fail again.
        headers["x-should-retry"] = "false"
    return JSONResponse(error.document(request.url.path), error.status, headers)


async def _invalid(request: Request, error: Exception) -> Response:
    """What is wrong, with the field's name as a person would write it: of several, the one said most exactly."""
    assert isinstance(error, RequestValidationError)
    first = max(error.errors(), key=lambda found: len(found["loc"]))
    place = [part for part in first["loc"][1:] if not _is_type_name(part)]
    param = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".") or None
    if first["type"] == "json_invalid":
        param, message = None, f"The body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}."
    elif first["type"] == "extra_forbidden":
        message = f"Unrecognized request argument supplied: {param}"
    elif param is None:
        message = "The body has to be a JSON object, sent with “Content-Type: application/json”."
    else:
        message = f"“{param}”: {first['msg']}."
    return await _told(request, ApiError(400, message, param=param))


def _is_type_name(part: Any) -> bool:
    """Pydantic names the members of a union in the place: `str`, `list[str]`, `TextPart`."""
    return isinstance(part, str) and (part in ("str", "int", "float") or part[:1].isupper() or "[" in part)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: f"There is no {request.url.path} here.",
        405: f"{request.url.path} does not take {request.method}.",
    }
    told = await _told(
        request, ApiError(error.status_code, message.get(error.status_code, str(error.detail)))
    )
    told.headers.update(error.headers or {})
    return told


async def _bug(request: Request, error: Exception) -> Response:
    return await _told(request, ApiError(500, f"Unexpected error: {type(error).__name__}: {error}"))
