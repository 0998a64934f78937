"""Reads the memory of the Redis server."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from scheduler.queue.reports import RedisMemory


async def read_memory(redis: Redis) -> RedisMemory | None:
    """Read what the server uses; None if it does not say, or not to this user."""
    try:
        said = await redis.info("memory")
    except ResponseError:
        return None
    used, most = said.get("used_memory"), said.get("maxmemory")
    return RedisMemory(used_bytes=used, max_bytes=most or None) if used is not None else None
