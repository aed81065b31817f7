"""A conversation as Markdown: for reading, for an issue report, for an e-mail."""

from __future__ import annotations

import re

from storage.exchange.harmless import for_markdown, for_markdown_line, for_terminal
from storage.records import Conversation, Run, Turn


def conversation_markdown(conversation: Conversation) -> str:
    """The conversation as it was: prompts, every attempt of every panel, and the numbers under each."""
    title = (
        conversation.title or (conversation.turns[0].prompt if conversation.turns else None) or "Conversation"
    )
    head = [
        f"# {for_markdown_line(' '.join(title.split())[:120])}",
        "",
        f"{conversation.created_at} · {len(conversation.turns)} turn{'' if len(conversation.turns) == 1 else 's'}",
    ]
    if conversation.imported_from:
        head.append(f"Imported from {for_markdown_line(conversation.imported_from)}.")
    turns = (_turn(turn, number) for number, turn in enumerate(conversation.turns, 1))
    return for_terminal("\n".join([*head, "", *turns]))  # people look at Markdown with `cat`, too


def _turn(turn: Turn, number: int) -> str:
    replaced = " (edited and sent again)" if turn.replaces_turn_id else ""
    mode = "all at once" if turn.mode == "together" else "one after the other"
    lines = [
        f"## {number}. Prompt{replaced}",
        "",
        _quoted(turn.prompt),
        "",
        f"Sent {turn.created_at}, {mode}.",
    ]
    if turn.system_prompt:
        lines += ["", "System prompt:", "", _quoted(turn.system_prompt)]
    if turn.vote:
        lines += ["", f"Vote: {_vote(turn)}{' (blind)' if turn.vote.blind else ''}."]
    for run in turn.runs:
        lines += ["", _run(run)]
    return "\n".join(lines) + "\n"


def _vote(turn: Turn) -> str:
    winner = next((run for run in turn.runs if turn.vote and run.id == turn.vote.winner_run_id), None)
    if winner:
        return f"{winner.target.spelling} answered best"
    return "a tie" if turn.vote and turn.vote.winner == "tie" else "none was good"


def _run(run: Run) -> str:
    again = f", attempt {run.attempt}" if run.attempt > 1 else ""
    reply = for_markdown(run.text) if run.text is not None else "*(no text)*"
    lines = [f"### {for_markdown_line(f'{run.target.spelling} · {run.target.model}')}{again}", ""]
    if run.reasoning:
        lines += [f"*{thought(run)}:*", "", _quoted(run.reasoning), ""]
    lines += [reply, "", f"*{for_markdown_line(figures(run))}*"]
    if run.note:
        lines.append(f"\n{for_markdown_line(run.note)}")
    if run.error_message:
        remedy = f" {for_markdown_line(run.error_remedy)}" if run.error_remedy else ""
        lines.append(f"\n**{for_markdown_line(run.error_message)}**{remedy}")
    return "\n".join(lines)


def thought(run: Run) -> str:
    """`Thought for 12.3 s, 340 tokens`."""
    seconds, tokens = run.metrics.thought_s, run.metrics.reasoning_tokens
    lasted = f" for {seconds:.1f} s" if seconds is not None else ""
    return f"Thought{lasted}" + (f", {tokens:,} tokens" if tokens else "")


def figures(run: Run) -> str:
    """One line: status and the numbers that matter."""
    metrics = run.metrics
    parts = [run.status]
    if metrics.ttft_s is not None:
        parts.append(f"TTFT {metrics.ttft_s:.3f} s")
    if metrics.decode_tok_s is not None:
        parts.append(f"{metrics.decode_tok_s:.1f} tok/s")
    if metrics.output_tokens:
        parts.append(f"{metrics.output_tokens} tokens")
    if metrics.clock != "worker":
        parts.append("the server's own times" if metrics.clock == "server" else "times as they arrived here")
    if metrics.first_reasoning_s is not None and metrics.answer_s is not None:
        parts.append(f"answer finished after {metrics.answer_s:.2f} s")
    if metrics.peak_rss_bytes:
        parts.append(f"peak memory {metrics.peak_rss_bytes / 1e9:.2f} GB")
    if run.contended:
        parts.append("contended")
    if run.disturbed:
        parts.append("disturbed by other programs")
    if run.placement and run.placement.badge:
        parts.append(f"{run.placement.badge} on {run.placement.observed or run.placement.claimed}")
    if run.machine:
        parts.append(f"on {run.machine}")
    return ", ".join(parts)


def _quoted(text: str | None) -> str:
    return "\n".join(f"> {line}" for line in for_markdown(text or "(text not kept)").split("\n"))


def file_name(conversation: Conversation, suffix: str) -> str:
    """A file name that every system takes: `2026-11-22-what-is-an-npu.md`."""
    title = (
        conversation.title or (conversation.turns[0].prompt if conversation.turns else None) or "conversation"
    )
    words = "-".join(re.findall(r"[a-z0-9]+", title.lower()))[:40].strip("-") or "conversation"
    return f"{conversation.created_at[:10]}-{words}{suffix}"
