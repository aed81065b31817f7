"""OpenAI's Responses API, in its stateless form: one answer, as a document or as a train of events."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

from ui.api import shapes
from ui.api.errors import ApiError
from ui.api.requests import ResponsesRequest
from ui.api.running import Running
from ui.chat.run_view import RunView


class Writer:
    """Writes one response."""

    def __init__(self, body: ResponsesRequest, model: str):
        self._body, self._model = body, model
        self._id, self._message_id = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
        self._thought_id, self._created = f"rs_{uuid.uuid4().hex}", shapes.now_s()
        self._number = -1

    # --- as a document ---------------------------------------------------------------------------------

    def document(self, view: RunView) -> dict[str, Any]:
        """The finished response."""
        cut = shapes.finish_reason(view) == "length"
        output = [self._thought_item(view.reasoning)] if view.reasoning else []
        output.append(self._message_item(view.text, "incomplete" if cut else "completed"))
        counts = shapes.usage(view.metrics)
        return {
            **self._head("incomplete" if cut else "completed"),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": output,
            "usage": counts and _usage(counts),
            "timings": shapes.timings(view),
        }

    def _head(self, status: str) -> dict[str, Any]:
        body = self._body
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self._model,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature or 0.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": body.top_p if body.top_p is not None else 1.0,
            "truncation": "disabled",
            "usage": None,
            "metadata": _texts_of(body.metadata),
        }

    def _message_item(self, text: str, status: str) -> dict[str, Any]:
        return {
            "id": self._message_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [_text_part(text)],
        }

    def _thought_item(self, text: str) -> dict[str, Any]:
        content = [{"type": "reasoning_text", "text": text}]
        return {"id": self._thought_id, "type": "reasoning", "summary": [], "content": content}

    # --- as events -------------------------------------------------------------------------------------

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return shapes.sse({"type": kind, "sequence_number": self._number, **fields}, kind)

    async def events(self, running: Running, ping_s: float) -> AsyncIterator[bytes]:
        """The response as it is written."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._head("in_progress"))
        said = thought = ""
        try:
            async for piece in running.pieces(ping_s):
                if piece is None:
                    yield shapes.PING
                elif piece.thought:
                    if not thought:
                        item = {**self._thought_item(""), "content": []}
                        yield self._event("response.output_item.added", output_index=0, item=item)
                    thought += piece.thought
                    where = {"item_id": self._thought_id, "output_index": 0, "content_index": 0}
                    yield self._event("response.reasoning_text.delta", **where, delta=piece.thought)
                else:
                    if not said:
                        for event in self._message_begins(thought):
                            yield event
                    said += piece.text
                    where = self._where(thought)
                    yield self._event("response.output_text.delta", **where, delta=piece.text, logprobs=[])
        except ApiError as error:
            failed = {"code": error.code or "server_error", "message": str(error)}
            yield self._event("response.failed", response={**self._head("failed"), "error": failed})
            return
        if not said:
            for event in self._message_begins(thought):
                yield event
        document = self.document(running.view)
        message = document["output"][-1]
        yield self._event("response.output_text.done", **self._where(thought), text=said, logprobs=[])
        yield self._event("response.content_part.done", **self._where(thought), part=_text_part(said))
        yield self._event("response.output_item.done", output_index=int(bool(thought)), item=message)
        yield self._event(f"response.{document['status']}", response=document)

    def _message_begins(self, thought: str) -> list[bytes]:
        """The thought has ended, if there was one, and the answer begins."""
        events = []
        if thought:
            where = {"item_id": self._thought_id, "output_index": 0, "content_index": 0}
            events.append(self._event("response.reasoning_text.done", **where, text=thought))
            item = self._thought_item(thought)
            events.append(self._event("response.output_item.done", output_index=0, item=item))
        item = {**self._message_item("", "in_progress"), "content": []}
        events.append(self._event("response.output_item.added", output_index=int(bool(thought)), item=item))
        where = self._where(thought)
        events.append(self._event("response.content_part.added", **where, part=_text_part("")))
        return events

    def _where(self, thought: str) -> dict[str, Any]:
        return {"item_id": self._message_id, "output_index": int(bool(thought)), "content_index": 0}


def _texts_of(metadata: Any) -> dict[str, str]:
    """What a client hung on its request, given back; texts are all that OpenAI takes there."""
    found = metadata if isinstance(metadata, dict) else {}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(counts: dict[str, Any]) -> dict[str, Any]:
    """The same counts under the names of this API."""
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, **counts.get("prompt_tokens_details", {})},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0, **counts.get("completion_tokens_details", {})},
        "total_tokens": counts["total_tokens"],
    }
