"""What crosses the process boundary: frozen dataclasses, to and from JSON lines.

The parent (the app) and a worker (one child process with one loaded target) may run under different
Python versions and environments, so this module uses the standard library only and knows nothing else of
ours. Missing values are ``None``, never -1, 0 or "". Times are seconds, sizes are bytes.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

PROTOCOL_VERSION = 1

DEMO_MODEL = "demo"
"""Name of the bundled tiny model."""


class ProtocolError(ValueError):
    """A line, a target or a request that does not follow the protocol; the message says what and why."""


# --- what an engine is -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Build:
    """One kind of converted model folder that an engine loads, and what its converter is told to make it."""

    precision: str
    device: str | None = None
    """Device family that needs a folder of its own; None: all the others share it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    large_options: Mapping[str, Any] = field(default_factory=dict)
    """What changes for models of more than a billion parameters."""


@dataclass(frozen=True)
class EngineSpec:
    """What an engine declares about itself; the rest of the app reads this and knows no engine by name."""

    name: str
    """`openvino-genai`: as written in targets."""
    title: str
    """`OpenVINO GenAI`: as shown to people."""
    module: str
    """Import path of the module whose `ENGINE` is the Engine subclass; imported in workers only."""
    environment: str = "main"
    """Name of the Python environment its worker runs in (engines/environments/)."""
    devices: tuple[str, ...] = ("CPU",)
    """Every device family the library knows, in its own spelling; `probe` says which are here."""
    precisions: tuple[str, ...] = ()
    """Weight formats offered, best default first."""
    model_format: str | None = "safetensors"
    """Format of the model folder it loads: `openvino`, `onnxruntime-genai`, `safetensors`. None: model and tokenizer
    live elsewhere (on a server), so there is no folder, no plan and nothing to download."""
    settings: str | None = None
    """Which of the owner's settings its workers are told when they probe and load (`endpoints`); None: none."""
    builds: tuple[Build, ...] = field(default=(), hash=False)
    """The kinds of folders in that format that can be made for it; empty: it loads original weights as they are."""
    honours: tuple[str, ...] = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
    """Fields of GenerationRequest it obeys; the page greys out the rest."""
    reuses_kv_cache: bool = False
    """Whether a follow-up turn prefills only what the previous one has not."""
    homepage: str | None = None
    distributions: tuple[str, ...] = ()
    """Distributions whose versions decide its speed and results: kept with every number, where installed."""
    advice: str | None = None
    """What people should know before they choose it."""
    reference: bool = False
    """It runs the model's own weights, unquantised: the others' answers are held against its."""
    own_memory: tuple[str, ...] = ()
    """Device families that have, or may have, memory of their own: this machine's bandwidth says nothing of them."""
    tunables: tuple[Tunable, ...] = ()
    """Settings worth trying on a machine, for the tuner."""
    variants: tuple[WeightVariant, ...] = ()
    """Weights worth trying; not offered in lists, but any target may name one."""

    @property
    def model_elsewhere(self) -> bool:
        """Whether the model and its tokenizer are not on this computer's disk."""
        return self.model_format is None

    def build_for(self, device: str, precision: str) -> Build | None:
        """The kind of folder a target of this engine loads; None when there is none, or none is needed."""
        variant = self.variant(precision)
        if variant is not None:
            build = self.build_for(device, variant.precision)
            more = dict(variant.options)
            return build and replace(
                build, options={**build.options, **more}, large_options={**build.large_options, **more}
            )
        family = device.split(".")[0].upper()
        fitting = [build for build in self.builds if build.precision == precision]
        own = next((build for build in fitting if build.device == family), None)
        return own or next((build for build in fitting if build.device is None), None)

    def variant(self, precision: str) -> WeightVariant | None:
        """The variant a target's precision names; None for a plain precision."""
        return next((variant for variant in self.variants if variant.spelling == precision), None)

    def offers(self, precision: str) -> bool:
        """Whether a target may have this precision."""
        return precision in self.precisions or self.variant(precision) is not None


@dataclass(frozen=True)
class WeightVariant:
    """Another way to quantise to the same precision: a target of its own, named behind the precision."""

    name: str
    precision: str
    options: Mapping[str, Any] = field(hash=False)
    """What its converter is told instead (`Build.options`)."""
    why: str | None = None

    @property
    def spelling(self) -> str:
        """`int4-ratio1`: as a target's precision."""
        return f"{self.precision}-{self.name}"


@dataclass(frozen=True)
class Tunable:
    """One setting of an engine that may help: its values beside the default, and where it exists."""

    name: str
    """As the engine's own documentation calls it."""
    values: tuple[Any, ...]
    devices: tuple[str, ...] | None = None
    """Device families that know it; None: all."""
    why: str | None = None


@dataclass(frozen=True)
class DeviceStatus:
    """One device of one engine on this machine: usable, or why not and what to do about it."""

    device: str
    ok: bool
    title: str | None = None
    """Full name of the hardware, as the library or the system tells it."""
    reason: str | None = None
    remedy: str | None = None
    precisions: tuple[str, ...] | None = None
    """Precisions that make sense on this device, best default first; None: all of the engine's."""
    models: tuple[str, ...] | None = None
    """Models that this device has of its own, as it names them; None: it runs those on this computer."""


@dataclass(frozen=True)
class Availability:
    """Answer to "can this engine run here?"; every engine that cannot says why and what to do."""

    ok: bool
    device_status: tuple[DeviceStatus, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    """Distribution name -> version of the libraries that decide speed and result."""
    reason: str | None = None
    remedy: str | None = None

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices that can be used now."""
        return tuple(status.device for status in self.device_status if status.ok)


def model_label(model: str) -> str:
    """A Hugging Face id or `demo` as it is; of a folder its last name only, never where it lies."""
    is_folder = model.startswith((".", "~", "/")) or "\\" in model or model[1:2] == ":"
    return re.split(r"[\\/]", model.rstrip("\\/"))[-1] if is_folder else model


@dataclass(frozen=True)
class Target:
    """What one panel shows and one worker loads."""

    engine: str
    device: str
    precision: str
    model: str = DEMO_MODEL

    @property
    def spelling(self) -> str:
        """`openvino-genai/CPU/int4`, without the model."""
        return f"{self.engine}/{self.device}/{self.precision}"

    def __str__(self) -> str:
        return f"{self.spelling} + {self.model}"

    @property
    def label(self) -> str:
        """As `str`, but a folder goes by its last name: for what may be kept or shown beside other runs."""
        return f"{self.spelling} + {model_label(self.model)}"

    @classmethod
    def parse(cls, spelling: str, model: str = DEMO_MODEL) -> Target:
        """Read `engine/device/precision` or `engine/device/precision@model`, which outweighs `model`.

        Raises ProtocolError with the expected form.
        """
        where, at, named = spelling.partition("@")
        parts = [part.strip() for part in where.split("/")]
        if len(parts) != 3 or not all(parts) or (at and not named.strip()):
            raise ProtocolError(
                f"“{spelling}” is not a target; write ENGINE/DEVICE/PRECISION or ENGINE/DEVICE/PRECISION@MODEL, "
                "for example openvino-genai/CPU/int4"
            )
        return cls(parts[0], parts[1], parts[2], named.strip() or model)


# --- requests ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    """One message of a chat."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    reasoning: str | None = None
    """What the assistant thought before it said so; the chat template decides whether the model sees it again."""


@dataclass(frozen=True)
class GenerationRequest:
    """One generation. `temperature` 0 is greedy; None leaves a parameter to the engine's neutral value."""

    messages: tuple[Message, ...]
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    ignore_eos: bool = False
    """Generate exactly max_new_tokens: for measuring with a fixed output length."""
    reuse_kv_cache: bool = True
    """False: compute the whole prompt, whatever is kept from the turn before; for measuring."""
    continue_reply: bool = False
    """The last message is an assistant's that is to be carried on, not answered."""
    stop: tuple[str, ...] = ()
    """Texts that end the reply; they are no part of it. Every engine obeys: the worker looks for them."""
    raw_prompt: str | None = None
    """The prompt's own text, given to the tokenizer as it is, without the chat template; None: the messages are."""
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    prompt_tokens: int | None = None
    """Cut the last message so that the whole prompt is exactly so many token ids: for measuring."""
    reply_ids: tuple[int, ...] = ()
    """Token ids of the reply that is carried on, where they are known: better than its text."""
    thinking: bool | None = None
    """Think before answering, or not, where the chat template knows a switch; None: as it does by itself."""
    asked_at: float | None = None
    """When the prompt was sent, seconds since the epoch: the clock of chat templates that write the date."""


@dataclass(frozen=True)
class PreparedModel:
    """A model folder on disk in the format one engine loads, and where it came from."""

    path: str | None
    """None, as `format`: the model lives elsewhere."""
    model: str
    precision: str
    format: str | None
    revision: str | None = None
    """Commit of the source repository, or a hash of the source files."""
    recipe: Mapping[str, Any] | None = None
    """How the folder was made (converter, options, versions); None for files used as they came."""
    recipe_sha256: str | None = None
    weight_bytes: int | None = None
    """Size of the weight files: the basis of the memory estimate."""
    estimated_peak_bytes: int | None = None

    @property
    def folder(self) -> Path:
        """The folder, for engines that load one; raises ProtocolError where there is none."""
        if self.path is None:
            raise ProtocolError(f"{self.model} lives elsewhere: it has no folder here")
        return Path(self.path)


# --- raw measurements --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunMetrics:
    """Raw measurements of one run; rates are derived, here and in the SQL view, from nothing else.

    All times count from the moment the worker took the request, by the worker's own monotonic clock. Where the tokens
    are made elsewhere, `clock` says whose times these are.
    """

    prompt_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    """Prompt tokens whose KV cache was kept from the turn before."""
    output_tokens: int | None = 0
    """Generated token ids, the end-of-sequence token not counted; None: whoever made them does not say."""
    prompt_sha256: str | None = None
    """None: the prompt was turned into tokens elsewhere, so nobody here can say which."""
    token_offsets_s: tuple[float, ...] = ()
    """Seconds from start to each output token; shape (output_tokens,)."""
    piece_offsets_s: tuple[float, ...] = ()
    """Seconds from start to the arrival here of each piece of text, where tokens are not seen: a piece may be a part
    of a token, or many."""
    clock: str = "worker"
    """Whose times these are: `worker`, or `client` (a server's answer as it reached this computer), or `server` (the
    server's own token times)."""
    server: Mapping[str, Any] | None = None
    """What a server itself says about this run: its counts and durations, in its own words."""
    reasoning_tokens: int | None = None
    """Of the output tokens, those of the thought; what is neither thought nor answer is markup."""
    answer_tokens: int | None = None
    first_reasoning_s: float | None = None
    """From start to the first token of the thought; None: there was none."""
    first_answer_s: float | None = None
    """From start to the first token of the answer; None: there was none."""
    total_s: float | None = None
    load_s: float | None = None
    """Process start to model loaded, without warm-up; of the worker that ran this."""
    compile_s: float | None = None
    warmup_s: float | None = None
    peak_rss_bytes: int | None = None

    @property
    def ttft_s(self) -> float | None:
        """Time to first token: tokenisation, template and prefill included. Of pieces: to the first of them."""
        offsets = self.token_offsets_s or self.piece_offsets_s
        return offsets[0] if offsets else None

    @property
    def thought_s(self) -> float | None:
        """From the first token of the thought to the first of the answer, or to the last where no answer came."""
        if self.first_reasoning_s is None:
            return None
        end = self.first_answer_s
        if end is None or end < self.first_reasoning_s:
            end = self.token_offsets_s[-1] if self.token_offsets_s else None
        return None if end is None else end - self.first_reasoning_s

    @property
    def answer_s(self) -> float | None:
        """From start to the last token of a reply that has an answer: what a thinking model's rate does not tell."""
        offsets = self.token_offsets_s or self.piece_offsets_s
        return offsets[-1] if offsets and self.answer_tokens != 0 else None

    @property
    def prefill_tok_s(self) -> float | None:
        """Prompt tokens / TTFT; None when a kept KV cache makes, or may make, the quotient meaningless."""
        if not self.ttft_s or not self.prompt_tokens or self.cached_prompt_tokens != 0:
            return None
        return self.prompt_tokens / self.ttft_s

    @property
    def decode_tok_s(self) -> float | None:
        """(n − 1) / (t_n − t_1): the first token excluded (MLPerf's 2nd+ token rate).

        Where only pieces were seen: n as the server counted, over the span from the first piece to the last.
        """
        offsets = self.token_offsets_s or self.piece_offsets_s
        count = len(offsets) if self.token_offsets_s else self.output_tokens
        if len(offsets) < 2 or count is None or count < 2:
            return None
        span = offsets[-1] - offsets[0]
        return (count - 1) / span if span > 0 else None

    @property
    def rate_from_counts(self) -> bool:
        """Whether the decode rate rests on a server's count of tokens, not on tokens seen one by one."""
        return not self.token_offsets_s and self.decode_tok_s is not None

    @property
    def itl_s(self) -> tuple[float, ...]:
        """Inter-token latencies: gaps between consecutive tokens; shape (n − 1,)."""
        return tuple(later - earlier for earlier, later in itertools.pairwise(self.token_offsets_s))

    @property
    def itl_median_s(self) -> float | None:
        return statistics.median(self.itl_s) if self.itl_s else None

    @property
    def itl_p95_s(self) -> float | None:
        """95th percentile of ITL, nearest rank."""
        gaps = sorted(self.itl_s)
        return gaps[max(0, -(-95 * len(gaps) // 100) - 1)] if gaps else None


# --- commands, parent to worker ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """Which devices does this engine have here?"""

    engine_module: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """See `EngineSpec.settings`."""


@dataclass(frozen=True)
class Load:
    engine_module: str
    target: Target
    model: PreparedModel
    cache_dir: str
    """Folder for compiled blobs, this worker's own."""
    warm_up: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    """See `EngineSpec.settings`."""
    tuning: Mapping[str, Any] = field(default_factory=dict)
    """Values for some of the engine's `tunables`; the rest stays at the engine's default."""


@dataclass(frozen=True)
class Generate:
    run_id: str
    request: GenerationRequest


@dataclass(frozen=True)
class Score:
    """How likely does the model think a given text is, token by token?"""

    run_id: str
    text: str
    max_tokens: int
    keep: int = 32
    """How many of each position's likeliest ids to tell."""


@dataclass(frozen=True)
class Cancel:
    run_id: str


@dataclass(frozen=True)
class Shutdown:
    pass


# --- events, worker to parent ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """First line of every worker."""

    protocol_version: int
    pid: int
    python: str


@dataclass(frozen=True)
class Probed:
    availability: Availability


@dataclass(frozen=True)
class Progress:
    """Something takes a while: what, and how far if known (0–1)."""

    stage: str
    """`queue`, `download`, `convert`, `start`, `load`, `compile`, `warm-up`, `prefill`."""
    text: str
    fraction: float | None = None


@dataclass(frozen=True)
class Claim:
    """Where the library says that the work runs, and what it said so with."""

    devices: tuple[str, ...]
    """In the library's own spelling: `CPU`, `GPU.0`, `cuda:0`."""
    evidence: str
    """A sentence for people: the property and what it holds."""


@dataclass(frozen=True)
class Loaded:
    load_s: float
    warmup_s: float | None
    compile_s: float | None
    rss_bytes: int | None
    peak_rss_bytes: int | None
    device: str
    """Where the work really runs, as the library reports it."""
    versions: Mapping[str, str]
    """Distribution name -> version in the worker's environment."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Properties worth keeping with the numbers: driver, attention backend, compiled precision."""
    context_tokens: int | None = None
    claim: Claim | None = None
    """None: the library tells no more than `device`."""


@dataclass(frozen=True)
class Prompted:
    """The prompt is tokenised, or on its way to a server that will do it; prefill starts."""

    run_id: str
    prompt_tokens: int | None
    prompt_sha256: str | None
    note: str | None = None
    """What the chat template could not take as it was written, and what was done about it."""


@dataclass(frozen=True)
class Token:
    """One generated token id and the text that became certain with it (possibly none)."""

    run_id: str
    token_id: int | None
    """None: a piece of text from elsewhere, whose tokens nobody here has seen."""
    text: str
    """Of the answer; marks are nobody's text."""
    offset_s: float
    thought: str = ""
    """Of the thought before the answer."""


@dataclass(frozen=True)
class Finished:
    run_id: str
    finish_reason: str
    """`stop` (end of sequence), `length` (max_new_tokens or context full) or `cancelled`."""
    text: str
    metrics: RunMetrics
    warning: str | None = None
    """Something the person should know about this reply: degenerate output, a cut prompt."""
    reasoning: str | None = None
    """What the model thought before it answered; None: nothing, or it knows no marks for it."""


@dataclass(frozen=True)
class Scored:
    """What the model expected after each token of a text but the last; shape (tokens − 1, …)."""

    run_id: str
    prompt_sha256: str
    losses: tuple[float, ...]
    """Minus the natural logarithm of the probability of the token that follows."""
    likely_ids: tuple[tuple[int, ...], ...]
    """The likeliest ids, likeliest first."""
    likely_logs: tuple[tuple[float, ...], ...]
    """Natural logarithms of their probabilities."""


@dataclass(frozen=True)
class Failed:
    """A command failed, or (`crashed`) the worker did. `message` is for people, `details` for experts."""

    kind: str
    """One of FAILURE_KINDS."""
    message: str
    remedy: str | None = None
    details: str | None = None
    """Traceback or tail of the worker's log."""
    exit_code: int | None = None
    run_id: str | None = None


FAILURE_KINDS = (
    "unavailable",  # the engine or device cannot be used here
    "model",  # the model folder is missing, broken or of the wrong kind
    "prompt",  # empty, or longer than the context
    "memory",  # does not fit
    "crashed",  # the worker process ended
    "hung",  # no answer in time
    "server",  # the server that has the model cannot be used, or gave up
    "output",  # the model produced garbage: non-finite logits
    "cancelled",  # while loading or converting
    "error",  # the library raised something we have no better name for
)

Command = Probe | Load | Generate | Score | Cancel | Shutdown
Event = Ready | Probed | Progress | Loaded | Prompted | Token | Finished | Scored | Failed

_TYPES = {
    cls.__name__: cls
    for cls in (
        *(
            EngineSpec,
            Tunable,
            WeightVariant,
            Build,
            DeviceStatus,
            Availability,
            Target,
            Message,
            GenerationRequest,
            PreparedModel,
            RunMetrics,
            Claim,
        ),
        *(Probe, Load, Generate, Score, Cancel, Shutdown),
        *(Ready, Probed, Progress, Loaded, Prompted, Token, Finished, Scored, Failed),
    )
}
_TAG = "type"


def to_jsonable(value: Any) -> Any:
    """Turn a protocol value into what `json` can write; dataclasses carry their name under "type"."""
    if is_dataclass(value) and not isinstance(value, type):
        record = {f.name: to_jsonable(getattr(value, f.name)) for f in fields(value)}
        return {_TAG: type(value).__name__, **record}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    return value


def from_jsonable(value: Any) -> Any:
    """The way back; lists become tuples. Raises ProtocolError for an unknown type or a wrong field."""
    if isinstance(value, list):
        return tuple(from_jsonable(item) for item in value)
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: from_jsonable(item) for key, item in value.items()}
    tag = value[_TAG]
    cls = _TYPES.get(tag) if isinstance(tag, str) else None
    if cls is None:
        raise ProtocolError(f"unknown message type {value[_TAG]!r}")
    try:
        return cls(**{key: from_jsonable(item) for key, item in value.items() if key != _TAG})
    except TypeError as error:
        raise ProtocolError(f"malformed {cls.__name__}: {error}") from error


def encode(message: Command | Event) -> bytes:
    """One JSON line, ASCII only: lone surrogates and line separators survive any pipe."""
    return json.dumps(to_jsonable(message), separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> Command | Event:
    """Read one line; raises ProtocolError when it is not one of ours."""
    try:
        message = from_jsonable(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a protocol line: {line[:200]!r}") from error
    if not isinstance(message, Command | Event):
        raise ProtocolError(f"not a protocol message: {line[:200]!r}")
    return message
