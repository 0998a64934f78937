"""What arq asks of Redis waits until Redis takes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import WatchError

from scheduler.engine import Outage
from scheduler.host.arq_pool import PatientArqRedis
from scheduler.redis_server.pool import connection_pool


@pytest.fixture
async def operator(server_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(server_url) as redis:
        yield redis
        await redis.config_set("min-replicas-to-write", 0)
        await redis.config_set("maxmemory", 0)


@pytest.fixture
async def pool(server_url: str) -> AsyncIterator[PatientArqRedis]:
    pool = PatientArqRedis(connection_pool(server_url, retries=0), outage=Outage(), timeout_s=5)
    yield pool
    await pool.aclose(close_connection_pool=True)


async def write_in_transaction(pool: PatientArqRedis) -> None:
    async with pool.pipeline(transaction=True) as pipe:
        pipe.incr("counter")
        pipe.set("key", "value")
        assert await pipe.execute() == [1, True]


async def start_as_arq_does(pool: PatientArqRedis, operator: Redis) -> None:
    async with pool.pipeline(transaction=True) as pipe:
        await pipe.watch("in-progress")
        await operator.client_kill_filter(_type="normal", skipme=True)
        assert not await pipe.exists("in-progress")
        pipe.multi()
        pipe.psetex("in-progress", 60_000, b"1")
        await pipe.execute()


async def test_what_arq_writes_waits_with_one_line_each_way(
    pool: PatientArqRedis, operator: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await operator.config_set("min-replicas-to-write", 1)
    writes = [
        asyncio.ensure_future(write_in_transaction(pool)),
        asyncio.ensure_future(pool.psetex("health", 60_000, b"well")),
        asyncio.ensure_future(pool.zadd("queue", {"job": 1})),
    ]
    done, _ = await asyncio.wait(writes, timeout=0.5)
    assert not done
    await operator.config_set("min-replicas-to-write", 0)
    await asyncio.gather(*writes)
    assert await operator.mget("key", "health") == [b"value", b"well"]
    assert [line.partition(" (")[0] for line in caplog.messages] == ["Redis is away", "Redis is back"]


async def test_a_connection_that_goes_while_it_watches_is_replaced(
    pool: PatientArqRedis, operator: Redis
) -> None:
    await start_as_arq_does(pool, operator)
    assert await operator.get("in-progress") == b"1"


async def test_a_watch_that_broke_before_the_transaction_is_said(
    pool: PatientArqRedis, operator: Redis
) -> None:
    async with pool.pipeline(transaction=True) as pipe:
        await pipe.watch("in-progress")
        pipe.multi()
        pipe.psetex("in-progress", 60_000, b"1")
        await operator.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(WatchError):
            await pipe.execute()
    assert await operator.get("in-progress") is None


async def test_a_full_redis_takes_the_health_check_and_is_said_to_be_full_once(
    pool: PatientArqRedis, operator: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await operator.config_set("maxmemory", 1)
    for n in range(3):
        await pool.psetex("health", 60_000, f"{n}")
        assert await operator.get("health") == b"%d" % n
    await operator.config_set("maxmemory", 0)
    await pool.psetex("health", 60_000, b"well")
    assert [line.partition(" (")[0] for line in caplog.messages] == ["Redis is full", "Redis has room again"]


async def test_a_process_that_ends_does_not_wait_to_take_its_health_check_away(
    pool: PatientArqRedis, operator: Redis
) -> None:
    await pool.psetex("health", 60_000, b"well")
    await operator.config_set("min-replicas-to-write", 1)
    assert await pool.delete("health") == 0
    await operator.config_set("min-replicas-to-write", 0)
    assert await pool.delete("health") == 1
