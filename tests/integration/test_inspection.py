"""What people are shown of a queue, beside what the queue does."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import fakeredis
import pytest
from redis.asyncio import Redis

from scheduler.admin.dedup import release_dedup_key
from scheduler.model import DedupMode, JobState
from scheduler.queue import PromptQueue
from scheduler.queue.dedup import dedup_hash
from scheduler.queue.inspection.dedup_keys import list_dedup_keys, read_dedup_key
from scheduler.queue.inspection.jobs import latest_jobs, list_jobs, read_job
from scheduler.queue.inspection.status import read_status
from scheduler.queue.inspection.workers import read_workers
from scheduler.queue.limits import RateLimit
from scheduler.queue.records import NewJob
from scheduler.queue.worker_report import RouteReport
from tests.contracts.queue_driver import LANE, QueueDriver, drain, new_job


@pytest.fixture(params=["fakeredis", "valkey"])
async def q(request: pytest.FixtureRequest) -> AsyncIterator[QueueDriver]:
    """A configured queue, with a strict level worth 30 s of waiting."""
    if request.param == "fakeredis":
        redis: Redis = fakeredis.FakeAsyncRedis()
    else:
        redis = Redis.from_url(request.getfixturevalue("valkey_url"))
    async with redis:
        driver = QueueDriver(PromptQueue(redis, script_flags=request.param != "fakeredis"))
        await driver.configure(aging_ms=30_000)
        yield driver


@pytest.mark.parametrize("aging_ms", [30_000, 0])
@pytest.mark.parametrize("seed", range(4))
async def test_waiting_jobs_are_listed_in_the_order_in_which_they_are_claimed(
    q: QueueDriver, aging_ms: int, seed: int
) -> None:
    chance = random.Random(seed)
    await q.configure(aging_ms=aging_ms)
    # fewer than the 20 after which a claim prefers the oldest
    names = [f"{seed}-{n}" for n in range(18)]
    for name in names:
        await q.enqueue(new_job(name, chance.randrange(10)))
        await q.backdate(name, chance.uniform(0, 200))
    listed = await list_jobs(q.queue, state=JobState.WAITING)
    asked = [(await q.queue.position(info.id)) for info in listed]
    assert [info.position for info in listed] == asked == list(range(18))
    assert [info.id for info in listed] == await drain(q)


async def test_a_long_list_is_read_in_pages_and_in_order(q: QueueDriver) -> None:
    for start in range(0, 600, 100):
        await q.enqueue(*(new_job(f"j{n:03}", 3 + n % 2) for n in range(start, start + 100)))
    listed = await list_jobs(q.queue, lane=LANE, limit=1000)
    by_level = [f"j{n:03}" for p in (1, 0) for n in range(600) if n % 2 == p]
    assert [info.id for info in listed] == by_level
    assert [info.id for info in await list_jobs(q.queue, limit=7)] == by_level[:7]


async def test_jobs_are_listed_by_state_lane_and_tenant(q: QueueDriver) -> None:
    done = await q.running("done")
    await q.finish(done)
    failed = await q.running("failed")
    await q.finish(failed, JobState.FAILED)
    await q.enqueue(new_job("gone"))
    await q.queue.cancel("gone")
    await q.running("running")
    await q.enqueue(
        new_job("later", delay_ms=60_000), new_job("other", lane="code"), new_job("theirs", tenant="acme")
    )
    for state, ids in (
        (JobState.DONE, ["done"]),
        (JobState.FAILED, ["failed"]),
        (JobState.CANCELLED, ["gone"]),
        (JobState.RUNNING, ["running"]),
        (JobState.DELAYED, ["later"]),
        (JobState.HELD, []),
        (JobState.WAITING, ["other", "theirs"]),
        (None, ["running", "other", "theirs", "later"]),
    ):
        assert [info.id for info in await list_jobs(q.queue, state=state)] == ids, state
    assert [info.id for info in await list_jobs(q.queue, tenant="acme")] == ["theirs"]
    assert [info.id for info in await list_jobs(q.queue, lane="code")] == ["other"]


async def test_ended_jobs_are_listed_the_latest_first(q: QueueDriver) -> None:
    for name in ("first", "second", "third"):
        await q.finish(await q.running(name))
        await q.pass_ms(1)
    assert [info.id for info in await list_jobs(q.queue, state=JobState.DONE)] == ["third", "second", "first"]


async def test_the_latest_of_each_state_are_read_however_many_there_are(q: QueueDriver) -> None:
    for n in range(4):
        await q.finish(await q.running(f"failed{n}"), JobState.FAILED)
        await q.finish(await q.running(f"done{n}"))
        await q.pass_ms(1)
    await q.enqueue(new_job("gone"))
    await q.queue.cancel("gone")
    await q.running("running")
    latest = await latest_jobs(q.queue, {JobState.FAILED: 2, JobState.RUNNING: 5, JobState.DONE: 3})
    assert {state: [info.id for info in infos] for state, infos in latest.items()} == {
        JobState.FAILED: ["failed3", "failed2"],
        JobState.RUNNING: ["running"],
        JobState.DONE: ["done3", "done2"],  # the cancelled one was among the three
    }


async def test_history_tells_every_attempt_in_order(q: QueueDriver) -> None:
    job = await q.running("a", max_attempts=5)
    await q.give_back(job)
    await q.queue.set_priority("a", 7)
    job = await q.claim()
    await q.finish(job, JobState.FAILED)
    info = await read_job(q.queue, "a")
    assert info is not None
    told = [(entry.what, entry.attempt, entry.detail) for entry in info.history]
    assert told == [
        ("enqueued", None, None),
        ("failed", 1, "busy: try later"),
        ("priority", None, "5 to 7"),
        ("claimed", 2, None),
        ("failed", 2, "boom: it broke"),
    ]
    assert (info.state, info.attempts, info.failures, info.max_attempts) == (JobState.FAILED, 2, 1, 5)
    assert info.error is not None
    assert info.error.code == "boom"
    assert info.worker == "w1"
    assert info.ended_at_ms is not None
    assert info.enqueued_at_ms <= info.history[-1].at_ms == info.ended_at_ms


async def test_a_requeued_job_keeps_the_time_of_its_enqueue_and_why_it_had_ended(q: QueueDriver) -> None:
    await q.finish(await q.running("a"), JobState.FAILED)
    before = await read_job(q.queue, "a")
    await q.queue.requeue("a")
    info = await read_job(q.queue, "a")
    assert before is not None
    assert info is not None
    assert [entry.what for entry in info.history] == ["enqueued", "requeued"]
    assert info.enqueued_at_ms == info.history[0].at_ms == before.enqueued_at_ms
    assert str(info.history[1].detail).startswith("failed")


async def test_an_unknown_or_damaged_job_is_none(q: QueueDriver) -> None:
    assert await read_job(q.queue, "nobody") is None
    await q.queue.redis.set(q.queue.keys.of("record", "string"), "x")
    assert await read_job(q.queue, "string") is None
    await q.enqueue(new_job("broken"), new_job("whole"))
    await q.queue.redis.hset(q.queue.keys.of("record", "broken"), "p", "urgent")  # type: ignore[misc]  # redis-py has one type for sync and async
    assert await read_job(q.queue, "broken") is None
    assert [info.id for info in await list_jobs(q.queue)] == ["whole"]
    await q.queue.redis.hset(q.queue.keys.of("record", "whole"), "y", '[1,"half"')  # type: ignore[misc]  # redis-py has one type for sync and async
    info = await read_job(q.queue, "whole")
    assert info is not None
    assert [entry.what for entry in info.history] == ["enqueued"]


async def test_tickets_are_counted_while_the_job_lives(q: QueueDriver) -> None:
    await q.enqueue(new_job("a", key="K"))
    await q.enqueue(new_job("b", key="K"), new_job("c", key="K"))
    info = await read_job(q.queue, "a")
    assert info is not None
    assert (info.tickets, info.joined, info.dedup) == (3, 2, DedupMode.UNTIL_FINISHED)
    await q.queue.cancel("a", "b")
    assert [info.tickets for info in await list_jobs(q.queue)] == [2]


async def test_a_waiting_job_says_why_it_is_at_its_place(q: QueueDriver) -> None:
    await q.enqueue(new_job("urgent", 9), new_job("usual", 5), new_job("low", 3))
    low = await read_job(q.queue, "low")
    urgent = await read_job(q.queue, "urgent")
    assert low is not None
    assert urgent is not None
    assert low.position == 2
    assert low.place is not None
    assert low.place.startswith("2 jobs are before it")
    assert "counts as 180 s younger" in low.place
    assert urgent.place == "it is next: priority 9 goes strictly first, the oldest before the newer"
    await q.queue.pause(LANE)
    low = await read_job(q.queue, "low")
    assert low is not None
    assert low.place is not None
    assert low.place.endswith("lane 'chat' is paused, so nothing of it is claimed")


async def hold(q: QueueDriver, tenant: str, *jobs: NewJob) -> None:
    """Enqueue jobs whose tenant has used up its limit."""
    await q.configure(tenants={"*": RateLimit(requests=60)})
    await q.drain_limit(f"t:{tenant}")
    await q.enqueue(*jobs)


async def test_held_jobs_are_listed_in_the_order_in_which_they_are_released(q: QueueDriver) -> None:
    names = [f"p{p}" for p in (5, 9, 0, 8, 7)]
    await hold(q, "acme", *[new_job(name, int(name[1]), tenant="acme") for name in names])
    await hold(q, "other", new_job("code", 9, lane="code", tenant="other"))
    await q.enqueue(new_job("waits"), new_job("later", delay_ms=60_000))
    listed = await list_jobs(q.queue, state=JobState.HELD, lane=LANE)
    assert [(info.id, info.position) for info in listed] == [
        (name, at) for at, name in enumerate(["p9", "p8", "p7", "p5", "p0"])
    ]
    assert [info.id for info in await list_jobs(q.queue, state=JobState.HELD, tenant="other")] == ["code"]
    assert {info.state for info in listed} == {JobState.HELD}
    everything = [info.id for info in await list_jobs(q.queue)]
    assert (everything[0], everything[-1]) == ("waits", "later")
    assert len(everything) == 8


async def test_a_held_job_says_why_and_until_when(q: QueueDriver) -> None:
    await hold(q, "acme", *[new_job(name, tenant="acme") for name in "ab"])
    info = await read_job(q.queue, "b")
    assert info is not None
    assert (info.state, info.position) == (JobState.HELD, 1)
    assert info.place is not None
    assert info.place.startswith(
        "tenant 'acme' has used up its limit, 60 requests a minute, so its jobs in lane 'chat' are held: "
        "1 of them is before it; the next may start in 5"
    )
    await q.configure()
    info = await read_job(q.queue, "b")
    assert info is not None
    assert "has no limit any more" in str(info.place)


async def test_status_shows_who_is_limited_until_when(q: QueueDriver) -> None:
    await hold(q, "acme", new_job("a", tenant="acme"), new_job("b", lane="code", tenant="acme"))
    await hold(q, "other", *[new_job(f"o{i}", tenant="other") for i in range(3)])
    await q.enqueue(new_job("waits"), new_job("later", delay_ms=60_000))
    await q.tick()
    status = await read_status(q.queue)
    assert (status.waiting, status.delayed, status.held) == (1, 1, 5)
    assert {lane.name: (lane.waiting, lane.delayed, lane.held) for lane in status.lanes} == {
        "chat": (1, 1, 4),
        "code": (0, 0, 1),
    }
    limited = {(one.tenant, one.lane): one for one in status.limited}
    assert {name: one.held for name, one in limited.items()} == {
        ("acme", "chat"): 1,
        ("acme", "code"): 1,
        ("other", "chat"): 3,
    }
    assert all(40 < one.next_in_s <= 60 for one in status.limited)


async def test_status_adds_up(q: QueueDriver) -> None:
    await q.configure(aging_ms=0, max_waiting=50, max_waiting__code=7, when_full="shed")
    await q.enqueue(*(new_job(f"j{n}", 5) for n in range(3)))
    await q.enqueue(new_job("up", 9), new_job("d1", delay_ms=60_000), new_job("c1", lane="code"))
    await q.backdate("j2", 40)
    await q.claim()
    await q.queue.pause("code")
    await q.queue.renew("w1", [], lease_ms=60_000, about=b"{}")
    status = await read_status(q.queue)
    assert (status.waiting, status.delayed, status.running, status.workers) == (4, 1, 1, 1)
    assert (status.max_waiting, status.when_full, status.aging_s) == (50, "shed", 0)
    assert status.totals["enqueued"] == 6
    lanes = {lane.name: lane for lane in status.lanes}
    assert list(lanes) == ["chat", "code"]
    assert lanes["chat"].by_priority == {5: 3}
    assert lanes["chat"].delayed == 1
    assert lanes["chat"].oldest_s is not None
    assert 40 <= lanes["chat"].oldest_s < 60
    assert (lanes["code"].paused, lanes["code"].max_waiting) == (True, 7)


async def test_status_of_many_lanes_and_of_an_empty_queue(q: QueueDriver) -> None:
    assert (await read_status(q.queue)).waiting == 0
    await q.enqueue(*(new_job(f"j{n}", n % 10, lane=f"lane{n:03}") for n in range(120)))
    status = await read_status(q.queue)
    assert status.waiting == 120
    # the route of the settings is shown as well, though nothing has been put into it
    assert [lane.waiting for lane in status.lanes] == [0] + [1] * 120
    assert status.lanes[7].by_priority == {6: 1}


async def test_rate_is_unknown_when_nobody_measures(q: QueueDriver) -> None:
    meta = q.queue.keys.fixed("meta")
    await q.queue.redis.hset(meta, mapping={"rate": "2.5", "sampled": await q.now_ms()})  # type: ignore[misc]  # redis-py has one type for sync and async
    assert (await read_status(q.queue)).ended_per_s == 2.5
    await q.queue.redis.hset(meta, "sampled", str(await q.now_ms() - 61_000))  # type: ignore[misc]  # redis-py has one type for sync and async
    assert (await read_status(q.queue)).ended_per_s is None


async def test_dedup_keys_name_their_owners(q: QueueDriver) -> None:
    sky, sea = dedup_hash("sky"), dedup_hash("sea")
    await q.enqueue(new_job("a", key=sky), new_job("b", key=sky))
    await q.enqueue(new_job("c", key=sea, tenant="acme", dedup=DedupMode.WINDOW))
    await q.finish(await q.claim(), JobState.DONE)  # "a" is the oldest
    await q.finish(await q.claim(), JobState.DONE)
    (held,) = await list_dedup_keys(q.queue)
    assert (held.tenant, held.hash, held.job_id, held.state) == ("acme", sea, "c", JobState.DONE)
    assert held.mode is DedupMode.WINDOW
    assert held.expires_in_s is not None
    assert held.expires_in_s > 0
    await q.enqueue(new_job("d", key=sky), new_job("e", key=sky))
    by_key = await read_dedup_key(q.queue, "sky")
    assert by_key is not None
    assert (by_key.job_id, by_key.state, by_key.joined, by_key.expires_in_s) == (
        "d",
        JobState.WAITING,
        1,
        None,
    )
    assert await read_dedup_key(q.queue, sky) == by_key
    assert await read_dedup_key(q.queue, "sky", tenant="acme") is None
    assert len(await list_dedup_keys(q.queue)) == 2
    assert [held.job_id for held in await list_dedup_keys(q.queue, tenant="default")] == ["d"]
    assert len(await list_dedup_keys(q.queue, limit=1)) == 1


async def test_a_released_dedup_key_is_free_and_its_job_goes_on(q: QueueDriver) -> None:
    sky = dedup_hash("sky")
    await q.enqueue(new_job("a", key=sky))
    released = await release_dedup_key(q.queue, "sky")
    assert released is not None
    assert released.job_id == "a"
    assert await release_dedup_key(q.queue, "sky") is None
    await q.enqueue(new_job("b", key=sky))
    assert await drain(q) == ["a", "b"]


async def test_workers_describe_themselves(q: QueueDriver) -> None:
    assert await read_workers(q.queue) == []
    about = b'{"pid": 12, "host": "box", "running": 3, "max_running": 8, "later": 1, "routes": {"chat": {}}}'
    await q.queue.renew("w1", [], lease_ms=60_000, about=about)
    await q.queue.renew("w2", [], lease_ms=60_000, about=b"not json")
    await q.queue.redis.zadd(q.queue.keys.fixed("workers"), {"w0": 1})
    await q.tick("w1")
    first, second = await read_workers(q.queue)
    assert (first.id, first.pid, first.host, first.running, first.leader) == ("w1", 12, "box", 3, True)
    assert first.routes == {"chat": RouteReport()}
    assert (second.id, second.leader, second.host) == ("w2", False, "")
