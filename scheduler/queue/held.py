"""The lanes of held jobs: one for each lane and tenant that is over its limit."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from scheduler.queue.keys import Keys
from scheduler.queue.pages import scored_pages


@dataclass(frozen=True, slots=True)
class HeldLane:
    """The held jobs of a tenant in a lane."""

    lane: str
    """The lane from which they are held."""
    tenant: str
    """The tenant."""
    jobs: int
    """How many there are."""
    look_at_ms: int
    """When some may be released, in milliseconds since the epoch, by Redis' clock."""


async def read_held_lanes(redis: Redis, keys: Keys) -> list[HeldLane]:
    """Read all of them, in the order of release. One round trip, and two for every 1,000."""
    found: dict[str, HeldLane] = {}
    async for page in scored_pages(redis, keys.fixed("limited")):
        names = [name.decode() for name, _ in page]
        for name, jobs, (_, look_at_ms) in zip(names, await _count(redis, keys, names), page, strict=True):
            if jobs:
                found[name] = HeldLane(*keys.split_held_lane(name), jobs, int(look_at_ms))
    return list(found.values())


async def _count(redis: Redis, keys: Keys, names: list[str]) -> list[int]:
    bitmaps = await redis.hmget(keys.fixed("beside"), names)  # type: ignore[misc]  # redis-py has one type for sync and async
    levels = [levels_in(bits) for bits in bitmaps]
    async with redis.pipeline(transaction=False) as pipe:
        for name, used in zip(names, levels, strict=True):
            for priority in used:
                pipe.zcard(keys.level(name, priority))
        sizes = iter(await pipe.execute())
    return [sum(next(sizes) for _ in used) for used in levels]


def levels_in(bits: bytes | None) -> list[int]:
    """The levels in a bitmap, the most urgent first."""
    used = int(bits or 0)
    return [priority for priority in range(9, -1, -1) if used >> priority & 1]
