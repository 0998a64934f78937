"""One pub/sub connection for many channels: on a real server that cuts it, refuses it, or is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from scheduler.redis_server.connection import open_redis
from scheduler.redis_server.embedded import EmbeddedServer
from scheduler.results.subscriptions import Feed, Subscriptions
from tests.patience import SOON_S


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    client = open_redis(valkey_url)
    yield client
    await client.aclose()


@pytest.fixture
async def subscriptions(redis: Redis) -> AsyncIterator[Subscriptions]:
    made = Subscriptions(redis)
    yield made
    await made.aclose()


@pytest.fixture(autouse=True)
async def _in_time() -> AsyncIterator[None]:
    async with asyncio.timeout(SOON_S):
        yield


async def followed(redis: Redis, channel: str) -> int:
    """How many connections are subscribed to a channel."""
    ((_, count),) = await redis.pubsub_numsub(channel)
    return int(count)


async def pubsub_ids(redis: Redis) -> list[str]:
    return [client["id"] for client in await redis.client_list() if int(client["sub"])]


async def cut(redis: Redis) -> None:
    for client_id in await pubsub_ids(redis):
        await redis.client_kill_filter(_id=client_id)


async def hear_again(redis: Redis, channel: str, feed: Feed) -> None:
    """Return once messages reach a feed again; what is left in it is thrown away."""
    number = 0
    while True:
        number += 1
        await redis.publish(channel, f"probe {number}")
        while (message := await feed.next(0.02)) is not None:
            if message == f"probe {number}".encode():
                return


async def test_what_is_published_in_the_body_is_heard(redis: Redis, subscriptions: Subscriptions) -> None:
    async with subscriptions.follow("c") as feed:
        assert await redis.publish("c", b"\x00 bytes") == 1
        assert await feed.next() == b"\x00 bytes"


async def test_subscriptions_made_at_the_same_time_share_one_connection(
    redis: Redis, subscriptions: Subscriptions
) -> None:
    ready, said = asyncio.Barrier(51), asyncio.Event()

    async def hear(channel: str) -> bytes | None:
        async with subscriptions.follow(channel) as feed:
            await ready.wait()
            message = await feed.next()
            await said.wait()
            return message

    hearing = [asyncio.create_task(hear(f"c{n}")) for n in range(50)]
    await ready.wait()
    assert len(await pubsub_ids(redis)) == 1
    for n in range(50):
        assert await redis.publish(f"c{n}", str(n)) == 1
    said.set()
    assert await asyncio.gather(*hearing) == [str(n).encode() for n in range(50)]


async def test_what_is_followed_or_left_in_one_turn_shares_a_command(
    redis: Redis, subscriptions: Subscriptions
) -> None:
    async def calls() -> list[int]:
        stats = await redis.info("commandstats")
        return [stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("subscribe", "unsubscribe")]

    leave = asyncio.Event()
    ready = asyncio.Barrier(51)

    async def hear(channel: str) -> None:
        async with subscriptions.follow(channel):
            await ready.wait()
            await leave.wait()

    async with subscriptions.follow("first"):
        before = await calls()
        hearing = [asyncio.create_task(hear(f"c{n}")) for n in range(50)]
        await ready.wait()
        leave.set()
        await asyncio.gather(*hearing)
        while await followed(redis, "c49"):
            await asyncio.sleep(0.001)
        assert [now - then for now, then in zip(await calls(), before, strict=True)] == [1, 1]


async def test_followers_of_a_channel_share_its_subscription_and_the_last_ends_it(
    redis: Redis, subscriptions: Subscriptions
) -> None:
    async with subscriptions.follow("c") as first:
        async with subscriptions.follow("c") as second:
            assert await followed(redis, "c") == 1
            await redis.publish("c", "both")
            assert (await first.next(), await second.next()) == (b"both", b"both")
        assert await redis.publish("c", "first alone") == 1
        assert await first.next() == b"first alone"
    while await followed(redis, "c"):
        await asyncio.sleep(0.001)


async def test_a_channel_left_and_followed_again_at_once_is_heard(
    redis: Redis, subscriptions: Subscriptions
) -> None:
    async with subscriptions.follow("other"):
        for number in range(50):
            async with subscriptions.follow("c") as feed:
                await redis.publish("c", str(number))
                # None: a second confirmation came, and the reader would replay.
                assert await feed.next() in {str(number).encode(), None}


async def test_a_cut_connection_is_told_to_every_follower_and_made_anew(
    redis: Redis, subscriptions: Subscriptions
) -> None:
    async with subscriptions.follow("a") as a, subscriptions.follow("b") as b:
        await cut(redis)
        assert await a.next() is None
        assert await b.next() is None
        await hear_again(redis, "a", a)
        await hear_again(redis, "b", b)
        assert len(await pubsub_ids(redis)) == 1


async def test_a_gap_is_told_once_the_channel_is_followed_again(
    redis: Redis, subscriptions: Subscriptions
) -> None:
    """A replay that is made because of it must have nothing left to miss."""
    async with subscriptions.follow("c") as feed:
        for _ in range(5):
            await cut(redis)
            while not await followed(redis, "c"):
                await redis.publish("c", "nobody hears this")
            await redis.publish("c", "last")
            told = False
            while (message := await feed.next()) != b"last":
                told = told or message is None
            assert told


async def test_follows_come_and_go_safely_while_the_connection_is_cut(
    redis: Redis, subscriptions: Subscriptions
) -> None:
    stop = asyncio.Event()

    async def come_and_go(channel: str) -> int:
        times = 0
        while not stop.is_set():
            async with subscriptions.follow(channel):
                times += 1
        return times

    busy = [asyncio.create_task(come_and_go(f"c{n}")) for n in range(20)]
    async with subscriptions.follow("steady") as feed:
        for _ in range(8):
            await cut(redis)
            assert await feed.next() is None
            await hear_again(redis, "steady", feed)
        stop.set()
        assert all(await asyncio.gather(*busy))
    assert subscriptions._topics == {}


async def test_a_server_that_is_away_is_waited_for(valkey_binary: Path, unused_tcp_port: int) -> None:
    redis = open_redis(f"redis://127.0.0.1:{unused_tcp_port}", retries=0)
    subscriptions = Subscriptions(redis)

    async def hear() -> bytes | None:
        async with subscriptions.follow("c") as feed:
            await redis.publish("c", "here")
            while (message := await feed.next()) is None:
                await redis.publish("c", "here")
            return message

    hearing = asyncio.create_task(hear())
    await asyncio.sleep(0.05)
    assert not hearing.done()
    with EmbeddedServer(binary=valkey_binary, port=unused_tcp_port):
        assert await hearing == b"here"
        await subscriptions.aclose()
        await redis.aclose()


async def test_a_user_who_may_not_follow_is_told_and_the_server_is_not_pestered(
    redis: Redis, valkey_url: str
) -> None:
    await redis.execute_command(
        "ACL", "SETUSER", "deaf", "on", "nopass", "allcommands", "allkeys", "resetchannels"
    )
    deaf = open_redis(valkey_url.replace("redis://", "redis://deaf:x@"))
    subscriptions = Subscriptions(deaf)
    try:
        async with subscriptions.follow("c") as feed:
            with pytest.raises(NoPermissionError):
                await feed.next()
            before = await attempts(redis)
            began = time.monotonic()
            await asyncio.sleep(0.6)
            # Waits of 0.1 s, 0.2 s, 0.4 s, … a second, less jitter; without growth it would be some twenty.
            tried = await attempts(redis) - before
            assert tried <= 6 + 2 * (time.monotonic() - began)
    finally:
        await subscriptions.aclose()
        await deaf.aclose()
        await redis.execute_command("ACL", "DELUSER", "deaf")


async def attempts(redis: Redis) -> int:
    stats = await redis.info("commandstats")
    return int(stats.get("cmdstat_subscribe", {"rejected_calls": 0})["rejected_calls"])


async def test_closing_twice_ends_the_task_and_lets_followers_go(redis: Redis) -> None:
    subscriptions = Subscriptions(redis)
    async with subscriptions.follow("c") as feed:
        await subscriptions.aclose()
        await subscriptions.aclose()
        assert await feed.next() is None
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "subscriptions"]
    while await pubsub_ids(redis):
        await asyncio.sleep(0.001)


async def test_nothing_is_connected_before_the_first_follower(redis: Redis) -> None:
    subscriptions = Subscriptions(redis)
    await subscriptions.aclose()
    assert await pubsub_ids(redis) == []


async def test_it_works_on_fakeredis() -> None:
    fakeredis = pytest.importorskip("fakeredis")
    redis = fakeredis.FakeAsyncRedis()
    subscriptions = Subscriptions(redis)
    async with subscriptions.follow("a") as a, subscriptions.follow("b") as b:
        await redis.publish("a", "1")
        await redis.publish("b", "2")
        assert (await a.next(), await b.next()) == (b"1", b"2")
    await subscriptions.aclose()
    await redis.aclose()
