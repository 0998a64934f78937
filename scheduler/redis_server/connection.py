"""Clients of a Redis server, with a time limit for each command."""

from __future__ import annotations

import asyncio
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from scheduler.redis_server.errors import too_late
from scheduler.redis_server.pool import connection_pool


def open_redis(url: str, *, retries: int = 3, timeout_s: float | None = None) -> Redis:
    """Make a client. The first command opens a connection.

    A command whose reply was lost is sent again, up to `retries` times: use it with commands that may be
    repeated. `timeout_s` bounds all tries of a command together.

    Raises:
        ConfigError: the URL cannot be used.
    """
    client = TimedRedis(connection_pool=connection_pool(url, retries=retries))
    client.auto_close_connection_pool = True
    client.timeout_s = timeout_s
    return client


class TimedRedis(Redis):
    """A client with a time limit for every command and pipeline, over all of its tries.

    A server process that was stopped keeps its connections open and does not answer. A command that waits on
    the server (BLPOP) has its own time in addition. After `timeout_s` it raises
    `redis.exceptions.TimeoutError`.
    """

    timeout_s: float | None = None

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command."""
        limit_s = self.timeout_s
        if limit_s is not None and args[0] == "BLPOP":
            limit_s += float(args[-1])
        try:
            async with asyncio.timeout(limit_s):
                return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py has no types for it
        except TimeoutError:
            raise too_late(limit_s) from None

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Make a pipeline."""
        pipe = TimedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipe.timeout_s = self.timeout_s
        return pipe


class TimedPipeline(Pipeline):
    """The pipeline of a `TimedRedis`."""

    timeout_s: float | None = None

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Run the commands."""
        try:
            async with asyncio.timeout(self.timeout_s):
                return await super().execute(raise_on_error)
        except TimeoutError:
            raise too_late(self.timeout_s) from None

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command at once, after WATCH."""
        try:
            async with asyncio.timeout(self.timeout_s):
                return await super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py has no types for it
        except TimeoutError:
            raise too_late(self.timeout_s) from None

    async def reset(self) -> None:
        """Drop the commands. Closes a connection that cannot UNWATCH."""
        if self.connection is not None and not self.connection.is_connected:
            self.watching = False
        if not self.watching:
            # Nothing is sent, so there is nothing to limit; redis-py comes here twice for each execution.
            await super().reset()  # type: ignore[no-untyped-call]  # redis-py has no types for it
            return
        try:
            async with asyncio.timeout(self.timeout_s):
                await super().reset()  # type: ignore[no-untyped-call]  # redis-py has no types for it
        except (redis_errors.RedisError, OSError):
            self.watching = False
            if self.connection is not None:
                await self.connection.disconnect(nowait=True)
            await super().reset()  # type: ignore[no-untyped-call]  # redis-py has no types for it


async def leave_demoted(redis: Redis, error: BaseException) -> None:
    """Close idle connections to a server that has become a replica: new ones find the primary."""
    if isinstance(error, redis_errors.ReadOnlyError | redis_errors.MasterDownError):
        await redis.connection_pool.disconnect(inuse_connections=False)
