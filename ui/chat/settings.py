"""Generation settings of a turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from engines.protocol import GenerationRequest, Message


@dataclass(frozen=True)
class Settings:
    """Generation settings of a turn; None: the engine's neutral value."""

    system_prompt: str | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    thinking: bool | None = None
    """Think before answering, or not; None: as the model does by itself."""

    def request(
        self,
        messages: Sequence[Message],
        *,
        continue_reply: bool = False,
        reply_ids: tuple[int, ...] = (),
        asked_at: float | None = None,
    ) -> GenerationRequest:
        """The generation request for a chat under these settings; see GenerationRequest for the rest."""
        fields = asdict(self)
        system_prompt = fields.pop("system_prompt")
        system = (Message("system", system_prompt),) if system_prompt else ()
        return GenerationRequest(
            (*system, *messages),
            continue_reply=continue_reply,
            reply_ids=reply_ids,
            asked_at=asked_at,
            **fields,
        )
