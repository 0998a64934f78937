"""Client and engine on real servers: what a server refuses, and what happens when it goes away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from scheduler import (
    AsyncClient,
    JobState,
    NewerData,
    PromptRequest,
    RedisAuthError,
    RedisOutOfMemory,
    RedisUnavailable,
)
from scheduler.engine import Engine
from scheduler.redis_server.connection import open_redis
from scheduler.redis_server.supervisor import free_port
from tests.chaos.proxy import ChaosProxy
from tests.integration.engine_room import install_puppet, puppet_of, settings_of, until
from tests.integration.lone_server import LoneServer
from tests.patience import SOON_S


@pytest.fixture
async def server(valkey_binary: Path, tmp_path: Path) -> AsyncIterator[LoneServer]:
    server = LoneServer(valkey_binary, tmp_path)
    await server.start()
    yield server
    server.kill()


@pytest.fixture
def admin(valkey_url: str) -> Iterator[redis.Redis]:
    """Changes the shared server, and takes the changes back."""
    with redis.Redis.from_url(valkey_url) as admin:
        yield admin
        admin.config_set("maxmemory", 0)
        admin.acl_deluser("guest")


async def test_no_server_at_the_url_is_said_with_the_url() -> None:
    url = f"redis://user:secret@127.0.0.1:{free_port()}"
    with pytest.raises(RedisUnavailable, match="no Redis answers at redis://user:") as away:
        async with AsyncClient(url):
            pass
    assert "secret" not in str(away.value)


async def test_a_queue_that_a_newer_version_has_written_is_left_alone(
    valkey_url: str, admin: redis.Redis
) -> None:
    async with AsyncClient(valkey_url) as client:
        admin.hset(client.queue.keys.fixed("meta"), "format", "9")
        with pytest.raises(NewerData, match="upgrade it here too"):
            await client.enqueue("a", model="echo")
        with pytest.raises(NewerData, match="Nothing was changed"):
            await AsyncClient(valkey_url).connect()
        assert admin.keys(f"{client.queue.keys.prefix}*".replace("{", "[{]").replace("}", "[}]")) == [
            client.queue.keys.fixed("meta").encode()
        ]


async def test_a_proxy_that_takes_connections_and_ends_them_is_tried_again(valkey_url: str) -> None:
    async with ChaosProxy("127.0.0.1", int(valkey_url.rpartition(":")[2])) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        patient, hasty = open_redis(url, retries=20), open_redis(url, retries=0)
        proxy.refuse()
        with pytest.raises(redis.ConnectionError):
            await hasty.ping()
        asyncio.get_running_loop().call_later(0.3, proxy.heal)
        assert await patient.ping()
        proxy.refuse()
        asyncio.get_running_loop().call_later(0.3, proxy.heal)
        assert await patient.ping(), "on a connection that was open before"
        await patient.aclose()
        await hasty.aclose()


async def test_credentials_that_are_refused_are_not_tried_again(valkey_url: str, admin: redis.Redis) -> None:
    admin.acl_setuser("guest", enabled=True, passwords=["+right"], commands=["+@all"], keys=["*"])
    guest = open_redis(valkey_url.replace("://", "://guest:wrong@"), retries=1000)
    async with asyncio.timeout(SOON_S):
        with pytest.raises(redis.AuthenticationError):
            await guest.ping()
    await guest.aclose()


async def test_a_wrong_password_is_said_without_the_password(valkey_url: str, admin: redis.Redis) -> None:
    admin.acl_setuser("guest", enabled=True, passwords=["+right"], categories=["+@all"], keys=["*"])
    url = valkey_url.replace("redis://", "redis://guest:wrong@")
    with pytest.raises(RedisAuthError, match="check user, password and ACL") as refused:
        async with AsyncClient(url):
            pass
    assert "wrong" not in str(refused.value).replace("WRONGPASS", "")


@pytest.mark.parametrize(
    "rights",
    [
        {"commands": ["+ping", "+info"], "keys": ["*"], "channels": ["*"]},
        {"categories": ["+@all"], "keys": ["other:*"], "channels": ["*"]},
    ],
    ids=["commands", "keys"],
)
async def test_an_acl_without_rights_is_an_auth_error(
    valkey_url: str, admin: redis.Redis, rights: dict[str, Any]
) -> None:
    admin.acl_setuser("guest", enabled=True, passwords=["+right"], **rights)
    async with AsyncClient(valkey_url.replace("redis://", "redis://guest:right@")) as client:
        with pytest.raises(RedisAuthError, match="ACL"):
            await client.enqueue("x")


async def test_an_acl_without_channels_fails_the_reader_instead_of_leaving_it_waiting(
    valkey_url: str, admin: redis.Redis
) -> None:
    admin.acl_setuser("guest", enabled=True, passwords=["+right"], categories=["+@all"], keys=["*"])
    guest_url = valkey_url.replace("redis://", "redis://guest:right@")
    async with AsyncClient(valkey_url) as owner, AsyncClient(guest_url) as client:
        job = client.job((await owner.enqueue("x")).id)
        for _ in range(2):
            with pytest.raises(RedisAuthError, match="channel"):
                await asyncio.wait_for(job.result(), SOON_S)
        # A script that fails half-way would leave a job that nobody was told of.
        enqueued = await client.enqueue("y")
        assert (await enqueued.info()).state is JobState.WAITING


async def test_maxmemory_refuses_enqueues_and_lets_the_rest_through(
    valkey_url: str, admin: redis.Redis
) -> None:
    async with AsyncClient(valkey_url) as client:
        job = await client.enqueue("x")
        admin.config_set("maxmemory", 1)
        with pytest.raises(RedisOutOfMemory, match="maxmemory"):
            await client.enqueue("y")
        assert await job.cancel()


async def test_a_unix_socket_will_do(server: LoneServer) -> None:
    async with AsyncClient(f"unix://{server.socket}") as client:
        job = await client.enqueue("x")
        assert (await job.info()).id == job.id


def count(listed: Any) -> int:
    """How many were listed, by a command that has no precise type."""
    return len(listed)


async def test_a_thousand_callers_at_once_share_a_few_connections(
    valkey_url: str, admin: redis.Redis
) -> None:
    async with AsyncClient(valkey_url) as client:
        before = count(admin.client_list())
        jobs = await asyncio.gather(*(client.enqueue(f"p {n}") for n in range(1000)))
        waits = [asyncio.create_task(job.result(timeout_s=SOON_S)) for job in jobs]
        async with asyncio.timeout(SOON_S):
            while count(admin.pubsub_channels()) < 1000:
                await asyncio.sleep(0.01)
        assert count(admin.client_list()) - before <= 40
        for job in jobs[:10]:
            await job.cancel()
        done, _ = await asyncio.wait(waits[:10], timeout=SOON_S)
        assert len(done) == 10
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def test_killed_connections_are_not_seen_by_callers(valkey_url: str, admin: redis.Redis) -> None:
    async with AsyncClient(valkey_url) as client:
        job = await client.enqueue("x")
        waiting = asyncio.create_task(job.result(timeout_s=SOON_S))
        async with asyncio.timeout(SOON_S):
            while not admin.pubsub_channels():
                await asyncio.sleep(0.01)
        for _ in range(3):
            admin.client_kill_filter(_type="normal", skipme=True)
            admin.client_kill_filter(_type="pubsub")
            await client.enqueue_many([PromptRequest(prompt="y")] * 3)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_an_engine_lives_through_a_restart_and_says_so_in_two_lines(
    server: LoneServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="scheduler")
    install_puppet(monkeypatch)
    settings = settings_of(redis_url=server.url)
    redis_client = open_redis(server.url)
    engine = Engine(settings, redis_client)
    await engine.start()
    try:
        async with AsyncClient(settings=settings) as client:
            job = await client.enqueue("x")
            result = asyncio.create_task(job.result(timeout_s=SOON_S))
            call = await puppet_of(engine).next_call()
            call.say("before ")
            async for event in job.events():
                if event.type == "delta":
                    break
            server.kill()
            call.say("during ")
            await until(lambda: "Redis is away" in caplog.text)
            call.finish("after")
            await asyncio.sleep(0.7)
            await server.start()
            assert (await result).text == "before during after"
            assert (await result).attempts == 1
            later = await client.enqueue("y")
            (await puppet_of(engine).next_call()).finish("later")
            assert (await later.result(timeout_s=SOON_S)).text == "later"
    finally:
        await engine.stop(drain_s=0)
        await redis_client.aclose()
    said = [record.getMessage() for record in caplog.records if "Redis" in record.getMessage()]
    assert [line.partition(" (")[0] for line in said] == ["Redis is away", "Redis is back"]


async def test_an_engine_stops_though_redis_has_gone(
    server: LoneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_puppet(monkeypatch)
    redis_client = open_redis(server.url)
    engine = Engine(settings_of(redis_url=server.url), redis_client)
    await engine.start()
    server.kill()
    async with asyncio.timeout(SOON_S):
        await engine.stop(drain_s=0)
    await redis_client.aclose()


async def test_callers_at_once_share_round_trips(valkey_url: str) -> None:
    async with AsyncClient(valkey_url) as client:
        await client.enqueue("first", model="echo")
        before = (await client.queue.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
        jobs = await asyncio.gather(*(client.enqueue(f"prompt {n}", model="echo") for n in range(100)))
        assert len({job.id for job in jobs}) == 100
        after = (await client.queue.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert after == before + 1
