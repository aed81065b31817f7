"""Turns and runs of earlier starts of the app, made from the log into what the rest of the chat works with."""

from __future__ import annotations

from datetime import datetime

from engines.protocol import Failed
from storage.records import Run, Turn
from ui.chat.live_turn import LiveRun, LiveTurn
from ui.chat.run_view import PastFold, RunView
from ui.chat.settings import TurnError, logged_settings

INTERRUPTED = "The app ended before this reply did; this is what had come until then."


def restored_turn(turn: Turn, imported: bool = False) -> LiveTurn:
    """A logged turn that can be answered again or carried on; raises TurnError where the log does not have enough.

    `imported`: token ids in it may be those of another tokenizer, so its replies go on from their words.
    """
    settings = logged_settings(turn.settings, turn.system_prompt)
    if turn.prompt is None:
        raise TurnError(
            "Only the numbers of this reply were kept, not the words, so there is nothing to send again."
        )
    if turn.via is not None:
        raise TurnError(
            "A program sent this prompt, and how is not known any more. Let the program send it again."
        )
    if settings is None:
        raise TurnError(
            "What this was sent with cannot be read here. Use “Edit last prompt” to send it again."
        )
    if any(run.status == "running" for run in turn.latest_runs()):
        raise TurnError(
            "Another window of the app, or a command, is still writing a reply to this. Wait for it."
        )
    restored = LiveTurn(turn.conversation_id, turn.id, turn.prompt, turn.mode, settings)
    restored.asked_at = datetime.fromisoformat(turn.created_at.replace("Z", "+00:00")).timestamp()
    runs = (_restored_run(run, () if imported else run.reply_ids) for run in turn.latest_runs())
    restored.runs = tuple(sorted(runs, key=lambda run: run.panel))
    return restored


def _restored_run(run: Run, reply_ids: tuple[int, ...]) -> LiveRun:
    restored = LiveRun(PastFold(past_view(run), reply_ids), run.panel, run.target, run.attempt)
    restored.run_id, restored.logged = run.id, True
    restored.done.set()
    return restored


def past_view(run: Run) -> RunView:
    """A logged run the way a live one is seen."""
    metrics = run.metrics
    cut_off = run.status in ("interrupted", "running")
    failure = None
    if run.status == "failed":
        message = run.error_message or "It failed; the log does not say why."
        failure = Failed(
            run.error_kind or "error", message, run.error_remedy, run.error_details, run.exit_code, run.id
        )
    return RunView(
        run.panel,
        run.target,
        run.id,
        phase="stopped" if cut_off else run.status,
        text=run.text or "",
        reasoning=run.reasoning or "",
        reasoning_tokens=metrics.reasoning_tokens,
        answer_tokens=metrics.answer_tokens,
        first_reasoning_s=metrics.first_reasoning_s,
        first_answer_s=metrics.first_answer_s,
        note=run.note,
        tokens=metrics.output_tokens,
        ttft_s=metrics.ttft_s,
        felt_ttft_s=run.felt_ttft_s,
        elapsed_s=metrics.total_s,
        decode_tok_s=metrics.decode_tok_s,
        metrics=metrics,
        token_offsets_s=metrics.token_offsets_s,
        finish_reason=run.finish_reason,
        failure=failure,
        warning=INTERRUPTED if cut_off else run.warning,
        load_s=metrics.load_s,
        warmup_s=metrics.warmup_s,
        prompt_tokens=metrics.prompt_tokens,
        prompt_sha256=metrics.prompt_sha256,
        peak_rss_bytes=metrics.peak_rss_bytes,
        contended=run.contended,
        disturbed=run.disturbed,
        other_load=run.other_load,
        placement=run.placement,
        old_rule=run.stamp_rule == "start",
    )
