"""What stands between a prompt and its target: nothing for the owner, a fair line and limits for visitors.

A gate lets a run pass when its turn has come, hears its events, and decides what of it may be seen. Runs of the
owner pass the open gate at once.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from engines.protocol import Event, Failed, Progress, Prompted
from engines.runtime.manager import EngineFailure
from ui.chat.run_view import RunFold, RunView


class GatedRun(Protocol):
    """What a gate needs of a run."""

    run_id: str
    fold: RunFold
    cancelled: threading.Event

    def stop(self) -> None: ...


class Gate:
    """The open gate."""

    @contextmanager
    def passed(self, run: GatedRun) -> Iterator[None]:
        """Hold the run's place while it runs; waits for it first. Raises EngineFailure when it may not run."""
        yield

    def take(self, run: GatedRun, event: Event) -> None:
        """An event of the run."""
        run.fold.take(event)

    def seen(self, view: RunView) -> RunView:
        """What may be shown of the run."""
        return view


OPEN = Gate()


# --- limits ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What the owner lets each visitor take."""

    prompt_tokens: int = 2_000
    output_tokens: int = 512
    run_s: float = 120.0
    """A reply is stopped after this, loading included."""
    runs_per_minute: int = 12
    concurrent_runs: int = 2
    """Of all visitors together."""
    panels: int = 2
    waiting_runs: int = 6
    """Of one visitor, in the line or running."""


# --- the line ----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Ticket:
    """One run's place in the line."""

    visitor: str
    let_in: threading.Event = field(default_factory=threading.Event)


class FairLine:
    """At most so many runs at once; whoever was served longest ago is next. Thread-safe.

    Each visitor has a line of their own, and the lines take turns: a hundred prompts of one visitor make another
    wait for one of them.
    """

    def __init__(self, slots: int):
        self._slots, self._inside = slots, 0
        self._lines: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._lock = threading.Lock()

    def resize(self, slots: int) -> None:
        with self._lock:
            self._slots = max(1, slots)
            self._admit()

    def join(self, visitor: str) -> Ticket:
        """Stand in line; `ticket.let_in` is set when the run may begin."""
        ticket = Ticket(visitor)
        with self._lock:
            self._lines.setdefault(visitor, deque()).append(ticket)
            self._admit()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The run has ended, or nobody waits for it any more."""
        with self._lock:
            if ticket.let_in.is_set():
                self._inside -= 1
            else:
                line = self._lines.get(ticket.visitor)
                if line is not None and ticket in line:
                    line.remove(ticket)
                    if not line:
                        del self._lines[ticket.visitor]
            self._admit()

    def position(self, ticket: Ticket) -> int:
        """How many runs are let in before it, itself counted: 1 is next; 0: it is in."""
        with self._lock:
            if ticket.let_in.is_set():
                return 0
            lines = [deque(line) for line in self._lines.values()]
        place = 0
        while lines:
            for line in lines:
                place += 1
                if line.popleft() is ticket:
                    return place
            lines = [line for line in lines if line]
        return 0

    def most_wait_s(self, position: int, run_s: float) -> float:
        """No run at that position waits longer, when none may take longer than `run_s`."""
        return -(-position // max(1, self._slots)) * run_s

    def waiting(self) -> int:
        with self._lock:
            return sum(map(len, self._lines.values()))

    def _admit(self) -> None:
        while self._inside < self._slots and self._lines:
            visitor, line = next(iter(self._lines.items()))
            ticket = line.popleft()
            del self._lines[visitor]
            if line:
                self._lines[visitor] = line  # at the end: the others first
            self._inside += 1
            ticket.let_in.set()


# --- a visitor's gate --------------------------------------------------------------------------------------

SCRUBBED = Failed(
    "error",
    "This backend could not answer.",
    "Try another one, or tell the owner of this PC: the reason is in the history there.",
)


class VisitorGate(Gate):
    """One visitor's runs: in line, within limits, and showing nothing of the owner's machine but the reply."""

    def __init__(
        self, visitor: str, line: FairLine, limits: Limits, clock: Callable[[], float] = time.monotonic
    ):
        self._visitor, self._line, self.limits, self._clock = visitor, line, limits, clock
        self._notes: dict[str, str] = {}
        """Run -> why it was stopped."""

    @contextmanager
    def passed(self, run: GatedRun) -> Iterator[None]:
        ticket = self._line.join(self._visitor)
        try:
            self._wait(run, ticket)
            timer = threading.Timer(self.limits.run_s, self._time_is_up, (run,))
            timer.daemon = True
            timer.start()
            try:
                yield
            finally:
                timer.cancel()
        finally:
            self._line.leave(ticket)

    def _wait(self, run: GatedRun, ticket: Ticket) -> None:
        told = None
        while not ticket.let_in.wait(0.2):
            if run.cancelled.is_set():
                raise EngineFailure(Failed("cancelled", "Stopped before it began."))
            position = self._line.position(ticket)
            if position and position != told:
                told = position
                run.fold.take(Progress("queue", self._in_line(position)))

    def _in_line(self, position: int) -> str:
        wait_s = self._line.most_wait_s(position, self.limits.run_s)
        longest = f"{wait_s:.0f} s" if wait_s < 120 else f"{wait_s / 60:.0f} min"
        return f"Number {position} in line, at most {longest}"

    def take(self, run: GatedRun, event: Event) -> None:
        run.fold.take(event)
        if isinstance(event, Prompted) and (event.prompt_tokens or 0) > self.limits.prompt_tokens:
            self._stop(
                run,
                f"The prompt has {event.prompt_tokens:,} tokens with the chat before it; the owner of this PC "
                f"takes at most {self.limits.prompt_tokens:,}. Start a new conversation, or shorten it.",
            )

    def _time_is_up(self, run: GatedRun) -> None:
        self._stop(run, f"Stopped after {self.limits.run_s:.0f} s, the longest the owner of this PC allows.")

    def _stop(self, run: GatedRun, why: str) -> None:
        self._notes[run.run_id] = why
        # Not in the thread that reads the worker's events: stopping waits for nothing, but writes to the worker.
        threading.Thread(target=run.stop, name="limit", daemon=True).start()

    def seen(self, view: RunView) -> RunView:
        """A list of what is shown, so that nothing new about the machine is shown by accident."""
        progress = view.progress
        if progress is not None and progress.stage != "queue":
            progress = Progress(progress.stage, "Getting the model ready", progress.fraction)
        metrics = view.metrics
        return RunView(
            view.panel,
            view.target,
            view.run_id,
            phase=view.phase,
            text=view.text,
            reasoning=view.reasoning,
            reasoning_tokens=view.reasoning_tokens,
            answer_tokens=view.answer_tokens,
            first_reasoning_s=view.first_reasoning_s,
            first_answer_s=view.first_answer_s,
            note=view.note,
            progress=progress,
            tokens=view.tokens,
            ttft_s=view.ttft_s,
            felt_ttft_s=view.felt_ttft_s,
            elapsed_s=view.elapsed_s,
            decode_tok_s=view.decode_tok_s,
            metrics=replace(metrics, peak_rss_bytes=None) if metrics else None,
            token_offsets_s=view.token_offsets_s,
            finish_reason=view.finish_reason,
            failure=SCRUBBED if view.failure else None,
            warning=self._notes.get(view.run_id or "") or view.warning,
            prompt_tokens=view.prompt_tokens,
            prompt_sha256=view.prompt_sha256,
            contended=view.contended,
            version=view.version,
        )
