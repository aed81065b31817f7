"""What the History tab shows, as HTML made from stored records. Everything a model or a person wrote is escaped.

Replies are rendered by the same Markdown renderer as on the Compare tab, so a conversation looks as it did.
"""

from __future__ import annotations

import re

from storage.filters import fts_query, words
from storage.records import Conversation, Page, Run, Summary, Turn
from ui import format as fmt
from ui import stamps_html
from ui.reply_html import render_kept
from ui.thought_html import thought_html

PAGE_SIZE = 30
SHOWN_TURNS = 30
"""Turns of a conversation that are shown at once; the newest."""


def when(moment: str | None) -> str:
    """A stored moment by this PC's clock, safe for HTML."""
    return fmt.text(fmt.when(moment))


# --- the list ----------------------------------------------------------------------------------------------


def list_html(page: Page, query: str | None) -> str:
    """One button per conversation."""
    if not page.summaries:
        if page.offset or query:
            return '<p class="hist-empty">Nothing fits. Try fewer words or clear the filters.</p>'
        return '<p class="hist-empty">No conversation here yet. What you send on the Compare tab is kept here.</p>'
    items = "".join(_item(summary, query) for summary in page.summaries)
    return f'<ul class="hist-list" aria-label="Conversations">{items}</ul>'


def _item(summary: Summary, query: str | None) -> str:
    title = summary.title or summary.first_prompt
    shown = marked(fmt.shorten(title, 90), query) if title else '<em class="hist-soft">Text not kept</em>'
    pin = (
        '<span class="hist-pin" title="Pinned">📌<span class="sr">Pinned. </span></span>'
        if summary.pinned
        else ""
    )
    meta = [when(summary.updated_at), fmt.counted(summary.turns, "turn"), fmt.counted(summary.runs, "run")]
    failed = f' · <span class="hist-bad">{summary.failed_runs} failed</span>' if summary.failed_runs else ""
    origin = f" · from {fmt.text(summary.imported_from)}" if summary.imported_from else ""
    snippet = ""
    if summary.snippet and summary.snippet != title:
        snippet = f'<span class="hist-snippet">{marked(summary.snippet, query)}</span>'
    targets = ", ".join(summary.targets[:3]) + (
        f" +{len(summary.targets) - 3}" if len(summary.targets) > 3 else ""
    )
    return (
        f'<li><button type="button" class="hist-item" data-id="{fmt.text(summary.id)}">{pin}'
        f'<span class="hist-title">{shown}</span>'
        f'<span class="hist-meta">{" · ".join(meta)}{failed}{origin}</span>'
        f'<span class="hist-meta">{fmt.text(targets)}</span>{snippet}</button></li>'
    )


def marked(text: str, query: str | None) -> str:
    """Escaped text with what the search found marked."""
    found = (words(query) if fts_query(query) else query.split()) if query else []
    if not found:
        return fmt.text(text)
    pieces = re.split("(" + "|".join(re.escape(word) for word in found) + ")", text, flags=re.IGNORECASE)
    return "".join(f"<mark>{fmt.text(p)}</mark>" if at % 2 else fmt.text(p) for at, p in enumerate(pieces))


def position_text(page: Page) -> str:
    """`1–30 of 1,234`."""
    if not page.summaries:
        return "Nothing found" if not page.offset else "No more"
    return f"{page.offset + 1:,}–{page.offset + len(page.summaries):,} of {page.total_text}"


# --- one conversation --------------------------------------------------------------------------------------


def conversation_html(conversation: Conversation, *, shown_turns: int = SHOWN_TURNS) -> str:
    """The conversation as it was: prompts and every panel's reply, with the numbers."""
    turns = conversation.turns
    current = {turn.id for turn in conversation.current_turns()}
    hidden = len(turns) - shown_turns
    earlier = (
        f'<p class="notice info">{fmt.counted(hidden, "earlier turn")} not shown.</p>' if hidden > 0 else ""
    )
    first = max(0, hidden)
    body = "".join(_turn(turn, first + at, turn.id in current) for at, turn in enumerate(turns[first:], 1))
    return (
        f"{_head(conversation)}{earlier}{body or '<p class=hist-empty>This conversation has no turns.</p>'}"
    )


def title_of(conversation: Conversation) -> str:
    """Its title, or what it began with."""
    first = next((turn.prompt for turn in conversation.turns if turn.prompt), None)
    return fmt.shorten(conversation.title or first or "Conversation without text", 120)


def _head(conversation: Conversation) -> str:
    facts = [f"Started {when(conversation.created_at)}", fmt.counted(len(conversation.turns), "turn")]
    machines = dict.fromkeys(run.machine for turn in conversation.turns for run in turn.runs if run.machine)
    facts += [f"on {fmt.text(', '.join(machines))}"] if machines else []
    if conversation.imported_from:
        facts.append(f"imported from {fmt.text(conversation.imported_from)}")
    if conversation.pinned:
        facts.append("pinned")
    return (
        f'<div class="hist-head"><h2>{fmt.text(title_of(conversation))}</h2>'
        f'<p class="hist-meta">{" · ".join(facts)}</p></div>'
    )


def _turn(turn: Turn, number: int, current: bool) -> str:
    runs = "".join(_run(run, turn) for run in turn.latest_runs())
    before = [run for run in turn.runs if run not in turn.latest_runs()]
    retried = (
        f"<details class='hist-more'><summary>{fmt.counted(len(before), 'earlier attempt')}</summary>"
        f'<div class="hist-runs">{"".join(_run(run, turn) for run in before)}</div></details>'
        if before
        else ""
    )
    system = (
        f'<p class="hist-system"><b>System prompt</b> {fmt.text(turn.system_prompt)}</p>'
        if turn.system_prompt
        else ""
    )
    prompt = (
        fmt.text(turn.prompt) if turn.prompt is not None else '<em class="hist-soft">Prompt not kept</em>'
    )
    mode = "all at once" if turn.mode == "together" else "one after the other"
    if turn.via is not None:
        mode = f"by the API{fmt.text(turn.via.removeprefix('api').replace(':', ', key', 1))}"
    earlier = "".join(f"<p><b>{fmt.text(m.role)}</b> {fmt.text(m.content)}</p>" for m in turn.earlier)
    if earlier:
        system += (
            f"<details class='hist-more'><summary>The chat that came with it</summary>{earlier}</details>"
        )
    section = (
        f'<section class="hist-turn" aria-label="Turn {number}">{system}<div class="hist-prompt">{prompt}</div>'
        f'<p class="hist-meta">Turn {number} · {when(turn.created_at)} · {mode}{_settings(turn)}{_vote(turn)}</p>'
        f'<div class="hist-runs">{runs}</div>{retried}</section>'
    )
    if current:
        return section
    return f'<details class="hist-more"><summary>Turn {number}, replaced later</summary>{section}</details>'


def _settings(turn: Turn) -> str:
    names = {
        "max_new_tokens": "at most {} tokens",
        "temperature": "temperature {}",
        "seed": "seed {}",
        "top_p": "top-p {}",
    }
    names |= {"top_k": "top-k {}", "repetition_penalty": "repetition penalty {}"}
    shown = [
        text.format(fmt.text(turn.settings[name]))
        for name, text in names.items()
        if turn.settings.get(name) is not None
    ]
    return "".join(f" · {text}" for text in shown)


def _vote(turn: Turn) -> str:
    if turn.vote is None:
        return ""
    words_of = {"tie": "voted a tie", "none": "voted: none good"}
    text = words_of.get(turn.vote.winner, f"panel {turn.vote.winner} voted best")
    return f' · <span class="stamp fair">{fmt.text(text)}{", blind" if turn.vote.blind else ""}</span>'


def _run(run: Run, turn: Turn) -> str:
    won = turn.vote is not None and turn.vote.winner_run_id == run.id
    stamps = "".join(
        f'<span class="stamp {kind}">{text}</span>'
        for kind, text, on in (
            ("fair", "voted best", won),
            ("contended", "contended", run.contended),
            ("warn", "disturbed", bool(run.disturbed)),
            ("", "stamped by the older rule", run.stamp_rule == "start" and not run.contended),
            ("warn", fmt.text(run.status), run.status != "finished"),
        )
        if on
    )
    attempt = f" · attempt {run.attempt}" if run.attempt > 1 else ""
    spelling = fmt.text(run.target.spelling)
    return (
        f'<article class="hist-run p{(max(run.panel, 1) - 1) % 6 + 1}" aria-label="Panel {run.panel}, {spelling}">'
        f'<header><span class="badge">{run.panel}</span><span class="hist-target">{spelling}</span>'
        f'<span class="hist-meta">{fmt.text(run.target.model)}{attempt}</span>{stamps}</header>'
        f"{_reply(run)}{_figures(run)}{stamps_html.details(run.disturbed, run.other_load, run.placement)}</article>"
    )


def _reply(run: Run) -> str:
    failure = ""
    if run.error_message:
        more = (
            f"<details><summary>Details</summary><pre tabindex='0'>{fmt.text(run.error_details)}</pre></details>"
            if run.error_details
            else ""
        )
        failure = f'<div class="failure"><p><strong>{fmt.text(run.error_message)}</strong></p>'
        remedy = f"<p>{fmt.text(run.error_remedy)}</p>" if run.error_remedy else ""
        failure += f"{remedy}{more}</div>"
    warning = f'<p class="note warn">{fmt.text(run.warning)}</p>' if run.warning else ""
    if run.note:
        warning = f'<p class="note">{fmt.text(run.note)}</p>{warning}'
    thought = thought_html(run.reasoning or "", run.metrics.thought_s, run.metrics.reasoning_tokens)
    if run.text is None:
        empty = "" if failure or thought else '<p class="hist-soft"><em>No text.</em></p>'
        return f"{thought}{empty}{failure}{warning}"
    return f'{thought}<div class="md">{render_kept(run.text)}</div>{failure}{warning}'


def _figures(run: Run) -> str:
    metrics = run.metrics
    figures = (
        ("TTFT", fmt.seconds(metrics.ttft_s)),
        ("decode", fmt.tok_s(metrics.decode_tok_s)),
        ("tokens", fmt.count(metrics.output_tokens)),
        ("memory", fmt.size(metrics.peak_rss_bytes)),
    )
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures)
    return f'<dl class="hist-figures">{cells}</dl>'
