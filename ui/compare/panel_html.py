"""A panel as HTML: its head with state and numbers, and its conversation. Plain functions, text in, HTML out.

Everything that comes from a model, a file or a person goes through `fmt.text` or `ui.reply_html`. The head has a
fixed height and its figures fixed places, so nothing moves while a reply streams in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engines.protocol import DEMO_MODEL, Failed, Progress, Target
from ui import format as fmt
from ui import stamps_html
from ui.chat.conversations import Run, TalkTurn
from ui.chat.run_view import DONE_PHASES, RunView, whose_times
from ui.compare.offer import Trouble
from ui.reply_html import render_kept
from ui.thought_html import thought_html

LETTERS = "ABCDEF"
LONG_PROMPT_CHARS = 1_200


@dataclass(frozen=True)
class Naming:
    """How targets are called on this page: by what they are, or by a letter while the comparison is blind."""

    title: Callable[[str], str]
    """Engine name -> engine title."""
    hidden: bool = False

    def engine(self, panel: int, target: Target) -> str:
        return f"Backend {LETTERS[panel - 1]}" if self.hidden else self.title(target.engine)

    def full(self, panel: int, target: Target) -> str:
        """`OpenVINO GenAI · CPU · int4`, with the model where it is not the demo."""
        if self.hidden:
            return self.engine(panel, target)
        parts = [self.title(target.engine), target.device, target.precision]
        return " · ".join(parts if target.model == DEMO_MODEL else [*parts, model_name(target.model)])


def model_name(model: str) -> str:
    """`microsoft/Phi-3-mini-4k-instruct` -> `Phi-3-mini-4k-instruct`; a folder by its last part."""
    return model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or model


# --- head --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PanelState:
    """What the chip in a panel's head says."""

    phase: str
    """CSS name: absent, loading, ready, busy, failed, unavailable."""
    label: str
    detail: str | None = None
    fraction: float | None = None
    memory_bytes: int | None = None


_RUN_LABELS = {
    "waiting": ("loading", "Waiting"),
    "preparing": ("loading", "Preparing"),
    "loading": ("loading", "Loading"),
    "prefill": ("busy", "Reading prompt"),
    "running": ("busy", "Writing"),
}
_TARGET_LABELS = {
    "absent": ("absent", "Not loaded"),
    "preparing": ("loading", "Preparing"),
    "loading": ("loading", "Loading"),
    "ready": ("ready", "Ready"),
    "busy": ("busy", "Busy"),
    "failed": ("failed", "Failed"),
}


def panel_state(target_state: object | None, view: RunView | None, trouble: Trouble | None) -> PanelState:
    """Chip from the running reply if there is one, else from the worker behind the target."""
    memory = getattr(target_state, "rss_bytes", None)
    if view is not None and view.phase in _RUN_LABELS:
        phase, label = _RUN_LABELS[view.phase]
        return PanelState(phase, label, *_progress(view.progress), memory or view.peak_rss_bytes)
    if trouble is not None:
        return PanelState("unavailable", "Not available", trouble.reason)
    phase, label = _TARGET_LABELS.get(getattr(target_state, "phase", "absent"), ("absent", "Not loaded"))
    progress = getattr(target_state, "progress", None) if phase == "loading" else None
    return PanelState(phase, label, *_progress(progress), memory if phase in ("ready", "busy") else None)


def _progress(progress: Progress | None) -> tuple[str | None, float | None]:
    return (progress.text, progress.fraction) if progress else (None, None)


def head(panel: int, target: Target, naming: Naming, state: PanelState, view: RunView | None) -> str:
    name = fmt.text(naming.engine(panel, target))
    memory = f'<span class="mem">{fmt.size(state.memory_bytes)}</span>' if state.memory_bytes else ""
    under = naming.full(panel, target).removeprefix(naming.engine(panel, target)).removeprefix(" · ")
    if target.model == DEMO_MODEL and not naming.hidden:
        under += " · demo model"
    if naming.hidden:
        under, memory = "hidden until you vote", ""
    return (
        f'<div class="ph" data-phase="{state.phase}" data-panel="{panel}">'
        f'<div class="ph-row"><span class="badge p{panel}" aria-hidden="true">{panel}</span>'
        f'<h2 class="ph-title" title="{name}"><span class="sr">Panel {panel}: </span>{name}</h2>'
        f'<span class="chip chip-{state.phase}">{fmt.text(state.label)}</span></div>'
        f'<p class="ph-sub"><span class="ph-target" title="{fmt.text(under)}">{fmt.text(under)}</span>{memory}</p>'
        f"{_bar(state)}{figures(view, naming.hidden)}</div>"
    )


def _bar(state: PanelState) -> str:
    """One line kept free for what is going on, so that it may come and go without moving anything."""
    width = f"{100 * min(max(state.fraction, 0), 1):.0f}%" if state.fraction is not None else "100%"
    kind = "known" if state.fraction is not None else "unknown"
    fill = (
        f'<span class="bar {kind}" style="width:{width}"></span>'
        if state.phase in ("loading", "busy")
        else ""
    )
    slot = f'<span class="bar-slot" aria-hidden="true">{fill}</span>'
    percent = f"{fmt.percent(state.fraction)} · " if state.fraction is not None else ""
    return f'<p class="ph-doing">{slot}{fmt.text(percent + (state.detail or ""))}</p>'


def figures(view: RunView | None, hidden: bool = False) -> str:
    """The four figures of the current or last reply, always in the same places."""
    if view is None or hidden:
        values = (fmt.MISSING,) * 4
    else:
        values = (
            fmt.seconds(view.ttft_s),
            fmt.rate(view.decode_tok_s),
            fmt.count(view.tokens) if view.tokens or view.phase in ("running", *DONE_PHASES) else fmt.MISSING,
            fmt.elapsed(view.elapsed_s),
        )
    names = (
        ("TTFT", "Time to first token, tokenisation and prefill included"),
        ("tok/s", "Decode speed, the first token excluded"),
        ("tokens", "Generated tokens"),
        ("elapsed", "From the moment the worker took the prompt"),
    )
    cells = "".join(
        f'<div title="{why}"><dt>{name}</dt><dd>{value}</dd></div>'
        for (name, why), value in zip(names, values, strict=True)
    )
    return f'<dl class="figures">{cells}</dl>'


# --- conversation ------------------------------------------------------------------------------------------


def exchange(turn: TalkTurn, run: Run, view: RunView, naming: Naming, body: str | None = None) -> str:
    """One prompt with one panel's reply. `body` is the reply's HTML where the caller renders it itself."""
    return (
        f'<article class="turn" data-run="{fmt.text(run.run_id)}" data-phase="{view.phase}">'
        f"{user_message(turn.prompt)}{reply(run, view, naming, body)}</article>"
    )


def user_message(prompt: str) -> str:
    text = fmt.text(prompt)
    if len(prompt) > LONG_PROMPT_CHARS:
        first = fmt.text(fmt.shorten(prompt, 160))
        text = f"<details><summary>{first} <em>({fmt.count(len(prompt))} characters)</em></summary>{text}</details>"
    return f'<div class="msg user"><p class="who">You</p><div class="bubble">{text}</div></div>'


def reply(run: Run, view: RunView, naming: Naming, body: str | None = None) -> str:
    text = view.text
    content = body if body is not None else render_kept(text)
    if not text:
        waits = not view.done and not view.thinking
        content = f'<p class="waiting-text">{fmt.text(waiting_text(view))}</p>' if waits else ""
    thought = thought_html(view.reasoning, view.thought_s, view.reasoning_tokens, going_on=view.thinking)
    copy = source = ""
    if view.done and text:
        copy = '<button type="button" class="copy-reply">Copy<span class="sr"> this reply</span></button>'
        source = f'<template class="source">{fmt.text(text)}</template>'
    author = fmt.text(naming.full(run.panel, run.target))
    return (
        f'<div class="msg reply{"" if view.done else " growing"}"><p class="who">'
        f'<span class="dot p{run.panel}" aria-hidden="true"></span><span class="who-name">{author}</span>{copy}</p>'
        f'{thought}<div class="md">{content}</div>{source}{_ending(view, naming.hidden)}</div>'
    )


def waiting_text(view: RunView) -> str:
    if view.progress and view.phase in ("waiting", "preparing", "loading"):
        return view.progress.text
    return {
        "waiting": "Waiting for its turn…",
        "preparing": "Preparing the model…",
        "loading": "Loading the model…",
        "prefill": "Reading the prompt…",
        "running": "…",
    }.get(view.phase, "")


def _ending(view: RunView, hidden: bool) -> str:
    """What stands under a reply for good: failure, warning, numbers. Nothing while it runs."""
    if not view.done:
        return ""
    parts = [failure_card(view.failure) if view.failure else ""]
    if view.phase == "finished" and not (view.text + view.reasoning).strip():
        parts.append('<p class="note">The model ended its reply at once: an empty answer.</p>')
    if view.phase == "stopped" and not (view.text or view.reasoning) and not view.warning:
        parts.append('<p class="note">Stopped before the first word.</p>')
    if view.note:
        parts.append(f'<p class="note">{fmt.text(view.note)}</p>')
    if view.warning:
        parts.append(f'<p class="note warn">{fmt.text(view.warning)}</p>')
    if view.finish_reason == "length":
        parts.append('<p class="note">Cut at the token limit. “Continue” carries on.</p>')
    if not hidden:
        parts.append(numbers_line(view))
        parts.append(tuning_line(view))
        parts.append(stamps_html.details(view.disturbed, view.other_load, view.placement))
    return "".join(parts)


def tuning_line(view: RunView) -> str:
    """The settings that the tuner found for this lane, where it was tuned."""
    tuning = view.loaded.details.get("tuning") if view.loaded else None
    if not isinstance(tuning, Mapping) or not tuning:
        return ""
    spelled = ", ".join(f"{name}={value}" for name, value in sorted(tuning.items()))
    return f'<p class="note">Tuned: {fmt.text(spelled)}</p>'


def failure_card(failure: Failed) -> str:
    remedy = f"<p>{fmt.text(failure.remedy)}</p>" if failure.remedy else ""
    told = failure.exit_code is None or str(abs(failure.exit_code)) in failure.message
    code = "" if told else f" (exit code {failure.exit_code})"
    log = ""
    if failure.details:
        text = fmt.text(failure.details)
        log = f'<details class="log"><summary>Show the log</summary><pre tabindex="0">{text}</pre></details>'
    said = f"<p><strong>{fmt.text(failure.message)}</strong>{code}</p>"
    return f'<div class="failure" role="group" aria-label="Failure">{said}{remedy}{log}</div>'


def numbers_line(view: RunView) -> str:
    """`TTFT 0.042 s · 61.3 tok/s · 128 tokens · …`: the reply's numbers for good."""
    facts = []
    if view.phase == "stopped":
        facts.append("stopped")
    if view.ttft_s is not None:
        facts.append(f"TTFT {fmt.seconds(view.ttft_s)}")
    facts += _thinking_facts(view)
    if view.decode_tok_s is not None:
        facts.append(fmt.tok_s(view.decode_tok_s))
    if view.tokens:
        facts.append(fmt.counted(view.tokens, "token"))
    if view.prompt_tokens:
        facts.append(f"prompt {fmt.count(view.prompt_tokens)}{_cached(view)}")
    if view.elapsed_s is not None:
        facts.append(f"total {fmt.seconds(view.elapsed_s)}")
    if view.load_s is not None:
        facts.append(f"loaded in {fmt.seconds(view.load_s)}")
    if whose := whose_times(view.metrics):
        facts.append(whose)
    if view.metrics and view.metrics.server:
        facts.append(f"the server says: {server_words(view.metrics.server)}")
    return f'<p class="numbers">{" · ".join(fmt.text(fact) for fact in facts)}</p>' if facts else ""


def _thinking_facts(view: RunView) -> list[str]:
    """Of a reply with a thought: when each part began, and when the answer was finished."""
    if view.metrics is None or view.first_reasoning_s is None:
        return []
    facts = [f"first thought {fmt.seconds(view.first_reasoning_s)}"]
    if view.first_answer_s is not None:
        facts.append(f"first answer {fmt.seconds(view.first_answer_s)}")
        if view.metrics.answer_s is not None and view.phase == "finished":
            facts.append(f"answer finished {fmt.seconds(view.metrics.answer_s)}")
    return facts


def server_words(server: Mapping[str, Any]) -> str:
    """What a server says about a run, in its own names: `load_duration_s 0.31, eval_count 42`."""
    return ", ".join(f"{name} {_figure(value)}" for name, value in server.items())


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cached(view: RunView) -> str:
    cached = view.metrics.cached_prompt_tokens if view.metrics else None
    return f" ({fmt.count(cached)} cached)" if cached else ""


def empty_panel(panel: int, target: Target, naming: Naming, trouble: Trouble | None) -> str:
    if trouble is not None:
        remedy = f"<p>{fmt.text(trouble.remedy)}</p>" if trouble.remedy else ""
        return (
            f'<div class="empty unavailable"><p><strong>Not available here</strong></p>'
            f"<p>{fmt.text(trouble.reason)}</p>{remedy}</div>"
        )
    return (
        f'<div class="empty"><p>Nothing asked yet.</p>'
        f"<p>The reply of {fmt.text(naming.full(panel, target))} will appear here.</p></div>"
    )
