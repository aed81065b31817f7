"""What programs may send in Ollama's API, translated into the same requests as OpenAI's."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.protocol import Message
from ui.api.errors import ApiError
from ui.api.lanes import AUTO
from ui.api.requests import (
    DEFAULT_MAX_TOKENS,
    Chat,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    chat_of,
    without_idle_fields,
)
from ui.chat.settings import Settings

_SAME = ("temperature", "top_p", "top_k", "seed", "stop", "frequency_penalty", "presence_penalty")
_OPTIONS = {
    **dict(zip(_SAME, _SAME, strict=True)),
    "repeat_penalty": "repetition_penalty",
    "num_predict": "max_tokens",
}
_NO_LIMIT = (-1, -2)
"""Ollama's words for it, as `num_predict`."""
_NO_MATTER = {
    *("num_ctx", "num_keep", "num_batch", "num_gpu", "num_thread", "main_gpu", "use_mmap", "use_mlock"),
    *("low_vram", "numa", "vocab_only", "f16_kv"),
}
"""Options about how Ollama itself would run a model."""
_HARMLESS = {
    "tools": (None, []),
    "format": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
}
"""Fields that nothing here obeys -> the values that ask for nothing: Ollama's own clients send them always."""
_NOTHING = re.compile(r"0+(\.0*)?(ns|us|ms|s|m|h)?")
_Body = TypeVar("_Body", ChatRequest, CompletionRequest)


class _OllamaRequest(BaseModel):
    """What both kinds of requests share."""

    model_config = ConfigDict(extra="forbid")
    harmless: ClassVar[dict[str, tuple[Any, ...]]] = _HARMLESS

    model: str = Field(default=AUTO, max_length=500)
    stream: bool | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    keep_alive: Any = None
    options: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_cannot_be(cls, fields: Any) -> Any:
        return without_idle_fields(fields, cls.harmless)

    @property
    def is_to_unload(self) -> bool:
        """Whether the model need not stay loaded; of a request that asks nothing."""
        return _NOTHING.fullmatch(str(self.keep_alive)) is not None

    def _fields(self) -> dict[str, Any]:
        """Options under OpenAI's names; raises ApiError for one that nothing here obeys."""
        fields: dict[str, Any] = {}
        for name, value in (self.options or {}).items():
            if value is None or name in _NO_MATTER or (name == "num_predict" and value in _NO_LIMIT):
                continue
            if name not in _OPTIONS:
                raise ApiError(400, f"The option “{name}” is not supported.", param=f"options.{name}")
            fields[_OPTIONS[name]] = value
        if self.think is not None:
            fields["reasoning_effort"] = "medium" if self.think else "none"
        return fields

    def _as(self, kind: type[_Body], **fields: Any) -> _Body:
        try:
            return kind(**{**self._fields(), **fields})
        except ValidationError as error:
            wrong = error.errors()[0]
            param = f"options.{next(n for n, ours in _OPTIONS.items() if ours == wrong['loc'][0])}"
            raise ApiError(400, f"“{param}”: {wrong['msg']}.", param=param) from error


class OllamaChat(_OllamaRequest):
    """`POST /api/chat`; without messages it asks for the model to be loaded."""

    messages: list[ChatMessage] = Field(default_factory=list)

    def asked(self) -> tuple[Chat, Settings]:
        """The chat and how to answer it; raises ApiError."""
        chat = chat_of([message.message() for message in self.messages])
        return chat, self._as(ChatRequest, messages=self.messages).settings(chat.system_prompt)


class OllamaGenerate(_OllamaRequest):
    """`POST /api/generate`: one prompt; without it the model is to be loaded."""

    harmless: ClassVar[dict[str, tuple[Any, ...]]] = {
        **_HARMLESS,
        "suffix": (None, ""),
        "template": (None, ""),
        "context": (None, []),
        **dict.fromkeys(("width", "height", "steps"), (None,)),
    }

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: list[Any] | None = Field(default=None, max_length=0)

    def asked(self) -> tuple[Chat, Settings]:
        """The prompt as a chat and how to answer it; raises ApiError."""
        system = [] if self.raw or not self.system else [Message("system", self.system)]
        chat = chat_of([*system, Message("user", self.prompt or "")], "prompt")
        limited = {"max_tokens": DEFAULT_MAX_TOKENS, **self._fields()}  # OpenAI's own default is 16 tokens
        body = self._as(CompletionRequest, prompt=self.prompt or "", max_tokens=limited["max_tokens"])
        return chat, body.settings(chat.system_prompt)


class OllamaShow(BaseModel):
    """`POST /api/show`; the older clients say `name`."""

    model: str | None = Field(default=None, max_length=500)
    name: str | None = Field(default=None, max_length=500)

    @property
    def asked_for(self) -> str:
        return self.model or self.name or ""
