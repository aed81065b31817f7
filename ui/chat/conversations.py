"""What a conversation looks like, panel by panel, whether its turns still run or come from the log.

One `Talk` per conversation in the whole process, shared by every browser tab that shows it: that is why a reload in
mid-stream finds the running replies again. A running reply is read through its LiveRun, a logged one through the
frozen view made from its row; the page cannot tell them apart.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

from engines.protocol import Target
from storage.records import Turn as LoggedTurn
from storage.store import Store, StoreError
from ui.chat.live_turn import LiveTurn
from ui.chat.past import past_view
from ui.chat.run_view import RunView
from ui.chat.settings import Settings, logged_settings
from ui.chat.turns import Turns

log = logging.getLogger(__name__)

KEPT_TALKS = 60


class Run(Protocol):
    """What the page needs of a run: LiveRun has it, and so has PastRun."""

    @property
    def panel(self) -> int: ...

    @property
    def target(self) -> Target: ...

    @property
    def run_id(self) -> str: ...

    def view(self) -> RunView: ...


@dataclass(frozen=True)
class PastRun:
    """A run read from the log."""

    panel: int
    target: Target
    run_id: str
    seen: RunView

    def view(self) -> RunView:
        return self.seen


@dataclass
class TalkTurn:
    """One prompt and the runs that answer it."""

    turn_id: str
    prompt: str
    mode: str
    live: LiveTurn | None = None
    """The LiveTurn while this process knows it."""
    past: tuple[PastRun, ...] = ()
    settings: Settings | None = None
    """What it was sent with; None: not known."""
    vote: str | None = None
    """Panel number, `tie` or `none`, once the person has voted."""

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(self.live.runs) if self.live is not None else self.past

    @property
    def done(self) -> bool:
        return self.live is None or self.live.done

    def run(self, panel: int) -> Run | None:
        """The newest attempt of a panel."""
        return next((run for run in reversed(self.runs) if run.panel == panel), None)

    def panels(self) -> tuple[int, ...]:
        return tuple(sorted({run.panel for run in self.runs}))


@dataclass
class Talk:
    conversation_id: str
    turns: list[TalkTurn] = field(default_factory=list)
    version: int = 0
    """Grows when a turn is added or replaced, or a vote is cast."""
    blind: bool = False
    """Nobody has voted yet on what was asked without the backends' names: whoever opens it sees none, either."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, live_turn: LiveTurn, replaces_turn_id: str | None = None) -> TalkTurn:
        """Put a turn at the end; the one it replaces is gone, with everything that followed it."""
        turn = _live_turn(live_turn)
        with self.lock:
            ids = [known.turn_id for known in self.turns]
            cut = ids.index(replaces_turn_id) if replaces_turn_id in ids else len(ids)
            kept = [known for known in self.turns[:cut] if known.turn_id != turn.turn_id]
            self.turns = [*kept, turn]
            self.version += 1
        return turn

    def of_panel(self, panel: int) -> list[tuple[TalkTurn, Run]]:
        """Every turn this panel took part in, oldest first."""
        pairs = ((turn, turn.run(panel)) for turn in self.turns)
        return [(turn, run) for turn, run in pairs if run is not None]

    def running(self) -> list[TalkTurn]:
        return [turn for turn in self.turns if not turn.done]

    def latest(self) -> TalkTurn | None:
        return self.turns[-1] if self.turns else None

    def touched(self) -> None:
        """Something about a finished turn changed."""
        with self.lock:
            self.version += 1


class Talks:
    """The conversations this process has shown lately; a running one is never forgotten."""

    def __init__(self, store: Store, turns: Turns):
        self._store, self._turns = store, turns
        self._talks: OrderedDict[str, Talk] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, conversation_id: str | None) -> Talk | None:
        """The conversation, from memory or from the log; None if there is no such one."""
        if not conversation_id:
            return None
        with self._lock:
            if conversation_id in self._talks:
                self._talks.move_to_end(conversation_id)
                return self._talks[conversation_id]
        talk = self._read(conversation_id)
        if talk is None:
            return None
        with self._lock:
            return self._talks.setdefault(conversation_id, talk)

    def opened(self, conversation_id: str) -> Talk | None:
        """The same, for somebody who comes to it: also with what another window or a command has added meanwhile."""
        talk = self.find(conversation_id)
        if talk is not None and not talk.running() and (read := self._read(conversation_id)) is not None:
            with talk.lock:
                talk.turns = read.turns
                talk.version += 1
        return talk

    def started(self, live_turn: LiveTurn, replaces_turn_id: str | None = None) -> TalkTurn:
        """Take in a turn that was just sent."""
        with self._lock:
            talk = self._talks.setdefault(live_turn.conversation_id, Talk(live_turn.conversation_id))
            self._forget_old()
        return talk.add(live_turn, replaces_turn_id)

    def _forget_old(self) -> None:
        for conversation_id in list(self._talks)[: max(0, len(self._talks) - KEPT_TALKS)]:
            if not self._talks[conversation_id].running():
                del self._talks[conversation_id]

    def _read(self, conversation_id: str) -> Talk | None:
        """From the log, with the turns this process still knows taking the place of their rows."""
        talk = Talk(conversation_id)
        try:
            logged = self._store.conversation(conversation_id)
        except StoreError as error:
            log.warning("conversation %s cannot be read: %s", conversation_id, error)
            logged = None
        live = {turn.turn_id: turn for turn in self._turns.live_turns(conversation_id)}
        turns = logged.current_turns() if logged else ()
        talk.turns = [
            _live_turn(live[turn.id], _winner(turn)) if turn.id in live else _past_turn(turn)
            for turn in turns
        ]
        in_log = {turn.id for turn in logged.turns} if logged else set()
        for turn_id, live_turn in live.items():
            if turn_id not in in_log:
                talk.add(live_turn)
        return talk if logged or talk.turns else None


def _live_turn(turn: LiveTurn, vote: str | None = None) -> TalkTurn:
    return TalkTurn(turn.turn_id, turn.prompt, turn.mode, live=turn, settings=turn.settings, vote=vote)


def _winner(turn: LoggedTurn) -> str | None:
    return turn.vote.winner if turn.vote else None


def _past_turn(turn: LoggedTurn) -> TalkTurn:
    runs = tuple(PastRun(run.panel, run.target, run.id, past_view(run)) for run in turn.latest_runs())
    prompt = turn.prompt if turn.prompt is not None else "(the text was not kept)"
    settings = logged_settings(turn.settings, turn.system_prompt)
    return TalkTurn(turn.id, prompt, turn.mode, past=runs, settings=settings, vote=_winner(turn))
