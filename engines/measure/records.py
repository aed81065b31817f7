"""What a measurement is made of: frozen dataclasses, raw values first, every figure derived.

A `Measurement` holds everything that was planned and all that has been done so far, so that it can be saved after
every step, gone on with after the app was closed, and judged again by anyone. Times are seconds by the worker's own
clock, sizes are bytes, rates are shares or per second; missing is None.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from engines.protocol import Failed, Target

CONTRACT = "backend-arena-measure/1"
"""Name and version of the rules and definitions in docs/measure.md; a change of either is another version."""


def utc_now() -> str:
    """The time as it stands in every record: UTC, ISO 8601, milliseconds."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


@dataclass(frozen=True)
class Case:
    """One kind of work: a prompt of exactly so many tokens, a reply of exactly so many."""

    name: str
    """`summarisation-4k`: unique in its suite."""
    title: str
    category: str
    """Which of the bundled texts the prompt is cut from; `own` with a text of the person's."""
    prompt_tokens: int
    new_tokens: int
    text: str | None = None
    """The person's own prompt; None: one of ours."""


@dataclass(frozen=True)
class Suite:
    """Which cases, how often, and which passes beside speed."""

    name: str
    title: str
    cases: tuple[Case, ...]
    repeats: int = 5
    passes: tuple[str, ...] = ("quality", "speed", "memory")
    """Of PASSES, in their order."""
    instruction_tokens: int = 96
    """Longest reply to one of the quality gate's instructions."""
    target_s: float | None = None
    """Seconds a lane may take; a slower machine gets shorter cases. None: whatever it takes."""
    note: str | None = None
    """How it was scaled, for people."""


PASSES = ("ready", "quality", "speed", "memory", "foreground", "race")


@dataclass(frozen=True)
class Lane:
    """What is measured: a target under settings of its engine (none: the engine's defaults)."""

    target: Target
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """`openvino-genai/CPU/int4`, with the settings behind it where there are any."""
        spelled = ",".join(f"{name}={value}" for name, value in sorted(self.settings.items()))
        return f"{self.target.spelling} [{spelled}]" if spelled else self.target.spelling


@dataclass(frozen=True)
class Repeat:
    """One generation under the contract, or what came of trying."""

    case: str
    number: int
    """From 1: which round of the interleaved repeats."""
    attempt: int = 1
    """Above 1: done again because the one before was disturbed."""
    status: str = "finished"
    """`finished`, or `failed`."""
    started_at: str | None = None
    """UTC, ISO 8601."""
    prompt_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    prompt_sha256: str | None = None
    token_offsets_s: tuple[float, ...] = ()
    """Seconds from the request to each token, rounded to a microsecond."""
    total_s: float | None = None
    peak_rss_bytes: int | None = None
    disturbed: bool = False
    disturbance: str | None = None
    """What else ran, for people."""
    other_load_cores: float | None = None
    """Processor cores that other programs kept busy meanwhile."""
    energy_j: float | None = None
    """Joules above idle; None: this machine does not tell."""
    temperature_c: float | None = None
    clock_mhz: float | None = None
    failure: Failed | None = None
    refused: str | None = None
    """Why this is no measurement though it finished: too few tokens, an impossible rate, another prompt."""

    @property
    def ttft_s(self) -> float | None:
        return self.token_offsets_s[0] if self.token_offsets_s else None

    @property
    def prefill_tok_s(self) -> float | None:
        """Prompt tokens / TTFT."""
        return self.prompt_tokens / self.ttft_s if self.ttft_s and self.prompt_tokens else None

    @property
    def decode_tok_s(self) -> float | None:
        """(n − 1) / (t_n − t_1)."""
        if len(self.token_offsets_s) < 2:
            return None
        span = self.token_offsets_s[-1] - self.token_offsets_s[0]
        return (len(self.token_offsets_s) - 1) / span if span > 0 else None

    @property
    def answer_s(self) -> float | None:
        """Request to last token: what a person waits for the whole answer."""
        return self.token_offsets_s[-1] if self.token_offsets_s else None

    @property
    def itl_p95_s(self) -> float | None:
        """95th percentile of the gaps between tokens, nearest rank."""
        gaps = sorted(later - earlier for earlier, later in itertools.pairwise(self.token_offsets_s))
        return gaps[max(0, -(-95 * len(gaps) // 100) - 1)] if gaps else None

    @property
    def joules_per_token(self) -> float | None:
        if self.energy_j is None or not self.token_offsets_s:
            return None
        return self.energy_j / len(self.token_offsets_s)

    @property
    def counts(self) -> bool:
        """Whether figures may be made of it."""
        whole = self.status == "finished" and bool(self.token_offsets_s)
        return whole and self.refused is None and not self.disturbed


METRICS = ("ttft_s", "prefill_tok_s", "decode_tok_s", "answer_s", "itl_p95_s", "joules_per_token")
"""Figures of a case: properties of Repeat."""
HIGHER_IS_BETTER = frozenset({"prefill_tok_s", "decode_tok_s"})


@dataclass(frozen=True)
class Figure:
    """A median with its spread."""

    median: float
    q1: float
    q3: float
    low: float
    """Lower end of the median's bootstrap 95 % interval."""
    high: float
    n: int
    """Repeats it was made of."""


@dataclass(frozen=True)
class Ledger:
    """What stands between choosing a lane and its first token, in seconds; None: not needed, or not told."""

    download_s: float | None = None
    convert_s: float | None = None
    load_s: float | None = None
    """Process start to model loaded; compiling included where the engine compiles."""
    compile_s: float | None = None
    warmup_s: float | None = None
    first_token_s: float | None = None
    again_load_s: float | None = None
    """The same once more, with what was compiled kept."""
    again_compile_s: float | None = None
    again_warmup_s: float | None = None

    @property
    def start_s(self) -> float | None:
        """Loading and warm-up of a model that is ready on disk."""
        return None if self.load_s is None else self.load_s + (self.warmup_s or 0.0)


@dataclass(frozen=True)
class Answer:
    """The reply to one of the quality gate's instructions."""

    name: str
    passed: bool
    tokens: int
    seconds: float | None
    text: str | None
    token_ids: tuple[int, ...] = ()
    first_divergent_token: int | None = None
    """Index of the first token unlike the reference's; None: none, or no reference."""
    divergent_share: float | None = None
    """Share of the reference's tokens that differ, position by position."""
    garbage: str | None = None
    """`empty`, `loop`, `not text`, `not finite`; None: none of them."""


@dataclass(frozen=True)
class Quality:
    """How a lane answers, against the reference lane on the same prompts."""

    passed: bool
    reasons: tuple[str, ...]
    """Why it failed; empty when it passed."""
    reference: str | None
    """Key of the lane it was held against; None: itself, or there was none."""
    instructions_passed: int
    instructions_total: int
    answers: tuple[Answer, ...] = ()
    garbage: int = 0
    first_divergent_token: float | None = None
    """Median over the prompts that diverge."""
    divergent_share: float | None = None
    answer_tokens: float | None = None
    """Median tokens to a finished answer."""
    answer_s: float | None = None
    """Median seconds to a finished answer."""
    perplexity: float | None = None
    next_token_agreement: float | None = None
    notes: tuple[str, ...] = ()
    kl_divergence: float | None = None
    """Mean over positions of the bundled text, nats, reference against lane."""


@dataclass(frozen=True)
class Together:
    """Two lanes at once against alone: this lane's decode rate beside another."""

    lane: str
    beside: str
    decode_tok_s: float | None
    alone_tok_s: float | None

    @property
    def kept_share(self) -> float | None:
        """Share of the lone rate that is left."""
        if not self.decode_tok_s or not self.alone_tok_s:
            return None
        return self.decode_tok_s / self.alone_tok_s


@dataclass(frozen=True)
class Foreground:
    """How much a fixed processor task slows down while the lane generates: rounds a second, slice by slice."""

    idle_rates: tuple[float, ...]
    """On the idle machine."""
    busy_rates: tuple[float, ...]

    @property
    def taxes(self) -> tuple[float, ...]:
        """Share of the task's speed that is lost, slice by slice: 0 none, 1 all."""
        idle = statistics.median(self.idle_rates) if self.idle_rates else 0.0
        if idle <= 0:
            return ()
        return tuple(max(0.0, 1 - rate / idle) for rate in self.busy_rates)


@dataclass(frozen=True)
class LaneResult:
    """Everything found out about one lane so far."""

    lane: Lane
    status: str = "waiting"
    """`waiting`, `measured` (all that was asked), `partly` (stopped before the end) or `failed`."""
    failure: Failed | None = None
    reference_only: bool = False
    """Only there for the others' quality to be held against."""
    device: str | None = None
    """Where the work really runs, as the library reports it."""
    asked_device: bool = True
    """False: it ran on another device than was asked for."""
    context_tokens: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    weight_bytes: int | None = None
    read_bytes_per_token: int | None = None
    """Weight bytes that one decoded token reads; None: not known (experts, no config)."""
    bandwidth_bytes_s: float | None = None
    """Read bandwidth of this machine over a working set as large as these weights; None: not this device's."""
    placement: Mapping[str, Any] | None = None
    ledger: Ledger = field(default_factory=Ledger)
    probe: Repeat | None = None
    """A first, short generation, from which times are estimated; no figure is made of it."""
    repeats: tuple[Repeat, ...] = ()
    peak_rss_bytes: int | None = None
    """From a pass of its own."""
    quality: Quality | None = None
    foreground: Foreground | None = None
    revision: str | None = None
    recipe_sha256: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The recommendation for one job, with everything needed to doubt it."""

    job: str
    """`short-chat`, `long-document`, `background` or `battery`."""
    title: str
    winner: str | None
    """Key of the recommended lane; None: no clear winner."""
    by: float | None
    """How much better than the runner-up: 0.14 is 14 %."""
    confidence: str
    """`clear`, `unclear` (too close to call), `only` (one lane could win at all) or `none` (not even one)."""
    because: tuple[str, ...]
    """One sentence per decision."""
    would_change: tuple[str, ...]
    runner_up: str | None = None
    metric: str | None = None
    ranking: tuple[str, ...] = ()
    """Eligible lanes, best first."""
    excluded: Mapping[str, str] = field(default_factory=dict)
    """Lane -> why it cannot win."""


@dataclass(frozen=True)
class ForeignRow:
    """A figure somebody else's benchmark gave; kept under its own contract's name, never mixed into ours."""

    contract: str
    """`llama-bench`, `llm_bench`."""
    label: str
    test: str
    metric: str
    """`prefill_tok_s` or `decode_tok_s` as that benchmark defines it."""
    value: float
    deviation: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """One session: what was planned, under which rules, where, and all that was found."""

    id: str
    model: str
    suite: Suite
    created_at: str
    lanes: tuple[LaneResult, ...]
    contract: str = CONTRACT
    reference: str | None = None
    """Key of the lane whose answers the others' are held against."""
    fitted: bool = False
    """Whether the suite has been fitted to the lanes' contexts and to this machine's pace."""
    updated_at: str | None = None
    status: str = "running"
    """`running`, `paused`, `stopped`, `finished` or `failed`."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Power source, temperature, clock, other load before, bandwidth; package versions are each lane's."""
    together: tuple[Together, ...] = ()
    notes: tuple[str, ...] = ()
    foreign: tuple[ForeignRow, ...] = ()

    def lane(self, key: str) -> LaneResult | None:
        return next((result for result in self.lanes if result.lane.key == key), None)

    @property
    def measured(self) -> tuple[LaneResult, ...]:
        """Without the lanes that are only there as a reference."""
        return tuple(result for result in self.lanes if not result.reference_only)


@dataclass(frozen=True)
class Watch:
    """A running session as a page sees it; cheap to make, several times a second."""

    state: str
    """`waiting`, `running`, `pausing`, `paused`, `stopping`, or how it ended: `finished`, `stopped`, `failed`."""
    now: str
    """What runs now, for people."""
    lane: str | None
    done: int
    total: int
    left: tuple[str, ...]
    """What is still to do, next first."""
    left_s: float | None
    """Seconds left, from what the steps so far took; None: not known yet."""
    tokens: int
    """Of the generation that runs now."""
    measurement: Measurement
