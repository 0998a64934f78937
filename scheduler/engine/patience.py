"""Waiting for Redis: every loop of the engine does it in the same way and says so once."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from scheduler.connection import leave_demoted, passes

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Patience:
    """Repeats calls while Redis is away, or takes no writes.

    Shared by the loops of a process: one log line a change of state. How a call ends that began before the
    last change was noticed says nothing of the state now, and changes nothing.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._away = False
        self._changes = 0

    @property
    def is_away(self) -> bool:
        """Whether the last call has not gone through yet."""
        return self._away

    async def until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make the call until it goes through. The call must bear being made twice."""
        delay_s = 0.05
        while True:
            since = self._changes
            try:
                reply = await call()
            except (RedisError, OSError) as error:
                if not passes(error):
                    raise
                self._went(since, error)
                await leave_demoted(self._redis, error)
                await asyncio.sleep(delay_s * (0.5 + random.random() / 2))
                delay_s = min(1.0, delay_s * 2)
            else:
                self._came(since)
                return reply

    def _went(self, since: int, error: Exception) -> None:
        if not self._away and since == self._changes:
            self._away = True
            self._changes += 1
            logger.warning(
                "Redis is away (%s); what runs goes on, and so will the rest",
                str(error) if isinstance(error, ResponseError) else type(error).__name__,
            )

    def _came(self, since: int) -> None:
        if self._away and since == self._changes:
            self._away = False
            self._changes += 1
            logger.info("Redis is back")
