"""What every pass works on: a lane loaded alone with its settings, and generations that cannot hang for ever."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator

from engines.measure.heartbeat import Heartbeat, Linked
from engines.measure.records import Case, LaneResult
from engines.measure.standing import LaneEndsError, Standing
from engines.protocol import Event, Failed, Finished, GenerationRequest, Token
from engines.runtime.activity import Exclusive
from engines.runtime.lease import Lease
from engines.runtime.manager import EngineFailure, EngineManager

PROBE = Case("probe", "Probe", "chat", 96, 16)
"""The first, short generation on a lane."""


class Bench:
    """One per session."""

    def __init__(self, manager: EngineManager, standing: Standing, patience_s: float):
        """`patience_s`: so long without a sign of life, and a lane counts as hung."""
        self.manager, self.standing, self.patience_s = manager, standing, patience_s
        self.holder: Exclusive | None = None
        """The right to the machine, while the session has it."""

    @contextlib.contextmanager
    def lease(self, result: LaneResult) -> Iterator[Lease]:
        """The lane, loaded, with its settings; a load that hangs is ended."""
        given_up = threading.Event()
        alive = Heartbeat(self.patience_s, given_up.set)
        told = self.standing.progress(result.lane.key, lambda _progress: alive.beat())
        link = Linked(self.standing.cancelled, given_up)
        try:
            with alive:
                lease_context = self.manager.lease(
                    result.lane.target, told, link.event, tuning=result.lane.settings
                )
                lease = lease_context.__enter__()
        except EngineFailure as failure:
            if given_up.is_set():
                message = f"It did not load: no sign of life for {self.patience_s:.0f} s."
                raise LaneEndsError(Failed("hung", message, failure.failed.remedy)) from failure
            raise
        finally:
            link.close()
        try:
            yield lease
        finally:
            lease_context.__exit__(None, None, None)

    def generate(
        self, lease: Lease, request: GenerationRequest, ids: list[int] | None = None
    ) -> Finished | Failed:
        """One generation; without a token for `patience_s` it counts as hung. `ids` is filled with the reply's."""
        run_id = uuid.uuid4().hex
        alive = Heartbeat(self.patience_s, lambda: lease.cancel(run_id))
        self.standing.begins_reply()

        def on_event(event: Event) -> None:
            alive.beat()
            if isinstance(event, Token):
                self.standing.token()
                if ids is not None and event.token_id is not None:
                    ids.append(event.token_id)

        stopper = Linked(self.standing.cancelled, on_set=lambda: lease.cancel(run_id))
        try:
            with alive:
                outcome = lease.generate(run_id, request, on_event)
        finally:
            stopper.close()
        if alive.given_up and not (isinstance(outcome, Failed) and outcome.kind == "crashed"):
            return Failed(
                "hung", f"No token came for {self.patience_s:.0f} s.", "Read its log.", run_id=run_id
            )
        if isinstance(outcome, Finished) and outcome.finish_reason == "cancelled":
            return Failed("cancelled", "Stopped.", run_id=run_id)
        return outcome

    def in_this_thread(self) -> contextlib.AbstractContextManager[None]:
        """For a thread that works beside the session's own: the machine is taken, but not from it."""
        return self.holder.in_this_thread() if self.holder else contextlib.nullcontext()

    def unload_all(self) -> None:
        """End every worker that does nothing for anybody else."""
        for state in self.manager.states():
            if state.phase in ("ready", "busy"):
                self.manager.unload(state.target)

    def shortest(self) -> Case:
        """The suite's shortest case."""
        return min(self.standing.measurement.suite.cases, key=lambda case: case.prompt_tokens, default=PROBE)
