"""How many bytes a waiting job costs beyond its payload."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis

from scheduler.client.routes import KnownRoute
from scheduler.client.submission import new_job
from scheduler.model import PromptRequest
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import NewJob
from scheduler.queue.submissions import ENQUEUE_CHUNK

# Hash tables double when they are full; at this number of keys they are as full as they are on average.
JOBS = 24_000


@pytest.fixture
async def redis(server_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(server_url) as client:
        await client.execute_command("FLUSHALL", "SYNC")
        yield client
        await client.execute_command("FLUSHALL", "SYNC")


def waiting_job(*, keyed: bool) -> NewJob:
    """A job as the client makes it."""
    key = {"dedup_key": secrets.token_hex()} if keyed else {}
    route = KnownRoute("echo", "", uses_metadata=False)
    return new_job(PromptRequest.parse(prompt="x" * 100, **key), route)


async def used_bytes(redis: Redis) -> int:
    """Memory in use, once the server has finished moving its tables about."""
    before, now = -1, (await redis.info("memory"))["used_memory"]
    while abs(now - before) > 10_000:
        await asyncio.sleep(0.2)
        before, now = now, (await redis.info("memory"))["used_memory"]
    return int(now)


async def bytes_a_job(redis: Redis, *, keyed: bool) -> float:
    queue = PromptQueue(redis, "default")
    await queue.load()
    before, payloads = await used_bytes(redis), 0
    for start in range(0, JOBS, ENQUEUE_CHUNK):
        jobs = [waiting_job(keyed=keyed) for _ in range(min(ENQUEUE_CHUNK, JOBS - start))]
        payloads += sum(len(job.payload) for job in jobs)
        await queue.enqueue(jobs)
    return (await used_bytes(redis) - before - payloads) / JOBS


async def limit_for(redis: Redis) -> int:
    server = await redis.info("server")
    return 500 if server.get("server_name") == "valkey" else 700


@pytest.mark.parametrize("keyed", [False, True], ids=["bare", "with a dedup key"])
async def test_a_waiting_job_is_small(
    redis: Redis, keyed: bool, record_property: Callable[[str, object], None]
) -> None:
    used = await bytes_a_job(redis, keyed=keyed)
    record_property("bytes_a_waiting_job", round(used))
    assert 100 < used <= await limit_for(redis)
