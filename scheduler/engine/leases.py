"""Keeps the leases of the running jobs, and confirms their deadlines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from redis.asyncio import Redis

from scheduler.engine.attempt import Attempt, Stop
from scheduler.engine.attempts import Attempts
from scheduler.engine.context import EngineContext, EngineService
from scheduler.engine.overdue import Overdue
from scheduler.engine.presence import Presence
from scheduler.queue.queue import PromptQueue


class Leases(EngineService):
    """Renews the leases of all attempts three times a lease."""

    def __init__(self, context: EngineContext, attempts: Attempts, presence: Presence) -> None:
        super().__init__("leases", context)
        self._attempts = attempts
        self._presence = presence

    async def run(self) -> None:
        """Renew for ever."""
        while True:
            await asyncio.sleep(self._serving.settings.lease_s / 3)
            await self._calls.until_done(lambda: self.renew(self._attempts.tokens))

    async def renew(self, tokens: Sequence[int]) -> None:
        """Renew the leases of these attempts, and apply the deadlines that Redis answers."""
        leases = self._attempts.leases(tokens)
        replies = await self._presence.renew(leases)
        now = time.monotonic()
        for (_, token), reply in zip(leases, replies, strict=True):
            attempt = self._attempts.find(token)
            if attempt is not None and attempt.task is not None and not attempt.task.done():
                self._apply(attempt, reply, now)

    def _apply(self, attempt: Attempt, reply: int | Literal["lost"] | None, now: float) -> None:
        if reply == "lost":
            self._attempts.lost(attempt.job.id, attempt.job.token)
        elif reply == 0:
            attempt.end_early(Stop.EXPIRED)
        elif attempt.expires_at is not None:
            attempt.set_deadline(None if reply is None else now + reply / 1000)

    async def renew_by(self, connect: Callable[[], Redis]) -> None:
        """Renew all leases from another thread's event loop; the next `renew` applies the deadlines."""
        leases = self._attempts.leases(self._attempts.tokens)
        redis = connect()
        try:
            queue = PromptQueue(redis, self._serving.settings.queue)
            await queue.renew(
                self._worker, leases, lease_ms=self._serving.lease_ms, about=self._presence.last_report
            )
        finally:
            await redis.aclose()


class Deadlines(EngineService):
    """Confirms deadlines that have passed by this process' clock; a duplicate may have moved them."""

    def __init__(self, context: EngineContext, overdue: Overdue, leases: Leases) -> None:
        super().__init__("deadlines", context)
        self._overdue = overdue
        self._leases = leases

    async def run(self) -> None:
        """Confirm deadlines as they pass."""
        while True:
            tokens = await self._overdue.take()
            await self._calls.until_done(partial(self._leases.renew, tokens))
