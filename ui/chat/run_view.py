"""Folds a run's events into what a panel shows; knows nothing of Gradio, files or processes.

Events arrive on a worker's reader thread, views are taken by whoever draws the page, a few times a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from engines.protocol import (
    Event,
    Failed,
    Finished,
    Loaded,
    Progress,
    Prompted,
    RunMetrics,
    Target,
    Token,
)
from engines.telemetry.disturbance import OtherLoad
from engines.telemetry.observer import Observed
from engines.telemetry.placement import CONTRADICTED, Placement

RATE_WINDOW_S = 2.0
"""The moving decode rate looks back this far."""
DONE_PHASES = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class RunView:
    """One run as it stands: what a panel shows."""

    panel: int
    target: Target
    run_id: str | None = None
    phase: str = "waiting"
    """`waiting`, `preparing`, `loading`, `prefill`, `running`, `finished`, `stopped`, `failed`."""
    text: str = ""
    """The answer."""
    reasoning: str = ""
    """What the model thought before it."""
    reasoning_tokens: int | None = None
    """None: nobody here can tell thought from answer."""
    answer_tokens: int | None = None
    first_reasoning_s: float | None = None
    first_answer_s: float | None = None
    note: str | None = None
    """What the chat template could not take as it was written, and what was done about it."""
    progress: Progress | None = None
    tokens: int | None = 0
    """None: text comes in pieces from elsewhere, and how many tokens they are is not known (yet)."""
    ttft_s: float | None = None
    felt_ttft_s: float | None = None
    """From the key press to the first token's arrival in this process: loading and waiting included."""
    elapsed_s: float | None = None
    """Since the worker took the request; None before."""
    decode_tok_s: float | None = None
    """Moving over the last two seconds while running; the defined rate when done."""
    metrics: RunMetrics | None = None
    """Complete when done; of a failed run, what was received."""
    token_offsets_s: tuple[float, ...] = ()
    """Filled when done (see `metrics` for the rest)."""
    finish_reason: str | None = None
    failure: Failed | None = None
    warning: str | None = None
    load_s: float | None = None
    warmup_s: float | None = None
    loaded: Loaded | None = None
    prompt_tokens: int | None = None
    prompt_sha256: str | None = None
    peak_rss_bytes: int | None = None
    contended: bool = False
    """Other work of ours overlapped it; known when done."""
    disturbed: bool | None = None
    """Other programs or the power state got in its way; None: nobody looked (yet)."""
    other_load: OtherLoad | None = None
    placement: Placement | None = None
    old_rule: bool = False
    """Its stamp knows only what went on when the run began."""
    version: int = 0
    """Grows with every change."""

    @property
    def alone(self) -> bool:
        """Whether its numbers may stand for its backend."""
        return not self.contended and not self.disturbed and not self.misplaced

    @property
    def misplaced(self) -> bool:
        """It ran elsewhere than it claims."""
        return self.placement is not None and self.placement.badge == CONTRADICTED

    @property
    def done(self) -> bool:
        return self.phase in DONE_PHASES

    @property
    def thinking(self) -> bool:
        """Whether what is being written just now is the thought."""
        return not self.done and bool(self.reasoning) and not self.text

    @property
    def thought_s(self) -> float | None:
        """How long the model thought, or has been thinking; of a logged or finished run as the metrics say."""
        if self.metrics is not None:
            return self.metrics.thought_s
        if self.first_reasoning_s is None:
            return None
        end = self.first_answer_s if self.first_answer_s is not None else self.elapsed_s
        return None if end is None else max(0.0, end - self.first_reasoning_s)


def whose_times(metrics: RunMetrics | None) -> str | None:
    """Whose clock took a run's times and where its rate comes from; None where it was our worker, token by token."""
    if metrics is None or metrics.clock == "worker":
        return None
    if metrics.clock == "server":
        return "times: the server's own, token by token"
    counted = (
        ", rate from the server's token count over the stream's span" if metrics.rate_from_counts else ""
    )
    return f"times: as the text reached this computer{counted}"


class RunFold:
    """The growing state of one run. Thread-safe."""

    def __init__(
        self,
        panel: int,
        target: Target,
        *,
        pressed_at: float | None = None,
        carried_on: RunFold | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_event: Callable[[Event], None] | None = None,
    ):
        """`pressed_at`: reading of `clock` when the person pressed Send; `carried_on`: the run whose reply goes on
        here; `on_event`: told each event once it is folded in, on whatever thread it came; must return quickly."""
        self._clock, self._pressed_at = clock, pressed_at
        self._lock = threading.Lock()
        self._on_event = on_event
        self._view = RunView(panel, target)
        self._ended_as: tuple[RunView, RunView] | None = None
        """Once it is done: what the snapshot was made of, and the snapshot; a long history asks for it often."""
        before = carried_on.view() if carried_on else None
        self._carried_on = (before.text, before.reasoning) if before else ("", "")
        self._carried_ids = carried_on.token_ids() if carried_on else ()
        self._knows_ids = bool(self._carried_ids) or not any(self._carried_on)
        self._texts: list[str] = [self._carried_on[0]]
        self._thoughts: list[str] = [self._carried_on[1]]
        self._ids: list[int] = []
        self._offsets: list[float] = []
        self._pieces: list[float] = []
        """Arrival of text whose tokens are not seen."""
        self._started: float | None = None
        self._ended: float | None = None

    def change(self, **fields: Any) -> None:
        """Set fields of the view."""
        with self._lock:
            self._set(**fields)

    def _set(self, **fields: Any) -> None:
        self._view = replace(self._view, version=self._view.version + 1, **fields)

    def start(self) -> None:
        """The request is on its way to the worker."""
        with self._lock:
            self._started = self._clock()
            self._set(phase="prefill", progress=None)

    def stamp(self, observed: Observed) -> None:
        """What was seen of the run; before its last event, so that nobody sees it done and unstamped."""
        conditions = observed.conditions
        self.change(
            contended=conditions.contended,
            disturbed=conditions.disturbed,
            other_load=conditions.other_load,
            placement=observed.placement,
        )

    def take(self, event: Event) -> None:
        """Fold one event in."""
        with self._lock:
            if isinstance(event, Token):
                self._take_token(event)
            elif isinstance(event, Prompted):
                self._set(
                    prompt_tokens=event.prompt_tokens, prompt_sha256=event.prompt_sha256, note=event.note
                )
            elif isinstance(event, Progress):
                phase = "preparing" if event.stage in ("queue", "download", "convert") else "loading"
                self._set(progress=event, phase=phase)
            elif isinstance(event, Loaded):
                self._set(loaded=event, load_s=event.load_s, warmup_s=event.warmup_s)
            elif isinstance(event, Finished):
                self._finish(event)
            elif isinstance(event, Failed):
                self._fail(event)
        if self._on_event is not None:
            self._on_event(event)

    def _take_token(self, token: Token) -> None:
        self._texts.append(token.text)
        self._thoughts.append(token.thought)
        if token.token_id is not None:
            self._ids.append(token.token_id)
        if token.thought and self._view.first_reasoning_s is None:
            self._set(first_reasoning_s=token.offset_s)
        if token.text and self._view.first_answer_s is None:
            self._set(first_answer_s=token.offset_s)
        offsets = self._pieces if token.token_id is None else self._offsets
        offsets.append(token.offset_s)
        if len(offsets) == 1:
            felt_s = self._clock() - self._pressed_at if self._pressed_at is not None else None
            self._set(phase="running", ttft_s=token.offset_s, felt_ttft_s=felt_s)

    def _finish(self, finished: Finished) -> None:
        text, thought = self._carried_on
        self._texts, self._thoughts = [text + finished.text], [thought + (finished.reasoning or "")]
        self._offsets = list(finished.metrics.token_offsets_s)
        self._pieces = list(finished.metrics.piece_offsets_s)
        if finished.metrics.prompt_tokens is not None:
            self._set(prompt_tokens=finished.metrics.prompt_tokens)
        self._end(
            phase="stopped" if finished.finish_reason == "cancelled" else "finished",
            metrics=finished.metrics,
            ttft_s=finished.metrics.ttft_s,
            reasoning_tokens=finished.metrics.reasoning_tokens,
            answer_tokens=finished.metrics.answer_tokens,
            first_reasoning_s=finished.metrics.first_reasoning_s,
            first_answer_s=finished.metrics.first_answer_s,
            finish_reason=finished.finish_reason,
            warning=finished.warning,
            peak_rss_bytes=finished.metrics.peak_rss_bytes,
        )

    def _fail(self, failed: Failed) -> None:
        loaded = self._view.loaded
        metrics = RunMetrics(
            prompt_tokens=self._view.prompt_tokens,
            prompt_sha256=self._view.prompt_sha256,
            output_tokens=self._tokens(),
            token_offsets_s=tuple(self._offsets),
            piece_offsets_s=tuple(self._pieces),
            clock="client" if self._pieces else "worker",
            first_reasoning_s=self._view.first_reasoning_s,
            first_answer_s=self._view.first_answer_s,
            load_s=loaded.load_s if loaded else None,
            compile_s=loaded.compile_s if loaded else None,
            warmup_s=loaded.warmup_s if loaded else None,
        )
        stopped = failed.kind == "cancelled"
        self._end(
            phase="stopped" if stopped else "failed",
            failure=None if stopped else failed,
            finish_reason="cancelled" if stopped else None,
            metrics=metrics,
        )

    def _end(self, **fields: Any) -> None:
        self._ended = self._clock()
        self._set(progress=None, token_offsets_s=tuple(self._offsets), **fields)

    def _tokens(self) -> int | None:
        """Tokens so far; a finished run's own count where only pieces were seen."""
        if self._offsets or not self._pieces:
            return len(self._offsets)
        return self._view.metrics.output_tokens if self._view.metrics else None

    def partial(self) -> tuple[str, str, tuple[float, ...], tuple[int, ...]]:
        """Answer, thought, token offsets and ids (as `token_ids`) so far."""
        with self._lock:
            return "".join(self._texts), "".join(self._thoughts), tuple(self._offsets), self._all_ids()

    def token_ids(self) -> tuple[int, ...]:
        """Ids of the whole reply, with those of the part that it carries on; () where not all of them are known."""
        with self._lock:
            return self._all_ids()

    def _all_ids(self) -> tuple[int, ...]:
        return (*self._carried_ids, *self._ids) if self._knows_ids else ()

    def view(self) -> RunView:
        """A consistent snapshot."""
        with self._lock:
            if len(self._texts) > 1:
                self._texts, self._thoughts = ["".join(self._texts)], ["".join(self._thoughts)]
            done = self._view.done
            if done and self._ended_as is not None and self._ended_as[0] is self._view:
                return self._ended_as[1]
            seen = replace(
                self._view,
                text=self._texts[0],
                reasoning=self._thoughts[0],
                tokens=self._tokens(),
                elapsed_s=self._elapsed_s(),
                decode_tok_s=self._view.metrics.decode_tok_s
                if done and self._view.metrics
                else self._moving_rate(),
                version=self._view.version + len(self._offsets) + len(self._pieces),
            )
            if done:
                self._ended_as = (self._view, seen)
            return seen

    def _elapsed_s(self) -> float | None:
        if self._view.metrics and self._view.metrics.total_s is not None:
            return self._view.metrics.total_s
        if self._started is None:
            return None
        return (self._ended if self._ended is not None else self._clock()) - self._started

    def _moving_rate(self) -> float | None:
        if len(self._offsets) < 2:
            return None
        newest = self._offsets[-1]
        first = next(
            i
            for i in range(len(self._offsets) - 1, -1, -1)
            if i == 0 or newest - self._offsets[i] >= RATE_WINDOW_S
        )
        span = newest - self._offsets[first]
        return (len(self._offsets) - 1 - first) / span if span > 0 else None


class PastFold(RunFold):
    """What a run of an earlier start of the app has come to; nothing more happens to it."""

    def __init__(self, seen: RunView, reply_ids: tuple[int, ...]):
        super().__init__(seen.panel, seen.target)
        self._view, self._ids = seen, list(reply_ids)

    def view(self) -> RunView:
        return self._view
