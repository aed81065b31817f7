"""From chat messages to token ids, and from token ids back to text, the same way for every engine.

Runs in the worker. One tokenizer (the model's own tokenizer.json through the `tokenizers` library) and one
template renderer (Jinja2, set up as transformers does) serve all engines, so equal prompts are equal tokens by
construction, and no engine's tokenizer start-up or template quirks enter the comparison. Text typed by a person
is never a control token: a user who writes `<|end|>` gets those seven characters, not an end of turn.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from engines.engine import ModelError, PromptError
from engines.protocol import Message
from engines.toolkit.model_config import genai_stop_ids

_PRIVATE_USE = range(0xE000, 0xF8FF)
_LONGEST_PENDING = 8
"""Tokens held back at most for an unfinished character; UTF-8 needs four bytes, so four byte tokens."""


def prompt_sha256(token_ids: Sequence[int]) -> str:
    """SHA-256 over the ids, each as four bytes, little-endian; shape (prompt_tokens,)."""
    return hashlib.sha256(struct.pack(f"<{len(token_ids)}I", *token_ids)).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path.name} in {path.parent} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


def _as_text(token: Any) -> str | None:
    """Special tokens are written as text or as {"content": …}."""
    return token.get("content") if isinstance(token, dict) else token


class PromptEncoder:
    """Tokenizer, chat template and stop ids of one model folder.

    Raises ModelError when the folder has no usable tokenizer.json.
    """

    def __init__(self, folder: str | Path):
        from tokenizers import Tokenizer

        folder = Path(folder)
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(
                f"{folder} has no tokenizer.json",
                "Get the model again, or choose one that ships a fast tokenizer.",
            )
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:
            raise ModelError(f"tokenizer.json in {folder} cannot be read: {error}") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self._config = _read_json(folder / "tokenizer_config.json")
        self._special = sorted(
            (
                t.content
                for t in self.tokenizer.get_added_tokens_decoder().values()
                if t.special and t.content
            ),
            key=len,
            reverse=True,
        )
        self._template = _compile(_template_source(folder, self._config))
        self.stop_ids = frozenset(self._stop_ids(folder))

    def _stop_ids(self, folder: Path) -> Iterable[int]:
        for name in ("generation_config.json", "config.json"):
            ids = _read_json(folder / name).get("eos_token_id")
            yield from ids if isinstance(ids, list) else [] if ids is None else [ids]
        yield from genai_stop_ids(folder)
        eos = _as_text(self._config.get("eos_token"))
        eos_id = self.tokenizer.token_to_id(eos) if eos else None
        if eos_id is not None:
            yield eos_id

    def encode(self, messages: Sequence[Message], continue_reply: bool = False) -> list[int]:
        """Token ids of the chat, ending where the assistant's reply begins (or goes on); shape (prompt_tokens,).

        Raises PromptError when there is nothing to answer.
        """
        if not any(m.content.strip() for m in messages if m.role == "user"):
            raise PromptError("The prompt is empty.", "Type something first.")
        messages = [replace(m, content=_without_surrogates(m.content)) for m in messages]
        if not any(token in m.content for m in messages for token in self._special):
            return self.tokenizer.encode(self.render(messages, continue_reply), add_special_tokens=False).ids
        return self._encode_guarded(messages, continue_reply)

    def encode_raw(self, text: str) -> list[int]:
        """Token ids of a text as it is, by the tokenizer's own rules: whoever writes control tokens means them.

        Raises PromptError when there is nothing to carry on.
        """
        ids: list[int] = self.tokenizer.encode(_without_surrogates(text)).ids
        if not ids:
            raise PromptError("The prompt is empty.", "Type something first.")
        return ids

    def encode_exactly(self, messages: Sequence[Message], count: int) -> list[int]:
        """Exactly `count` token ids: the last message is cut short, what the template puts behind it stays.

        Raises PromptError when the chat is shorter than that, or the template alone longer.
        """
        ids = self.encode(messages)
        other = self.encode([*messages[:-1], replace(messages[-1], content="?")])
        shared = zip(reversed(ids), reversed(other), strict=False)
        ending = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], shared))
        beginning = sum(
            1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, other, strict=False))
        )
        if len(ids) < count or count <= min(beginning + ending, len(other)):
            raise PromptError(
                f"This chat cannot be cut to {count:,} tokens: it has {len(ids):,}, of which the template takes "
                f"{beginning + ending:,}.",
                "Give a longer text, or another number of tokens.",
            )
        return ids[: count - ending] + ids[len(ids) - ending :]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a bare text, without a template; shape (tokens,)."""
        ids: list[int] = self.tokenizer.encode(_without_surrogates(text), add_special_tokens=False).ids
        return ids

    def render(self, messages: Sequence[Message], continue_reply: bool = False) -> str:
        """The chat as one text, by the model's template."""
        if self._template is None:
            return "\n".join(m.content for m in messages)
        text = self._render(messages, add_generation_prompt=not continue_reply)
        if continue_reply:
            reply = messages[-1].content.rstrip()
            text = text[: text.rindex(reply) + len(reply)] if reply in text else text
        return text

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        import jinja2

        values = {
            name: _as_text(value) for name, value in self._config.items() if name.endswith("_token") and value
        }
        chat = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return self._template.render(messages=chat, add_generation_prompt=add_generation_prompt, **values)
        except jinja2.TemplateError as error:
            if chat[0]["role"] != "system":
                raise PromptError(f"The model's chat template refuses this chat: {error}") from error
        # Some templates (Gemma's, Mistral's first) know no system role; its text then opens the first message.
        first = Message("user", f"{chat[0]['content']}\n\n{chat[1]['content']}")
        return self._render([first, *messages[2:]], add_generation_prompt)

    def _encode_guarded(self, messages: Sequence[Message], continue_reply: bool) -> list[int]:
        """Encode a chat whose texts spell control tokens.

        A guard character, used nowhere else, breaks each spelling apart; after encoding, the guard's own
        tokens are taken out again. What remains decodes to exactly what was typed.
        """
        typed = "".join(m.content for m in messages)
        for guard in (chr(code) for code in _PRIVATE_USE if chr(code) not in typed):
            guarded = [replace(m, content=self._break_apart(m.content, guard)) for m in messages]
            text = self.render(guarded, continue_reply)
            encoding = self.tokenizer.encode(text, add_special_tokens=False)
            kept = []
            for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                span = text[start:end]
                if guard not in span:
                    kept.append(token_id)
                elif span != guard:
                    break  # merged with its neighbour: try another guard
            else:
                return kept
        raise PromptError(
            "The prompt spells control tokens in a way this tokenizer cannot take as plain text."
        )

    def _break_apart(self, text: str, guard: str) -> str:
        for token in self._special:
            text = text.replace(token, token[0] + guard + token[1:])
        return text


def _without_surrogates(text: str) -> str:
    """Lone surrogates cannot be encoded as UTF-8, hence not tokenised."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _template_source(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    source = config.get("chat_template")
    if isinstance(source, list):  # several named templates
        named = {item.get("name"): item.get("template") for item in source}
        return named.get("default")
    return source


def _compile(source: str | None) -> Any:
    """Compile as transformers does (utils/chat_template_utils.py), so that every model's template works."""
    if source is None:
        return None
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ModelError(f"The model's chat template cannot be read: {error}") from error


@dataclass
class TextStream:
    """Turns token ids into text as they come, never splitting a character.

    Text is given out once it can no longer change: a decoder's output for the last few tokens may still end
    in the replacement character while a multi-byte character is incomplete.
    """

    tokenizer: Any

    def __post_init__(self) -> None:
        self._ids: list[int] = []
        self._prefix = 0  # ids from here on are decoded again, as context for what follows
        self._given = 0  # ids before this have had their text given out

    def push(self, token_id: int) -> str:
        """The text that became certain with this id; often one word, sometimes none."""
        self._ids.append(token_id)
        text = self._pending()
        if text.endswith("\ufffd") and len(self._ids) - self._given < _LONGEST_PENDING:
            return ""
        return self._give(text)

    def finish(self) -> str:
        """What is still held back, an incomplete character as U+FFFD."""
        return self._give(self._pending())

    def _pending(self) -> str:
        before = self._decode(self._ids[self._prefix : self._given])
        return self._decode(self._ids[self._prefix :])[len(before) :]

    def _give(self, text: str) -> str:
        if text:
            self._prefix, self._given = self._given, len(self._ids)
        return text

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True) if ids else ""
