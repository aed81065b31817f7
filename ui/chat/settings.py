"""Generation settings of a turn, and between which bounds they make sense, on the page and everywhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from engines.protocol import GenerationRequest, Message


class TurnError(ValueError):
    """The prompt, the panels or the settings cannot be taken as they are; the message is for the person."""


@dataclass(frozen=True)
class Bounds:
    """What a number may be."""

    title: str
    low: float
    high: float
    whole: bool = False

    def number(self, value: object) -> float | None:
        """The number that a person or a program gave; None for nothing. Raises TurnError saying what it must be."""
        if value is None or value == "":
            return None
        try:
            number = float(value)  # type: ignore[arg-type] # whatever cannot be one raises
        except (TypeError, ValueError, OverflowError):
            text = str(value)
            raise TurnError(
                f"{self.title}: “{text if len(text) <= 20 else text[:19] + '…'}” is not a number."
            ) from None
        if not self.low <= number <= self.high:
            raise TurnError(f"{self.title} must be between {self.low:g} and {self.high:g}; it is {number:g}.")
        if self.whole and number != int(number):
            raise TurnError(f"{self.title} must be a whole number; it is {number:g}.")
        return number

    def whole_number(self, value: object) -> int | None:
        """The same where it has to be whole."""
        number = self.number(value)
        return None if number is None else int(number)


BOUNDS: Mapping[str, Bounds] = {
    "max_new_tokens": Bounds("Max new tokens", 1, 32_768, whole=True),
    "temperature": Bounds("Temperature", 0.0, 2.0),
    "top_p": Bounds("Top-p", 0.01, 1.0),
    "top_k": Bounds("Top-k", 0, 1_000, whole=True),
    "repetition_penalty": Bounds("Repetition penalty", 0.5, 2.0),
    "seed": Bounds("Seed", 0, 2**31 - 1, whole=True),
}
"""Field of Settings -> its bounds."""


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

    def check(self) -> None:
        """Raise TurnError for a value that makes no sense."""
        for name, bounds in BOUNDS.items():
            bounds.number(getattr(self, name))

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


def logged_settings(fields: Mapping[str, object], system_prompt: str | None) -> Settings | None:
    """The settings of a logged turn; None where what is there makes no sense (another version, another machine)."""
    known = {name: value for name, value in fields.items() if name in Settings.__dataclass_fields__}
    try:
        known["stop"] = tuple(known.get("stop") or ())  # type: ignore[arg-type, call-overload]
        settings = Settings(**{**known, "system_prompt": system_prompt})  # type: ignore[arg-type]
        settings.check()
    except (TypeError, TurnError):
        return None
    return settings if isinstance(settings.thinking, bool | None) else None
