"""A server that was stopped keeps its connections open and answers nothing: every call has an end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from scheduler import (
    AsyncClient,
    Client,
    Job,
    JobCancelled,
    PromptRequest,
    RedisUnavailable,
    ResultTimeout,
    load_settings,
)
from scheduler.settings import Settings
from tests.integration.lone_server import LoneServer
from tests.patience import SOON_S

LIMIT_S = 0.5


@pytest.fixture
async def server(valkey_binary: Path, tmp_path: Path) -> AsyncIterator[LoneServer]:
    server = LoneServer(valkey_binary, tmp_path)
    await server.start()
    yield server
    server.send_signal(signal.SIGCONT)
    server.kill()


@pytest.fixture
def settings(server: LoneServer) -> Settings:
    return load_settings(environ={}, redis_url=server.url, redis_timeout_s=LIMIT_S)


CALLS: dict[str, Callable[[AsyncClient, Job], Awaitable[object]]] = {
    "enqueue": lambda client, _: client.enqueue("x"),
    "enqueue_many": lambda client, _: client.enqueue_many([PromptRequest(prompt="x")] * 300),
    "run": lambda client, _: client.run("x", timeout_s=SOON_S),
    "info": lambda _, job: job.info(),
    "cancel": lambda _, job: job.cancel(),
    "set_priority": lambda _, job: job.set_priority(9),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_to_a_server_that_stands_still_ends(
    name: str, server: LoneServer, settings: Settings
) -> None:
    async with AsyncClient(settings=settings) as client:
        job = await client.enqueue("x")
        server.send_signal(signal.SIGSTOP)
        with pytest.raises(RedisUnavailable, match="no answer within"):
            await asyncio.wait_for(CALLS[name](client, job), SOON_S)
        server.send_signal(signal.SIGCONT)
        assert (await job.info()).id == job.id, "and the next one is answered"


async def test_no_caller_of_many_waits_for_the_limits_of_the_others(
    server: LoneServer, settings: Settings
) -> None:
    async with AsyncClient(settings=settings) as client:
        job = await client.enqueue("x")
        server.send_signal(signal.SIGSTOP)
        ends = await asyncio.wait_for(
            asyncio.gather(*(job.info() for _ in range(1000)), return_exceptions=True), SOON_S
        )
        assert {type(end) for end in ends} == {RedisUnavailable}


async def test_a_result_has_its_own_limit_and_outlives_a_server_that_stands_still(
    server: LoneServer, settings: Settings
) -> None:
    async with AsyncClient(settings=settings) as client:
        job = await client.enqueue("x")
        server.send_signal(signal.SIGSTOP)
        with pytest.raises(ResultTimeout):
            await job.result(timeout_s=3 * LIMIT_S)
        late = asyncio.create_task(job.result(timeout_s=SOON_S))
        await asyncio.sleep(2 * LIMIT_S)
        assert not late.done()
        server.send_signal(signal.SIGCONT)
        await client.job(job.id).cancel(force=True)
        with pytest.raises(JobCancelled):
            await late


async def test_a_new_client_finds_a_server_that_stands_still(server: LoneServer, settings: Settings) -> None:
    server.send_signal(signal.SIGSTOP)
    with pytest.raises(RedisUnavailable):
        await asyncio.wait_for(AsyncClient(settings=settings).connect(), SOON_S)


async def test_the_client_without_async_has_the_limit_as_well(server: LoneServer, settings: Settings) -> None:
    def use() -> None:
        with Client(settings=settings) as client:
            job = client.enqueue("x")
            server.send_signal(signal.SIGSTOP)
            for call in (lambda: client.enqueue("y"), job.info, job.cancel):
                with pytest.raises(RedisUnavailable):
                    call()

    await asyncio.wait_for(asyncio.to_thread(use), SOON_S)


@pytest.mark.parametrize(
    "arguments",
    [("enqueue", "x"), ("subscribe", "x"), ("admin", "queue", "status"), ("admin", "audit"), ("doctor",)],
)
async def test_commands_end_with_one_line(arguments: tuple[str, ...], server: LoneServer) -> None:
    server.send_signal(signal.SIGSTOP)
    environ = {"SCHEDULER_REDIS_URL": server.url, "SCHEDULER_REDIS_TIMEOUT_S": str(LIMIT_S)}
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "scheduler", *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=SOON_S,
    )
    assert ran.returncode == 1
    assert "no answer within" in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
