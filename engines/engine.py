"""The base classes: what a module implements to put its inference library, or a server, side by side with the others.

An `Engine` turns prompt token ids into output token ids and nothing else. The worker around it owns the chat
template, the tokenizer, the clock and the pipe, so every engine gets equal prompts and is measured equally.
A `ServedEngine` asks somebody else, who has the model and the tokenizer: messages in, pieces of text out.
Vendor libraries are imported inside methods only: importing an engine module must stay free.

Exceptions::

    EngineError                 kind "error": the message and remedy reach the person as they are
    ├── UnavailableError        the engine or device cannot be used on this machine
    ├── ModelError              the model folder is missing, broken or of the wrong kind
    ├── PromptError             the prompt is empty or does not fit the context
    ├── OutOfMemoryError        the library could not get the memory
    ├── ServerError             the server that has the model cannot be used, or gave up
    └── OutputError             the model produced something unusable (non-finite logits)
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from engines.protocol import (
    Availability,
    Claim,
    EngineSpec,
    GenerationRequest,
    PreparedModel,
    Progress,
    Target,
)


class EngineError(Exception):
    """What happened, with the numbers, in `str(error)`; what to do about it in `remedy`."""

    kind = "error"

    def __init__(self, message: str, remedy: str | None = None):
        super().__init__(message)
        self.remedy = remedy


class UnavailableError(EngineError):
    kind = "unavailable"


class ModelError(EngineError):
    kind = "model"


class PromptError(EngineError):
    kind = "prompt"


class OutOfMemoryError(EngineError):
    kind = "memory"


class ServerError(EngineError):
    kind = "server"


class OutputError(EngineError):
    kind = "output"


@dataclass(frozen=True)
class LoadReport:
    """What `Engine.load` found out."""

    device: str
    """Where the work really runs, as the library reports it, not as it was asked for."""
    context_tokens: int | None = None
    """Prompt and reply together may not exceed this; None: unknown."""
    compile_s: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    claim: Claim | None = None
    """The devices the library itself names, and where it does; None: it tells no more than `device`."""


@dataclass(frozen=True)
class GenerationReport:
    """What `Engine.generate` knows beyond the tokens it handed over."""

    cached_prompt_tokens: int | None = None
    """Prompt tokens not computed again because their KV cache was kept; None: the engine cannot tell."""
    warning: str | None = None


@dataclass(frozen=True)
class AnswerReport:
    """What `ServedEngine.answer` knows beyond the text it handed over. None: the server does not say."""

    finish_reason: str | None = None
    """`stop` or `length`."""
    prompt_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    output_tokens: int | None = None
    token_offsets_s: tuple[float, ...] = ()
    """The server's own time of each token, where it sends them."""
    server: Mapping[str, Any] = field(default_factory=dict)
    """Its own counts and durations, in its own words."""
    warning: str | None = None
    reasoning_tokens: int | None = None
    """Of the output tokens, those of the thought; its text may not have been sent."""


OnToken = Callable[[int], bool]
"""Takes each output token id as soon as it exists; returns False when the engine must stop now."""
OnText = Callable[[str, str], bool]
"""Takes each piece of the answer, and of the thought before it, as it arrives; False: the engine must stop now."""
OnProgress = Callable[[Progress], None]


class AnyEngine(ABC):
    """What every engine can do. An instance lives in one worker and loads one target."""

    spec: ClassVar[EngineSpec]

    def take_settings(self, settings: Mapping[str, Any]) -> None:  # noqa: B027 - most engines have none
        """Take what the owner has set for this engine (`EngineSpec.settings`); called before all else."""

    @abstractmethod
    def probe(self) -> Availability:
        """Say which devices can be used here. Never raises: what goes wrong is the reason."""

    @abstractmethod
    def load(
        self, target: Target, model: PreparedModel, cache_dir: str, on_progress: OnProgress
    ) -> LoadReport:
        """Load the model folder onto the device.

        Raises UnavailableError, ModelError or OutOfMemoryError; anything else reaches the person as an
        unexpected error with its traceback one click away.
        """


class Engine(AnyEngine):
    """One inference library: token ids in, token ids out."""

    tuning: Mapping[str, Any] = MappingProxyType({})
    """Chosen values of the spec's `tunables`, set before `load`; what is not in it stays at its default."""

    def make_ready(self, prompt_ids: Sequence[int], request: GenerationRequest) -> None:
        """Do what has to be done before this request and is not part of it: its time does not count.

        For a library that can drop its cache only by starting anew, for example.
        """

    def check_cache(self) -> str | None:
        """Prove, right after loading, that what is kept between turns gives the logits of computing the whole prompt.

        Keeps nothing from then on if it does not. Returns what to say of it with every run (toolkit/kv_cache.py);
        None: this engine keeps nothing.
        """
        return None

    def score(self, token_ids: Sequence[int]) -> Any | None:
        """Logits after each of `token_ids`, shape (tokens, vocabulary), as a numpy array of float32.

        None: the library does not hand them out. What is kept between turns may be lost.
        """
        return None

    @abstractmethod
    def generate(
        self,
        prompt_ids: Sequence[int],
        request: GenerationRequest,
        stop_ids: frozenset[int],
        on_token: OnToken,
    ) -> GenerationReport:
        """Generate up to `request.max_new_tokens` ids after `prompt_ids` (shape (prompt_tokens,)).

        Calls `on_token` once per id, in order, as early as the library allows. Ends when `on_token` returns
        False, after an id in `stop_ids` (unless `request.ignore_eos`; handing the stop id over is fine, the
        worker drops it), or at the limit. Ignores the messages in the request: the prompt ids are the prompt.
        """


class ServedEngine(AnyEngine):
    """Somebody else's server, which has the model and its tokenizer: messages in, pieces of text out."""

    @abstractmethod
    def answer(self, request: GenerationRequest, cancelled: threading.Event, on_text: OnText) -> AnswerReport:
        """Answer `request.messages`, calling `on_text` with each piece of text as soon as it arrives.

        Ends when `on_text` returns False, or within a second after `cancelled` is set, whatever the server does.
        """
