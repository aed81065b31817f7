"""A little of Ollama's API, for programs that know nothing else: version, tags, show, chat, thinly translated."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.protocol import RunMetrics
from ui.api import shapes
from ui.api.api import Api
from ui.api.errors import ApiError
from ui.api.lanes import AUTO, Lane, lane_name
from ui.api.requests import ChatMessage, ChatRequest, chat_of, without_idle_fields
from ui.api.running import Running
from ui.api.streams import Stream
from ui.chat.run_view import RunView

PATHS = ("/api/version", "/api/tags", "/api/show", "/api/chat")
_SAME = ("temperature", "top_p", "top_k", "seed", "stop", "frequency_penalty", "presence_penalty")
_OPTIONS = {
    **dict(zip(_SAME, _SAME, strict=True)),
    "repeat_penalty": "repetition_penalty",
    "num_predict": "max_tokens",
}
_NO_MATTER = {"num_ctx", "num_keep", "num_batch", "num_gpu", "num_thread", "use_mmap", "main_gpu"}
"""Options about how Ollama itself would run a model."""
_HARMLESS = {
    "tools": (None, []),
    "format": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
}
"""Fields that nothing here obeys -> the values that ask for nothing: Ollama's own clients send them always."""


class OllamaChat(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str = Field(default=AUTO, max_length=500)
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    keep_alive: Any = None
    options: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_cannot_be(cls, fields: Any) -> Any:
        return without_idle_fields(fields, _HARMLESS)

    def translated(self) -> ChatRequest:
        """The same as an OpenAI request; raises ApiError for an option that nothing here obeys."""
        fields: dict[str, Any] = {}
        for name, value in (self.options or {}).items():
            if value is None:
                continue
            if name not in _OPTIONS and name not in _NO_MATTER:
                raise ApiError(400, f"The option “{name}” is not supported.", param=f"options.{name}")
            if name in _OPTIONS and not (
                name == "num_predict" and value in (-1, -2)
            ):  # its words for no limit
                fields[_OPTIONS[name]] = value
        if self.think is not None:
            fields["reasoning_effort"] = "medium" if self.think else "none"
        try:
            return ChatRequest(model=self.model, messages=self.messages, **fields)
        except ValidationError as error:
            wrong = error.errors()[0]
            param = f"options.{next(n for n, ours in _OPTIONS.items() if ours == wrong['loc'][0])}"
            raise ApiError(400, f"“{param}”: {wrong['msg']}.", param=param) from error


class OllamaShow(BaseModel):
    model: str = Field(max_length=500)


def add_ollama(app: FastAPI, api: Api) -> None:
    """Put the four routes into the application."""

    @app.get("/api/version")
    async def version() -> dict[str, str]:
        return {"version": "0.1.0"}

    @app.get("/api/tags")
    async def tags(request: Request) -> dict[str, Any]:
        await api.caller(request)
        return {"models": [_tag(lane) for lane in await asyncio.to_thread(api.lanes.all)]}

    @app.post("/api/show")
    async def show(body: OllamaShow, request: Request) -> dict[str, Any]:
        target = await api.lane(body.model, await api.caller(request))
        details = {"family": target.engine, "quantization_level": target.precision}
        return {
            "details": details,
            "model_info": {"general.name": lane_name(target)},
            "capabilities": ["completion"],
        }

    @app.post("/api/chat", response_model=None)
    async def chat(body: OllamaChat, request: Request) -> Response:
        caller, asked = await api.caller(request), body.translated()
        target = await api.lane(asked.model, caller)
        talk = chat_of([message.message() for message in asked.messages])
        running = await api.run(target, talk, asked.settings(talk.system_prompt), caller)
        if body.stream is not False:
            await running.begin(api.patience_s)
            return Stream(_lines(running, body.model), running.stop, "application/x-ndjson")
        view = await running.to_the_end(request.receive)
        return JSONResponse(_end(view, body.model, view.text, view.reasoning))


async def _lines(running: Running, model: str) -> AsyncIterator[bytes]:
    try:
        async for piece in running.pieces(3600.0):  # every line says something: there is nothing to ping with
            if piece is not None:
                yield _line(_part(model, piece.text, piece.thought))
        yield _line(_end(running.view, model, "", ""))
    except ApiError as error:
        yield _line({"error": str(error)})


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode("ascii") + b"\n"


def _part(model: str, text: str, thought: str, done: bool = False) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **({"thinking": thought} if thought else {})}
    return {"model": model, "created_at": _now(), "message": message, "done": done}


def _end(view: RunView, model: str, text: str, thought: str) -> dict[str, Any]:
    metrics, told = view.metrics or RunMetrics(), shapes.timings(view)
    durations = {"total": "total_ms", "load": "load_ms", "prompt_eval": "prompt_ms", "eval": "predicted_ms"}
    counts = {"prompt_eval_count": metrics.prompt_tokens, "eval_count": metrics.output_tokens}
    return {
        **_part(model, text, thought, done=True),
        "done_reason": shapes.finish_reason(view),
        **{f"{name}_duration": round(told[ms] * 1e6) for name, ms in durations.items() if ms in told},
        **{name: count for name, count in counts.items() if count is not None},
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


def _tag(lane: Lane) -> dict[str, Any]:
    name, details = (
        lane_name(lane.target),
        {"family": lane.title, "quantization_level": lane.target.precision},
    )
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {"name": name, "model": name, "modified_at": _now(), "digest": digest, "details": details}
