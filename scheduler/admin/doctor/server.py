"""Checks a Redis server: its settings, its memory, its speed, and what this user may do."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from scheduler.admin.doctor.finding import Finding, Level
from scheduler.queue import PromptQueue

ROUND_TRIPS = 20
SLOW_ROUND_TRIP_MS = 5.0
MEMORY_SHARE_WARNED = 0.8


async def check_redis(redis: Redis) -> AsyncGenerator[Finding, None]:
    """Check the server's role, persistence, eviction, memory and speed."""
    info = await _ask(redis, "INFO")
    if not isinstance(info, Mapping):
        yield Finding(
            Level.WARN, "redis settings", "INFO is refused", "allow INFO to this user, or ask the host"
        )
    else:
        save = await _ask(redis, "CONFIG GET", "save")
        if info.get("role") == "slave":
            fix = "point redis_url at the primary"
            yield Finding(Level.FAIL, "role", "a replica: it takes no writes", fix)
        yield _persistence(info, save.get("save") if isinstance(save, Mapping) else None)
        yield _eviction(info)
        yield _memory(info)
    yield await _round_trip(redis)


async def check_channels(redis: Redis, queue: PromptQueue) -> Finding:
    """Whether this user may publish. If not, the scripts still work, but readers see events late."""
    if await _ask(redis, "PUBLISH", queue.control_channel, "{}") is not None:
        return Finding(Level.OK, "channels", "events can be published")
    return Finding(
        Level.FAIL,
        "channels",
        "this user may not publish: tokens arrive seconds late",
        f"allow it the queue's channels: ACL SETUSER … &{queue.keys.prefix}*",
    )


async def _ask(redis: Redis, command: str, *args: str) -> Any:
    """The answer, or None if this user may not ask: managed servers forbid CONFIG."""
    try:
        return await redis.execute_command(command, *args)
    except ResponseError:
        return None


def _persistence(info: Mapping[str, Any], save: str | None) -> Finding:
    see_log = "see the server's log and disk"
    if info.get("aof_enabled"):
        if info.get("aof_last_write_status", "ok") != "ok":
            message = "the append-only file cannot be written"
            return Finding(Level.FAIL, "persistence", message, see_log)
        return Finding(Level.OK, "persistence", "append-only file")
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        message = "the last snapshot failed: by default the server then refuses all writes"
        return Finding(Level.FAIL, "persistence", message, see_log)
    if save is None:
        message = "no append-only file; snapshots unknown"
    elif save:
        message = f"only snapshots (save {save}): a crash loses the jobs since the last one"
    else:
        message = "none: a restart of the server loses every job"
    return Finding(Level.WARN, "persistence", message, "set appendonly yes")


def _eviction(info: Mapping[str, Any]) -> Finding:
    policy, limit = str(info.get("maxmemory_policy", "unknown")), int(info.get("maxmemory", 0))
    if policy == "noeviction":
        return Finding(Level.OK, "eviction", "noeviction")
    fix = "set maxmemory-policy noeviction"
    if limit:
        return Finding(Level.FAIL, "eviction", f"{policy}: at maxmemory the server drops queued jobs", fix)
    return Finding(Level.WARN, "eviction", f"{policy}; harmless only while maxmemory is not set", fix)


def _memory(info: Mapping[str, Any]) -> Finding:
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not limit:
        return Finding(
            Level.WARN,
            "memory",
            f"{_mib(used)} used, no limit: a full machine kills the server",
            "set maxmemory: enqueues are then refused in time, and running jobs still finish",
        )
    message = f"{_mib(used)} of {_mib(limit)} used"
    if used > MEMORY_SHARE_WARNED * limit:
        return Finding(Level.WARN, "memory", message, "raise maxmemory, or lower max_waiting or result_ttl_s")
    return Finding(Level.OK, "memory", message)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


async def _round_trip(redis: Redis) -> Finding:
    times_ms = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        await redis.ping()
        times_ms.append((time.perf_counter() - began) * 1000)
    median_ms = statistics.median(times_ms)
    message = f"{median_ms:.2f} ms (median of {ROUND_TRIPS}; longest {max(times_ms):.2f} ms)"
    if median_ms > SLOW_ROUND_TRIP_MS:
        return Finding(Level.WARN, "round trip", message, "move the worker processes closer to Redis")
    return Finding(Level.OK, "round trip", message)
