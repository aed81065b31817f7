"""From chat messages to token ids, and from token ids back to text, the same way for every engine.

Runs in the worker. One tokenizer and one template renderer, both as transformers has them (tokenization.py,
chat_template.py), serve all engines, so equal prompts are equal tokens by construction, and no engine's tokenizer
start-up or template quirks enter the comparison. Text typed by a person is never a control token: a user who writes
`<|end|>` gets those seven characters, not an end of turn. To carry a reply on is: the prompt that asked for it, then
the reply's own tokens; a reply is never looked for in rendered text.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.engine import PromptError
from engines.protocol import GenerationRequest, Message
from engines.toolkit.model_config import genai_stop_ids, scopes, token_ids
from engines.toolkit.thoughts import SERVED_MARKS, Marks, find_marks
from engines.worker.chat_template import Arranged, ChatTemplate
from engines.worker.tokenization import control_tokens, read_json, read_tokenization

_PRIVATE_USE = range(0xE000, 0xF000)
_LONGEST_PENDING = 8
"""Tokens held back at most for an unfinished character; UTF-8 needs four bytes, so four byte tokens."""


def prompt_sha256(token_ids: Sequence[int]) -> str:
    """SHA-256 over the ids, each as four bytes, little-endian; shape (prompt_tokens,)."""
    return hashlib.sha256(struct.pack(f"<{len(token_ids)}I", *token_ids)).hexdigest()


@dataclass(frozen=True)
class Prompt:
    """A request's prompt, ready for an engine."""

    ids: list[int]
    text: str
    """What the reply follows, without the reply that is carried on."""
    replied: tuple[int, ...] = ()
    """The last of `ids`: the reply that is carried on."""
    notes: tuple[str, ...] = ()
    """What the person should know about it."""


class PromptEncoder:
    """Tokenizer, chat template and stop ids of one model folder.

    Raises ModelError when the folder has no usable tokenizer.json.
    """

    def __init__(self, folder: str | Path, kept: Path | None = None):
        """`kept`: folder for what is worth keeping from one start to the next."""
        folder = Path(folder)
        found = read_tokenization(folder, kept)
        self.tokenizer = found.tokenizer
        self._special = sorted(control_tokens(self.tokenizer), key=len, reverse=True)
        self._template = (
            None if found.template is None else ChatTemplate(found.template, found.special_tokens)
        )
        self._eos = found.special_tokens.get("eos_token")
        self.marks: Marks | None = find_marks(found.template, self._all_tokens())
        """How the model marks its thoughts; None: it knows no marks."""
        self.stop_ids = frozenset(self._stop_ids(folder))

    def _all_tokens(self) -> Iterator[str]:
        return (token.content for token in self.tokenizer.get_added_tokens_decoder().values())

    def _stop_ids(self, folder: Path) -> Iterable[int]:
        for name in ("generation_config.json", "config.json"):
            for part in scopes(read_json(folder / name)):
                yield from token_ids(part.get("eos_token_id"))
        yield from genai_stop_ids(folder)
        eos_id = self.tokenizer.token_to_id(self._eos) if self._eos else None
        if eos_id is not None:
            yield eos_id

    @property
    def thinking_switch(self) -> str | None:
        """What the chat template calls its switch for thinking; None: it has none."""
        return self._template.thinking_switch if self._template else None

    def encode(self, messages: Sequence[Message], continue_reply: bool = False) -> list[int]:
        """Token ids of the chat, ending where the assistant's reply begins (or goes on); shape (prompt_tokens,)."""
        return self.prepare(GenerationRequest(tuple(messages), continue_reply=continue_reply)).ids

    def prepare(self, request: GenerationRequest) -> Prompt:
        """The prompt of a request; raises PromptError when there is nothing to answer."""
        if request.raw_prompt is not None:
            return Prompt(self.encode_raw(request.raw_prompt), request.raw_prompt)
        if request.prompt_tokens is not None:
            text = self._arrange(request.messages, request).text
            return Prompt(self.encode_exactly(request.messages, request.prompt_tokens), text)
        if not any(m.content.strip() for m in request.messages if m.role == "user"):
            raise PromptError("The prompt is empty.", "Type something first.")
        messages = [_without_surrogates(message) for message in request.messages]
        reply = messages.pop() if request.continue_reply and messages[-1].role == "assistant" else None
        arranged = self._arrange(messages, request)
        ids = self._encode_chat(arranged, request)
        if reply is None:
            return Prompt(ids, arranged.text, notes=arranged.notes)
        if request.reply_ids:
            replied = list(request.reply_ids)
        else:
            replied = self._reply_ids(ids, arranged.text, self._as_written(reply, arranged.text))
        return Prompt(ids + replied, arranged.text, tuple(replied), arranged.notes)

    def encode_raw(self, text: str) -> list[int]:
        """Token ids of a text as it is, by the tokenizer's own rules: whoever writes control tokens means them.

        Raises PromptError when there is nothing to carry on.
        """
        ids: list[int] = self.tokenizer.encode(_clean(text)).ids
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
        ids: list[int] = self.tokenizer.encode(_clean(text), add_special_tokens=False).ids
        return ids

    def render(self, messages: Sequence[Message], continue_reply: bool = False) -> str:
        """The chat as one text, by the model's template, with the reply that is carried on at its end."""
        request = GenerationRequest(tuple(messages), continue_reply=continue_reply)
        asked = list(messages[:-1] if continue_reply else messages)
        text = self._arrange(asked, request).text
        return text + self._as_written(messages[-1], text) if continue_reply else text

    def _arrange(self, messages: Sequence[Message], request: GenerationRequest) -> Arranged:
        if self._template is None:
            return Arranged(tuple(messages), "\n".join(m.content for m in messages))
        return self._template.arrange(messages, request.thinking, request.asked_at)

    def _encode_chat(self, arranged: Arranged, request: GenerationRequest) -> list[int]:
        typed = [text for m in arranged.messages for text in (m.content, m.reasoning or "")]
        if not any(token in text for text in typed for token in self._special):
            return list(self._encode(arranged.text).ids)
        return self._encode_guarded(arranged, request)

    def _encode(self, text: str) -> Any:
        """As transformers does: a template writes its own special tokens, without one there are default ones."""
        return self.tokenizer.encode(text, add_special_tokens=self._template is None)

    # --- control tokens typed by a person --------------------------------------------------------------------

    def _encode_guarded(self, arranged: Arranged, request: GenerationRequest) -> list[int]:
        """Encode a chat whose texts spell control tokens.

        A guard character, used nowhere else, breaks each spelling apart; after encoding, the guard's own
        tokens are taken out again. What remains decodes to exactly what was typed.
        """
        for guard in _guards("".join(m.content + (m.reasoning or "") for m in arranged.messages)):
            guarded = [
                replace(
                    m,
                    content=self._break_apart(m.content, guard),
                    reasoning=m.reasoning and self._break_apart(m.reasoning, guard),
                )
                for m in arranged.messages
            ]
            ids = self._without_guard(self._render_as_arranged(guarded, request), guard)
            if ids is not None:
                return ids
        raise PromptError(
            "The prompt spells control tokens in a way this tokenizer cannot take as plain text."
        )

    def _render_as_arranged(self, messages: Sequence[Message], request: GenerationRequest) -> str:
        if self._template is None:
            return "\n".join(m.content for m in messages)
        return self._template.render(messages, request.thinking, request.asked_at)

    def _without_guard(self, text: str, guard: str) -> list[int] | None:
        """Ids of a text without those of the guard in it; None when it merged with its neighbour."""
        encoding = self._encode(text)
        kept = []
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            span = text[start:end]
            if guard not in span:
                kept.append(token_id)
            elif span != guard:
                return None
        return kept

    def _break_apart(self, text: str, guard: str) -> str:
        for token in self._special:
            text = text.replace(token, token[0] + guard + token[1:])
        return text

    # --- a reply that is carried on --------------------------------------------------------------------------

    def _as_written(self, reply: Message, prompt: str) -> str:
        """The reply's text with its thought before it, marked as the model would."""
        if not reply.reasoning:
            return reply.content
        marks = self.marks or SERVED_MARKS
        if marks.channels:
            thought = f"<|channel|>analysis<|message|>{reply.reasoning}"
            after = "<|end|><|start|>assistant<|channel|>final<|message|>"
            return thought + (after + reply.content if reply.content else "")
        opening, closing = marks.opens[0], marks.closes[0]
        opened = "" if prompt.rstrip().endswith(marks.opens) else f"{opening}\n"
        return opened + reply.reasoning + (f"\n{closing}\n\n{reply.content}" if reply.content else "")

    def _reply_ids(self, prompt_ids: list[int], prompt: str, reply: str) -> list[int]:
        """Ids of a reply of which only the text is known, such that the prompt's ids before it stay as they are."""
        typed = next(_guards(prompt + reply))
        marks = self.marks.spellings if self.marks else ()
        special = [token for token in self._special if token not in marks]
        if not any(token in reply for token in special):
            whole: list[int] = self._encode(prompt + reply).ids
            if whole[: len(prompt_ids)] == prompt_ids:
                return whole[len(prompt_ids) :]
        for token in special:
            reply = reply.replace(token, token[0] + typed + token[1:])
        for guard in _guards(prompt + reply):
            # The guard keeps the reply's first letters from merging with the prompt's last ones.
            text = guard + reply
            encoding = self.tokenizer.encode(text, add_special_tokens=False)
            spans = [text[start:end] for start, end in encoding.offsets]
            if all(span in (guard, typed) or (guard not in span and typed not in span) for span in spans):
                ids = zip(encoding.ids, spans, strict=True)
                return [token_id for token_id, span in ids if guard not in span and typed not in span]
        return list(self.tokenizer.encode(reply.replace(typed, ""), add_special_tokens=False).ids)


def _guards(text: str) -> Iterator[str]:
    return (chr(code) for code in _PRIVATE_USE if chr(code) not in text)


def _without_surrogates(message: Message) -> Message:
    reasoning = message.reasoning and _clean(message.reasoning)
    return replace(message, content=_clean(message.content), reasoning=reasoning)


def _clean(text: str) -> str:
    """Lone surrogates cannot be encoded as UTF-8, hence not tokenised."""
    return text.encode("utf-8", "replace").decode("utf-8")


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

    def note(self, token_id: int) -> None:
        """Take an id whose text is somebody else's affair; call `finish` before."""
        self._ids.append(token_id)
        self._prefix = self._given = len(self._ids)

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
