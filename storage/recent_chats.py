"""What this process said and heard lately, so that a chat goes on when its text is not (or not yet) in the file."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

KEPT_CONVERSATIONS = 200


@dataclass
class RunMemo:
    panel: int
    attempt: int
    status: str = "running"
    text: str | None = None
    reasoning: str | None = None


@dataclass
class TurnMemo:
    id: str
    prompt: str
    replaces_turn_id: str | None
    runs: dict[str, RunMemo] = field(default_factory=dict)


class ChatMemory:
    """The latest conversations of this process; the oldest is dropped beyond KEPT_CONVERSATIONS. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._conversations: OrderedDict[str, dict[str, TurnMemo]] = OrderedDict()
        self._turns: dict[str, TurnMemo] = {}
        self._runs: dict[str, RunMemo] = {}
        self._begun: set[str] = set()

    def begin(self, conversation_id: str) -> None:
        """It begins now, so all of it will be here."""
        with self._lock:
            self._begun.add(conversation_id)

    def has_all(self, conversation_id: str) -> bool:
        """Whether everything that was said in a conversation is here, because it began here and was not dropped."""
        with self._lock:
            return conversation_id in self._begun

    def add_turn(self, conversation_id: str, turn: TurnMemo) -> None:
        with self._lock:
            turns = self._conversations.setdefault(conversation_id, {})
            turns[turn.id] = self._turns[turn.id] = turn
            self._conversations.move_to_end(conversation_id)
            while len(self._conversations) > KEPT_CONVERSATIONS:
                self._drop(next(iter(self._conversations)))

    def take_up(self, conversation_id: str, turn: TurnMemo) -> None:
        """A turn of an earlier start of the app gets new runs: they are kept here like those of our own turns."""
        with self._lock:
            known = turn.id in self._turns
        if not known:
            self.add_turn(conversation_id, turn)

    def add_run(self, turn_id: str, run_id: str, run: RunMemo) -> None:
        with self._lock:
            if turn_id in self._turns:
                self._turns[turn_id].runs[run_id] = self._runs[run_id] = run

    def set_run(self, run_id: str, text: str, reasoning: str | None, status: str) -> None:
        with self._lock:
            run = self._runs.get(run_id)
            if run is not None and run.status == "running":
                run.text, run.reasoning, run.status = text, reasoning, status

    def turns(self, conversation_id: str) -> tuple[TurnMemo, ...]:
        """The turns of a conversation, as they are now."""
        with self._lock:
            return tuple(
                TurnMemo(turn.id, turn.prompt, turn.replaces_turn_id, dict(turn.runs))
                for turn in self._conversations.get(conversation_id, {}).values()
            )

    def forget(self, conversation_id: str | None = None) -> None:
        """Drop one conversation, or all."""
        with self._lock:
            for dropped in [conversation_id] if conversation_id else list(self._conversations):
                self._drop(dropped)

    def _drop(self, conversation_id: str) -> None:
        self._begun.discard(conversation_id)
        for turn in self._conversations.pop(conversation_id, {}).values():
            self._turns.pop(turn.id, None)
            for run_id in turn.runs:
                self._runs.pop(run_id, None)
