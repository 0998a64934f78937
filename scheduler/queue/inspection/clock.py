"""The queue's clock: Redis' own, unless that one has jumped."""

from __future__ import annotations

from redis.asyncio.client import Pipeline

from scheduler.queue.keys import Keys
from scheduler.queue.queue import PromptQueue


async def read_clock_ms(queue: PromptQueue) -> int:
    """Read the clock, in milliseconds since the epoch."""
    async with queue.redis.pipeline(transaction=False) as pipe:
        ask_clock(pipe, queue.keys)
        return clock_us(*await pipe.execute()) // 1000


def ask_clock(pipe: Pipeline, keys: Keys) -> None:
    """Add the two commands whose replies `clock_us` takes."""
    pipe.time()
    pipe.hget(keys.fixed("meta"), "ahead")


def clock_us(time: tuple[int, int], ahead_ms: bytes | None) -> int:
    """Microseconds since the epoch."""
    return time[0] * 1_000_000 + time[1] + 1000 * int(ahead_ms or 0)
