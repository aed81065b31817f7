"""Does the fast one still say the right thing? Replies and expectations held against the reference lane's.

A lane fails the gate when it writes garbage where the reference does not, obeys clearly fewer instructions, begins
most answers with another token, or expects another language than the reference does; and always when most of its
answers are garbage, even if the reference's are, too (random weights).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from engines.measure.instructions import Instruction
from engines.measure.records import Answer, Quality
from engines.measure.words import percent
from engines.protocol import Failed, Finished, Scored

GARBAGE_MORE = 2
"""So many more garbage answers than the reference's are too many (of twenty)."""
FEWER_OBEYED = 3
"""So many fewer instructions obeyed than by the reference are forgiven (of twenty)."""
SAME_START_SHARE = 0.5
PERPLEXITY_FACTOR = 1.3
LEAST_AGREEMENT = 0.75
_LOOP_TOKENS = 12
"""A pattern of up to so many tokens, repeated to fill the end of a reply, is a loop."""
_LOOP_TAIL = 24
SCORED_TOKENS = 128


@dataclass(frozen=True)
class Reply:
    """What came back for one instruction."""

    instruction: Instruction
    token_ids: tuple[int, ...]
    text: str
    seconds: float | None
    failure: Failed | None = None


def reply_of(instruction: Instruction, outcome: Finished | Failed, token_ids: Sequence[int]) -> Reply:
    """A reply from how its generation ended."""
    if isinstance(outcome, Failed):
        return Reply(instruction, tuple(token_ids), "", None, outcome)
    offsets = outcome.metrics.token_offsets_s
    return Reply(instruction, tuple(token_ids), outcome.text, offsets[-1] if offsets else None)


def garbage(reply: Reply) -> str | None:
    """`empty`, `loop`, `not finite`, or None for what might be an answer."""
    if reply.failure is not None:
        return "not finite" if reply.failure.kind == "output" else "empty"
    if not reply.text.strip():
        return "empty"
    if "\ufffd" in reply.text and reply.text.count("\ufffd") * 4 > len(reply.text):
        return "not text"
    return "loop" if loops(reply.token_ids) else None


def loops(ids: Sequence[int]) -> bool:
    """Whether the end of a reply is one short pattern again and again."""
    tail = ids[-_LOOP_TAIL:]
    if len(tail) < _LOOP_TOKENS:
        return False
    return any(
        all(tail[at] == tail[at - period] for at in range(period, len(tail)))
        for period in range(1, min(_LOOP_TOKENS, len(tail) // 3) + 1)
    )


def answers(replies: Sequence[Reply], reference: Sequence[Answer] | None) -> tuple[Answer, ...]:
    """The replies, checked and held against the reference's answers to the same instructions."""
    known = {answer.name: answer for answer in reference or ()}
    return tuple(_answer(reply, known.get(reply.instruction.name)) for reply in replies)


def _answer(reply: Reply, reference: Answer | None) -> Answer:
    first, share = (None, None) if reference is None else divergence(reply.token_ids, reference.token_ids)
    kind = garbage(reply)
    return Answer(
        name=reply.instruction.name,
        passed=kind is None and reply.instruction.obeyed(reply.text),
        tokens=len(reply.token_ids),
        seconds=None if reply.seconds is None else round(reply.seconds, 6),
        text=reply.text,
        token_ids=reply.token_ids,
        first_divergent_token=first,
        divergent_share=share,
        garbage=kind,
    )


def divergence(ids: Sequence[int], reference: Sequence[int]) -> tuple[int | None, float | None]:
    """Index of the first token that differs (None: none), and the share of positions that do."""
    length = max(len(ids), len(reference))
    if not length:
        return None, None
    differing = [
        at for at in range(length) if at >= len(ids) or at >= len(reference) or ids[at] != reference[at]
    ]
    return (differing[0] if differing else None), len(differing) / length


def judge(
    given: Sequence[Answer],
    reference_key: str | None,
    reference: Quality | None,
    expected: Scored | None,
    reference_expected: Scored | None,
) -> Quality:
    """The gate. `reference` None: this lane is the reference; only garbage is held against it."""
    agreement, kl = (None, None)
    if expected is not None and reference_expected is not None:
        agreement, kl = compare(expected, reference_expected)
    perplexity = None if expected is None else math.exp(min(700.0, statistics.fmean(expected.losses)))
    found = sum(1 for answer in given if answer.garbage)
    passed = sum(1 for answer in given if answer.passed)
    reasons, notes = _reasons(given, found, passed, reference, perplexity, agreement)
    seconds = [answer.seconds for answer in given if answer.seconds is not None]
    firsts = [a.first_divergent_token for a in given if a.first_divergent_token is not None]
    shares = [a.divergent_share for a in given if a.divergent_share is not None]
    return Quality(
        passed=not reasons,
        reasons=tuple(reasons),
        notes=tuple(notes),
        reference=reference_key,
        instructions_passed=passed,
        instructions_total=len(given),
        answers=tuple(given),
        garbage=found,
        first_divergent_token=float(statistics.median(firsts)) if firsts else None,
        divergent_share=statistics.fmean(shares) if shares else None,
        answer_tokens=float(statistics.median(a.tokens for a in given)) if given else None,
        answer_s=statistics.median(seconds) if seconds else None,
        perplexity=perplexity,
        next_token_agreement=agreement,
        kl_divergence=kl,
    )


def _reasons(
    given: Sequence[Answer],
    found: int,
    passed: int,
    reference: Quality | None,
    perplexity: float | None,
    agreement: float | None,
) -> tuple[list[str], list[str]]:
    total = max(1, len(given))
    reasons = []
    if found > total / 2:
        kinds = ", ".join(sorted({answer.garbage for answer in given if answer.garbage}))
        reasons.append(f"{found} of {total} answers are garbage ({kinds})")
    if reference is None:
        return reasons, []
    if not reasons and found > reference.garbage + GARBAGE_MORE * total / 20:
        reasons.append(f"{found} of {total} answers are garbage (the reference's: {reference.garbage})")
    if passed < reference.instructions_passed - FEWER_OBEYED * total / 20:
        reasons.append(
            f"{passed} of {total} instructions obeyed (the reference: {reference.instructions_passed})"
        )
    if reference.garbage > total / 2:
        return reasons, ["The reference's own answers are mostly garbage: it cannot tell good from bad."]
    same = sum(1 for answer in given if answer.first_divergent_token != 0)
    if same < SAME_START_SHARE * total:
        reasons.append(f"only {same} of {total} answers begin as the reference's do")
    if (
        perplexity is not None
        and reference.perplexity
        and perplexity > PERPLEXITY_FACTOR * reference.perplexity
    ):
        reasons.append(f"perplexity {perplexity:.1f} (the reference: {reference.perplexity:.1f})")
    if agreement is not None and agreement < LEAST_AGREEMENT:
        reasons.append(f"only {percent(agreement)} of the likeliest next tokens are the reference's")
    return reasons, []


def compare(expected: Scored, reference: Scored) -> tuple[float, float]:
    """Share of positions with the same likeliest token, and the mean KL divergence reference ‖ lane, in nats.

    Over the reference's likeliest ids, and one more for all the rest together: by the data processing inequality
    that is never more than the divergence over the whole vocabulary. An id that the lane does not tell counts as
    likely as its last.
    """
    if expected.prompt_sha256 != reference.prompt_sha256:
        raise ValueError("the two lanes have scored different token ids")
    same, total, count = 0, 0.0, len(reference.likely_ids)
    for at in range(count):
        lane = dict(zip(expected.likely_ids[at], expected.likely_logs[at], strict=True))
        least = expected.likely_logs[at][-1]
        same += expected.likely_ids[at][0] == reference.likely_ids[at][0]
        p = [math.exp(log) for log in reference.likely_logs[at]]
        q = [math.exp(lane.get(token_id, least)) for token_id in reference.likely_ids[at]]
        p.append(max(0.0, 1 - sum(p)))
        q.append(max(1e-9, 1 - sum(q)))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 1e-9)
    return same / count, max(0.0, total / count)
