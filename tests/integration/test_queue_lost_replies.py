"""A reply is lost and the client sends the same again: nothing doubles."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import orjson
import pytest
from redis.asyncio import Redis

from scheduler.model import DedupMode, JobState
from scheduler.queue.limits import RateLimit
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import Enqueued, Offer
from scheduler.redis_server.connection import open_redis
from tests.contracts.queue_driver import (
    LANE,
    LEASE_MS,
    QueueDriver,
    audit,
    deltas,
    ending,
    new_job,
    returning,
)
from tests.integration.reply_dropper import ReplyDropper
from tests.patience import SOON_S

T = TypeVar("T")
Lossy = Callable[[Callable[[], Awaitable[T]]], Awaitable[T]]


@pytest.fixture
async def proxy(valkey_url: str) -> AsyncIterator[ReplyDropper]:
    async with ReplyDropper(valkey_url) as dropper:
        yield dropper


@pytest.fixture
async def direct(valkey_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(valkey_url) as redis:
        yield redis


@pytest.fixture
async def q(proxy: ReplyDropper, direct: Redis) -> AsyncIterator[QueueDriver]:
    redis = open_redis(proxy.url)
    queue = PromptQueue(redis, "lossy")
    await queue.load()
    yield QueueDriver(queue)
    await redis.aclose()
    await audit(PromptQueue(direct, "lossy"))


@pytest.fixture
def lossy(proxy: ReplyDropper) -> Lossy[Any]:
    """Makes a call whose first reply is lost."""

    async def call(what: Callable[[], Awaitable[T]]) -> T:
        before = proxy.dropped
        proxy.drop_next_reply()
        reply = await what()
        assert proxy.dropped == before + 1
        return reply

    return call


async def calls(direct: Redis) -> int:
    """How many scripts the server has run since it was last asked to forget."""
    stats = await direct.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))


async def test_the_proxy_makes_the_client_send_the_same_again(
    q: QueueDriver, lossy: Lossy[Any], direct: Redis
) -> None:
    before = await calls(direct)
    await lossy(lambda: q.enqueue(new_job("a")))
    assert await calls(direct) == before + 2


async def test_an_enqueue_makes_one_job(q: QueueDriver, lossy: Lossy[Any]) -> None:
    assert await lossy(lambda: q.enqueue(new_job("a"), new_job("b", delay_ms=60_000))) == [
        Enqueued("a"),
        Enqueued("b"),
    ]
    assert await q.waiting() == 2
    assert await q.claimed_ids() == ["a"]


async def test_a_join_takes_one_ticket(q: QueueDriver, lossy: Lossy[Any]) -> None:
    await q.enqueue(new_job("a", key="K"))
    assert await lossy(lambda: q.enqueue(new_job("b", key="K"))) == [Enqueued("a", deduplicated=True)]
    assert (await q.record("a"))["j"] == "1"
    assert await q.queue.cancel("a", "b") == "ticket_returned"
    assert await q.queue.cancel("a", "a") == "cancelled"


async def test_a_replacement_takes_one_place(q: QueueDriver, lossy: Lossy[Any]) -> None:
    await q.enqueue(new_job("a", key="K"))
    assert await lossy(lambda: q.enqueue(new_job("b", key="K", dedup=DedupMode.REPLACE))) == [Enqueued("b")]
    assert await q.event_types("a") == ["queued", "cancelled"]
    assert await q.claimed_ids() == ["b"]


async def test_a_claim_takes_its_jobs_once_with_the_same_tokens(
    q: QueueDriver, lossy: Lossy[Any], direct: Redis
) -> None:
    await q.enqueue(*[new_job(f"j{i}") for i in range(5)])
    claim = await lossy(lambda: q.queue.claim("c1", "w1", {LANE: 2}, limit=2, lease_ms=LEASE_MS))
    assert [(job.id, job.attempt) for job in claim.jobs] == [("j0", 1), ("j1", 1)]
    for job in claim.jobs:
        assert (await q.record(job.id))["k"] == str(job.token)
    assert await direct.zcard(q.queue.keys.fixed("leases")) == 2
    assert await q.claimed_ids() == ["j2", "j3", "j4"]


async def test_events_are_written_and_published_once(
    q: QueueDriver, lossy: Lossy[Any], direct: Redis
) -> None:
    job = await q.running("a")
    async with direct.pubsub() as pubsub:
        await pubsub.subscribe(q.queue.channel("a"))
        await pubsub.get_message(timeout=SOON_S)
        assert await lossy(lambda: q.publish(job, "x", "y"))
        last, end = deltas(job, "z", first_seq=3), ending(job, seq=4)
        outcome = await lossy(lambda: q.queue.write(publications=[last], endings=[end]))
        assert not outcome.refused
        heard = []
        while (message := await pubsub.get_message(timeout=0.1)) is not None:
            heard.append(message["data"])
    assert [orjson.loads(raw)["type"] for raw in heard] == ["delta", "delta", "delta", "done"]
    assert (await q.replay("a")).events[1:] == tuple(heard)


async def test_a_return_counts_one_failure(q: QueueDriver, lossy: Lossy[Any]) -> None:
    job = await q.running("a")
    outcome = await lossy(lambda: q.queue.write(returns=[returning(job)]))
    assert not outcome.refused
    again = await q.claim()
    assert (again.attempt, again.failures) == (2, 1)
    assert await q.event_types("a") == ["queued", "retrying"]
    assert len(await q.history("a")) == 1


@pytest.mark.parametrize("state", [JobState.DONE, JobState.FAILED])
async def test_an_end_is_one_end(q: QueueDriver, lossy: Lossy[Any], state: JobState) -> None:
    job = await q.running("a")
    assert await lossy(lambda: q.finish(job, state))
    assert await q.event_types("a") == ["queued", state.value]
    assert (await q.meta())[f"t:{state.value}"] == "1"


async def test_a_cancel_gives_one_ticket_back(q: QueueDriver, lossy: Lossy[Any]) -> None:
    await q.enqueue(*[new_job(name, key="K") for name in ("a", "b", "c")])
    assert await lossy(lambda: q.queue.cancel("a", "b")) == "ticket_returned"
    assert await lossy(lambda: q.queue.cancel("a", "c")) == "ticket_returned"
    assert await lossy(lambda: q.queue.cancel("a", "a")) == "cancelled"
    assert await q.event_types("a") == ["queued", "cancelled"]


async def test_a_requeue_makes_one_waiting_job(q: QueueDriver, lossy: Lossy[Any]) -> None:
    await q.enqueue(new_job("a"))
    await q.queue.cancel("a")
    assert await lossy(lambda: q.queue.requeue("a")) == "waiting"
    assert await q.waiting() == 1
    assert len(await q.history("a")) == 1
    assert (await q.meta())["t:requeued"] == "1"


async def test_a_lost_lease_is_counted_once(q: QueueDriver, lossy: Lossy[Any]) -> None:
    await q.lose_lease(await q.running("a"))
    await lossy(q.tick)
    assert (await q.record("a"))["o"] == "1"
    assert await q.event_types("a") == ["queued", "retrying"]
    assert await q.claimed_ids() == ["a"]


async def test_a_claim_takes_its_permits_once(q: QueueDriver, lossy: Lossy[Any]) -> None:
    limit = RateLimit(requests=30)
    await q.configure(tenants={"default": limit}, endpoints={"chat.0": limit})
    await q.enqueue(*[new_job(f"j{i}") for i in range(5)])
    offers = {LANE: [Offer("chat.0", 9)]}
    first = await lossy(lambda: q.claim_all(2, offers=offers))
    assert [(job.id, job.endpoint) for job in first.jobs] == [("j0", "chat.0"), ("j1", "chat.0")]
    # three may go at once
    assert [job.id for job in (await q.claim_all(offers=offers)).jobs] == ["j2"]


async def test_parking_and_releasing_move_a_job_once(q: QueueDriver, lossy: Lossy[Any]) -> None:
    await q.configure(tenants={"default": RateLimit(requests=1)})
    await q.enqueue(*[new_job(f"j{i}") for i in range(4)])
    await q.drain_limit("t:default")
    assert not (await lossy(q.claim_all)).jobs
    await q.renew_limits("t:default")
    await lossy(q.tick)
    assert [await q.state(f"j{i}") for i in range(4)] == ["waiting", "held", "held", "held"]


async def test_used_tokens_are_counted_once(q: QueueDriver, lossy: Lossy[Any], direct: Redis) -> None:
    await q.configure(tenants={"default": RateLimit(tokens=1000)})
    bucket = q.queue.keys.of("bucket", "t:default")
    job = await q.running("a")
    before = await direct.get(bucket)
    assert await lossy(lambda: q.finish(job, used_tokens=901))
    assert before is not None
    after = await direct.get(bucket)
    assert after is not None
    back_us = [int(value.split()[1]) for value in (before, after)]
    estimate = len(job.payload) // 4
    assert back_us[1] - back_us[0] == pytest.approx((901 - estimate) * 60_000_000 / 901, abs=2)


async def test_a_permit_is_taken_once(q: QueueDriver, lossy: Lossy[Any]) -> None:
    await q.configure(endpoints={"x": RateLimit(requests=1), "y": RateLimit(requests=1)})
    job = await q.running("a")
    assert await lossy(lambda: q.queue.take_permit(job, "y")) == 0
    assert await q.queue.take_permit(job, "x") == 0
    assert await q.queue.take_permit(job, "x") == 0
