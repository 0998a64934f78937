"""Readers on a real server: they miss nothing, whatever happens to their connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from redis.asyncio import Redis

from scheduler.errors import JobCancelled, JobNotFound
from scheduler.events import Delta, Event
from scheduler.model import JobState
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import ClaimedJob, Ending, NewJob, Publication
from scheduler.redis_server.connection import open_redis
from scheduler.results.encoding import EventEncoder
from scheduler.results.reader import read_events, read_result
from scheduler.results.subscriptions import FEED_MESSAGES, Subscriptions
from tests.patience import SOON_S

RESULT = b'{"text":"whole"}'


class Bench:
    """A queue with one running job, and a hand that writes its events."""

    def __init__(self, queue: PromptQueue, subscriptions: Subscriptions) -> None:
        self.queue = queue
        self.subscriptions = subscriptions
        self.job: ClaimedJob
        self.encode: EventEncoder
        self.seq = 0

    async def begin(self, job_id: str = "job") -> None:
        new = NewJob(job_id=job_id, lane="echo", priority=5, tenant="default", payload=b"{}")
        await self.queue.enqueue([new])
        await self.claim()

    async def claim(self) -> None:
        claim = await self.queue.claim(f"c{self.seq}", "w", {"echo": 1}, limit=1, lease_ms=60_000)
        (self.job,) = claim.jobs
        self.encode = EventEncoder(self.job.id, self.job.token, self.job.attempt)
        self.seq = 0
        await self.publish(self.encode.started(1, "w"))

    async def publish(self, *events: bytes) -> None:
        await self.queue.write(publications=[Publication(self.job.id, self.job.token, self.seq + 1, events)])
        self.seq += len(events)

    async def say(self, *texts: str) -> None:
        await self.publish(
            *(self.encode.delta(self.seq + 1 + n, text, "", []) for n, text in enumerate(texts))
        )

    async def finish(self) -> None:
        head = self.encode.done(self.seq + 1)
        job = self.job
        await self.queue.write(
            endings=[Ending(job.id, job.token, JobState.DONE, self.seq + 1, (), head, RESULT)]
        )

    def read(self, *, resync_s: float = 60.0) -> AsyncIterator[Event]:
        return read_events(self.queue, self.subscriptions, self.job.id, resync_s=resync_s)


@pytest.fixture
async def bench(valkey_url: str) -> AsyncIterator[Bench]:
    redis = open_redis(valkey_url)
    subscriptions = Subscriptions(redis)
    yield Bench(PromptQueue(redis), subscriptions)
    await subscriptions.aclose()
    await redis.aclose()


async def collect(events: AsyncIterator[Event]) -> list[str]:
    return [event.text if isinstance(event, Delta) else event.type async for event in events]


async def until(events: AsyncIterator[Event], text: str) -> None:
    async for event in events:
        if isinstance(event, Delta) and event.text == text:
            return


async def test_what_was_is_replayed_and_what_comes_follows(bench: Bench) -> None:
    await bench.begin()
    await bench.say("a", "b")
    events = bench.read()
    await until(events, "b")
    await bench.say("c")
    await bench.finish()
    async with asyncio.timeout(SOON_S):
        assert await collect(events) == ["c", "done"]


async def test_each_of_many_readers_sees_everything_once_over_one_connection(
    bench: Bench, valkey_url: str
) -> None:
    await bench.begin()
    readers = [asyncio.create_task(collect(bench.read())) for _ in range(100)]
    for letter in "abcdefgh":
        await bench.say(letter)
        await asyncio.sleep(0.001)
    assert await _pubsub_connections(bench.queue.redis) == 1
    await bench.finish()
    async with asyncio.timeout(SOON_S):
        seen = await asyncio.gather(*readers)
    assert seen == [["queued", "started", *"abcdefgh", "done"]] * 100
    async with asyncio.timeout(SOON_S):
        while await bench.queue.redis.pubsub_channels():
            await asyncio.sleep(0.01)


async def test_a_killed_connection_loses_no_event(bench: Bench) -> None:
    await bench.begin()
    reader = asyncio.create_task(collect(bench.read()))
    for number in range(40):
        await bench.say(str(number))
        if number % 8 == 3:
            await _kill_pubsub(bench.queue.redis)
        await asyncio.sleep(0.005)
    await bench.finish()
    async with asyncio.timeout(SOON_S):
        assert await reader == ["queued", "started", *map(str, range(40)), "done"]


async def test_a_message_that_never_came_is_fetched_from_the_stream(bench: Bench) -> None:
    await bench.begin()
    events = bench.read()
    await bench.say("a")
    await until(events, "a")
    stream = bench.queue.keys.of("stream", bench.job.id)
    missed = bench.encode.delta(bench.seq + 1, "missed", "", [])
    await bench.queue.redis.rpush(stream, missed)  # type: ignore[misc]  # redis-py has one type for sync and async
    bench.seq += 1
    await bench.say("b")
    await bench.finish()
    async with asyncio.timeout(SOON_S):
        assert await collect(events) == ["missed", "b", "done"]


async def test_silence_is_looked_into(bench: Bench) -> None:
    await bench.begin()
    events = bench.read(resync_s=0.05)
    await bench.say("a")
    await until(events, "a")
    # The end is written, and the reader hears nothing of it: as behind a connection that is half open.
    for topic in bench.subscriptions._topics.values():
        topic.feeds.clear()
    await bench.finish()
    async with asyncio.timeout(SOON_S):
        assert await collect(events) == ["done"]


async def test_a_reader_that_is_too_slow_catches_up_from_the_stream(bench: Bench) -> None:
    await bench.begin()
    events = bench.read()
    await bench.say("first")
    await until(events, "first")
    total = FEED_MESSAGES + 500
    for start in range(0, total, 500):
        await bench.say(*(str(n) for n in range(start, min(start + 500, total))))
    await bench.finish()
    async with asyncio.timeout(SOON_S):
        assert await collect(events) == [*map(str, range(total)), "done"]


async def test_an_expired_stream_still_gives_the_end(bench: Bench) -> None:
    await bench.begin()
    await bench.say("a")
    await bench.finish()
    await bench.queue.redis.delete(bench.queue.keys.of("stream", bench.job.id))
    async with asyncio.timeout(SOON_S):
        assert await collect(bench.read()) == ["queued", "done"]
        result = await read_result(bench.queue, bench.subscriptions, bench.job.id)
    assert result.text == "whole"


async def test_a_new_attempt_starts_the_text_again(bench: Bench) -> None:
    await bench.begin()
    await bench.say("half")
    reader = asyncio.create_task(collect(bench.read()))
    await bench.queue.redis.zadd(bench.queue.keys.fixed("leases"), {bench.job.id: 1})
    await bench.queue.tick("t", lease_ms=60_000, lock_ms=500)
    await bench.queue.redis.hset(bench.queue.keys.fixed("meta"), "reap_after", "0")  # type: ignore[misc]  # redis-py has one type for sync and async
    await bench.queue.tick("t", lease_ms=60_000, lock_ms=500)
    await bench.claim()
    await bench.say("whole")
    await bench.finish()
    async with asyncio.timeout(SOON_S):
        seen = await reader
    assert seen == ["queued", "started", "half", "retrying", "started", "whole", "done"]


async def test_a_job_that_is_cancelled_ends_its_readers(bench: Bench) -> None:
    await bench.begin()
    waiting = asyncio.create_task(read_result(bench.queue, bench.subscriptions, bench.job.id))
    reader = asyncio.create_task(collect(bench.read()))
    await bench.queue.cancel(bench.job.id)
    async with asyncio.timeout(SOON_S):
        assert (await reader)[-1] == "cancelled"
        with pytest.raises(JobCancelled):
            await waiting


async def test_an_unknown_job_is_said_to_be_unknown(bench: Bench) -> None:
    with pytest.raises(JobNotFound, match="nobody"):
        await read_result(bench.queue, bench.subscriptions, "nobody")


async def test_a_reader_that_leaves_early_leaves_nothing_behind(bench: Bench) -> None:
    await bench.begin()
    await bench.say("a")
    async with aclosing(read_events(bench.queue, bench.subscriptions, bench.job.id)) as events:
        async for event in events:
            if isinstance(event, Delta):
                break
    assert bench.subscriptions._topics == {}


async def _pubsub_connections(redis: Redis) -> int:
    return len([client for client in await redis.client_list() if int(client["sub"])])


async def _kill_pubsub(redis: Redis) -> None:
    for client in await redis.client_list():
        if int(client["sub"]):
            await redis.client_kill_filter(_id=client["id"])
