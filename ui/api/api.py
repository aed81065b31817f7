"""What every route works with: the parts of the app that programs use, who asks, and which lane is meant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from engines.protocol import Target
from engines.runtime.manager import EngineFailure, EngineManager
from engines.toolkit.openai_client import OFFSETS_HEADER
from ui.api.errors import ApiError, failure
from ui.api.keys import ApiKeys
from ui.api.lanes import Lanes
from ui.api.requests import Chat, require_honoured
from ui.api.running import Running, start
from ui.chat.settings import Settings
from ui.chat.turns import Turns

PATIENCE_S = 2.0
"""So long a stream waits with its status line for the first word: what fails at once fails with a status."""
PING_S = 5.0
"""So often a silent stream says that it is still there, while a model loads or a long prompt is read."""


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    key_name: str | None
    is_arena: bool
    """Another Backend Arena: it takes the time of each token along, and no lane that a third server answers."""

    @property
    def via(self) -> str:
        return "api" if self.key_name is None else f"api: {self.key_name}"


class Api:
    """The parts of the app that programs use, and how."""

    def __init__(
        self,
        manager: EngineManager,
        turns: Turns,
        lanes: Lanes,
        keys: ApiKeys,
        needs_key: Callable[[], bool] = lambda: False,
        patience_s: float = PATIENCE_S,
        ping_s: float = PING_S,
    ):
        """`needs_key`: whether a key is needed because the app can be reached from other machines."""
        self.manager, self.turns, self.lanes, self.keys = manager, turns, lanes, keys
        self.needs_key, self.patience_s, self.ping_s = needs_key, patience_s, ping_s

    async def caller(self, request: Request) -> Caller:
        """Who asks; raises ApiError (401) when a key is needed and none opens."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else ""
        key = await asyncio.to_thread(self.keys.find, given) if given else None
        if key is None and (self.needs_key() or self.keys.required):
            told = "This key opens nothing here." if given else "This server wants a key."
            raise ApiError(
                401,
                f"{told} Make one with: python app.py keys add NAME, and send it as “Authorization: Bearer KEY”.",
                code="invalid_api_key",
                kind="authentication_error",
            )
        return Caller(key.name if key else None, OFFSETS_HEADER in request.headers)

    async def lane(self, name: str, caller: Caller) -> Target:
        """The target that is asked for; raises ApiError."""
        target = await asyncio.to_thread(self.lanes.resolve, name)
        if caller.is_arena and self.manager.specs[target.engine].model_elsewhere:
            raise ApiError(
                400, "A lane of another server is not passed on to a third.", param="model", code="loop"
            )
        return target

    async def load(self, target: Target) -> None:
        """Have a target's model in memory without asking it anything; raises ApiError."""

        def load() -> None:
            with self.manager.lease(target):
                pass

        try:
            await asyncio.to_thread(load)
        except EngineFailure as problem:
            raise failure(problem.failed) from problem

    async def unload(self, target: Target) -> None:
        """End a target's worker, unless somebody uses it."""
        await asyncio.to_thread(self.manager.unload, target)

    async def run(
        self, target: Target, chat: Chat, settings: Settings, caller: Caller, *, raw: bool = False
    ) -> Running:
        require_honoured(settings, self.manager.specs[target.engine])
        return await start(self.turns, target, chat, settings, caller.via, raw=raw)
