"""Waiting for Redis: everything in a worker process does it in the same way, and one of them says so."""

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
    """What a process knows of Redis: whether it is away or takes no writes, and how long that has been so.

    One log line a change of state. How a call ends that began before the last change was noticed says nothing
    of the state now, and changes nothing: `changes` is what a call notes when it begins.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.is_away = False
        self.is_full = False
        self.changes = 0
        self._began_at: float | None = None  # of the first outage that no tick has told of
        self._ended_at = 0.0

    def began(self, since: int, error: Exception) -> None:
        """A call that began at change `since` has met an error that passes."""
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
        """A call that began at change `since` has gone through."""
        if self.is_away and since == self.changes:
            self.is_away = False
            self.changes += 1
            self._ended_at = self._clock()
            logger.info("Redis is back")

    def filled(self, error: Exception) -> None:
        """A write was refused for want of memory. Scripts that may still write: that is no outage."""
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
        """For how long Redis has been away, or was, and no tick has told of it yet; 0 for no time."""
        if self._began_at is None:
            return 0
        return round(((self._clock() if self.is_away else self._ended_at) - self._began_at) * 1000)

    def told(self) -> None:
        """A tick has told of it."""
        if not self.is_away:
            self._began_at = None


class Patience:
    """Repeats calls on one pool of connections while Redis is away, or takes no writes.

    All of a process share one `outage`.
    """

    def __init__(self, redis: Redis, outage: Outage | None = None) -> None:
        self._redis = redis
        self.outage = outage or Outage()

    @property
    def is_away(self) -> bool:
        """Whether the last call has not gone through yet."""
        return self.outage.is_away

    async def until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make the call until it goes through. It must be safe to make twice.

        It must reach Redis: a call that goes through shows that Redis is back.
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
