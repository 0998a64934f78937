"""What a look of `admin top` costs, and what it sees."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from scheduler.cli.admin.top.snapshot import DEAD_READ, DONE_READ, RUNNING_READ, Snapshot, take_snapshot
from scheduler.model import JobState
from scheduler.queue import PromptQueue
from scheduler.queue.records import ClaimedJob
from tests.contracts.queue_driver import LANE, QueueDriver, ending, new_job

ROUND_TRIPS = 8


@pytest.fixture
async def q(valkey_url: str) -> AsyncIterator[QueueDriver]:
    async with Redis.from_url(valkey_url) as redis:
        driver = QueueDriver(PromptQueue(redis))
        await driver.configure()
        yield driver


async def take(q: QueueDriver) -> Snapshot:
    return await take_snapshot(q.queue)


async def claimed(q: QueueDriver, n: int) -> list[ClaimedJob]:
    jobs: list[ClaimedJob] = []
    while len(jobs) < n:
        jobs += (await q.claim_all(n - len(jobs), lanes={LANE: n})).jobs
    return jobs


async def test_a_look_costs_the_same_whatever_the_size_of_the_queue(
    q: QueueDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    send = AbstractConnection.send_packed_command

    async def counted(
        connection: AbstractConnection, command: list[bytes], check_health: bool = True
    ) -> None:
        sent.append(sum(map(len, command)))
        await send(connection, command, check_health)

    await q.queue.renew("w1", [], lease_ms=60_000, about=b"{}")
    many = 3 * max(RUNNING_READ, DONE_READ, DEAD_READ)
    costs = []
    for size in (many, 2 * many):
        for state in (JobState.DONE, JobState.FAILED):
            await q.enqueue(*(new_job(f"{size}-{state}-{n}") for n in range(many)))
            jobs = await claimed(q, many)
            await q.queue.write(endings=[ending(job, state) for job in jobs])
        await q.enqueue(*(new_job(f"{size}-running-{n}") for n in range(many)))
        await claimed(q, many)
        await q.enqueue(*(new_job(f"{size}-waiting-{n}", n % 10) for n in range(many)))
        monkeypatch.setattr(AbstractConnection, "send_packed_command", counted)
        seen = await take(q)
        monkeypatch.undo()
        assert seen.status.running == size
        costs.append((len(sent), sum(sent)))
        sent.clear()
    assert [trips for trips, _ in costs] == [ROUND_TRIPS, ROUND_TRIPS]
    assert costs[1][1] < 1.1 * costs[0][1], "no more is asked of a longer queue"


async def test_a_look_sees_workers_memory_waits_and_the_latest_dead_letters(q: QueueDriver) -> None:
    await q.queue.renew("w1", [], lease_ms=60_000, about=b'{"host": "box", "running": 3, "max_running": 8}')
    for name in ("first", "second"):
        await q.finish(await q.running(name), JobState.FAILED)
        await q.pass_ms(1)
    await q.finish(await q.running("done"), JobState.DONE)
    await q.enqueue(new_job("now", 9, lane="code"))
    await q.claim(lanes={"code": 1})
    seen = await take(q)
    assert [job.id for job in seen.dead] == ["second", "first"]
    assert [worker.host for worker in seen.workers] == ["box"]
    assert {lane: one.jobs for lane, one in seen.waits_by_lane.items()} == {LANE: 1, "code": 1}
    assert {level: one.jobs for level, one in seen.waits_by_priority.items()} == {5: 1, 9: 1}
    assert seen.memory is not None
    assert seen.memory.used_bytes > 100_000
    assert seen.memory.max_bytes is None
    await q.queue.redis.config_set("maxmemory", "1gb")
    bounded = (await take(q)).memory
    assert bounded is not None
    assert bounded.max_bytes == 2**30
    await q.queue.redis.config_set("maxmemory", 0)


async def test_who_may_not_ask_for_the_memory_sees_the_rest(q: QueueDriver, valkey_url: str) -> None:
    await q.enqueue(new_job("a"))
    await q.queue.redis.execute_command("ACL", "SETUSER", "few", "on", ">x", "~*", "&*", "+@all", "-info")
    async with Redis.from_url(valkey_url.replace("://", "://few:x@")) as redis:
        seen = await take_snapshot(PromptQueue(redis))
    await q.queue.redis.execute_command("ACL", "DELUSER", "few")
    assert (seen.memory, seen.status.waiting) == (None, 1)
