"""Checking answers: the twenty instructions and the bundled text, held against the reference lane's."""

from __future__ import annotations

import uuid

from engines.measure import prompts, quality
from engines.measure.bench import Bench
from engines.measure.instructions import INSTRUCTIONS
from engines.measure.standing import LaneEndsError
from engines.measure.steps import Step
from engines.protocol import Failed, GenerationRequest, Message, Scored
from engines.runtime.lease import Lease


class Answers:
    def __init__(self, bench: Bench):
        self._bench = bench
        self._expected: Scored | None = None
        """What the reference expects of the bundled text."""

    def do(self, step: Step) -> None:
        standing = self._bench.standing
        reference = standing.reference()
        is_reference = reference is None or reference.lane.key == step.lane
        with self._bench.lease(standing.result(step.lane)) as lease:
            replies = self._replies(step, lease)
            expected = self._expectations(lease)
        against = None if is_reference or reference is None else reference.quality
        given = quality.answers(replies, against.answers if against else None)
        found = quality.judge(
            given,
            reference.lane.key if reference and not is_reference else None,
            against,
            expected,
            None if is_reference else self._expected,
        )
        if is_reference:
            self._expected = expected
        standing.change(step.lane, quality=found)

    def _replies(self, step: Step, lease: Lease) -> list[quality.Reply]:
        standing, replies = self._bench.standing, []
        for number, instruction in enumerate(INSTRUCTIONS, 1):
            standing.check_wishes()
            standing.say(f"{step.lane}: checking answers, {number} of {len(INSTRUCTIONS)}")
            ids: list[int] = []
            request = GenerationRequest(
                (Message("user", instruction.prompt),),
                max_new_tokens=standing.measurement.suite.instruction_tokens,
                reuse_kv_cache=False,
            )
            outcome = self._bench.generate(lease, request, ids)
            if isinstance(outcome, Failed) and outcome.kind in ("crashed", "hung", "cancelled"):
                raise LaneEndsError(outcome)
            replies.append(quality.reply_of(instruction, outcome, ids))
        return replies

    def _expectations(self, lease: Lease) -> Scored | None:
        outcome = lease.score(uuid.uuid4().hex, prompts.bundled("perplexity"), quality.SCORED_TOKENS)
        if isinstance(outcome, Failed) and outcome.kind in ("crashed", "hung"):
            raise LaneEndsError(outcome)
        return outcome if isinstance(outcome, Scored) else None
