"""A model's chat template: rendered as transformers renders it, and what can be learned from its source.

The environment (tags, filters, what is defined) is that of transformers' utils/chat_template_utils.py; a property
test compares the two. Two things are ours. The clock: every panel of a turn sees the moment the prompt was sent, so
that a template which writes the date or the time gives all engines the same tokens. And what a template leaves out is
looked for, never lost in silence (`ChatTemplate.arrange`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from engines.engine import ModelError, PromptError
from engines.protocol import Message

if TYPE_CHECKING:
    from jinja2 import nodes
    from jinja2.environment import Environment

SYSTEM_MOVED = (
    "The model's chat template has no place for a system prompt: its text was put before the first message."
)
JOINED = "The model's chat template leaves out messages in this order: some of them were joined into one."
TRIMMED = "The model's chat template removes the space at the beginning and the end of a message."
LEFT_OUT = "The model's chat template leaves out a part of what was written."
NO_SWITCH = "The model's chat template knows no switch for thinking, so that setting changes nothing."
EFFORT_ONLY = "The model's chat template knows an effort, not a switch: thinking was set to its lowest."

_REMEDY = "Get the file again, or take the one of the original model."

_MARK = "\ue0f7{}\ue0f8"
_ON_OFF = ("enable_thinking", "thinking", "enable_reasoning", "reasoning", "think")
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names under which templates look for the thought of a past message."""


@dataclass(frozen=True)
class Arranged:
    """A chat as the template takes it."""

    messages: tuple[Message, ...]
    text: str
    notes: tuple[str, ...] = ()
    """What the person should know about it."""


class ChatTemplate:
    """One compiled template. Raises ModelError when its source cannot be read."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]):
        import jinja2

        self.source, self._special_tokens = source, special_tokens
        self._asked_at: float | None = None
        self._missing: dict[tuple[Any, ...], frozenset[int]] = {}
        """For each sequence of roles, the places whose messages the template leaves out."""
        environment = _environment(self._strftime_now)
        try:
            self._template = environment.from_string(source)
            tree = environment.parse(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"The model's chat template cannot be read: {error}", _REMEDY) from error
        self._variables = _free_variables(tree)
        self._reasoning_field = next((n for n in _REASONING_FIELDS if n in set(_message_fields(tree))), None)
        self._in_parts: frozenset[str] = frozenset()
        """Roles whose messages are written only as a list of parts: templates of models that also see pictures."""
        for role in ("user", "system", "assistant"):
            before = self._in_parts
            if not self._writes(role):
                self._in_parts = before | {role}
                if not self._writes(role):
                    self._in_parts = before

    # --- rendering -------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], thinking: bool | None, asked_at: float | None) -> str:
        """The chat as text, ending where the reply begins. Raises whatever the template raises."""
        self._asked_at = asked_at
        text: str = self._template.render(
            messages=[self._as_dict(message) for message in self._soft_switch(messages, thinking)],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **self._special_tokens,
            **self._switch(thinking),
        )
        return text

    def arrange(self, messages: Sequence[Message], thinking: bool | None, asked_at: float | None) -> Arranged:
        """Render the chat so that nothing in it is left out; raises PromptError when the template takes it in no way.

        What a template refuses or leaves out (a system prompt, two messages of one role in a row, an assistant's
        that comes first) goes to the nearest place that it does write.
        """
        refusal: Exception | None = None
        best: Arranged | None = None
        for chat, notes in _arrangements(tuple(messages)):
            try:
                text = self.render(chat, thinking, asked_at)
                missing = self._leaves_out(chat, thinking, asked_at)
            except Exception as error:  # noqa: BLE001 - templates are programs; they raise what they like
                refusal = refusal or error
                continue
            best = best or Arranged(chat, text, (*notes, LEFT_OUT))
            if not missing:
                best = Arranged(chat, text, (*notes, *self._losses(chat, text, thinking, asked_at)))
                break
        if best is None:
            raise PromptError(f"The model's chat template refuses this chat: {refusal}") from refusal
        return replace(best, notes=(*best.notes, *self._switch_notes(thinking)))

    def _leaves_out(
        self, chat: Sequence[Message], thinking: bool | None, asked_at: float | None
    ) -> frozenset[int]:
        """Places in the chat whose text is not in what is rendered, found with a mark in each."""
        key = (*((m.role, bool(m.content), bool(m.reasoning)) for m in chat), thinking)
        if key not in self._missing:
            if len(self._missing) > 256:
                self._missing.clear()
            marked = [replace(m, content=_MARK.format(at) if m.content else "") for at, m in enumerate(chat)]
            text = self.render(marked, thinking, asked_at)
            places = (at for at, m in enumerate(chat) if m.content and _MARK.format(at) not in text)
            self._missing[key] = frozenset(places)
        return self._missing[key]

    def _losses(
        self, chat: Sequence[Message], text: str, thinking: bool | None, asked_at: float | None
    ) -> Iterable[str]:
        """Notes about what a person wrote that the template changes: space around it, or more than that."""
        written = [(at, m.content) for at, m in enumerate(chat) if m.role != "assistant" and m.content]
        trimmed = [at for at, content in written if content not in text]
        changed = [at for at, content in written if content.strip() not in text]
        if changed and self._cuts(chat, changed, thinking, asked_at):
            yield LEFT_OUT
        if len(trimmed) > len(changed):
            yield TRIMMED

    def _cuts(
        self, chat: Sequence[Message], places: Sequence[int], thinking: bool | None, asked_at: float | None
    ) -> bool:
        """Whether the template drops the beginning or the end of a message, not just spells it in its own way."""
        begin, end = _MARK.format("a"), _MARK.format("z")
        for at in places:
            marked = [*chat]
            marked[at] = replace(chat[at], content=f"{begin}{chat[at].content}{end}")
            text = self.render(marked, thinking, asked_at)
            if begin not in text or end not in text:
                return True
        return False

    def _writes(self, role: str) -> bool:
        """Whether what someone in that role says gets into the text."""
        mark = _MARK.format("said")
        chat = [Message("user", mark if role == "user" else "?")]
        if role != "user":
            chat.insert(0, Message(role, mark))
        if role == "assistant":
            chat.insert(0, Message("user", "?"))
        try:
            return mark in self.render(chat, None, None)
        except Exception:  # noqa: BLE001 - templates are programs; they raise what they like
            return False

    def _as_dict(self, message: Message) -> dict[str, Any]:
        plain: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.role in self._in_parts:
            plain["content"] = [{"type": "text", "text": message.content}]
        if message.reasoning and self._reasoning_field:
            plain[self._reasoning_field] = message.reasoning
        return plain

    def _strftime_now(self, form: str) -> str:
        now = datetime.now() if self._asked_at is None else datetime.fromtimestamp(self._asked_at)
        return now.strftime(form)

    # --- thinking --------------------------------------------------------------------------------------------

    @property
    def thinking_switch(self) -> str | None:
        """What the template calls its switch for thinking; None: it has none."""
        known = (*_ON_OFF, "reasoning_effort", "thinking_budget")
        found = next((name for name in known if name in self._variables), None)
        return found or ("/no_think" if "/no_think" in self.source else None)

    def _switch(self, thinking: bool | None) -> dict[str, Any]:
        """Variables that switch thinking on or off, as this template wants them."""
        if thinking is None:
            return {}
        switch = self.thinking_switch
        if switch == "reasoning_effort":
            return {switch: "high" if thinking else self._least_effort()}
        if switch == "thinking_budget":
            return {} if thinking else {switch: 0}
        return {switch: thinking} if switch in _ON_OFF else {}

    def _soft_switch(self, messages: Sequence[Message], thinking: bool | None) -> Sequence[Message]:
        """Some templates look for a word in the system prompt."""
        if thinking is None or self.thinking_switch != "/no_think":
            return messages
        word = "/think" if thinking else "/no_think"
        if messages and messages[0].role == "system":
            return [replace(messages[0], content=f"{messages[0].content} {word}"), *messages[1:]]
        return [Message("system", word), *messages]

    def _least_effort(self) -> str:
        return "none" if re.search(r"""['"]none['"]""", self.source) else "low"

    def _switch_notes(self, thinking: bool | None) -> tuple[str, ...]:
        switch = self.thinking_switch
        if thinking is not None and switch is None:
            return (NO_SWITCH,)
        if thinking is False and switch == "reasoning_effort" and self._least_effort() != "none":
            return (EFFORT_ONLY,)
        return ()


# --- other ways to say the same ------------------------------------------------------------------------------


def _arrangements(chat: tuple[Message, ...]) -> Iterable[tuple[tuple[Message, ...], tuple[str, ...]]]:
    """The chat as it is, then ever more of it moved to where any template writes it."""
    moved, joined = _system_moved(chat), _joined(chat)
    yield chat, ()
    if joined != chat:
        yield joined, (JOINED,)
    if moved != chat:
        yield moved, (SYSTEM_MOVED,)
        if _joined(moved) != moved:
            yield _joined(moved), (SYSTEM_MOVED, JOINED)


def _system_moved(chat: tuple[Message, ...]) -> tuple[Message, ...]:
    """Each system prompt's text before the user message that follows it (or the one before, at the end)."""
    messages: list[Message] = []
    waiting: list[str] = []
    for message in chat:
        if message.role == "system":
            waiting.append(message.content)
        elif message.role == "user" and waiting:
            messages.append(replace(message, content="\n\n".join((*waiting, message.content))))
            waiting = []
        else:
            messages.append(message)
    return (*messages, *((Message("user", "\n\n".join(waiting)),) if waiting else ()))


def _joined(chat: tuple[Message, ...]) -> tuple[Message, ...]:
    """Neighbours of one role as one message; what an assistant says first, before the user's first words."""
    messages: list[Message] = []
    for message in chat:
        if messages and messages[-1].role == message.role:
            messages[-1] = replace(message, content=f"{messages[-1].content}\n\n{message.content}")
        else:
            messages.append(message)
    first = next((at for at, m in enumerate(messages) if m.role != "system"), len(messages))
    if first + 1 < len(messages) and messages[first].role == "assistant":
        opening, following = messages[first : first + 2]
        both = replace(following, content=f"{opening.content}\n\n{following.content}")
        messages[first : first + 2] = [both]
    return tuple(messages)


# --- Jinja, as transformers sets it up -----------------------------------------------------------------------


def _environment(strftime_now: Any) -> Environment:
    import jinja2.ext
    from jinja2.ext import Extension
    from jinja2.nodes import CallBlock
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant said, for training; here it only has to be understood."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own way

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

        def _as_it_is(self, caller: Callable[[], str]) -> str:
            return caller()

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _free_variables(tree: nodes.Template) -> frozenset[str]:
    """Names that whoever renders may set: those read without having been set, or asked whether they are defined."""
    from jinja2 import meta, nodes

    asked = {
        test.node.name
        for test in tree.find_all(nodes.Test)
        if test.name in ("defined", "undefined") and isinstance(test.node, nodes.Name)
    }
    return frozenset(meta.find_undeclared_variables(tree) | asked)


def _message_fields(tree: nodes.Template) -> Iterable[str]:
    """Names of fields that a template reads of anything: `x.name`, `x['name']`, `'name' in x`, `x.get('name')`."""
    from jinja2 import nodes

    for get in tree.find_all(nodes.Getattr):
        yield get.attr
    for item in tree.find_all(nodes.Getitem):
        if isinstance(item.arg, nodes.Const) and isinstance(item.arg.value, str):
            yield item.arg.value
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr == "get":
            yield from (a.value for a in call.args if isinstance(a, nodes.Const) and isinstance(a.value, str))
