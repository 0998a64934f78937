"""arq's connections to Redis, which wait while Redis is unavailable."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from arq.connections import ArqRedis
from redis import exceptions as redis_errors
from redis.asyncio import ConnectionPool
from redis.asyncio.client import Pipeline

from scheduler.engine.patience import Outage, Patience
from scheduler.redis_server.connection import TimedPipeline, TimedRedis
from scheduler.redis_server.errors import passes

GOODBYE_S = 2.0
"""How long the last command of a process may take."""

_PSETEX_WHEN_FULL = "#!lua flags=allow-oom\nreturn redis.call('PSETEX', KEYS[1], ARGV[1], ARGV[2])"


class PatientArqRedis(TimedRedis, ArqRedis):  # type: ignore[misc]  # both derive from redis-py's client
    """Keeps temporary errors of Redis from arq, whose process would end with the first one.

    Commands of arq may be sent twice: one of its jobs then runs again.
    """

    def __init__(self, pool: ConnectionPool, *, outage: Outage, timeout_s: float, **options: Any) -> None:
        ArqRedis.__init__(self, pool, **options)
        self.timeout_s = timeout_s
        self._outage = outage
        self._patience = Patience(self, outage)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command."""
        once = super().execute_command
        return await self._patience.until_done(lambda: once(*args, **options))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Make a pipeline."""
        pipe = _PatientPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipe.timeout_s = self.timeout_s
        pipe.patience = self._patience
        return pipe

    async def psetex(self, name: Any, time_ms: Any, value: Any) -> Any:
        """Write arq's health check, which must not expire or block arq while Redis is full."""
        run = super().execute_command

        async def once() -> Any:
            try:
                reply = await run("PSETEX", name, time_ms, value)
            except redis_errors.OutOfMemoryError as error:
                self._outage.filled(error)
                return await run("EVAL", _PSETEX_WHEN_FULL, 1, name, time_ms, value)
            self._outage.has_room()
            return reply

        return await self._patience.until_done(once)

    async def delete(self, *names: Any) -> Any:
        """Delete arq's health check at the end of the process. If that fails, it expires soon."""
        with suppress(redis_errors.RedisError, OSError):
            async with asyncio.timeout(GOODBYE_S):
                return await super().execute_command("DEL", *names)
        return 0


class _PatientPipeline(TimedPipeline):
    patience: Patience

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._watched: tuple[Any, ...] = ()

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Run the commands. If the connection was lost, watched keys count as changed."""
        execute, was_watching = super().execute, self.watching
        commands, is_explicit = self.command_stack, self.explicit_transaction

        async def once() -> list[Any]:
            self.command_stack, self.explicit_transaction = commands, is_explicit
            try:
                return await execute(raise_on_error)
            except (redis_errors.RedisError, OSError) as error:
                if was_watching and passes(error):
                    raise redis_errors.WatchError(str(error)) from error
                raise

        return await self.patience.until_done(once)

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Run WATCH or a command after it; watch again first if the connection was lost."""
        run = super().immediate_execute_command
        watched = args[1:] if args[0] == "WATCH" else self._watched

        async def once() -> Any:
            try:
                if args[0] != "WATCH" and watched and not self.watching:
                    await run("WATCH", *watched)
                return await run(*args, **options)
            except redis_errors.WatchError as error:
                raise redis_errors.ConnectionError(str(error)) from error

        reply = await self.patience.until_done(once)
        self._watched = watched
        return reply

    async def reset(self) -> None:
        """Drop the commands."""
        self._watched = ()
        await super().reset()
