"""Choosing the next token from logits, as transformers' `generate()` does it, for engines that drive a torch model.

Both torch engines call the model themselves, once per token: that leaves the KV cache in their hands between
turns, hands every id over at once, and skips `generate()`'s bookkeeping (about 1 ms per token). The choice itself
is made by transformers' own logits processors, in its order, so the distribution is the library's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.engine import OutputError
from engines.protocol import GenerationRequest

if TYPE_CHECKING:
    import torch


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
