"""Many clients at once at a bound, and disks that are full: on real servers."""

from __future__ import annotations

import asyncio
import os
import resource
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from scheduler import AsyncClient, Job, JobState, PromptRequest, QueueFull, RedisError, SchedulerError
from scheduler.engine import Engine
from scheduler.redis_server.connection import open_redis
from tests.contracts.queue_driver import QueueDriver
from tests.integration.engine_room import install_puppet, puppet_of, settings_of, until
from tests.integration.lone_server import LoneServer
from tests.patience import SOON_S

CLIENTS, EACH, BOUND = 50, 40, 500


async def flood(url: str, when_full: str, *, priorities: bool = False) -> list[Job | SchedulerError]:
    """What fifty clients get who enqueue two thousand jobs at the same time into a queue of five hundred."""
    settings = settings_of(block_timeout_s=0.1)
    async with AsyncExitStack() as stack:
        queue = (await stack.enter_async_context(AsyncClient(url, settings=settings))).queue
        await QueueDriver(queue).configure(max_waiting=BOUND, when_full=when_full)
        clients = [
            await stack.enter_async_context(AsyncClient(url, settings=settings)) for _ in range(CLIENTS)
        ]

        async def enqueue(client: AsyncClient, at: int) -> list[Job | SchedulerError]:
            outcomes: list[Job | SchedulerError] = []
            for n in range(EACH):
                request = PromptRequest(prompt="x", model="echo", priority=(at + n) % 10 if priorities else 5)
                outcomes += await client.enqueue_many([request])
            return outcomes

        gathered = await asyncio.gather(*(enqueue(client, at) for at, client in enumerate(clients)))
        assert await QueueDriver(queue).waiting() == BOUND
        return [outcome for outcomes in gathered for outcome in outcomes]


async def test_the_bound_holds_to_the_job_under_fifty_clients(server_url: str) -> None:
    outcomes = await flood(server_url, "reject")
    assert Counter(type(outcome) for outcome in outcomes) == {Job: BOUND, QueueFull: CLIENTS * EACH - BOUND}


async def test_fifty_clients_that_wait_for_room_get_in_to_the_job_or_are_refused(valkey_url: str) -> None:
    outcomes = await flood(valkey_url, "block")
    assert Counter(type(outcome) for outcome in outcomes) == {Job: BOUND, QueueFull: CLIENTS * EACH - BOUND}


async def test_shedding_under_fifty_clients_keeps_the_most_urgent(valkey_url: str) -> None:
    outcomes = await flood(valkey_url, "shed", priorities=True)
    async with AsyncClient(valkey_url) as client:
        jobs = [client.job(one.id) for one in outcomes if isinstance(one, Job)]
        infos = await asyncio.gather(*(job.info() for job in jobs))
    waiting = [info for info in infos if info.state is JobState.WAITING]
    shed = [info for info in infos if info.state is JobState.SHED]
    assert (len(waiting), len(waiting) + len(shed)) == (BOUND, len(jobs))
    assert len(jobs) + sum(isinstance(one, QueueFull) for one in outcomes) == CLIENTS * EACH
    # There were 200 of each level: what stays is levels 9 and 8, and half of level 7.
    assert Counter(info.priority for info in waiting) == {9: 200, 8: 200, 7: 100}


@pytest.fixture
async def on_small_disk(valkey_binary: Path, tmp_path: Path) -> AsyncIterator[LoneServer]:
    """A server whose append-only file is written once a second, and may be told not to grow."""
    server = LoneServer(valkey_binary, tmp_path, "--appendfsync", "everysec")
    await server.start()
    yield server
    server.kill()


def let_files_grow(server: LoneServer, limit: int) -> None:
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


async def test_a_full_disk_refuses_new_jobs_and_those_that_run_are_done_when_there_is_room(
    on_small_disk: LoneServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install_puppet(monkeypatch)
    caplog.set_level("INFO")
    server = on_small_disk
    engine = Engine(settings_of(), open_redis(server.url))
    await engine.start()
    async with AsyncClient(server.url, settings=settings_of()) as client:
        job = await client.enqueue("one")
        call = await puppet_of(engine).next_call()
        let_files_grow(
            server, sum(path.stat().st_size for path in Path(await _folder(client)).rglob("*.aof"))
        )
        refused = None
        async with asyncio.timeout(SOON_S):
            while refused is None:
                try:
                    await client.enqueue("x" * 10_000)
                    await asyncio.sleep(0.05)
                except RedisError as error:
                    refused = error
        assert "MISCONF" in str(refused)
        await until(lambda: "Redis is away" in caplog.text)
        call.finish("answered")
        let_files_grow(server, resource.RLIM_INFINITY)
        assert (await job.result(timeout_s=SOON_S)).text == "answered"
        assert (await job.info()).attempts == 1
        await until(lambda: "Redis is back" in caplog.text)
    await engine.stop(drain_s=0)
    await engine.queue.redis.aclose()


async def _folder(client: AsyncClient) -> str:
    dir_ = await client.queue.redis.config_get("dir")
    return os.fsdecode(dir_["dir"])
