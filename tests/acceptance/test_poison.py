"""A job that kills its worker processes, among others that do not, with real processes on a real server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from scheduler import AsyncClient, JobFailed, JobState, PromptRequest
from tests.acceptance.conftest import StartWorker
from tests.conftest import accepted
from tests.patience import SOON_S

STAGE = '''
"""A stage as somebody might write it: one prompt makes the process crash."""

import asyncio
import os
import signal


class Fragile:
    name = "fragile"

    async def run(self, context):
        if context.prompt == "poison":
            await asyncio.sleep(0.15)
            os.kill(os.getpid(), signal.SIGKILL)
'''

TOML = """
    [routes.echo]
    stages = ["assemble", "fragile:Fragile", "inference", "stream"]
    [[routes.echo.endpoints]]
    backend = "echo"
    max_in_flight = 256
    options = { first_delay_s = 0.25 }
"""


@pytest.fixture
def start_fragile(start_worker: StartWorker, tmp_path: Path) -> StartWorker:
    (tmp_path / "fragile.py").write_text(STAGE, encoding="utf-8")
    return lambda url: start_worker(url, toml=TOML, SCHEDULER_LEASE_S="2", PYTHONPATH=str(tmp_path))


async def test_poison_among_two_hundred_in_flight_ends_alone_in_the_dead_letters(
    valkey_url: str, start_fragile: StartWorker
) -> None:
    innocent = [f"innocent number {n}" for n in range(199)]
    async with AsyncClient(valkey_url) as client:
        poison = await client.enqueue("poison", priority=9)
        jobs = accepted(await client.enqueue_many([PromptRequest(prompt=prompt) for prompt in innocent]))
        deaths = 0
        while (await poison.info()).state is not JobState.FAILED:
            worker = await asyncio.to_thread(start_fragile, valkey_url)
            while worker.poll() is None and (await poison.info()).state is not JobState.FAILED:
                await asyncio.sleep(0.05)
            deaths += worker.poll() is not None
        for _ in range(3):
            await asyncio.to_thread(start_fragile, valkey_url)
        results = await asyncio.gather(*(job.result(timeout_s=SOON_S) for job in jobs))
        with pytest.raises(JobFailed) as failed:
            await poison.result(timeout_s=SOON_S)
        infos = await asyncio.gather(*(job.info() for job in jobs))
        totals = await client.queue.redis.hgetall(client.queue.keys.fixed("meta"))  # type: ignore[misc]  # redis-py has one type for sync and async
        dead = await client.queue.redis.zrange(client.queue.keys.fixed("dead"), 0, -1)
    assert deaths == 3
    assert failed.value.reason == "poison"
    assert [result.text for result in results] == innocent
    assert dead == [poison.id.encode()]
    assert totals[b"t:quarantined"] == b"1"
    lost_twice = sum(info.lost_leases == 2 for info in infos)
    assert lost_twice > 100, "each death took with it what was in flight"
