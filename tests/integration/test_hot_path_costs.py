"""What a job costs Redis on its way: round trips, commands and bytes, counted by the server. No clock.

These are the numbers of today. A change that makes one of them larger has to say why; one that makes it
smaller writes the smaller one here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from redis.asyncio import Redis

from scheduler.model import JobState
from scheduler.queue.queue import PromptQueue
from tests.contracts.queue_driver import LANE, QueueDriver, deltas, ending, new_job

JOBS = 64
COMMANDS = {"enqueue": 530, "claim": 213, "publish": 385, "finish": 899}
"""Of all the jobs. Two deltas each; a dedup key, which finish lets go of."""
BYTES_A_JOB = {"enqueue": 160, "claim": 140, "publish": 200, "finish": 200}

AROUND_SCRIPTS = {"evalsha", "info", "multi", "exec"}


@dataclass(frozen=True)
class Cost:
    """Script calls, commands that scripts made, and bytes from and to the client."""

    scripts: int
    commands: int
    bytes_in: int
    bytes_out: int


class Meter:
    """Counts what happens between two looks."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def look(self) -> Cost:
        stats = await self._redis.info("stats")
        commands = await self._redis.info("commandstats")
        calls = {name.removeprefix("cmdstat_"): one["calls"] for name, one in commands.items()}
        inside = sum(n for name, n in calls.items() if name not in AROUND_SCRIPTS)
        return Cost(
            calls.get("evalsha", 0),
            inside,
            stats["total_net_input_bytes"],
            stats["total_net_output_bytes"],
        )


@pytest.fixture
async def q(valkey_url: str) -> AsyncIterator[QueueDriver]:
    async with Redis.from_url(valkey_url) as redis:
        queue = PromptQueue(redis, "default")
        await queue.load()
        driver = QueueDriver(queue)
        await driver.configure()
        yield driver


async def spent(meter: Meter, before: Cost) -> Cost:
    after = await meter.look()
    idle_before = await meter.look()
    idle_after = await meter.look()
    looking = Cost(
        0,
        0,
        idle_after.bytes_in - idle_before.bytes_in,
        idle_after.bytes_out - idle_before.bytes_out,
    )
    return Cost(
        after.scripts - before.scripts,
        after.commands - before.commands,
        after.bytes_in - before.bytes_in - looking.bytes_in,
        after.bytes_out - before.bytes_out - looking.bytes_out,
    )


async def test_a_job_costs_no_more_than_it_did(q: QueueDriver) -> None:
    meter = Meter(q.redis)
    costs = {}

    before = await meter.look()
    await q.enqueue(*[new_job(f"job-{n:04}", key=f"key {n}") for n in range(JOBS)])
    costs["enqueue"] = await spent(meter, before)

    before = await meter.look()
    jobs = (await q.claim_all(JOBS, lanes={LANE: JOBS})).jobs
    costs["claim"] = await spent(meter, before)
    assert len(jobs) == JOBS

    before = await meter.look()
    await q.queue.write(publications=[deltas(job, "a", "b") for job in jobs])
    costs["publish"] = await spent(meter, before)

    before = await meter.look()
    await q.queue.write(endings=[ending(job, JobState.DONE, seq=3) for job in jobs])
    costs["finish"] = await spent(meter, before)

    assert {name: cost.scripts for name, cost in costs.items()} == dict.fromkeys(COMMANDS, 1)
    assert {name: cost.commands for name, cost in costs.items()} == COMMANDS
    for name, cost in costs.items():
        assert cost.bytes_in + cost.bytes_out <= JOBS * BYTES_A_JOB[name], name
