"""Sends one prompt to several targets and sees each run through to its row in the log.

Runs live in threads of this process and belong to a conversation, not to the browser tab that started them: a
page that is reloaded finds them again. The command line uses the same path. Nothing here stops a chat because
the log cannot be written: the store says what is wrong, the page shows it, the reply goes on. Only what was said
before must be readable: without it a backend would answer something else, and nobody would know why.

The one lock guards which turns are live; nothing slow is done under it. What has to read and write the log (starting
a turn) takes turns per conversation instead, so a slow disk holds up that conversation's next prompt and nobody else.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

from engines.protocol import Event, Failed, Finished, GenerationRequest, Message, Progress, RunMetrics, Target
from engines.runtime.manager import EngineFailure, EngineManager
from storage.store import Store, StoreError
from ui.chat.gates import OPEN, Gate
from ui.chat.live_turn import LiveRun, LiveTurn
from ui.chat.past import restored_turn
from ui.chat.run_view import RunFold
from ui.chat.settings import Settings
from ui.chat.settings import TurnError as TurnError

log = logging.getLogger(__name__)
T = TypeVar("T")

SAVE_EVERY_S = 0.7
"""How often a growing reply is saved: a kill -9 may lose at most one second of it."""
LONGEST_PROMPT_CHARACTERS = 4_000_000
MOST_PANELS = 6
FORGOTTEN = "What was said before in this conversation was not kept, so the backends know only this prompt."
DELETED = "This conversation was deleted from the history. Undo that there, or start a new conversation."
PANELS = tuple(range(1, MOST_PANELS + 1))
"""Their numbers: on the page, in the log, on the command line."""
KEPT_CONVERSATIONS = 200
"""Conversations whose live turns stay in memory; older ones come from the log."""


@dataclass(frozen=True)
class GivenChat:
    """A chat that a program sends, whole, instead of carrying on one of ours."""

    messages: tuple[Message, ...]
    """Without the system prompt of the settings; the last one is the prompt."""
    via: str
    """`api`, or `api: NAME` with the name of the key."""
    on_event: Callable[[Event], None]
    """Told everything that the run says, as it says it; must return quickly."""
    raw: bool = False
    """The prompt is given to the model as it is, without a template."""


class Turns:
    """Starts turns and finds the running ones again. Thread-safe."""

    def __init__(
        self,
        manager: EngineManager,
        store: Store,
        machine: Callable[[], dict[str, Any]],
        clock: Callable[[], float] = time.monotonic,
    ):
        """`machine`: gives the facts about this machine as they are now (power state may change)."""
        self._manager, self._store, self._machine, self._clock = manager, store, machine, clock
        self._live: dict[str, list[LiveTurn]] = {}
        self._unlogged: set[str] = set()
        """Conversations that the log could not take from their beginning: what they said is known here alone."""
        self._starting: set[str] = set()
        """Conversations in which a turn is being started just now."""
        self._lock = threading.Condition()

    # --- starting --------------------------------------------------------------------------------------

    def send(
        self,
        prompt: str,
        panels: Sequence[tuple[int, Target]],
        settings: Settings,
        *,
        conversation_id: str | None = None,
        mode: str = "together",
        replaces_turn_id: str | None = None,
        pressed_at: float | None = None,
        owner: str | None = None,
        gate: Gate = OPEN,
        given: GivenChat | None = None,
    ) -> LiveTurn:
        """Send a prompt to every panel; returns at once with the turn to watch.

        `mode`: `together` (all at once) or `in-turn` (each alone on the machine, in panel order).
        `replaces_turn_id`: the turn that this one was edited from. `pressed_at`: reading of the clock at the
        key press. `owner`: who it belongs to, None: the owner of this PC; `gate`: what its runs have to pass.
        `given`: a chat that a program brought along; the conversation's own is then not looked at.
        Raises TurnError for what cannot be sent.
        """
        _check(prompt, panels, mode)
        settings.check()
        if conversation_id:
            self._must_be_there(conversation_id)
        conversation_id = conversation_id or self._new_conversation(prompt, owner)
        with self._one_at_a_time(conversation_id):
            busy = self._busy_panels(conversation_id)
            if busy & {panel for panel, _ in panels} or (busy and replaces_turn_id):
                raise TurnError("A reply is still being written here. Stop it first, or wait.")
            chats = {
                panel: given.messages
                if given
                else self._messages(conversation_id, panel, prompt, replaces_turn_id)
                for panel, _ in panels
            }
            turn_id = self._note_turn(conversation_id, prompt, settings, mode, replaces_turn_id, given)
            turn = LiveTurn(conversation_id, turn_id or uuid.uuid4().hex, prompt, mode, settings)
            turn.gate = gate
            if not given and self._has_gaps(conversation_id, panels, replaces_turn_id or turn_id):
                turn.notice = FORGOTTEN
            on_event = given.on_event if given else None
            runs = [
                self._new_run(turn, panel, target, pressed_at, on_event=on_event) for panel, target in panels
            ]
            turn.runs = tuple(sorted(runs, key=lambda run: run.panel))
            jobs = _jobs(turn, chats, raw=given is not None and given.raw)
            with self._lock:
                chat = self._chat(conversation_id)
                _drop_from(chat, replaces_turn_id)
                chat.append(turn)
        self._start(turn, jobs)
        return turn

    def _note_turn(
        self,
        conversation_id: str,
        prompt: str,
        settings: Settings,
        mode: str,
        replaces_turn_id: str | None,
        given: GivenChat | None,
    ) -> str | None:
        """Write the turn to the log; its id there, None when that is impossible."""
        return self._log(
            lambda: self._store.start_turn(
                conversation_id,
                prompt,
                system_prompt=settings.system_prompt,
                mode=mode,
                settings=asdict(settings),
                replaces_turn_id=replaces_turn_id,
                via=given.via if given else None,
                earlier=given.messages[:-1] if given else (),
            )
        )

    def known(self, conversation_id: str, turn_id: str) -> LiveTurn:
        """A turn to answer again or to carry on: the live one, or that of an earlier start of the app out of the log.

        Raises TurnError where it cannot be had.
        """
        with self._one_at_a_time(conversation_id):
            for turn in self.live_turns(conversation_id):
                if turn.turn_id == turn_id:
                    return turn
            try:
                logged = self._store.conversation(conversation_id)
            except StoreError as error:
                raise TurnError(f"What was said cannot be read, so nothing was sent. {error}") from error
            current = logged.current_turns() if logged else ()
            found = next((turn for turn in current if turn.id == turn_id), None)
            if logged is None or found is None:
                raise TurnError("This prompt has been edited since.")
            turn = restored_turn(found, imported=logged.imported_from is not None)
            self._store.take_up(found)
            with self._lock:
                chat = self._chat(conversation_id)
                chat.append(turn)
                chat.sort(key=lambda each: each.asked_at)
            return turn

    def retry(self, turn: LiveTurn, panel: int, *, target: Target | None = None) -> LiveRun:
        """Answer the turn's prompt again in one panel, on the same target or another; raises TurnError."""
        return self._again(turn, panel, target, continues=False)

    def carry_on(self, turn: LiveTurn, panel: int) -> LiveRun:
        """Let the panel's reply go on where it ended; raises TurnError."""
        return self._again(turn, panel, None, continues=True)

    def _again(self, turn: LiveTurn, panel: int, target: Target | None, continues: bool) -> LiveRun:
        self._must_be_there(turn.conversation_id)
        with self._one_at_a_time(turn.conversation_id):
            before = turn.run_of(panel)
            if before is None or not before.done.is_set():
                raise TurnError("This panel has no finished reply to this prompt.")
            if turn not in self.live_turns(turn.conversation_id):
                raise TurnError("This prompt has been edited since.")
            messages = self._messages(turn.conversation_id, panel, turn.prompt, turn.turn_id)
            run = self._new_run(
                turn,
                panel,
                target or before.target,
                attempt=before.attempt + 1,
                carried_on=before.fold if continues else None,
            )
            if continues:
                seen = before.view()
                messages = (*messages, Message("assistant", seen.text, seen.reasoning or None))
            if target is None:
                self._manager.retry(before.target)
            turn.replace_run(run)
            request = turn.settings.request(
                messages,
                continue_reply=continues,
                reply_ids=before.fold.token_ids() if continues else (),
                asked_at=turn.asked_at,
            )
            job = (run, request)
        self._start(turn, [job])
        return run

    @contextlib.contextmanager
    def _one_at_a_time(self, conversation_id: str) -> Iterator[None]:
        """Let one turn of a conversation be started after the other; the lock is not held meanwhile."""
        with self._lock:
            self._lock.wait_for(lambda: conversation_id not in self._starting)
            self._starting.add(conversation_id)
        try:
            yield
        finally:
            with self._lock:
                self._starting.discard(conversation_id)
                self._lock.notify_all()

    def _must_be_there(self, conversation_id: str) -> None:
        """Raise TurnError where the conversation was deleted meanwhile: what came to it now would go with it."""
        with contextlib.suppress(StoreError):
            if conversation_id not in self._unlogged and not self._store.has(conversation_id):
                raise TurnError(DELETED)

    def _busy_panels(self, conversation_id: str) -> set[int]:
        """Panels in which a reply is still being written."""
        turns = self.live_turns(conversation_id)
        return {run.panel for turn in turns for run in turn.runs if not run.done.is_set()}

    def _new_conversation(self, prompt: str, owner: str | None) -> str:
        title = " ".join(prompt.split())[:80]
        conversation_id = self._log(lambda: self._store.start_conversation(title, owner))
        if conversation_id is None:
            conversation_id = uuid.uuid4().hex
            self._unlogged.add(conversation_id)
        return conversation_id

    def _new_run(
        self,
        turn: LiveTurn,
        panel: int,
        target: Target,
        pressed_at: float | None = None,
        attempt: int = 1,
        carried_on: RunFold | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> LiveRun:
        fold = RunFold(
            panel,
            target,
            pressed_at=pressed_at,
            carried_on=carried_on,
            clock=self._clock,
            on_event=on_event,
        )
        run = LiveRun(fold, panel, target, attempt)
        run.gate = turn.gate
        run_id = self._log(
            lambda: self._store.start_run(
                turn.turn_id, panel, target, machine=self._machine(), contended=False, attempt=attempt
            )
        )
        if run_id:
            run.run_id, run.logged = run_id, True
        fold.change(run_id=run.run_id)
        return run

    # --- finding again ---------------------------------------------------------------------------------

    def _chat(self, conversation_id: str) -> list[LiveTurn]:
        """The conversation's turns in this process, in order; makes room by forgetting old finished ones."""
        if conversation_id not in self._live:
            self._live[conversation_id] = []
            for old in list(self._live)[:-KEPT_CONVERSATIONS]:
                if all(turn.done for turn in self._live[old]):
                    del self._live[old]
        return self._live[conversation_id]

    def _messages(
        self, conversation_id: str, panel: int, prompt: str, before: str | None
    ) -> tuple[Message, ...]:
        """The chat as this panel has seen it before the turn `before`, ending with the prompt.

        Raises TurnError when that cannot be read: a backend must not answer as if nothing had been said.
        """
        if conversation_id in self._unlogged:
            return (*self._heard_here(conversation_id, panel, before), Message("user", prompt))
        try:
            seen = self._store.panel_messages(conversation_id, panel, before_turn_id=before)
        except StoreError as error:
            raise TurnError(
                "What was said before cannot be read, so nothing was sent: the backends would answer without it. "
                f"{error} Try again then, or start a new conversation."
            ) from error
        return (*seen, Message("user", prompt))

    def _heard_here(self, conversation_id: str, panel: int, before: str | None) -> tuple[Message, ...]:
        """The same of a conversation that the log could not take."""
        heard: list[Message] = []
        for turn in self.live_turns(conversation_id):
            if turn.turn_id == before:
                break
            run = turn.run_of(panel)
            if run is not None and run.done.is_set() and (seen := run.view()).text:
                heard += [
                    Message("user", turn.prompt),
                    Message("assistant", seen.text, seen.reasoning or None),
                ]
        return tuple(heard)

    def _has_gaps(
        self, conversation_id: str, panels: Sequence[tuple[int, Target]], before: str | None
    ) -> bool:
        """Whether any panel no longer knows what was said: only numbers were kept, or it has been deleted since."""
        if conversation_id in self._unlogged:
            return False
        numbers = {panel for panel, _ in panels}
        unkept = (
            run
            for turn in self.live_turns(conversation_id)
            for run in turn.runs
            if run.panel in numbers and not run.logged and run.view().text
        )
        return any(unkept) or any(
            self._log(partial(self._store.panel_has_gaps, conversation_id, panel, before))
            for panel in numbers
        )

    def live(self, conversation_id: str) -> LiveTurn | None:
        """The newest turn of a conversation in this process, running or done."""
        with self._lock:
            turns = self._live.get(conversation_id)
            return turns[-1] if turns else None

    def live_turns(self, conversation_id: str) -> tuple[LiveTurn, ...]:
        """All turns of a conversation that were started in this process."""
        with self._lock:
            return tuple(self._live.get(conversation_id, ()))

    def stop_everything(self, timeout: float | None = 5.0) -> None:
        """Stop every run and wait for the last words; for the end of the app."""
        with self._lock:
            turns = [turn for chat in self._live.values() for turn in chat if not turn.done]
        for turn in turns:
            turn.stop()
        for turn in turns:
            turn.wait(timeout)

    # --- running ---------------------------------------------------------------------------------------

    def _start(self, turn: LiveTurn, jobs: Sequence[tuple[LiveRun, GenerationRequest]]) -> None:
        groups = [[job] for job in jobs] if turn.mode == "together" else [list(jobs)]
        for group in groups:
            threading.Thread(target=self._work_off, args=(group,), name="run", daemon=True).start()
        runs = [run for run, _ in jobs]
        threading.Thread(target=self._save_while_running, args=(runs,), name="save", daemon=True).start()

    def _work_off(self, jobs: Sequence[tuple[LiveRun, GenerationRequest]]) -> None:
        for run, request in jobs:
            try:
                self._run(run, request)
            except Exception:
                log.exception("run %s on %s", run.run_id, run.target)
            finally:
                run.done.set()

    def _run(self, run: LiveRun, request: GenerationRequest) -> None:
        try:
            outcome = self._generate(run, request)
        except Exception as error:  # a bug of ours must not leave a panel waiting for ever
            log.exception("run %s on %s", run.run_id, run.target)
            outcome = Failed("error", f"Unexpected error: {type(error).__name__}: {error}")
        run.fold.take(outcome)
        view = run.fold.view()
        if run.logged:
            self._log(
                lambda: self._store.finish_run(
                    run.run_id,
                    outcome,
                    text=view.text,
                    metrics=view.metrics or RunMetrics(),
                    felt_ttft_s=view.felt_ttft_s,
                    observed=run.observed,
                    reasoning=view.reasoning,
                    note=view.note,
                    reply_ids=run.fold.token_ids(),
                )
            )

    def _generate(self, run: LiveRun, request: GenerationRequest) -> Finished | Failed:
        if run.cancelled.is_set():
            return Failed("cancelled", "Stopped before it began.")
        run.fold.take(Progress("queue", "Waiting"))
        try:
            take = partial(run.gate.take, run)
            with run.gate.passed(run), self._manager.lease(run.target, take, run.cancelled) as lease:
                run.fold.take(lease.loaded)
                if run.logged:
                    self._log(
                        lambda: self._store.describe_run(run.run_id, model=lease.model, loaded=lease.loaded)
                    )
                run.hold(lease)
                run.fold.start()
                try:
                    outcome = lease.generate(run.run_id, request, take)
                    run.observed = lease.observed
                    if lease.observed is not None:
                        run.fold.stamp(lease.observed)
                    return outcome
                finally:
                    run.hold(None)
        except EngineFailure as failure:
            return failure.failed

    def _save_while_running(self, runs: Sequence[LiveRun]) -> None:
        saved = dict.fromkeys((run.run_id for run in runs), 0)
        while not all(run.done.is_set() for run in runs):
            time.sleep(SAVE_EVERY_S)
            for run in runs:
                text, reasoning, offsets, ids = run.fold.partial()
                grown = len(text) + len(reasoning) + len(offsets)
                if run.logged and not run.done.is_set() and grown > saved[run.run_id]:
                    saved[run.run_id] = grown
                    self._log(partial(self._store.save_partial, run.run_id, text, offsets, reasoning, ids))

    def _log(self, write: Callable[[], T]) -> T | None:
        """Do something with the log; what goes wrong there is the store's to tell (`store.trouble`)."""
        with contextlib.suppress(StoreError):
            return write()
        return None


def _jobs(
    turn: LiveTurn, chats: Mapping[int, Sequence[Message]], *, raw: bool
) -> list[tuple[LiveRun, GenerationRequest]]:
    """What each run is asked; `raw`: the prompt's own text, without the chat template."""
    jobs = []
    for run in turn.runs:
        request = turn.settings.request(chats[run.panel], asked_at=turn.asked_at)
        jobs.append((run, replace(request, raw_prompt=turn.prompt) if raw else request))
    return jobs


def _drop_from(chat: list[LiveTurn], turn_id: str | None) -> None:
    """Leave out the turn that was edited, and what followed it."""
    for index, turn in enumerate(chat):
        if turn.turn_id == turn_id:
            del chat[index:]
            return


def _check(prompt: str, panels: Sequence[tuple[int, Target]], mode: str) -> None:
    if not prompt.strip():
        raise TurnError("The prompt is empty. Type something first.")
    if len(prompt) > LONGEST_PROMPT_CHARACTERS:
        raise TurnError(
            f"The prompt has {len(prompt):,} characters; at most {LONGEST_PROMPT_CHARACTERS:,} can be sent."
        )
    if not panels:
        raise TurnError("No panel is chosen. Add one first.")
    if len({panel for panel, _ in panels}) != len(panels) or not {panel for panel, _ in panels} <= set(
        PANELS
    ):
        raise TurnError(f"Between one and {MOST_PANELS} different panels, numbered from 1, can be used.")
    if mode not in ("together", "in-turn"):
        raise TurnError(f"“{mode}” is not a way of running; use together or in-turn.")
