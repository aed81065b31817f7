"""What programs may send, field by field. What cannot be obeyed is refused by name, never silently dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engines.protocol import EngineSpec, Message
from ui.api.errors import ApiError
from ui.chat.settings import Settings

DEFAULT_MAX_TOKENS = 4096
"""Where a request names no limit; the model's context ends a reply earlier."""
MOST_STOPS = 16

_HARMLESS: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "response_format": (None, {"type": "text"}),
    "n": (None, 1),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "verbosity": (None, "medium"),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "previous_response_id": (None,),
    "conversation": (None,),
    "background": (None, False),
    "include": (None, []),
    "prompt_template": (None,),
    "text": (None, {"format": {"type": "text"}}),
    "truncation": (None, "disabled"),
    "max_tool_calls": (None,),
}
"""Fields we cannot honour -> the values that ask for nothing."""

_SAMPLING = (
    *("temperature", "top_p", "top_k", "repetition_penalty", "seed"),
    *("frequency_penalty", "presence_penalty"),
)

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
"""Our lanes know thinking or not thinking, and no degrees of it."""
Count = Annotated[int, Field(ge=1, le=10_000_000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Body):
    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class TemplateSwitch(_Body):
    """What llama.cpp's server and vLLM take: a template's own switch for thinking."""

    enable_thinking: bool | None = None


class ChatMessage(BaseModel):
    """One message. What a client echoes of our own answers (thoughts, refusals, names) has no bearing on the next."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    tool_calls: list[Any] | None = Field(default=None, max_length=0)
    function_call: None = None
    images: list[Any] | None = Field(default=None, max_length=0)
    """Ollama's place for them."""
    audio: None = None

    def message(self) -> Message:
        content = self.content if isinstance(self.content, str) else ""
        if isinstance(self.content, list):
            content = "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, content)


class _Request(_Body):
    """What all kinds of requests share."""

    model: str = Field(default="auto", max_length=500)
    stream: bool | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    seed: Seed | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateSwitch | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    # Of no consequence to an answer from this computer; taken, so that clients need not know.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    parallel_tool_calls: Any = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_cannot_be(cls, fields: Any) -> Any:
        return without_idle_fields(fields, _HARMLESS)

    def thinking(self) -> bool | None:
        """Whether to think first; None: as the model does by itself."""
        switch = self.chat_template_kwargs.enable_thinking if self.chat_template_kwargs else None
        return switch if switch is not None else _thinks(self.reasoning_effort)

    def limit(self) -> int:
        return DEFAULT_MAX_TOKENS

    def stops(self) -> tuple[str, ...]:
        return ()

    def settings(self, system_prompt: str | None) -> Settings:
        return Settings(
            system_prompt=system_prompt,
            max_new_tokens=self.limit(),
            temperature=self.temperature or 0.0,
            top_p=self.top_p,
            top_k=self.top_k or None,
            repetition_penalty=self.repetition_penalty,
            seed=None if self.seed is None else self.seed % 2**31,  # what every engine can take
            stop=self.stops(),
            frequency_penalty=self.frequency_penalty or None,
            presence_penalty=self.presence_penalty or None,
            thinking=self.thinking(),
        )


def _thinks(effort: Effort | None) -> bool | None:
    return None if effort is None else effort not in ("none", "minimal")


def without_idle_fields(fields: Any, harmless: Mapping[str, Sequence[Any]]) -> Any:
    """A body without the fields that nothing here obeys; raises ApiError where one of them asks for something."""
    if not isinstance(fields, dict):
        return fields
    for name in fields.keys() & harmless.keys():
        if not _is_one_of(fields[name], harmless[name]):
            message = f"“{name}” is not supported by the backends of this server."
            raise ApiError(400, message, param=name, code="unsupported")
    return {name: value for name, value in fields.items() if name not in harmless}


def _is_one_of(value: Any, harmless: Sequence[Any]) -> bool:
    return any(type(value) is type(known) and value == known for known in harmless)


def require_honoured(settings: Settings, spec: EngineSpec) -> None:
    """Refuse what this lane's engine would not obey; raises ApiError naming the field."""
    for name in _SAMPLING:
        value = getattr(settings, name)
        neutral = (
            value is None
            or (name == "temperature" and value == 0)
            or (name in ("top_p", "repetition_penalty") and value == 1)
        )
        unused = name in ("top_p", "top_k", "seed") and settings.temperature == 0
        if not neutral and not unused and name not in spec.honours:
            raise ApiError(
                400,
                f"“{name}” is not honoured by {spec.title}; it honours: {', '.join(spec.honours) or 'none'}.",
                param=name,
                code="unsupported",
            )


@dataclass(frozen=True)
class Chat:
    """What is to be answered."""

    system_prompt: str | None
    messages: tuple[Message, ...]
    """The last one is the person's."""


def chat_of(messages: Sequence[Message], field: str = "messages") -> Chat:
    """A chat with its system prompt apart; raises ApiError for one that asks nothing."""
    if not messages or messages[-1].role != "user":
        raise ApiError(
            400, f"The last of “{field}” has to be the user's: that is what is answered.", param=field
        )
    if not messages[-1].content.strip():
        raise ApiError(400, "The prompt is empty.", param=field, code="invalid_prompt")
    if messages[0].role == "system":
        return Chat(messages[0].content, tuple(messages[1:]))
    return Chat(None, tuple(messages))


class StreamOptions(_Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(_Request):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stop: str | list[str] | None = None

    def limit(self) -> int:
        return self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS

    def stops(self) -> tuple[str, ...]:
        return _stops(self.stop)

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(_Request):
    """`POST /v1/completions`: a text to be carried on as it is, without a chat's template."""

    prompt: str | list[str]
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    stop: str | list[str] | None = None

    def limit(self) -> int:
        return self.max_tokens or 16  # OpenAI's own default

    def stops(self) -> tuple[str, ...]:
        return _stops(self.stop)

    def text(self) -> str:
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(prompts) != 1:
            raise ApiError(400, "One prompt at a time.", param="prompt", code="unsupported")
        if not prompts[0].strip():
            raise ApiError(400, "The prompt is empty.", param="prompt", code="invalid_prompt")
        return prompts[0]

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ResponseItem(BaseModel):
    """A message of a Responses request; thoughts that a client sends back have no bearing on the next answer."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["message", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[TextPart] | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_thoughts_out(cls, fields: Any) -> Any:
        """A thought is made of other parts than a message, and nobody reads it."""
        is_thought = isinstance(fields, dict) and fields.get("type") == "reasoning"
        return {"type": "reasoning"} if is_thought else fields


class Reasoning(_Body):
    effort: Effort | None = None
    summary: Any = None
    generate_summary: Any = None


class ResponsesRequest(_Request):
    """`POST /v1/responses`, the stateless form: everything that matters comes with the request."""

    input: str | list[ResponseItem]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    reasoning: Reasoning | None = None
    stream_options: StreamOptions | None = None

    def limit(self) -> int:
        return self.max_output_tokens or DEFAULT_MAX_TOKENS

    def thinking(self) -> bool | None:
        return super().thinking() if self.reasoning is None else _thinks(self.reasoning.effort)

    def chat(self) -> Chat:
        system = [Message("system", self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return chat_of([*system, Message("user", self.input)], "input")
        items = [item for item in self.input if item.type == "message"]
        if any(item.role is None for item in items):
            raise ApiError(400, "Every message of “input” has a role.", param="input")
        chat = [ChatMessage(role=item.role or "user", content=item.content).message() for item in items]
        return chat_of([*system, *chat], "input")


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MOST_STOPS or any(not text for text in stops):
        raise ApiError(400, f"“stop” is up to {MOST_STOPS} texts, none of them empty.", param="stop")
    return stops
