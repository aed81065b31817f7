"""`python app.py run`: send one prompt to some targets, as the page does, and print what came of it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from engines.models.model_names import entered
from engines.protocol import DEMO_MODEL, Target
from storage.exchange.harmless import for_terminal
from ui.arena import OpenArena
from ui.chat.live_turn import LiveTurn
from ui.chat.run_view import RunView, whose_times
from ui.chat.settings import BOUNDS, Settings, TurnError
from ui.chat.turns import MOST_PANELS
from ui.thought_html import thought_line

_FAILED = 1


def _run(arguments: argparse.Namespace, open_arena: OpenArena) -> int:
    """Send one prompt to some targets, as the page does, and print what came of it."""
    settings = Settings(
        system_prompt=arguments.system,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        repetition_penalty=arguments.repetition_penalty,
        seed=arguments.seed,
        thinking=None if arguments.thinking is None else arguments.thinking == "on",
    )
    model = entered(arguments.model, look_around=True)
    targets = [Target.parse(spelling, model) for spelling in arguments.on]
    with open_arena(arguments) as arena:
        views = []
        for start in range(0, len(targets), MOST_PANELS):
            turn = arena.turns.send(
                arguments.prompt,
                list(enumerate(targets[start : start + MOST_PANELS], start=1)),
                settings,
                mode="in-turn" if arguments.in_turn else "together",
                pressed_at=time.monotonic(),
            )
            views += _watch(turn, quiet=arguments.json)
        if arena.store.trouble:
            print(arena.store.trouble, file=sys.stderr)
    if arguments.json:
        print(json.dumps({"runs": [run_document(view) for view in views]}, indent=2, ensure_ascii=True))
    return 0 if all(view.phase == "finished" for view in views) else _FAILED


def _watch(turn: LiveTurn, quiet: bool) -> list[RunView]:
    """Tell on stderr what is going on; print each reply when it is done, in panel order."""
    told: dict[int, str] = {}
    printed = 0
    try:
        while printed < len(turn.runs):
            for run_ in turn.runs:
                progress = run_.view().progress
                if progress and told.get(run_.panel) != progress.text:
                    told[run_.panel] = progress.text
                    print(f"{run_.target.spelling}: {progress.text}", file=sys.stderr, flush=True)
            if turn.runs[printed].done.wait(0.1):
                if not quiet:
                    print(run_text(turn.runs[printed].view()), flush=True)
                printed += 1
    except KeyboardInterrupt:
        turn.stop()
        turn.wait(15)
    return [run_.view() for run_ in turn.runs]


def run_text(view: RunView) -> str:
    """A finished run for reading in a terminal."""
    lines = [f"── {view.target} " + "─" * 20, _thought(view), view.text.strip()]
    if view.failure:
        lines.append(f"FAILED: {view.failure.message} {view.failure.remedy or ''}".rstrip())
    metrics = view.metrics
    if metrics and metrics.ttft_s is not None:
        rate = f"{metrics.decode_tok_s:.1f} tok/s" if metrics.decode_tok_s else "one token"
        if metrics.decode_tok_s is None and metrics.output_tokens is None:
            rate = "rate not known"
        stamps = "".join(f", {stamp}" for stamp in stamps_of(view))
        whose = f"; {note}" if (note := whose_times(metrics)) else ""
        tokens = "tokens not told" if metrics.output_tokens is None else f"{metrics.output_tokens} tokens"
        answer = ""
        if metrics.first_reasoning_s is not None and metrics.first_answer_s is not None:
            answer = f", answer from {metrics.first_answer_s:.2f} s to {metrics.answer_s:.2f} s"
        lines.append(
            f"[TTFT {metrics.ttft_s * 1000:.0f} ms{answer}, decode {rate}, {tokens}, "
            f"load {metrics.load_s:.1f} s{stamps}{whose}]"
        )
    if view.other_load:
        lines += [f"Note: {reason}" for reason in view.other_load.reasons]
    if view.placement and view.misplaced:
        lines += ["CONTRADICTED: " + " ".join(view.placement.evidence)]
    if view.warning:
        lines.append(f"Note: {view.warning}")
    if view.note:
        lines.append(f"Note: {view.note}")
    return for_terminal("\n".join(line for line in lines if line) + "\n")


def _thought(view: RunView) -> str:
    """The thought, set apart from the answer."""
    if not view.reasoning:
        return ""
    inside = "\n".join(f"│ {line}" for line in view.reasoning.strip().split("\n"))
    return f"({thought_line(view.thought_s, view.reasoning_tokens)})\n{inside}\n"


def stamps_of(view: RunView) -> list[str]:
    """What must be known about a run's numbers, in words."""
    found = ["contended (other work of this app overlapped it)"] if view.contended else []
    found += ["disturbed (by other programs or the power state)"] if view.disturbed else []
    placement = view.placement
    if placement and placement.badge:
        found.append(f"{placement.badge} on {placement.observed or placement.claimed}")
    return found


def run_document(view: RunView) -> dict[str, Any]:
    """A finished run as `run --json` gives it; times in seconds, sizes in bytes, missing is null."""
    metrics = view.metrics
    failure = view.failure

    def measured(name: str) -> Any:
        return getattr(metrics, name) if metrics else None

    return {
        "target": view.target.spelling,
        "model": view.target.model,
        "text": view.text,
        "reasoning": view.reasoning or None,
        "note": view.note,
        "finish_reason": view.finish_reason,
        "error": {"kind": failure.kind, "message": failure.message, "remedy": failure.remedy}
        if failure
        else None,
        "warning": view.warning,
        "contended": view.contended,
        "disturbed": view.disturbed,
        "other_load": asdict(view.other_load) if view.other_load else None,
        "placement": asdict(view.placement) if view.placement else None,
        "device": view.loaded.device if view.loaded else None,
        "prompt_tokens": measured("prompt_tokens"),
        "cached_prompt_tokens": measured("cached_prompt_tokens"),
        "output_tokens": view.tokens,
        "prompt_sha256": measured("prompt_sha256"),
        "load_s": measured("load_s"),
        "compile_s": measured("compile_s"),
        "warmup_s": measured("warmup_s"),
        "ttft_s": measured("ttft_s"),
        "felt_ttft_s": view.felt_ttft_s,
        "first_reasoning_s": measured("first_reasoning_s"),
        "first_answer_s": measured("first_answer_s"),
        "answer_s": measured("answer_s"),
        "reasoning_tokens": measured("reasoning_tokens"),
        "answer_tokens": measured("answer_tokens"),
        "decode_tok_s": measured("decode_tok_s"),
        "total_s": measured("total_s"),
        "token_offsets_s": list(view.token_offsets_s),
        "peak_rss_bytes": measured("peak_rss_bytes"),
        "clock": measured("clock"),
        "piece_offsets_s": list(metrics.piece_offsets_s) if metrics else [],
        "rate_from_counts": measured("rate_from_counts"),
        "server": measured("server"),
    }


def register(commands: Any, open_arena: OpenArena) -> None:
    """Add `run`."""
    command = commands.add_parser("run", help="send one prompt to some targets and print the replies")
    command.add_argument("prompt", metavar="PROMPT")
    command.add_argument(
        "--on",
        action="append",
        required=True,
        metavar="TARGET",
        help="ENGINE/DEVICE/PRECISION, for example openvino-genai/CPU/int4; may be repeated",
    )
    command.add_argument("--model", default=DEMO_MODEL, help="demo, a Hugging Face id, or a folder")
    command.add_argument("--in-turn", action="store_true", help="each alone on the machine, not all at once")
    command.add_argument(
        "--max-new-tokens", type=_within("max_new_tokens"), default=Settings.max_new_tokens, metavar="N"
    )
    command.add_argument(
        "--temperature", type=_within("temperature"), default=0.0, metavar="T", help="0 (default): greedy"
    )
    command.add_argument("--top-p", type=_within("top_p"), metavar="P")
    command.add_argument("--top-k", type=_within("top_k"), metavar="K")
    command.add_argument("--repetition-penalty", type=_within("repetition_penalty"), metavar="R")
    command.add_argument("--seed", type=_within("seed"), metavar="S")
    command.add_argument("--system", metavar="TEXT", help="system prompt")
    command.add_argument(
        "--thinking",
        choices=("on", "off"),
        help="think before answering or not, where the model's chat template knows a switch",
    )
    command.add_argument("--json", action="store_true", help="one JSON document on stdout")
    command.set_defaults(run=lambda arguments: _run(arguments, open_arena))


def _within(name: str) -> Callable[[str], float | int | None]:
    """Reads a setting's number within its bounds, for argparse."""
    bounds = BOUNDS[name]

    def read(text: str) -> float | int | None:
        try:
            return bounds.whole_number(text) if bounds.whole else bounds.number(text)
        except TurnError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read
