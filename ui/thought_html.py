"""What a model thought before it answered, folded: one line that says how long, the thought itself a click away."""

from __future__ import annotations

from ui import format as fmt

GROWING_CHARS = 4_000
"""Of a thought that is still going on, so much of its end is shown."""


def thought_html(reasoning: str, seconds: float | None, tokens: int | None, *, going_on: bool = False) -> str:
    """`▸ Thought for 12.3 s, 340 tokens`; nothing where the model did not think. Plain text inside, escaped."""
    if not reasoning.strip():
        return ""
    cut = going_on and len(reasoning) > GROWING_CHARS
    text = ("…" + reasoning[-GROWING_CHARS:]) if cut else reasoning.strip()
    return (
        f'<details class="thought"><summary>{thought_line(seconds, tokens, going_on=going_on)}</summary>'
        f'<div class="thought-text" tabindex="0" role="group" aria-label="The thought">{fmt.text(text)}</div>'
        "</details>"
    )


def thought_line(seconds: float | None, tokens: int | None, *, going_on: bool = False) -> str:
    """`Thought for 12.3 s, 340 tokens`, or how long it has been going on."""
    if going_on:
        return f"Thinking… {fmt.elapsed(seconds)}" if seconds is not None else "Thinking…"
    lasted = f" for {fmt.seconds(seconds)}" if seconds is not None else ""
    return f"Thought{lasted}" + (f", {fmt.counted(tokens, 'token')}" if tokens else "")
