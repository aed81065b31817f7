"""Visitors and what the owner lets them have: opened backends, limits, and their conversations while they are here.

A visitor is one login. What they said belongs to that login and is gone for them when it ends; the owner's history
keeps the numbers, and the words only if the owner wants so (`storage.housekeeping.KEEP_VISITORS_TEXT`).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from engines.protocol import Target
from storage.housekeeping import KEEP_VISITORS_TEXT
from storage.store import Store, StoreError
from ui.access import Login
from ui.chat.gates import FairLine, Limits, VisitorGate
from ui.chat.live_turn import LiveTurn
from ui.chat.settings import Settings
from ui.chat.turns import TurnError, Turns
from ui.share.door import Door

LIMITS = "share.limits"
TARGETS = "share.targets"
MOST_CONVERSATIONS = 50
"""Of one visitor, that can be found again."""
GONE_AFTER_S = 45.0
"""A visitor whose page asked for nothing that long has gone; what runs for them ends."""
CHARACTERS_PER_TOKEN = 12
"""No text has more than that: what is longer is refused before a worker has to count."""
RANGES: dict[str, tuple[float, float]] = {
    "prompt_tokens": (16, 1_000_000),
    "output_tokens": (1, 32_768),
    "run_s": (5, 3_600),
    "runs_per_minute": (1, 600),
    "concurrent_runs": (1, 16),
    "panels": (1, 6),
    "waiting_runs": (1, 100),
}


@dataclass(eq=False)
class Visitor:
    """One login's doings. Changed under its lock."""

    login: Login
    conversations: OrderedDict[str, str] = field(default_factory=OrderedDict)
    """Id -> the beginning of its first prompt, oldest first."""
    turns: list[LiveTurn] = field(default_factory=list)
    """Those that may still run."""
    sent: deque[float] = field(default_factory=deque)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def running(self) -> int:
        self.turns = [turn for turn in self.turns if not turn.done]
        return sum(not run.done.is_set() for turn in self.turns for run in turn.runs)

    def stop(self) -> None:
        for turn in list(self.turns):
            turn.stop()


class Visitors:
    """Everybody who is here by a visitor's login. Thread-safe."""

    def __init__(self, door: Door, store: Store, turns: Turns, clock: Callable[[], float] = time.monotonic):
        self._door, self._store, self._turns, self._clock = door, store, turns, clock
        self._lock = threading.Lock()
        self._here: dict[str, Visitor] = {}
        self.limits = self._kept_limits()
        self.line = FairLine(self.limits.concurrent_runs)
        self._closing = threading.Event()
        door.on_end.append(self._left)
        threading.Thread(target=self._look_after, name="visitors", daemon=True).start()

    def of(self, login: Login) -> Visitor:
        with self._lock:
            return self._here.setdefault(login.id, Visitor(login))

    # --- what the owner decides ------------------------------------------------------------------------

    def targets(self) -> list[Target]:
        """The backends that are open to visitors."""
        kept = self._setting(TARGETS, [])
        rows = (
            [row for row in kept if isinstance(row, list) and len(row) == 4] if isinstance(kept, list) else []
        )
        return [Target(*map(str, row)) for row in rows]

    def open_targets(self, targets: Sequence[Target]) -> None:
        """Raises StoreError."""
        rows = [[t.engine, t.device, t.precision, t.model] for t in dict.fromkeys(targets)]
        self._store.set_setting(TARGETS, rows)

    def set_limits(self, **wanted: float) -> Limits:
        """Change some limits; raises ValueError naming the one that makes no sense, and StoreError."""
        for name, value in wanted.items():
            low, high = RANGES[name]
            if not low <= value <= high:
                raise ValueError(f"{name.replace('_', ' ')} must be between {low:g} and {high:g}.")
        whole = {name: value if name == "run_s" else int(value) for name, value in wanted.items()}
        limits = replace(self.limits, **whole)  # type: ignore[arg-type]
        self._store.set_setting(LIMITS, asdict(limits))
        self.limits = limits
        self.line.resize(limits.concurrent_runs)
        return limits

    @property
    def keeps_text(self) -> bool:
        """Whether visitors' words are kept in the history; their numbers always are."""
        return bool(self._setting(KEEP_VISITORS_TEXT, False))

    def keep_text(self, keep: bool) -> None:
        """Raises StoreError."""
        self._store.set_setting(KEEP_VISITORS_TEXT, bool(keep))

    def _kept_limits(self) -> Limits:
        kept = self._setting(LIMITS, {})
        known = {f.name for f in fields(Limits)}
        found: dict[str, Any] = {}
        for name, value in kept.items() if isinstance(kept, dict) else ():
            low, high = RANGES.get(name, (0, 0))
            if name in known and isinstance(value, (int, float)) and low <= value <= high:
                found[name] = value
        return Limits(**found)

    def _setting(self, key: str, default: Any) -> Any:
        try:
            return self._store.get_setting(key, default)
        except StoreError:
            return default

    # --- what a visitor does ---------------------------------------------------------------------------

    def send(
        self,
        visitor: Visitor,
        prompt: str,
        panels: Sequence[tuple[int, Target]],
        settings: Settings,
        **more: Any,
    ) -> LiveTurn:
        """Send a visitor's prompt within their limits; raises TurnError with the sentence for them."""
        conversation_id = more.get("conversation_id")
        if conversation_id and conversation_id not in visitor.conversations:
            raise TurnError("That conversation is not here.")
        limits = self.limits
        if settings.max_new_tokens > limits.output_tokens:
            settings = replace(settings, max_new_tokens=limits.output_tokens)
        with visitor.lock:
            self._check(visitor, prompt + (settings.system_prompt or ""), panels)
            gate = VisitorGate(visitor.login.id, self.line, limits)
            turn = self._turns.send(prompt, panels, settings, owner=visitor.login.owns, gate=gate, **more)
            visitor.sent.extend([self._clock()] * len(panels))
            visitor.turns.append(turn)
            if turn.conversation_id not in visitor.conversations:
                visitor.conversations[turn.conversation_id] = " ".join(prompt.split())[:80]
                while len(visitor.conversations) > MOST_CONVERSATIONS:
                    visitor.conversations.popitem(last=False)
        return turn

    def may_run_again(self, visitor: Visitor, turn: LiveTurn, target: Target) -> None:
        """Book one more run of a visitor's own turn; raises TurnError."""
        with visitor.lock:
            if turn.conversation_id not in visitor.conversations:
                raise TurnError("That conversation is not here.")
            self._check(visitor, turn.prompt, [(1, target)])
            visitor.sent.append(self._clock())
            if turn not in visitor.turns:
                visitor.turns.append(turn)

    def _check(self, visitor: Visitor, text: str, panels: Sequence[tuple[int, Target]]) -> None:
        limits, opened = self.limits, self.targets()
        if not self._door.visitors_welcome:
            raise TurnError("Sharing has ended.")
        if any(target not in opened for _, target in panels):
            raise TurnError("The owner has closed this backend. Choose another one.")
        if len(panels) > limits.panels:
            raise TurnError(f"At most {limits.panels} panels can be used here.")
        if len(text) > limits.prompt_tokens * CHARACTERS_PER_TOKEN:
            raise TurnError(
                f"The prompt has {len(text):,} characters, more than {limits.prompt_tokens:,} tokens can be. "
                "Shorten it."
            )
        if visitor.running() + len(panels) > limits.waiting_runs:
            raise TurnError(
                f"You have {visitor.running()} replies in line or being written; at most {limits.waiting_runs} "
                "can be. Wait for them, or stop them."
            )
        self._check_pace(visitor, len(panels))

    def _check_pace(self, visitor: Visitor, runs: int) -> None:
        now, most = self._clock(), self.limits.runs_per_minute
        while visitor.sent and now - visitor.sent[0] >= 60:
            visitor.sent.popleft()
        if len(visitor.sent) + runs > most:
            wait_s = 60 - (now - visitor.sent[0]) if visitor.sent else 60
            raise TurnError(f"At most {most} replies a minute. Try again in {max(1, round(wait_s))} s.")

    # --- leaving ---------------------------------------------------------------------------------------

    def _left(self, login: Login) -> None:
        with self._lock:
            visitor = self._here.pop(login.id, None)
        if visitor is not None:
            visitor.stop()

    def _look_after(self) -> None:
        while not self._closing.wait(5.0):
            self.stop_the_gone()

    def stop_the_gone(self) -> None:
        """End the runs of visitors whose page has fallen silent."""
        with self._lock:
            here = list(self._here.values())
        for visitor in here:
            if visitor.running() and self._door.logins.silent_s(visitor.login) > GONE_AFTER_S:
                visitor.stop()

    def close(self) -> None:
        self._closing.set()
