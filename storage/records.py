"""What the store hands out: frozen dataclasses, independent of tables. Missing is None."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.protocol import Message, RunMetrics, Target
from engines.telemetry.disturbance import OtherLoad
from engines.telemetry.placement import Placement
from storage.codec import read_back, read_ids, restored, unpack_offsets


@dataclass(frozen=True)
class Run:
    """One target's generation for one turn."""

    id: str
    turn_id: str
    panel: int
    attempt: int
    target: Target
    status: str
    """`running`, `finished`, `stopped`, `failed`, `interrupted` (the app ended before the run did)."""
    contended: bool
    disturbed: bool | None
    """None: stamped by the old rule, which did not ask, or it never ran to an end."""
    stamp_rule: str
    """`end`: decided when the run ended; `start`: the old rule, what went on when it began."""
    other_load: OtherLoad | None
    placement: Placement | None
    started_at: str
    finished_at: str | None
    text: str | None
    """The answer; None when nothing came, or when text is not kept."""
    finish_reason: str | None
    warning: str | None
    error_kind: str | None
    error_message: str | None
    error_remedy: str | None
    error_details: str | None
    exit_code: int | None
    metrics: RunMetrics
    """Offsets rounded to a microsecond."""
    felt_ttft_s: float | None
    machine: str | None
    machine_id: str
    environment_id: str | None
    revision: str | None
    recipe_sha256: str | None
    reasoning: str | None = None
    """What the model thought before its answer."""
    note: str | None = None
    """What the person was told about the prompt: what the chat template could not take as it was written."""
    reply_ids: tuple[int, ...] = ()
    """Token ids of the whole reply; () where they were not seen or not kept."""


@dataclass(frozen=True)
class Vote:
    """Which panel answered best."""

    winner: str
    """A panel's number, `tie` or `none` (all bad)."""
    winner_run_id: str | None
    blind: bool
    created_at: str


@dataclass(frozen=True)
class Turn:
    """One prompt and its runs, by panel, then attempt."""

    id: str
    conversation_id: str
    created_at: str
    mode: str
    prompt: str | None
    """None when text is not kept."""
    system_prompt: str | None
    settings: Mapping[str, Any]
    replaces_turn_id: str | None
    runs: tuple[Run, ...] = ()
    vote: Vote | None = None
    via: str | None = None
    """How it came where no person typed it: `api`, or `api: NAME` of the key."""
    earlier: tuple[Message, ...] = ()
    """The chat that came with it."""

    def latest_runs(self) -> tuple[Run, ...]:
        """The latest attempt of each panel."""
        return tuple({run.panel: run for run in self.runs}.values())


@dataclass(frozen=True)
class Conversation:
    """A chat exactly as it was."""

    id: str
    title: str | None
    owner: str | None
    created_at: str
    updated_at: str
    pinned: bool
    imported_from: str | None
    turns: tuple[Turn, ...] = ()

    def current_turns(self) -> tuple[Turn, ...]:
        """The turns without those that were replaced, and without what followed a replaced turn."""
        kept: list[Turn] = []
        for turn in self.turns:
            kept = until_replaced(kept, turn)
        return tuple(kept)

    @property
    def panels(self) -> tuple[tuple[int, Target], ...]:
        """The panels of the newest turn that had any, with their targets."""
        for turn in reversed(self.current_turns()):
            if turn.runs:
                return tuple((run.panel, run.target) for run in turn.latest_runs())
        return ()


def until_replaced(path: list[Any], turn: Any) -> list[Any]:
    """The path after `turn`: it takes the place of the turn it replaces, and what followed that one is gone."""
    replaced = [at for at, earlier in enumerate(path) if earlier.id == turn.replaces_turn_id]
    return [*(path[: replaced[0]] if replaced else path), turn]


@dataclass(frozen=True)
class Summary:
    """One line of the history list."""

    id: str
    title: str | None
    first_prompt: str | None
    owner: str | None
    created_at: str
    updated_at: str
    pinned: bool
    imported_from: str | None
    turns: int
    runs: int
    failed_runs: int
    targets: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    machine: str | None = None
    snippet: str | None = None
    """The text around what a search found; None without a search."""


COUNTED = 1000
"""What a filter or a search finds is counted up to here."""


@dataclass(frozen=True)
class Page:
    """Part of the history list."""

    summaries: tuple[Summary, ...]
    total: int
    """How many match; at most COUNTED with a filter."""
    offset: int = 0
    more: bool = False
    """There are more than `total`."""

    @property
    def total_text(self) -> str:
        """`1,234`, or `more than 1,000`."""
        return f"more than {self.total:,}" if self.more else f"{self.total:,}"


@dataclass(frozen=True)
class Filter:
    """Which conversations or runs; None lets everything through. Days are
    `YYYY-MM-DD` by this PC's clock, both included."""

    query: str | None = None
    engine: str | None = None
    device: str | None = None
    precision: str | None = None
    model: str | None = None
    machine: str | None = None
    status: str | None = None
    """A run's status."""
    vote: str | None = None
    """`voted`, `won` (by a run that fits this filter), `tie`, `none` (all bad), or `missing`."""
    since: str | None = None
    until: str | None = None
    contended: bool | None = None
    owner: str | None = None
    conversation_ids: tuple[str, ...] | None = None


def run_from_row(row: Mapping[str, Any]) -> Run:
    """A Run from a row of `runs` joined with its target and machine."""
    return Run(
        id=row["id"],
        turn_id=row["turn_id"],
        panel=row["panel"],
        attempt=row["attempt"],
        target=Target(row["engine"], row["device"], row["precision"], row["model"]),
        status=row["status"],
        contended=bool(row["contended"]),
        disturbed=None if row["disturbed"] is None else bool(row["disturbed"]),
        stamp_rule=row["stamp_rule"],
        other_load=read_back(OtherLoad, row["other_load"]),
        placement=read_back(Placement, row["placement"]),
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        text=restored(row, "text"),
        finish_reason=row["finish_reason"],
        warning=row["warning"],
        error_kind=row["error_kind"],
        error_message=row["error_message"],
        error_remedy=row["error_remedy"],
        error_details=row["error_details"],
        exit_code=row["exit_code"],
        metrics=RunMetrics(
            prompt_tokens=row["prompt_tokens"],
            cached_prompt_tokens=row["cached_prompt_tokens"],
            output_tokens=row["output_tokens"],
            prompt_sha256=row["prompt_sha256"],
            token_offsets_s=unpack_offsets(row["token_offsets"]),
            piece_offsets_s=unpack_offsets(row["piece_offsets"]),
            clock=row["clock"] or "worker",
            server=json.loads(row["server"]) if row["server"] else None,
            reasoning_tokens=row["reasoning_tokens"],
            answer_tokens=row["answer_tokens"],
            first_reasoning_s=_seconds(row["first_reasoning_us"]),
            first_answer_s=_seconds(row["first_answer_us"]),
            total_s=row["total_s"],
            load_s=row["load_s"],
            compile_s=row["compile_s"],
            warmup_s=row["warmup_s"],
            peak_rss_bytes=row["peak_rss_bytes"],
        ),
        felt_ttft_s=row["felt_ttft_s"],
        machine=row["machine"],
        machine_id=row["machine_id"],
        environment_id=row["environment_id"],
        revision=row["revision"],
        recipe_sha256=row["recipe_sha256"],
        reasoning=restored(row, "reasoning"),
        note=row["note"],
        reply_ids=read_ids(row["reply_ids"]),
    )


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6


def turn_from_row(row: Mapping[str, Any], runs: tuple[Run, ...], vote: Vote | None) -> Turn:
    """A Turn from a row of `turns`."""
    return Turn(
        id=row["id"],
        conversation_id=row["conversation_id"],
        created_at=row["created_at"],
        mode=row["mode"],
        prompt=restored(row, "prompt"),
        system_prompt=restored(row, "system_prompt"),
        settings=json.loads(row["settings"]),
        replaces_turn_id=row["replaces_turn_id"],
        runs=runs,
        vote=vote,
        via=row["via"],
        earlier=tuple(Message(role, content) for role, content in json.loads(row["earlier"] or "[]")),
    )


def conversation_from_row(row: Mapping[str, Any], turns: tuple[Turn, ...]) -> Conversation:
    """A Conversation from a row of `conversations`."""
    return Conversation(
        id=row["id"],
        title=restored(row, "title"),
        owner=row["owner"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        pinned=bool(row["pinned"]),
        imported_from=row["imported_from"],
        turns=turns,
    )
