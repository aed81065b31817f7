"""A little of Ollama's API, for programs that know nothing else: version, tags, ps, show, chat, generate.

Thinly translated, in Ollama's own manners: every name has a tag (clients add `:latest` to one that has none, and look
for it in the list), durations are nanoseconds that add up to the total, an error is one sentence.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from engines.protocol import RunMetrics, Target
from ui.api import shapes
from ui.api.api import Api, Caller
from ui.api.errors import ApiError, OllamaErrorDocument, described
from ui.api.lanes import AUTO, Lanes, lane_name
from ui.api.ollama_requests import OllamaChat, OllamaGenerate, OllamaShow
from ui.api.running import Running
from ui.api.streams import Stream

PATHS = ("/api/version", "/api/tags", "/api/ps", "/api/show", "/api/chat", "/api/generate")
_TAG = ":latest"


def add_ollama(app: FastAPI, api: Api) -> None:
    """Put the routes into the application."""
    errors = described(OllamaErrorDocument)

    @app.get("/api/version", responses=errors)
    async def version() -> dict[str, str]:
        return {"version": "0.1.0"}

    @app.get("/api/tags", responses=errors)
    async def tags(request: Request) -> dict[str, Any]:
        await api.caller(request)
        return {"models": await asyncio.to_thread(_listed, api.lanes)}

    @app.get("/api/ps", responses=errors)
    async def loaded(request: Request) -> dict[str, Any]:
        await api.caller(request)
        return {"models": await asyncio.to_thread(_loaded, api)}

    @app.post("/api/show", responses=errors)
    async def show(body: OllamaShow, request: Request) -> dict[str, Any]:
        target = await _target(api, body.asked_for, await api.caller(request))
        return {
            "details": _details(target),
            "model_info": {"general.name": lane_name(target)},
            "capabilities": ["completion"],
        }

    @app.post("/api/chat", response_model=None, responses=errors)
    async def chat(body: OllamaChat, request: Request) -> Response:
        return await _answered(api, body, request, _Answer(body.model, _as_message), bool(body.messages))

    @app.post("/api/generate", response_model=None, responses=errors)
    async def generate(body: OllamaGenerate, request: Request) -> Response:
        return await _answered(api, body, request, _Answer(body.model, _as_response), bool(body.prompt))


async def _answered(
    api: Api, body: OllamaChat | OllamaGenerate, request: Request, answer: _Answer, asks: bool
) -> Response:
    """`asks`: whether it asks anything; else the model is loaded, or ended where it need not be kept alive."""
    caller = await api.caller(request)
    if not asks:
        target = await _target(api, body.model, caller)
        await (api.unload(target) if body.is_to_unload else api.load(target))
        reason = "unload" if body.is_to_unload else "load"
        return JSONResponse({**answer.part("", "", done=True), "done_reason": reason})
    chat, settings = body.asked()
    target = await _target(api, body.model, caller)
    raw = isinstance(body, OllamaGenerate) and bool(body.raw)
    running = await api.run(target, chat, settings, caller, raw=raw)
    if body.stream is not False:
        await running.begin(api.patience_s)
        return Stream(answer.lines(running), running.stop, "application/x-ndjson")
    view = await running.to_the_end(request.receive)
    return JSONResponse(answer.end(running, view.text, view.reasoning))


# --- answers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer:
    """How one request is answered."""

    model: str
    """As the program called it."""
    said: Callable[[str, str], dict[str, Any]]
    """Where answer and thought stand in a document."""

    def part(self, text: str, thought: str, *, done: bool = False) -> dict[str, Any]:
        return {"model": self.model, "created_at": _now(), **self.said(text, thought), "done": done}

    def end(self, running: Running, text: str, thought: str) -> dict[str, Any]:
        """The last document. What came before the worker took the request counts as loading, as at Ollama.

        What is not known, as without a single token, is left out.
        """
        view, load_s = running.view, running.waited_s
        metrics = view.metrics or RunMetrics()
        run_s, ttft_s = metrics.total_s, metrics.ttft_s
        durations_s = {
            "total": None if run_s is None or load_s is None else load_s + run_s,
            "load": load_s,
            "prompt_eval": ttft_s,
            "eval": None if run_s is None or ttft_s is None else max(0.0, run_s - ttft_s),
        }
        counts = {"prompt_eval_count": metrics.prompt_tokens, "eval_count": metrics.output_tokens}
        return {
            **self.part(text, thought, done=True),
            "done_reason": shapes.finish_reason(view),
            **{f"{name}_duration": round(s * 1e9) for name, s in durations_s.items() if s is not None},
            **{name: count for name, count in counts.items() if count is not None},
        }

    async def lines(self, running: Running) -> AsyncIterator[bytes]:
        try:
            # Every line says something: there is nothing to ping with.
            async for piece in running.pieces(3600.0):
                if piece is not None:
                    yield _line(self.part(piece.text, piece.thought))
            yield _line(self.end(running, "", ""))
        except ApiError as error:
            yield _line({"error": str(error)})


def _as_message(text: str, thought: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text, **({"thinking": thought} if thought else {})}}


def _as_response(text: str, thought: str) -> dict[str, Any]:
    return {"response": text, **({"thinking": thought} if thought else {})}


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode("ascii") + b"\n"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


# --- names -------------------------------------------------------------------------------------------------


def _tagged(name: str) -> str:
    return name if ":" in name else name + _TAG


async def _target(api: Api, name: str, caller: Caller) -> Target:
    """The target that is asked for, whether or not the program has put a tag behind its name; raises ApiError."""
    return await api.lane(await asyncio.to_thread(_untagged, api.lanes, name), caller)


def _untagged(lanes: Lanes, name: str) -> str:
    if not name.endswith(_TAG) or name in lanes.aliases():
        return name
    known = {lane_name(lane.target) for lane in lanes.all()}
    return name if name in known else name.removesuffix(_TAG)  # a server's model may be called so itself


def _listed(lanes: Lanes) -> list[dict[str, Any]]:
    found = lanes.all()
    auto = [_entry(AUTO)] if found else []
    return [*auto, *map(_entry, lanes.aliases()), *(_entry(lane_name(o.target), o.target) for o in found)]


def _loaded(api: Api) -> list[dict[str, Any]]:
    """What is in memory; on which device how much of it, nobody here knows."""
    return [
        {**_entry(lane_name(state.target), state.target), "size": state.rss_bytes or 0}
        for state in api.manager.states()
        if state.phase in ("ready", "busy")
    ]


def _entry(name: str, target: Target | None = None) -> dict[str, Any]:
    called, digest = _tagged(name), hashlib.sha256(name.encode()).hexdigest()
    details = _details(target) if target else {}
    return {"name": called, "model": called, "modified_at": _now(), "digest": digest, "details": details}


def _details(target: Target) -> dict[str, str]:
    return {"family": target.engine, "quantization_level": target.precision}
