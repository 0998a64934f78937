"""Checks that a usable server answers, or waits for one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from scheduler.errors import RedisError, RedisUnavailable
from scheduler.redis_server.connection import open_redis
from scheduler.redis_server.errors import refuses, too_old, translated

OLDEST = (7, 0)

FIRST_ANSWER_S = 2.0


async def check_server(redis: Redis, url: str) -> tuple[int, ...]:
    """Check that a usable server answers. Returns its Redis version.

    Raises:
        RedisUnavailable, RedisAuthError, RedisTooOld: the message says what to do.
    """
    with translated(url):
        await redis.ping()
        version = await server_version(redis)
    if version and version < OLDEST:
        raise too_old(".".join(map(str, version)), url)
    return version


async def wait_for_server(url: str, limit_s: float, *, tell: Callable[[str], None]) -> None:
    """Wait until a usable server answers. If a running server refuses commands, wait without a limit.

    `tell` is called with that refusal, once.

    Raises:
        RedisUnavailable: no server answered within `limit_s` seconds.
        RedisAuthError, RedisTooOld, ConfigError: at once.
    """
    give_up_at, has_told = time.monotonic() + limit_s, False
    redis = open_redis(url, retries=0, timeout_s=FIRST_ANSWER_S)
    try:
        while True:
            try:
                await check_server(redis, url)
                return
            except RedisError as error:
                if refuses(error.__cause__):
                    if not has_told:
                        tell(str(error))
                    give_up_at, has_told = time.monotonic() + limit_s, True
                elif not isinstance(error, RedisUnavailable) or time.monotonic() >= give_up_at:
                    raise
                await asyncio.sleep(0.2)
    finally:
        await redis.aclose()


async def server_version(redis: Redis) -> tuple[int, ...]:
    """The Redis version that the server reports to be compatible with; empty if it reports none."""
    try:
        info = await redis.info("server")
    except redis_errors.ResponseError:
        return ()
    return tuple(int(part) for part in str(info.get("redis_version", "")).split(".") if part.isdigit())
