"""No call of a script does more the more there is in the queue: commands, counted by the server. No clock.

A command inside a script takes the server some 2 to 4 µs. `python -m benchmarks.scripts` has the times, at
sizes that no test can have.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
from redis.asyncio import Redis

from scheduler import admin
from scheduler.queue.leases import LANES_A_CLAIM
from scheduler.queue.limits import Limits, RateLimit
from scheduler.queue.queue import PromptQueue
from scheduler.queue.scripts import Argument, Call
from scheduler.queue.submissions import ENQUEUE_CHUNK
from tests.contracts.queue_driver import LANE, QueueDriver, new_job
from tests.integration.test_hot_path_costs import Meter

MANY = 400
MOST_COMMANDS = 2500
HELD = Limits(tenants={"*": RateLimit(requests=1)})
HOUR_MS = 3_600_000


@pytest.fixture
async def q(valkey_url: str) -> AsyncIterator[QueueDriver]:
    async with Redis.from_url(valkey_url) as redis:
        queue = PromptQueue(redis, "default")
        await queue.load()
        driver = QueueDriver(queue)
        await driver.configure()
        yield driver


class Costs:
    """Every call of a script while it is watched, by the commands that it made."""

    def __init__(self, q: QueueDriver, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int]] = []
        scripts, meter = q.queue._scripts, Meter(q.redis)
        run = scripts.run

        async def counted(name: str, *args: Argument) -> Any:
            await meter.start()
            try:
                return await run(name, *args)
            finally:
                self.calls.append((name, (await meter.stop()).commands))

        async def one_by_one(calls: list[Call]) -> list[Any]:
            return [await counted(name, *args) for name, args in calls]

        monkeypatch.setattr(scripts, "run", counted)
        monkeypatch.setattr(scripts, "run_each", one_by_one)

    async def of(self, action: Awaitable[object]) -> dict[str, int]:
        """The most commands of any call of each script in an action."""
        self.calls.clear()
        await action
        return {name: max(n for one, n in self.calls if one == name) for name, _ in self.calls}


async def enqueue_many(q: QueueDriver, *jobs: Any) -> None:
    for start in range(0, len(jobs), ENQUEUE_CHUNK):
        await q.enqueue(*jobs[start : start + ENQUEUE_CHUNK])


async def hold_many(q: QueueDriver) -> None:
    """A held job of each of very many tenants."""
    await q.configure(tenants=HELD.tenants)
    tenants = [f"tenant-{n}" for n in range(MANY)]
    back_us = (await q.now_ms() + HOUR_MS) * 1000
    async with q.redis.pipeline(transaction=False) as pipe:
        for tenant in tenants:
            pipe.set(q.queue.keys.of("bucket", f"t:{tenant}"), f"{back_us} 0", px=HOUR_MS)
        await pipe.execute()
    await enqueue_many(q, *[new_job(f"held-{tenant}", tenant=tenant) for tenant in tenants])
    assert await q.redis.zcard(q.queue.keys.fixed("limited")) == MANY


async def maintain(q: QueueDriver) -> None:
    """Until nothing is left to do at once."""
    while (await q.tick(mend_ms=0)).next_ms < 250:
        pass


async def test_maintenance_of_many_held_tenants(q: QueueDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    await hold_many(q)
    costs = Costs(q, monkeypatch)
    assert max((await costs.of(maintain(q))).values()) <= MOST_COMMANDS
    assert max((await costs.of(q.configure())).values()) <= MOST_COMMANDS
    assert max((await costs.of(maintain(q))).values()) <= MOST_COMMANDS
    assert await q.redis.zcard(q.queue.keys.fixed("limited")) == 0
    assert await q.waiting() == MANY


async def test_purge_and_audit_of_many_held_tenants(q: QueueDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    async def purge() -> None:
        async for _ in admin.purge(q.queue, LANE):
            pass

    await hold_many(q)
    costs = Costs(q, monkeypatch)
    assert max((await costs.of(admin.audit(q.queue))).values()) <= MOST_COMMANDS
    assert max((await costs.of(purge())).values()) <= MOST_COMMANDS
    assert await q.waiting() == 0


async def test_maintenance_of_many_lanes_goes_round_and_forgets_those_that_nobody_uses(
    q: QueueDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = [f"lane-{n}" for n in range(MANY)]
    await enqueue_many(q, *[new_job(f"job-{n}", lane=lane) for n, lane in enumerate(lanes)])
    keys = q.queue.keys
    await q.redis.delete(*[keys.of("wake", lane) for lane in lanes])
    await q.redis.hset(keys.fixed("meta"), mapping={f"n:{lanes[7]}": 99, f"b:{lanes[8]}": 0})
    costs = Costs(q, monkeypatch)
    assert max((await costs.of(maintain(q))).values()) <= MOST_COMMANDS
    assert await q.redis.exists(*[keys.of("wake", lane) for lane in lanes]) == MANY
    assert await q.waiting(lanes[7]) == 1
    assert await q.claimed_ids(1, lanes={lanes[8]: 1}) == ["job-8"]
    monkeypatch.undo()
    for lane in lanes:
        await q.queue.purge(lane)
    for _ in range(2):  # a set that shrinks while it is walked may hide some
        await maintain(q)
    assert await q.redis.scard(keys.fixed("lanes")) == 0
    meta = await q.meta()
    assert not [name for name in meta if name.endswith(("lane-0", "lane-8"))]


async def test_claims_and_shedding_over_many_lanes(q: QueueDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = [f"lane-{n}" for n in range(MANY)]
    await enqueue_many(q, *[new_job(f"job-{n}", n % 8, lane=lane) for n, lane in enumerate(lanes)])
    costs = Costs(q, monkeypatch)
    claim = q.claim_all(64, lanes=dict.fromkeys(lanes[:LANES_A_CLAIM], 64))
    assert max((await costs.of(claim)).values()) <= MOST_COMMANDS
    await q.configure(max_waiting=1, when_full="shed")
    newcomers = [new_job(f"new-{n}", 9) for n in range(ENQUEUE_CHUNK)]
    assert max((await costs.of(q.enqueue(*newcomers))).values()) <= MOST_COMMANDS
    assert await q.waiting(LANE) == ENQUEUE_CHUNK


async def test_what_is_due_at_one_moment(q: QueueDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    await enqueue_many(q, *[new_job(f"runs-{n}") for n in range(200)])
    while (await q.claim_all(lease_ms=1)).jobs:
        pass
    await enqueue_many(q, *[new_job(f"late-{n}", deadline_ms=1) for n in range(200)])
    await enqueue_many(q, *[new_job(f"due-{n}", delay_ms=1) for n in range(200)])
    await q.pass_ms(2)
    await q.redis.hset(q.queue.keys.fixed("meta"), mapping={"reap_after": 0, "tick": await q.now_ms()})
    costs = Costs(q, monkeypatch)
    assert max((await costs.of(maintain(q))).values()) <= MOST_COMMANDS
    meta = await q.meta()
    assert (meta["t:expired"], meta["t:lost"]) == ("200", "200")
    assert await q.waiting() == 400
