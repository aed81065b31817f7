"""The child process: loads one target and runs generations on it.

Owns stdio and the clock. Native libraries print to stdout and read stdin as they please, so before any engine
is imported the protocol moves to private descriptors (`take_over_stdio`). A reader thread takes commands, so a
cancel is seen in mid-generation and the end of stdin (the parent is gone) ends the process at once.
Every output token is stamped here, with this process's own `perf_counter`, from the moment its request was read.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from engines.engine import (
    AnswerReport,
    AnyEngine,
    Engine,
    EngineError,
    OutputError,
    PromptError,
    ServedEngine,
    UnavailableError,
)
from engines.protocol import (
    PROTOCOL_VERSION,
    Cancel,
    Command,
    EngineSpec,
    Event,
    Failed,
    Finished,
    Generate,
    GenerationRequest,
    Load,
    Loaded,
    Message,
    Probe,
    Probed,
    Progress,
    Prompted,
    ProtocolError,
    Ready,
    RunMetrics,
    Score,
    Scored,
    Shutdown,
    Token,
    decode,
    encode,
)
from engines.toolkit.library_errors import is_memory_error
from engines.toolkit.private_pipes import take_over_stdio
from engines.toolkit.process_facts import memory_bytes, versions
from engines.toolkit.thoughts import SERVED_MARKS, Kind, Marks, ThoughtParser, marks_of_reply, part
from engines.worker.prompt import PromptEncoder, prompt_sha256
from engines.worker.reading import ReplyReader
from engines.worker.served import AT_ONCE, came_at_once, unseen_words
from engines.worker.stops import StopFinder
from engines.worker.tokenization import KEPT_FOLDER

WARM_UP_PROMPT = "Say hello to everyone who is waiting for the first word."
WARM_UP_TOKENS = 4
OWN_DISTRIBUTIONS = ("transformers", "tokenizers", "numpy")
"""What this worker itself reads prompts and replies with, whatever the engine."""
_LOOP_WINDOW = 48
"""A reply whose last so many tokens are at most three different ones is going round in circles."""


def installed_versions(spec: EngineSpec) -> dict[str, str]:
    """Distribution name -> version for what decides speed and result."""
    names = (*spec.distributions, *(() if spec.model_elsewhere else OWN_DISTRIBUTIONS))
    return {"python": platform.python_version(), **versions(*names)}


def failure(error: BaseException, run_id: str | None = None) -> Failed:
    """What a person should read about an exception; the traceback goes into the details."""
    details = "".join(traceback.format_exception(error))
    if isinstance(error, EngineError):
        return Failed(error.kind, str(error), error.remedy, details, run_id=run_id)
    text = str(error).strip() or type(error).__name__
    if is_memory_error(error):
        remedy = "Unload other models, choose int4, or close other programs."
        return Failed("memory", f"Out of memory: {_first_line(text)}", remedy, details, run_id=run_id)
    return Failed("error", f"{type(error).__name__}: {_first_line(text)}", None, details, run_id=run_id)


def _first_line(text: str, longest: int = 300) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= longest else line[: longest - 1] + "…"


@dataclass
class Run:
    """One generation in progress: stamps, counts and streams its tokens."""

    run_id: str
    request: GenerationRequest
    started: float
    """`perf_counter` when the request was read; `Engine.make_ready` moves it on by what it took."""

    def __post_init__(self) -> None:
        self.cancelled = threading.Event()
        self.finish_reason: str | None = None
        self.offsets: list[float] = []
        self.ids: list[int] = []
        """Empty where the tokens are made elsewhere."""
        self.texts: list[str] = []
        """Of the answer."""
        self.thoughts: list[str] = []
        self.first_thought_s: float | None = None
        self.first_answer_s: float | None = None

    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    def take(self, token_id: int | None, text: str, offset_s: float, thought: str = "") -> Token:
        """Book one token, or one piece of text from elsewhere."""
        if token_id is not None:
            self.ids.append(token_id)
        self.offsets.append(offset_s)
        if thought and self.first_thought_s is None:
            self.first_thought_s = offset_s
        if text and self.first_answer_s is None:
            self.first_answer_s = offset_s
        self.take_rest(text, thought)
        return Token(self.run_id, token_id, text, offset_s, thought)

    def take_rest(self, text: str, thought: str) -> None:
        """Book text that became certain with no token of its own."""
        self.texts.append(text)
        self.thoughts.append(thought)

    def finished(self, reason: str, metrics: RunMetrics, warning: str | None) -> Finished:
        thought = "".join(self.thoughts)
        return Finished(self.run_id, reason, "".join(self.texts), metrics, warning, thought or None)

    def kind_figures(self, kinds: Sequence[Kind]) -> dict[str, Any]:
        """How many tokens were thought and answer, and when each began; seconds."""

        def first_s(kind: Kind) -> float | None:
            return self.offsets[kinds.index(kind)] if kind in kinds else None

        return {
            "reasoning_tokens": kinds.count("thought"),
            "answer_tokens": kinds.count("answer"),
            "first_reasoning_s": first_s("thought"),
            "first_answer_s": first_s("answer"),
        }


def reread(tokenizer: Any, marks: Marks, prompt: str, run: Run) -> ReplyReader:
    """Tell thought and answer of a whole reply apart after all, once its text has shown that it has both."""
    reader = ReplyReader(tokenizer, marks, prompt)
    read = [*map(reader.push, run.ids), reader.finish()]
    run.texts, run.thoughts = [part.answer for part in read], [part.thought for part in read]
    return reader


class Worker:
    """Takes commands, answers with events; the main thread works, a second one reads."""

    def __init__(self, commands: BinaryIO, events: BinaryIO, started_at: float | None = None):
        """`started_at`: wall-clock time at which the parent started this process, seconds since the epoch."""
        boot_s = max(0.0, time.time() - started_at) if started_at else 0.0
        self._process_started = time.perf_counter() - boot_s
        self._commands, self._events = commands, events
        self._write_lock = threading.Lock()
        self._inbox: queue.SimpleQueue[tuple[Command, float]] = queue.SimpleQueue()
        self._runs: dict[str, threading.Event] = {}
        self._engine: AnyEngine | None = None
        self._encoder: PromptEncoder | None = None
        self._loaded: Loaded | None = None

    def serve(self) -> None:
        """Work until told to stop or the parent is gone."""
        self._send(Ready(PROTOCOL_VERSION, os.getpid(), platform.python_version()))
        threading.Thread(target=self._read_commands, name="commands", daemon=True).start()
        handlers: dict[type[Command], Callable[[Any, float], None]] = {
            Probe: self._probe,
            Load: self._load,
            Generate: self._generate,
            Score: self._score,
        }
        while True:
            command, received = self._inbox.get()
            if isinstance(command, Shutdown):
                return
            try:
                handlers[type(command)](command, received)
            except Exception as error:  # noqa: BLE001 - whatever a library raises must reach the person
                self._send(failure(error, getattr(command, "run_id", None)))

    def _read_commands(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in iter(self._commands.readline, b""):
                received = time.perf_counter()
                try:
                    command = decode(line)
                except ProtocolError as error:
                    self._send(failure(error))
                    continue
                if isinstance(command, Cancel):
                    self._cancel_event(command.run_id).set()
                    continue
                if isinstance(command, Shutdown):
                    break
                if isinstance(command, Command):
                    self._inbox.put((command, received))
        # The parent is gone or wants us gone. Native code may be in the middle of anything; nothing of ours
        # needs saving, and only this returns every byte for certain.
        os._exit(0)

    def _cancel_event(self, run_id: str) -> threading.Event:
        return self._runs.setdefault(run_id, threading.Event())

    def _send(self, event: Event) -> None:
        line = encode(event)
        with self._write_lock:
            view = memoryview(line)
            while view:
                view = view[self._events.write(view) :]

    def _probe(self, command: Probe, _received: float) -> None:
        self._send(Probed(_engine_of(command.engine_module, command.settings).probe()))

    def _load(self, command: Load, _received: float) -> None:
        os.makedirs(command.cache_dir, exist_ok=True)  # noqa: PTH103
        self._send(Progress("load", "Loading the library"))
        engine = _engine_of(command.engine_module, command.settings)
        if isinstance(engine, Engine):
            engine.tuning = command.tuning
            kept = Path(command.cache_dir).parent / KEPT_FOLDER
            self._encoder = PromptEncoder(command.model.folder, kept)
            self._send(Progress("load", "Loading the model"))
        report = engine.load(command.target, command.model, command.cache_dir, self._send)
        load_s = time.perf_counter() - self._process_started
        self._engine = engine
        details, warmup_s = dict(report.details), None
        if command.tuning:
            details["tuning"] = dict(command.tuning)
        # A server is not warmed up: it is somebody else's, and may ask money for every word.
        if isinstance(engine, Engine):
            self._send(Progress("warm-up", "Warming up"))
            started = time.perf_counter()
            details["kv_cache"] = engine.check_cache()
            if command.warm_up:
                self._warm_up(engine)
                warmup_s = time.perf_counter() - started
        rss, peak = memory_bytes()
        self._loaded = Loaded(
            load_s=load_s,
            warmup_s=warmup_s,
            compile_s=report.compile_s,
            rss_bytes=rss,
            peak_rss_bytes=peak,
            device=report.device,
            versions=installed_versions(engine.spec),
            details=details,
            context_tokens=report.context_tokens,
            claim=report.claim,
        )
        self._send(self._loaded)

    def _warm_up(self, engine: Engine) -> None:
        """A tiny generation: compilation, page-ins and thread pools must not land on the first prompt."""
        messages = (Message("user", WARM_UP_PROMPT),)
        request = GenerationRequest(messages, max_new_tokens=WARM_UP_TOKENS, ignore_eos=True)
        left = iter(range(WARM_UP_TOKENS - 1))
        encoder = self._reader()
        engine.generate(
            encoder.encode(messages),
            request,
            encoder.stop_ids,
            lambda _id: next(left, None) is not None,
        )

    def _reader(self) -> PromptEncoder:
        if self._encoder is None:
            raise ProtocolError("the model's tokenizer is not loaded")
        return self._encoder

    def _generate(self, command: Generate, received: float) -> None:
        if self._engine is None:
            raise ProtocolError("generate before load")
        run = Run(command.run_id, command.request, received)
        run.cancelled = self._cancel_event(command.run_id)
        try:
            if isinstance(self._engine, ServedEngine):
                self._ask(self._engine, run)
            elif isinstance(self._engine, Engine):
                self._run(self._engine, run)
        finally:
            self._runs.pop(command.run_id, None)

    def _ask(self, engine: ServedEngine, run: Run) -> None:
        """Let a server answer: its words are stamped as they arrive, its tokens are its own affair."""
        self._send(Prompted(run.run_id, None, None))
        stops = StopFinder(run.request.stop)
        parser = ThoughtParser(SERVED_MARKS)

        def on_text(text: str, thought: str) -> bool:
            if run.cancelled.is_set():
                return False
            told = parser.feed(text) if text else ()
            answer = stops.push("".join(piece.text for piece in told if piece.kind == "answer"))
            thought += "".join(piece.text for piece in told if piece.kind == "thought")
            if answer or thought:
                self._send(run.take(None, answer, run.elapsed_s(), thought))
            return not stops.found

        report = (
            AnswerReport() if run.cancelled.is_set() else engine.answer(run.request, run.cancelled, on_text)
        )
        total_s = run.elapsed_s()
        for piece in parser.finish():
            answer = stops.push(piece.text) if piece.kind == "answer" else ""
            run.take_rest(answer, piece.text if piece.kind == "thought" else "")
        run.take_rest(stops.finish(), "")
        if not any(run.thoughts) and (used := marks_of_reply(answer := "".join(run.texts))):
            parted = part(answer, *used)
            run.texts, run.thoughts = [parted.answer], [parted.reasoning or ""]
            run.first_answer_s = None  # nobody saw where the answer began
        unseen = 0 if any(run.thoughts) else report.reasoning_tokens or 0
        at_once = not report.token_offsets_s and came_at_once(run.offsets)
        metrics = RunMetrics(
            prompt_tokens=report.prompt_tokens,
            cached_prompt_tokens=report.cached_prompt_tokens,
            output_tokens=None if report.output_tokens is None else report.output_tokens - unseen,
            token_offsets_s=report.token_offsets_s,
            piece_offsets_s=tuple(run.offsets[:1] if at_once else run.offsets),
            first_reasoning_s=run.first_thought_s,
            first_answer_s=run.first_answer_s,
            clock="server" if report.token_offsets_s else "client",
            server=dict(report.server) or None,
            total_s=total_s,
            load_s=self._loaded.load_s if self._loaded else None,
            peak_rss_bytes=memory_bytes()[1],
        )
        reason = "cancelled" if run.cancelled.is_set() else report.finish_reason or "stop"
        told = (
            report.warning,
            unseen_words(unseen),
            AT_ONCE if at_once else None,
            _warning(run, reason, None),
        )
        self._send(run.finished(reason, metrics, " ".join(filter(None, told)) or None))

    def _run(self, engine: Engine, run: Run) -> None:
        encoder, loaded = self._reader(), self._loaded
        prompt = encoder.prepare(run.request)
        prompt_ids, digest = prompt.ids, prompt_sha256(prompt.ids)
        request, context_left = self._fit(prompt_ids, run.request)
        self._send(Prompted(run.run_id, len(prompt_ids), digest, " ".join(prompt.notes) or None))
        marks = encoder.marks if request.raw_prompt is None else None
        reader = ReplyReader(encoder.tokenizer, marks, prompt.text, prompt.replied)
        stops = StopFinder(request.stop)
        stop_ids = frozenset() if request.ignore_eos else encoder.stop_ids

        def on_token(token_id: int) -> bool:
            offset_s = run.elapsed_s()
            if run.finish_reason is not None:
                return False
            if run.cancelled.is_set():
                run.finish_reason = "cancelled"
            elif token_id in stop_ids:
                run.finish_reason = "stop"
            if run.finish_reason is not None:
                return False
            read = reader.push(token_id)
            self._send(run.take(token_id, stops.push(read.answer), offset_s, read.thought))
            if stops.found:
                run.finish_reason = "stop"
                return False
            if len(run.ids) >= request.max_new_tokens:
                run.finish_reason = "length"
                return False
            return True

        if run.cancelled.is_set():
            run.finish_reason, report = "cancelled", None
        else:
            before = time.perf_counter()
            engine.make_ready(prompt_ids, request)
            run.started += time.perf_counter() - before
            report = engine.generate(prompt_ids, request, stop_ids, on_token)
        total_s = run.elapsed_s()
        rest = reader.finish()
        run.take_rest(stops.push(rest.answer) + stops.finish(), rest.thought)
        whole = not (any(run.thoughts) or request.raw_prompt or prompt.replied or stops.found)
        if whole and (used := marks_of_reply("".join(run.texts))):
            reader = reread(encoder.tokenizer, *used, run)
        metrics = RunMetrics(
            prompt_tokens=len(prompt_ids),
            cached_prompt_tokens=report.cached_prompt_tokens if report else None,
            output_tokens=len(run.ids),
            prompt_sha256=digest,
            token_offsets_s=tuple(run.offsets),
            total_s=total_s,
            load_s=loaded.load_s if loaded else None,
            compile_s=loaded.compile_s if loaded else None,
            warmup_s=loaded.warmup_s if loaded else None,
            peak_rss_bytes=memory_bytes()[1],
            **run.kind_figures(reader.kinds()),
        )
        reason = run.finish_reason or "length"
        warning = (report.warning if report else None) or _warning(run, reason, context_left)
        self._send(run.finished(reason, metrics, warning))

    def _score(self, command: Score, _received: float) -> None:
        if self._engine is None:
            raise ProtocolError("score before load")
        if not isinstance(self._engine, Engine):
            raise UnavailableError(f"{self._engine.spec.title} does not hand out logits.")
        ids = self._reader().encode_text(command.text)[: command.max_tokens]
        logits = self._engine.score(ids)
        if logits is None:
            raise UnavailableError(f"{self._engine.spec.title} does not hand out logits.")
        self._send(expectations(command, ids, logits))

    def _fit(
        self, prompt_ids: Sequence[int], request: GenerationRequest
    ) -> tuple[GenerationRequest, int | None]:
        """Cut the reply's length to what the context leaves; raises PromptError when that is nothing."""
        context = self._loaded.context_tokens if self._loaded else None
        if context is None:
            return request, None
        left = context - len(prompt_ids)
        if left < 1:
            raise PromptError(
                f"The prompt is {len(prompt_ids):,} tokens long; this model's context holds {context:,} "
                "for prompt and reply together.",
                "Shorten the prompt or start a new conversation.",
            )
        return replace(request, max_new_tokens=min(request.max_new_tokens, left)), left


def expectations(command: Score, ids: Sequence[int], logits: Any) -> Scored:
    """What logits, shape (tokens, vocabulary), say about the token that follows each; raises OutputError."""
    import numpy as np

    scores = np.asarray(logits, dtype=np.float64)[: len(ids) - 1]
    if not np.isfinite(scores).all():
        raise OutputError("The model's output is not a number (NaN or infinite logits).")
    peak = scores.max(axis=-1, keepdims=True)
    logs = scores - peak - np.log(np.exp(scores - peak).sum(axis=-1, keepdims=True))
    likely = np.argsort(-logs, axis=-1, kind="stable")[:, : command.keep]
    return Scored(
        command.run_id,
        prompt_sha256(ids),
        tuple(float(-row[token_id]) for row, token_id in zip(logs, ids[1:], strict=True)),
        tuple(tuple(int(token_id) for token_id in row) for row in likely),
        tuple(tuple(round(float(x), 5) for x in row) for row in np.take_along_axis(logs, likely, axis=-1)),
    )


def _warning(run: Run, reason: str, context_left: int | None) -> str | None:
    if reason == "cancelled":
        return None
    if not run.offsets:
        return "The model ended its reply at once: there is no text."
    if not "".join(run.texts).strip() and not run.request.ignore_eos:
        if not "".join(run.thoughts).strip():
            return "The reply holds no visible text."
        if reason != "length":
            return "The model thought and then ended its reply without an answer."
        return "The token limit came while the model was still thinking: allow more new tokens, or continue."
    tail = run.ids[-_LOOP_WINDOW:]
    if len(tail) == _LOOP_WINDOW and len(set(tail)) <= 3:
        return "The reply goes round in circles; the numbers are right, the text is not."
    if reason == "length" and context_left is not None and len(run.ids) == context_left:
        return "The reply was cut because the model's context is full."
    return None


def _engine_of(module: str, settings: Mapping[str, Any]) -> AnyEngine:
    try:
        engine: AnyEngine = importlib.import_module(module).ENGINE()
    except ImportError as error:
        raise EngineError(f"The engine module {module} cannot be loaded: {error}") from error
    engine.take_settings(settings)
    return engine


def main(arguments: list[str] | None = None) -> Any:
    """`python -m engines.worker [STARTED_AT]`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the parent, which ends us in order
    commands, events = take_over_stdio()
    Worker(commands, events, float(arguments[0]) if arguments else None).serve()
