"""The lanes of held jobs: one for each lane and tenant that a limit holds back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from redis.asyncio import Redis

from scheduler.queue.keys import Keys

LANES_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class HeldLane:
    """The held jobs of a tenant in a lane. `look_at_ms`: when some may be released, by Redis' clock."""

    lane: str
    tenant: str
    jobs: int
    look_at_ms: int


async def read_held_lanes(redis: Redis, keys: Keys) -> list[HeldLane]:
    """All of them, those first that are released first. One round trip, and one for every 50."""
    listed = await redis.zrange(keys.fixed("limited"), 0, -1, withscores=True)
    names = [name.decode() for name, _ in listed]
    counts: list[int] = []
    for start in range(0, len(names), LANES_AT_ONCE):
        counts += await _count(redis, keys, names[start : start + LANES_AT_ONCE])
    return [
        HeldLane(*keys.split_held_lane(name), jobs, int(look_at_ms))
        for name, jobs, (_, look_at_ms) in zip(names, counts, listed, strict=True)
        if jobs
    ]


async def _count(redis: Redis, keys: Keys, names: Iterable[str]) -> list[int]:
    async with redis.pipeline(transaction=False) as pipe:
        for name in names:
            for priority in range(10):
                pipe.zcard(keys.level(name, priority))
        sizes: list[int] = await pipe.execute()
    return [sum(sizes[at : at + 10]) for at in range(0, len(sizes), 10)]
