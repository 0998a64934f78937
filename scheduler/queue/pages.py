"""Reads keys with any number of members in pages, so that no command takes long."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Literal, TypeAlias

from redis.asyncio import Redis

AT_ONCE = 1000

Scored: TypeAlias = tuple[bytes, float]


async def names_in(redis: Redis, *keys: tuple[str, Literal["set", "hash"]]) -> list[set[bytes]]:
    """Read the members of sets and the field names of hashes; small ones share a round trip."""
    cursors: dict[int, int] = dict.fromkeys(range(len(keys)), 0)
    found: list[set[bytes]] = [set() for _ in keys]
    while cursors:
        async with redis.pipeline(transaction=False) as pipe:
            for at, cursor in cursors.items():
                key, kind = keys[at]
                scan = pipe.sscan if kind == "set" else pipe.hscan
                scan(key, cursor, count=AT_ONCE)
            replies = await pipe.execute()
        for at, (cursor, names) in zip(tuple(cursors), replies, strict=True):
            found[at].update(names)
            cursors[at] = cursor
        cursors = {at: cursor for at, cursor in cursors.items() if cursor}
    return found


async def scored_pages(redis: Redis, key: str) -> AsyncGenerator[Sequence[Scored], None]:
    """Read a sorted set by score. A member that moves meanwhile may come twice, or not at all."""
    start = 0
    while True:
        page: list[Scored] = await redis.zrange(key, start, start + AT_ONCE - 1, withscores=True)
        if page:
            yield page
        if len(page) < AT_ONCE:
            return
        start += AT_ONCE
