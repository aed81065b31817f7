"""How much of a kept KV cache a new prompt can use, and whether what is kept may be used at all.

Every engine that keeps its KV cache between turns compares token ids, never text: what the cache was built from
against the new prompt. The last prompt token is always computed again, because its logits choose the first
token of the reply. A handful of equal tokens is no follow-up turn: every chat starts with the template's
own few, and a prompt computed but for three tokens could not be told from one computed whole.

Not every architecture's state can be kept, or cut: convolutions, state spaces and what comes next remember in their
own ways, and libraries get them wrong. So no list of them is kept here; each engine proves it once when it has loaded
a model (`prove`): a prompt in two pieces must give the logits of the whole, or nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

LEAST_TOKENS = 16
"""Shorter common prefixes are computed again: it costs next to nothing and keeps prefill measurable."""


def reusable_tokens(
    kept: Sequence[int], prompt: Sequence[int], switch: int | None = None, *, grows: bool = False
) -> int:
    """Length of the longest common prefix of `kept` and `prompt`: 0, or LEAST_TOKENS to `len(prompt) - 1`.

    `switch` is the length above which the model's position factors change (`model_config.rope_switch`): nothing is
    reusable when what is kept and the prompt lie on different sides of it. `grows`: above it they change with every
    token (`model_config.rope_grows`), so that nothing is reusable there at all.
    """
    if switch is not None:
        beyond = len(prompt) > switch
        if (len(kept) > switch) != beyond or (grows and beyond):
            return 0
    limit = min(len(kept), len(prompt) - 1)
    common = next((i for i in range(limit) if kept[i] != prompt[i]), limit)
    return common if common >= LEAST_TOKENS else 0


KEPT = "kept: a prompt in two pieces gives the logits of the whole"
DIFFERS = "not kept: a prompt in two pieces gives other logits than the whole"
FAILS = "not kept: the model's state cannot be used again"
FORGETS = (
    "not kept: within a reply, too, it gives other logits, so each token is computed with all text before it"
)
_PROOF_TOKENS = 28
_PROOF_IDS = 200
"""Every vocabulary has that many."""


def proof_ids(count: int = _PROOF_TOKENS, start: int = 3) -> list[int]:
    """Token ids without a pattern that a model could lean on."""
    return [
        3 + (start * 31 + number * 7_919 + number * number * 13) % (_PROOF_IDS - 3) for number in range(count)
    ]


def prove(resume: Callable[[Sequence[int], Sequence[int]], Any | None], tolerance: float) -> str:
    """Whether what is kept may be used: KEPT, or why not (DIFFERS, FAILS).

    `resume(kept, ids)` computes `kept` whole, then `ids` with all of it that the engine would use again, and returns
    the logits after the last of `ids`, shape (vocab,), or None when it would use nothing; with nothing kept it
    computes `ids` whole. `tolerance`: how far the two may be apart within the engine's noise, as a share of
    the logits' spread. What comes behind the seam is short, so that a state that was lost there still shows.
    """
    ids = proof_ids()
    longer = [*ids, *proof_ids(8, start=5)]
    edited = [*ids[:-4], *proof_ids(9, start=11)]
    try:
        whole = resume((), ids)
        for kept in (ids[:-2], longer, edited):
            resumed = resume(kept, ids)
            if resumed is not None and not alike(resumed, whole, tolerance):
                return DIFFERS
    except Exception:  # noqa: BLE001 - whatever goes wrong, then nothing is kept
        return FAILS
    return KEPT


def alike(logits: Any, right: Any, tolerance: float) -> bool:
    """Whether logits, shape (vocab,), are the right ones but for noise: `tolerance` is a share of their spread."""
    import numpy as np

    right = np.asarray(right, dtype=np.float64).reshape(-1)
    apart = np.asarray(logits, dtype=np.float64).reshape(-1) - right
    return bool(np.sqrt((apart**2).mean()) <= tolerance * (float(right.std()) or 1.0))
