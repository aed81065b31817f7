"""How much of a kept KV cache a new prompt can use.

Every engine that keeps its KV cache between turns compares token ids, never text: what the cache was built from
against the new prompt. The last prompt token is always computed again, because its logits choose the first
token of the reply. A handful of equal tokens is no follow-up turn: every chat starts with the template's
own few, and a prompt computed but for three tokens could not be told from one computed whole.
"""

from __future__ import annotations

from collections.abc import Sequence

LEAST_TOKENS = 16
"""Shorter common prefixes are computed again: it costs next to nothing and keeps prefill measurable."""


def reusable_tokens(kept: Sequence[int], prompt: Sequence[int], switch: int | None = None) -> int:
    """Length of the longest common prefix of `kept` and `prompt`: 0, or LEAST_TOKENS to `len(prompt) - 1`.

    `switch` is the length above which the model's position factors change (`model_config.rope_switch`): nothing is
    reusable when what is kept and the prompt lie on different sides of it.
    """
    if switch is not None and (len(kept) > switch) != (len(prompt) > switch):
        return 0
    limit = min(len(kept), len(prompt) - 1)
    common = next((i for i in range(limit) if kept[i] != prompt[i]), limit)
    return common if common >= LEAST_TOKENS else 0
