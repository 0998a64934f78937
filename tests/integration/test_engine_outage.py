"""The engine on a real server that takes no writes for a while."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from scheduler import AsyncClient
from scheduler.engine import Engine
from scheduler.redis_server.connection import open_redis
from tests.integration.engine_room import install_puppet, puppet_of, settings_of, until
from tests.patience import SOON_S


@pytest.fixture
async def redis(server_url: str) -> AsyncIterator[Redis]:
    redis = open_redis(server_url)
    yield redis
    await redis.execute_command("REPLICAOF", "NO", "ONE")
    await redis.aclose()


async def test_server_that_is_a_replica_for_a_while_is_waited_for_with_few_words(
    server_url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    install_puppet(monkeypatch)
    engine = Engine(settings_of(), redis)
    await engine.start()
    try:
        async with AsyncClient(server_url, settings=settings_of()) as client:
            running, waiting = await client.enqueue("one"), await client.enqueue("two")
            calls = [await puppet_of(engine).next_call() for _ in range(2)]
            await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
            calls[0].finish("answer")
            await until(lambda: "Redis is away" in caplog.text)
            await asyncio.sleep(1.0)  # some leases and ticks are refused meanwhile
            await redis.execute_command("REPLICAOF", "NO", "ONE")
            calls[1].finish("too")
            assert (await running.result(timeout_s=SOON_S)).text == "answer"
            assert (await waiting.result(timeout_s=SOON_S)).text == "too"
            third = await client.enqueue("three")
            (await puppet_of(engine).next_call()).finish("as well")
            assert (await third.result(timeout_s=SOON_S)).text == "as well"
    finally:
        await engine.stop(drain_s=0)
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1, [record.getMessage() for record in said]
