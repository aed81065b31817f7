"""Thought, answer and markup of a reply, told apart as its text comes; text in, pieces out, nothing else.

Models that think before they answer say so in their own way: `<think>…</think>`, opened by the model or by the chat
template, gpt-oss' channels, the marks of Magistral, Gemma, Granite, Kimi, Seed, Command-A and others. Which of them
a model uses is read from its chat template and its control tokens (`find_marks`), not guessed from what it writes:
a model that knows no marks may write `<think>` as it likes. Only a whole reply that begins with it and closes it
later is a thought and an answer whatever the template says (`marks_of_reply`). There is one parser for all of them,
and everything that shows, stores or hands on a reply uses it: the worker for what engines generate, and whoever gets
text from elsewhere (`part` for a whole reply, `ThoughtParser` for one that is still coming).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["thought", "answer", "markup"]

_PAIRS = (
    ("<think>", "</think>"),  # DeepSeek R1, Qwen3, SmolLM3, Phi-4-reasoning, EXAONE 4, GLM, Nemotron, LFM2, …
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<longcat_think>", "</longcat_think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command-A
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<unused94>thought", "<unused95>"),  # MedGemma
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ("Here is my thought process:", "Here is my response:"),  # Granite 3.2
    ("Here's my thought process:", "Here's my response:"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),  # Apriel
)
_AROUND_ANSWERS = (
    ("<answer>", "</answer>"),  # Hunyuan
    ("<response>", "</response>"),  # Granite 3.3, ERNIE
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|START_TEXT|>", "<|END_TEXT|>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]"),
)
_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_MESSAGE_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_THOUGHT_CHANNEL = re.compile(re.escape(_CHANNEL) + r"\s*analysis\b")
_ADDRESSED = re.compile(r"to=[\w.-]+\s*<\|")
"""A header that goes on with whom the message is for: a tool."""
_MAY_ADDRESS = re.compile(r"t(o(=[\w.-]*\s*<?)?)?")
_CONTROL_TOKEN = re.compile(r"<\|?\w+\|?>\w*")
_BETWEEN = "\n\n"
"""Stands between two thoughts, or two answers, of one reply."""


@dataclass(frozen=True)
class Marks:
    """How a model marks its thoughts."""

    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    around_answer: tuple[tuple[str, str], ...] = ()
    """Marks that some models put around the answer."""
    reopening: tuple[str, ...] = ()
    """Those of `opens` that may begin another thought after the answer has begun: control tokens."""
    channels: bool = False
    """gpt-oss: every message of a reply names its channel."""

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every mark, as it is spelled."""
        if self.channels:
            return (_START, _CHANNEL, _MESSAGE, *_MESSAGE_ENDS, "<|constrain|>")
        return (*self.opens, *self.closes, *(mark for pair in self.around_answer for mark in pair))


_UNMISTAKABLE = (
    *((opening, closing) for opening, closing in _PAIRS if not opening.startswith("Here")),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),  # gpt-oss
)
SERVED_MARKS = Marks(tuple(pair[0] for pair in _UNMISTAKABLE), tuple(pair[1] for pair in _UNMISTAKABLE))
"""For a reply whose model's template nobody here has seen, such as a server's that parts nothing: every mark that
means nothing else where a reply begins with it."""


@dataclass(frozen=True)
class Piece:
    """Part of a reply that has become certain."""

    kind: Kind
    text: str
    tokens: tuple[int, ...] = ()
    """Numbers of the tokens it came with, where the parser was told them."""


@dataclass(frozen=True)
class Parted:
    """A whole reply, taken apart."""

    reasoning: str | None
    """None when the model did not think."""
    answer: str


def find_marks(template: str | None, control_tokens: Iterable[str] = ()) -> Marks | None:
    """The marks a model knows, from its chat template's source and the spellings of its control tokens; or None."""
    source, tokens = template or "", set(control_tokens)

    def known(mark: str) -> bool:
        # A mark may be a token and a word: `<|channel>thought`.
        # Granite says “Here's”, too, where its template says “Here is”.
        return (
            mark in source
            or mark.replace("Here's", "Here is") in source
            or mark in tokens
            or re.sub(r"(?<=>)\w+$", "", mark) in tokens
        )

    if known(_CHANNEL) and known(_MESSAGE):
        return Marks(channels=True)
    pairs = [pair for pair in _PAIRS if known(pair[0]) or known(pair[1])]
    if not pairs:
        return None
    opens, closes = (tuple(marks) for marks in zip(*pairs, strict=True))
    around = tuple(pair for pair in _AROUND_ANSWERS if known(pair[0]) or pair[0] in closes)
    reopening = tuple(mark for mark in opens if mark.startswith(("<|", "[")) and known(mark))
    return Marks(opens, closes, around, reopening)


def marks_of_reply(text: str) -> tuple[Marks, str] | None:
    """For a whole reply in which no thought was seen: the marks it has used all the same, and what it follows.

    It begins with an opening mark and closes it; or it only closes one that stood in the prompt, as a template's
    does that a server keeps to itself. That mark ends its line, outside of code, and there is no opening one: a text
    about marks has both, or quotes them.
    """
    for opening, closing in _UNMISTAKABLE:
        before, found, after = text.partition(closing)
        if not found:
            continue
        marks = Marks((opening,), (closing,))
        if before.lstrip().startswith(opening):
            return marks, ""
        quoted = before.count("```") % 2 or before.rpartition("\n")[2].count("`") % 2
        if before.strip() and opening not in text and not quoted and re.match(r"[ \t]*\n\s*\S", after):
            return marks, opening
    return None


def part(text: str, marks: Marks | None, prompt: str = "") -> Parted:
    """Take a whole reply apart. `prompt`: the text it was asked with, which may have opened the thought."""
    parser = ThoughtParser(marks, prompt)
    pieces = (*parser.feed(text), *parser.finish())
    thought = "".join(piece.text for piece in pieces if piece.kind == "thought")
    return Parted(thought or None, "".join(piece.text for piece in pieces if piece.kind == "answer"))


class ThoughtParser:
    """Takes one reply apart while it comes. Without marks everything is answer, at once and unchanged.

    Space between a mark and what it marks belongs to the mark. What might still become a mark is held back.
    """

    def __init__(self, marks: Marks | None, prompt: str = ""):
        """`prompt`: the text (its end is enough) that the reply follows: templates open thoughts, too."""
        self._plain = marks is None
        self._marks = marks or Marks()
        self._buffer = ""
        self._numbers: list[int] = []
        """For each character in the buffer, the number of its token."""
        self._section = 0
        """Grows with every mark."""
        self._said: dict[Kind, int] = {}
        """In which section a kind was last said."""
        self._wrapped: str | None = None
        """The mark that will end the answer."""
        self._trim = False
        """Space that comes next belongs to the mark before it."""
        self._state = self._opened_by(prompt.rstrip()) if not self._plain else "answer"

    @property
    def thinking(self) -> bool:
        """Whether the model is in the middle of a thought."""
        return self._state == "thought"

    def feed(self, text: str, token: int = 0) -> tuple[Piece, ...]:
        """Take the next text; returns what has become certain. `token`: its number, for whoever counts."""
        if self._plain:
            return (Piece("answer", text, (token,)),) if text else ()
        self._buffer += text
        self._numbers += [token] * len(text)
        return tuple(self._pieces(final=False))

    def finish(self) -> tuple[Piece, ...]:
        """The reply is over: what was held back."""
        return () if self._plain else tuple(self._pieces(final=True))

    # --- where a reply begins --------------------------------------------------------------------------------

    def _opened_by(self, prompt: str) -> str:
        if self._marks.channels:
            if not prompt.endswith(_MESSAGE):
                return "header"
            header = prompt[max(prompt.rfind(_START), 0) :]
            return "thought" if _THOUGHT_CHANNEL.search(header) else "answer"
        if prompt.endswith(self._marks.opens):
            self._trim = True
            return "thought"
        if prompt.endswith(self._marks.closes):
            self._trim = True
            return "answer"
        return "start"

    # --- the way through -------------------------------------------------------------------------------------

    def _pieces(self, final: bool) -> Iterable[Piece]:
        step = self._channel_step if self._marks.channels else self._step
        while self._buffer:
            before = (self._state, len(self._buffer))
            yield from step(final)
            if (self._state, len(self._buffer)) == before:
                return

    def _step(self, final: bool) -> Iterable[Piece]:
        if self._state == "start":
            yield from self._begin(final)
            return
        if self._trim:
            yield from self._skip_space()
            if not self._buffer:
                return
            of_answer = () if self._state == "thought" else (*self._openers_of_answer(), *self._marks.closes)
            opening = (*self._marks.opens, *of_answer)
            if not final and _may_become(self._buffer, opening):
                return
            if found := _starts(self._buffer, opening):
                yield from self._open_again(found)
                return
            self._trim = False
        yield from self._go_on(self._ends(), final)

    def _begin(self, final: bool) -> Iterable[Piece]:
        text = self._buffer.lstrip()
        every = (*self._marks.opens, *self._marks.closes, *self._openers_of_answer())
        if not final and (not text or _may_become(text, every)):
            return
        if final and _CONTROL_TOKEN.fullmatch(text) and _may_become(text, every):  # cut within a mark
            yield self._mark(len(self._buffer))
            return
        found = _starts(text, every)
        self._state = "thought" if found in self._marks.opens else "answer"
        if found:
            self._wrapped = dict(self._marks.around_answer).get(found)
            yield self._mark(len(self._buffer) - len(text) + len(found))
            self._trim = True

    def _open_again(self, found: str) -> Iterable[Piece]:
        """A mark right after a mark: a thought opened or closed twice, another one, the mark before an answer."""
        yield self._mark(len(found))
        if found in self._marks.opens:
            self._state = "thought"
        else:
            self._wrapped = dict(self._marks.around_answer).get(found)

    def _openers_of_answer(self) -> tuple[str, ...]:
        return (*(opening for opening, _ in self._marks.around_answer), *self._marks.reopening)

    def _ends(self) -> tuple[str, ...]:
        """Marks that end what is going on."""
        if self._state == "thought":
            return self._marks.closes
        return (*((self._wrapped,) if self._wrapped else ()), *self._marks.reopening)

    def _go_on(self, ends: tuple[str, ...], final: bool) -> Iterable[Piece]:
        kind: Kind = "thought" if self._state == "thought" else "answer"
        at, found = _first(self._buffer, ends)
        if found is None:
            keep = 0 if final else _held_back(self._buffer, ends)
            yield from self._say(kind, len(self._buffer) - keep, trim_end=bool(ends), final=final)
            return
        yield from self._say(kind, at, trim_end=True, final=True)
        yield self._mark(len(found))
        self._trim, self._wrapped = True, dict(self._marks.around_answer).get(found)
        self._state = "thought" if found in self._marks.reopening else "answer"

    # --- gpt-oss ---------------------------------------------------------------------------------------------

    def _channel_step(self, final: bool) -> Iterable[Piece]:
        if self._state != "header":
            yield from self._channel_text(final)
            return
        text = self._buffer.lstrip()
        marks = (_START, _CHANNEL, _MESSAGE, *_MESSAGE_ENDS)
        if not final and (not text or _may_become(text, marks)):
            return
        if text and not _starts(text, marks) and not _ADDRESSED.match(text):
            if final or not _MAY_ADDRESS.fullmatch(text):  # no header at all: it just answers
                self._state = "answer"
            return
        at = self._buffer.find(_MESSAGE)
        if at < 0:
            if final:
                yield self._take("markup", len(self._buffer))
            return
        self._state = "thought" if _THOUGHT_CHANNEL.search(self._buffer[:at]) else "answer"
        yield self._mark(at + len(_MESSAGE))

    def _channel_text(self, final: bool) -> Iterable[Piece]:
        kind: Kind = "thought" if self._state == "thought" else "answer"
        marks = (*_MESSAGE_ENDS, _START, _CHANNEL)
        at, found = _first(self._buffer, marks)
        if found is None:
            keep = 0 if final else _held_back(self._buffer, marks)
            yield from self._say(kind, len(self._buffer) - keep, trim_end=False, final=final)
            return
        yield from self._say(kind, at, trim_end=False, final=True)
        if found in _MESSAGE_ENDS:
            yield self._mark(len(found))
        self._state = "header"

    # --- taking from the buffer ------------------------------------------------------------------------------

    def _say(self, kind: Kind, length: int, *, trim_end: bool, final: bool) -> Iterable[Piece]:
        """Give out that much of the buffer; space at its end only if no mark can follow it."""
        text = self._buffer[:length]
        solid = len(text.rstrip()) if trim_end and (kind == "thought" or self._wrapped) else length
        if solid:
            again = self._said.get(kind, self._section) != self._section
            self._said[kind] = self._section
            piece = self._take(kind, solid)
            yield Piece(kind, _BETWEEN + piece.text, piece.tokens) if again else piece
        if final and solid < length:
            yield self._take("markup", length - solid)

    def _mark(self, length: int) -> Piece:
        self._section += 1
        return self._take("markup", length)

    def _skip_space(self) -> Iterable[Piece]:
        space = len(self._buffer) - len(self._buffer.lstrip())
        if space:
            yield self._take("markup", space)

    def _take(self, kind: Kind, length: int) -> Piece:
        text, tokens = self._buffer[:length], tuple(dict.fromkeys(self._numbers[:length]))
        self._buffer, self._numbers = self._buffer[length:], self._numbers[length:]
        return Piece(kind, text, tokens)


def _starts(text: str, marks: Iterable[str]) -> str | None:
    """The longest mark that a text starts with."""
    return max((mark for mark in marks if text.startswith(mark)), key=len, default=None)


def _may_become(text: str, marks: Iterable[str]) -> bool:
    """Whether a text is the beginning of a mark and not yet all of it."""
    return any(len(text) < len(mark) and mark.startswith(text) for mark in marks)


def _first(text: str, marks: Iterable[str]) -> tuple[int, str | None]:
    found = [(at, -len(mark), mark) for mark in marks if (at := text.find(mark)) >= 0]
    return (min(found)[0], min(found)[2]) if found else (-1, None)


def _held_back(text: str, marks: Iterable[str]) -> int:
    """Length of the longest end of a text that may be the beginning of a mark."""
    longest = max((len(mark) for mark in marks), default=0)
    return next(
        (size for size in range(min(longest, len(text)), 0, -1) if _may_become(text[-size:], marks)), 0
    )
