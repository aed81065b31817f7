"""Conversations to fixed-length rows of token ids, with a loss weight and a document number per token.

Several conversations share a row; the model's mask keeps them apart. Most rows are short, because attention
costs grow with the row; the longest conversations go to rows of the full context.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from engines.demo_model.corpus import Message

USER_WEIGHT = 0.1  # some, so that the model also learns the words that only people use
ROW_LENGTHS = (512, 1024)


@dataclass(frozen=True)
class Rows:
    """Packed rows; all arrays are (rows, length)."""

    tokens: np.ndarray
    weights: np.ndarray
    documents: np.ndarray


def encode_conversation(tokenizer: Tokenizer, messages: tuple[Message, ...]) -> tuple[list[int], list[float]]:
    """Token ids in the chat template, and each token's weight in the loss.

    Contents are encoded apart from the control tokens, so that a typed ``<|end|>`` stays text.
    """
    tokenizer.encode_special_tokens = True
    newline = tokenizer.encode("\n").ids
    ids: list[int] = []
    weights: list[float] = []
    for message in messages:
        head = [tokenizer.token_to_id(f"<|{message.role}|>"), *newline]
        body = [*tokenizer.encode(message.content).ids, tokenizer.token_to_id("<|end|>")]
        weight = 1.0 if message.role == "assistant" else USER_WEIGHT
        ids += head + body + newline
        weights += [0.0] * len(head) + [weight] * len(body) + [0.0] * len(newline)
    return ids, weights


def pack(documents: Iterable[tuple[list[int], list[float]]], seed: int) -> dict[int, Rows]:
    """First-fit packing in shuffled order: row length -> rows. Longer documents than a row are cut."""
    shuffled = list(documents)
    random.Random(seed).shuffle(shuffled)
    short, long = ROW_LENGTHS
    small = [d for d in shuffled if len(d[0]) <= short]
    large = [d for d in shuffled if len(d[0]) > short]
    # A long conversation leaves room in its row; short ones fill it.
    mixed = large + small[: 2 * len(large)]
    random.Random(seed).shuffle(mixed)
    return {short: _pack_rows(small[2 * len(large) :], short), long: _pack_rows(mixed, long)}


def _pack_rows(documents: list[tuple[list[int], list[float]]], length: int, open_rows: int = 16) -> Rows:
    done: list[list] = []
    opened: list[list] = []
    for document in documents:
        size = min(len(document[0]), length)
        place = next((row for row in opened if sum(len(d[0]) for d in row) + size <= length), None)
        if place is None:
            if len(opened) == open_rows:
                done.append(opened.pop(0))
            place = []
            opened.append(place)
        place.append(document)
    done += opened
    tokens: Any = np.zeros((len(done), length), np.uint16)
    weights: Any = np.zeros((len(done), length), np.float32)
    numbers: Any = np.zeros((len(done), length), np.uint8)
    for r, row in enumerate(done):
        at = 0
        for number, (ids, loss) in enumerate(row, start=1):
            size = min(len(ids), length - at)
            tokens[r, at : at + size] = ids[:size]
            weights[r, at : at + size] = loss[:size]
            numbers[r, at : at + size] = number
            at += size
    return Rows(tokens, weights, numbers)
