"""What limits cost a queue with very many jobs that have to wait for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from scheduler.queue.limits import RateLimit
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import NewJob
from scheduler.queue.submissions import ENQUEUE_CHUNK
from tests.contracts.queue_driver import LANE, QueueDriver, new_job

JOBS = 100_000


@pytest.fixture
async def q(valkey_url: str) -> AsyncIterator[QueueDriver]:
    async with Redis.from_url(valkey_url) as redis:
        queue = PromptQueue(redis, "limits")
        await queue.load()
        driver = QueueDriver(queue)
        await driver.configure(max_waiting=2 * JOBS, tenants={"acme": RateLimit(requests=1)})
        yield driver
        await redis.execute_command("FLUSHALL", "SYNC")


def limited_job(n: int) -> NewJob:
    return new_job(f"j{n:06}", 9, tenant="acme")


async def fill(q: QueueDriver) -> None:
    for start in range(0, JOBS, ENQUEUE_CHUNK):
        await q.enqueue(*[limited_job(n) for n in range(start, min(start + ENQUEUE_CHUNK, JOBS))])


async def commands(q: QueueDriver) -> Counter[str]:
    """How often the server has run each command since it was last asked; those of scripts are counted."""
    stats = await q.redis.info("commandstats")
    await q.redis.config_resetstat()
    counts = Counter({name.removeprefix("cmdstat_"): stats[name]["calls"] for name in stats})
    for own in ("info", "config|resetstat", "evalsha"):
        counts.pop(own, None)
    return counts


async def cost_of_a_claim(q: QueueDriver) -> Counter[str]:
    """The commands of a claim that finds nothing, once it has been told so."""
    await q.claim_all(1)
    await commands(q)
    assert await q.claimed_ids(1) == []
    return await commands(q)


async def test_many_held_jobs_cost_a_claim_and_an_enqueue_what_none_would(q: QueueDriver) -> None:
    empty = await cost_of_a_claim(q)
    await q.drain_limit("t:acme")
    await fill(q)
    assert await q.redis.zcard(q.queue.keys.level(q.queue.keys.held_lane(LANE, "acme"), 9)) == JOBS
    assert await cost_of_a_claim(q) == empty
    await q.enqueue(new_job("other", 0))
    assert await q.claimed_ids() == ["other"]


async def test_many_jobs_at_the_head_are_parked_once(q: QueueDriver) -> None:
    empty = await cost_of_a_claim(q)
    await fill(q)
    await q.enqueue(new_job("other", 0))
    await q.drain_limit("t:acme")
    await commands(q)
    claims = 1
    while not (claim := await q.claim_all(1)).jobs:
        assert claim.more
        claims += 1
    assert [job.id for job in claim.jobs] == ["other"]
    parking = await commands(q)
    assert claims <= JOBS / 64 + 2
    assert JOBS <= parking["zadd"] <= JOBS + 2 * claims
    assert parking.total() <= 4 * JOBS
    assert await cost_of_a_claim(q) == empty
