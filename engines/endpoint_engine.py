"""Any OpenAI-compatible server as a lane: Ollama, LM Studio, llama.cpp, vLLM, OpenVINO Model Server, another Arena.

The server has the model, the template and the tokenizer, so nothing here knows which tokens it was given or made. Its
text is stamped as it reaches this computer (network and HTTP included); counts and durations that it tells are passed
on in its own words. Another Backend Arena also sends the time of each token, by its own worker's clock.

A device is the name that the owner gave an address; there is one precision, `served`: the server decides.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from engines.engine import (
    AnswerReport,
    LoadReport,
    ModelError,
    OnProgress,
    OnText,
    PromptError,
    ServedEngine,
    ServerError,
    UnavailableError,
)
from engines.protocol import (
    Availability,
    DeviceStatus,
    EngineSpec,
    GenerationRequest,
    PreparedModel,
    Progress,
    Target,
)
from engines.toolkit.openai_client import LIST_S, Address, Client, Heard

_T = TypeVar("_T")
SPEC = EngineSpec(
    name="endpoint",
    title="Server",
    module="engines.endpoint_engine",
    devices=(),
    precisions=("served",),
    model_format=None,
    settings="endpoints",
    honours=("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty"),
    homepage="https://platform.openai.com/docs/api-reference/chat",
    distributions=("openai",),
)

_STALL_S = 60.0
"""Between two pieces of text; what pauses for longer has stopped."""
_CANCEL_POLL_S = 0.05


class EndpointEngine(ServedEngine):
    spec = SPEC

    def __init__(self) -> None:
        self._addresses: dict[str, Address] = {}
        self._stall_s = _STALL_S
        self._loop = asyncio.new_event_loop()

    def take_settings(self, settings: Mapping[str, Any]) -> None:
        for name in [name for name in os.environ if name.startswith("OPENAI_")]:
            del os.environ[name]  # the package would send another service's organisation, or take its address
        known = (Address(**entry) for entry in settings.get("endpoints", ()))
        self._addresses = {address.name: address for address in known}
        self._stall_s = float(settings.get("stall_s", _STALL_S))

    # --- what is there ---------------------------------------------------------------------------------

    def probe(self) -> Availability:
        from engines.toolkit.process_facts import versions

        found = versions(*SPEC.distributions)
        if not found:
            return Availability(
                False, reason="The package “openai” is not installed.", remedy="pip install openai"
            )
        if not self._addresses:
            return Availability(
                False,
                versions=found,
                reason="No server has been added.",
                remedy="Add one on the System tab, or start with --endpoint NAME=URL.",
            )
        statuses = self._loop.run_until_complete(_all(self._status(a) for a in self._addresses.values()))
        return Availability(any(status.ok for status in statuses), tuple(statuses), found)

    async def _status(self, address: Address) -> DeviceStatus:
        try:
            async with Client(address, timeout_s=LIST_S) as client:
                models = await client.models()
        except ServerError as error:
            return DeviceStatus(
                address.name, False, title=address.url, reason=str(error), remedy=error.remedy
            )
        return DeviceStatus(address.name, True, title=address.url, models=models or None)

    def load(
        self, target: Target, model: PreparedModel, cache_dir: str, on_progress: OnProgress
    ) -> LoadReport:
        address = self._addresses.get(target.device)
        if address is None:
            known = ", ".join(self._addresses) or "none"
            raise UnavailableError(
                f"There is no server called “{target.device}”; known are: {known}.",
                "Add it on the System tab, or start with --endpoint NAME=URL.",
            )
        on_progress(Progress("load", f"Asking {address} for its models"))
        self._address, self._model = address, target.model
        self._client = Client(address)
        self._refused: set[str] = set()
        """Optional fields that this server does not take."""
        models = self._loop.run_until_complete(self._client.models())
        if models and target.model not in models:
            shown = ", ".join(models[:8]) + (f" and {len(models) - 8} more" if len(models) > 8 else "")
            raise ModelError(
                f"{address} has no model “{target.model}”; it has: {shown}.",
                f"Choose one of them, for example {target.spelling}@{models[0]}.",
            )
        return LoadReport(device=str(address), details={"server": self._client.url})

    # --- asking ----------------------------------------------------------------------------------------

    def answer(self, request: GenerationRequest, cancelled: threading.Event, on_text: OnText) -> AnswerReport:
        if request.continue_reply:
            raise PromptError(
                "A server's reply cannot be carried on where it ended.", "Ask it to go on in a new prompt."
            )
        if request.raw_prompt is not None:
            raise PromptError(
                "A prompt without a chat's template cannot be passed on to a server.", "Send it as a chat."
            )
        return self._loop.run_until_complete(self._until_cancelled(self._ask(request, on_text), cancelled))

    async def _until_cancelled(
        self, asking: Awaitable[AnswerReport], cancelled: threading.Event
    ) -> AnswerReport:
        task = asyncio.ensure_future(asking)
        while not task.done():
            await asyncio.wait({task}, timeout=_CANCEL_POLL_S)
            if cancelled.is_set() and not task.done():
                task.cancel()  # closes the connection, which is how a server learns of it
                await asyncio.wait({task}, timeout=0.5)
                return AnswerReport()
        return task.result()

    async def _ask(self, request: GenerationRequest, on_text: OnText) -> AnswerReport:
        heard, fields = Heard(), self._fields(request)
        async for chunk in self._client.chunks(fields, self._refused, self._stall_s, heard):
            text, thought = heard.take(chunk)
            if (text or thought) and not on_text(text, thought):
                break
        else:
            if not heard.is_whole:
                raise self._client.stopped(f"after {heard.pieces} pieces of text it was simply over")
        return heard.report((self._refused & fields.keys()) - {"stream_options", "max_tokens"})

    def _fields(self, request: GenerationRequest) -> dict[str, Any]:
        """The request's body. What is neutral is left out: the fewer fields, the more servers understand it."""
        fields: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": m.role, "content": m.content} for m in request.messages],
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for name in ("top_p", "seed", "frequency_penalty", "presence_penalty"):
            if getattr(request, name) is not None:
                fields[name] = getattr(request, name)
        if request.thinking is not None:
            fields["reasoning_effort"] = "medium" if request.thinking else "none"
        if request.stop:
            fields["stop"] = list(request.stop)
        return fields


async def _all(asking: Iterable[Coroutine[Any, Any, _T]]) -> Sequence[_T]:
    return await asyncio.gather(*asking)


ENGINE = EndpointEngine
