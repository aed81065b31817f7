"""Reads a reply token by token: its text, and for every token whether it was thought, answer or markup.

The marks of a thought are often control tokens, which the text of a reply leaves out; they are spelled out here for
the parser (toolkit/thoughts.py) and for nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engines.toolkit.thoughts import Kind, Marks, Piece, ThoughtParser
from engines.worker.prompt import TextStream


@dataclass(frozen=True)
class Read:
    """What became certain of a reply with one token."""

    answer: str = ""
    thought: str = ""


class ReplyReader:
    """One reply that grows. `prompt`: the text it follows; `replied`: ids of an earlier part that it carries on."""

    def __init__(self, tokenizer: Any, marks: Marks | None, prompt: str, replied: Sequence[int] = ()):
        self._stream = TextStream(tokenizer)
        self._parser = ThoughtParser(marks, prompt)
        self._spelled = _mark_tokens(tokenizer, marks)
        self._kinds: list[Kind | None] = []
        for token_id in replied:
            self.push(token_id)
        self._skipped = len(self._kinds)

    def push(self, token_id: int) -> Read:
        """The text that became certain with this token."""
        number = len(self._kinds)
        self._kinds.append(None)
        if token_id in self._spelled:
            text = self._stream.finish() + self._spelled[token_id]
            self._stream.note(token_id)
        else:
            text = self._stream.push(token_id)
        return self._take(self._parser.feed(text, number))

    def finish(self) -> Read:
        """What is still held back."""
        last = max(0, len(self._kinds) - 1)
        return self._take((*self._parser.feed(self._stream.finish(), last), *self._parser.finish()))

    @property
    def thinking(self) -> bool:
        """Whether the model is in the middle of a thought."""
        return self._parser.thinking

    def kinds(self) -> tuple[Kind, ...]:
        """What each token was, once the reply is finished; one without text of its own is what comes next."""
        kinds: list[Kind] = []
        following: Kind | None = None
        for kind in reversed(self._kinds[self._skipped :]):
            following = kind or following
            kinds.append(following or self._last_kind())
        return tuple(reversed(kinds))

    def _last_kind(self) -> Kind:
        return next((kind for kind in reversed(self._kinds) if kind), "answer")

    def _take(self, pieces: Iterable[Piece]) -> Read:
        said: dict[Kind, str] = {"answer": "", "thought": "", "markup": ""}
        for piece in pieces:
            said[piece.kind] += piece.text
            for number in piece.tokens:
                if number < len(self._kinds) and self._kinds[number] in (None, "markup"):
                    self._kinds[number] = piece.kind
        return Read(said["answer"], said["thought"])


def _mark_tokens(tokenizer: Any, marks: Marks | None) -> dict[int, str]:
    """Control tokens that marks are made of, and how they are spelled."""
    if marks is None:
        return {}
    return {
        token_id: token.content
        for token_id, token in tokenizer.get_added_tokens_decoder().items()
        if token.special and any(token.content in mark for mark in marks.spellings)
    }
