"""Waits for Redis. All parts of a worker process wait the same way, and an outage is logged once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from scheduler.backoff import backoff
from scheduler.redis_server.connection import leave_demoted
from scheduler.redis_server.errors import passes

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Outage:
    """What a process knows about Redis: whether it is away or refuses writes, and for how long.

    Each change of state is logged once. A call notes `changes` when it begins: if the state has changed
    since, its outcome says nothing about the state now and is ignored.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.is_away = False
        self.is_full = False
        self.changes = 0
        self._began_at: float | None = None  # of the first outage that no tick has reported
        self._ended_at = 0.0

    def began(self, since: int, error: Exception) -> None:
        """A call that began at change `since` failed with a transient error."""
        if self.is_away or since != self.changes:
            return
        self.is_away = True
        self.changes += 1
        if self._began_at is None:
            self._began_at = self._clock()
        logger.warning(
            "Redis is away (%s); running calls continue, and everything else waits for it",
            str(error) if isinstance(error, ResponseError) else type(error).__name__,
        )

    def ended(self, since: int) -> None:
        """A call that began at change `since` succeeded."""
        if self.is_away and since == self.changes:
            self.is_away = False
            self.changes += 1
            self._ended_at = self._clock()
            logger.info("Redis is back")

    def filled(self, error: Exception) -> None:
        """Redis is out of memory and refused a write. Some scripts can still write, so this is no outage."""
        if not self.is_full:
            self.is_full = True
            logger.warning("Redis is full (%s); it takes no new jobs, and those that it has go on", error)

    def has_room(self) -> None:
        """A write was not refused."""
        if self.is_full:
            self.is_full = False
            logger.info("Redis has room again")

    @property
    def untold_ms(self) -> int:
        """How long Redis has been, or was, away that no tick has reported yet, in milliseconds; 0 if none."""
        if self._began_at is None:
            return 0
        return round(((self._clock() if self.is_away else self._ended_at) - self._began_at) * 1000)

    def told(self) -> None:
        """A tick has reported the outage."""
        if not self.is_away:
            self._began_at = None


class Patience:
    """Repeats calls on one connection pool while Redis is away or refuses writes.

    All pools of a process share one `outage`.
    """

    def __init__(self, redis: Redis, outage: Outage | None = None) -> None:
        self._redis = redis
        self.outage = outage or Outage()

    @property
    def is_away(self) -> bool:
        """Whether Redis is away: the last call has not succeeded yet."""
        return self.outage.is_away

    async def until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat the call until it succeeds. It must be safe to repeat.

        It must reach Redis: its success shows that Redis is back.
        """
        waits = backoff()
        while True:
            since = self.outage.changes
            try:
                reply = await call()
            except (RedisError, OSError) as error:
                if not passes(error):
                    raise
                if not isinstance(error, OutOfMemoryError):
                    self.outage.began(since, error)
                await leave_demoted(self._redis, error)
                await asyncio.sleep(next(waits))
            else:
                self.outage.ended(since)
                return reply
