"""Choosing the next token from logits, as transformers' `generate()` does it, for engines that drive a torch model.

These engines call the model themselves, once per token: that leaves the KV cache in their hands between turns,
hands every id over at once, and skips `generate()`'s bookkeeping (about 1 ms per token). The choice itself is made
by transformers' own logits processors, in its order, so the distribution is the library's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engines.engine import OnToken, OutputError
from engines.protocol import Claim, GenerationRequest

if TYPE_CHECKING:
    import torch


def decode(
    forward: Callable[[Sequence[int], int], torch.Tensor],
    prompt_ids: Sequence[int],
    cached: int,
    request: GenerationRequest,
    stop_ids: frozenset[int],
    on_token: OnToken,
    *,
    switch: int | None = None,
    context: int | None = None,
    device: str = "cpu",
) -> None:
    """The token loop: until a stop id, `on_token`'s no, `max_new_tokens`, or a full context of `context` tokens.

    `forward(ids, cached)` returns the logits after the last of `ids`, shape (1, vocab), given that the KV cache holds
    the first `cached` of them. `switch` is the length above which the model's position factors change
    (`model_config.rope_switch`): what was cached below it is of no use above.
    """
    import torch

    chooser = TokenChooser(request, device)
    ids = list(prompt_ids)
    for count in range(1, request.max_new_tokens + 1):
        if switch is not None and cached <= switch < len(ids):
            cached = 0
        logits = forward(ids, cached)
        cached = len(ids)
        token_id = chooser.choose(logits, torch.tensor([ids], device=device) if chooser.needs_ids else None)
        ids.append(token_id)
        stopped = token_id in stop_ids and not request.ignore_eos
        full = count == request.max_new_tokens or (context is not None and len(ids) >= context)
        if not on_token(token_id) or stopped or full:
            return


def claim_of_parameters(model: torch.nn.Module) -> Claim | None:
    """Where a model's weights are: the devices of its parameters, the one that holds most first."""
    held: dict[str, int] = {}
    for parameter in model.parameters():
        name = str(parameter.device)
        held[name] = held.get(name, 0) + parameter.numel()
    total = sum(held.values())
    if not total:
        return None
    ranked = sorted(held, key=lambda name: -held[name])
    said = ", ".join(f"{held[name] / total:.0%} on {name}" for name in ranked)
    return Claim(tuple(ranked), f"Devices of the model's parameters: {said}.")


class TokenChooser:
    """Greedy at temperature 0, else a seeded draw after penalty, temperature, top-k and top-p."""

    def __init__(self, request: GenerationRequest, device: str = "cpu"):
        import torch
        from transformers.generation import logits_process as process

        self._torch = torch
        self._sample = request.temperature > 0
        self._processors = process.LogitsProcessorList()
        penalty = request.repetition_penalty
        if penalty is not None and penalty != 1.0:
            self._processors.append(process.RepetitionPenaltyLogitsProcessor(penalty))
        if self._sample:
            if request.temperature != 1.0:
                self._processors.append(process.TemperatureLogitsWarper(request.temperature))
            if request.top_k:
                self._processors.append(process.TopKLogitsWarper(request.top_k))
            if request.top_p is not None and request.top_p < 1.0:
                self._processors.append(process.TopPLogitsWarper(request.top_p))
            self._generator = torch.Generator(device=device)
            if request.seed is not None:
                self._generator.manual_seed(request.seed)
            else:
                self._generator.seed()

    @property
    def needs_ids(self) -> bool:
        """Whether the choice depends on the tokens so far."""
        return bool(self._processors)

    def choose(self, logits: torch.Tensor, ids: torch.Tensor | None) -> int:
        """The next token id from `logits`, shape (1, vocab); `ids`, shape (1, so far), only if `needs_ids`.

        Raises OutputError when the logits are not numbers.
        """
        torch = self._torch
        scores = logits.float()
        if self._processors:
            scores = self._processors(ids, scores)
        if not self._sample:
            choice = int(scores.argmax(dim=-1))
            if not torch.isfinite(scores[0, choice]):
                raise _not_finite()
            return choice
        probabilities = torch.softmax(scores, dim=-1)
        if not torch.isfinite(probabilities).all():
            raise _not_finite()
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def _not_finite() -> OutputError:
    return OutputError(
        "The model's output is not a number (NaN or infinite logits).",
        "Try another precision or device; if it stays, the model files are damaged.",
    )
