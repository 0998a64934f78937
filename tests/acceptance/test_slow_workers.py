"""Worker processes that were only slow, and worker processes that are replaced one after the other."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from scheduler import AsyncClient, Job, JobExpired, JobState, PromptRequest
from tests.acceptance.conftest import StartWorker, slow_echo
from tests.conftest import accepted
from tests.patience import SOON_S

STAGE = '''
"""A stage that blocks the event loop of its process."""

import time


class Blocking:
    name = "blocking"

    async def run(self, context):
        if context.prompt.startswith("block"):
            time.sleep(4)
'''

TOML = """
    [routes.echo]
    stages = ["assemble", "blocking:Blocking", "inference", "stream"]
    [[routes.echo.endpoints]]
    backend = "echo"
    options = { delay_s = 0.02 }
"""

JUMPING_CLOCK = """
# Each look at the wall clock of this process finds it up to a day before or after the last.
import random
import time

true_time, true_time_ns = time.time, time.time_ns


def jump_s():
    return random.choice([-86_400, -3600, -1, 0, 1, 3600, 86_400])


time.time = lambda: true_time() + jump_s()
time.time_ns = lambda: true_time_ns() + jump_s() * 10**9
"""

LEASE = {"SCHEDULER_LEASE_S": "1"}


async def running(job: Job) -> None:
    """Return once a worker process runs it."""
    while (await job.info()).state is not JobState.RUNNING:
        await asyncio.sleep(0.01)


async def given_again(job: Job) -> None:
    """Return once another worker process has it."""
    while (await job.info()).attempts < 2:
        await asyncio.sleep(0.05)


async def one_end(client: AsyncClient, job: Job) -> None:
    """Check that the job has one terminal event."""
    events = [event async for event in job.events()]
    assert [event.type for event in events].count("done") == 1
    replay = await client.queue.replay(job.id)
    assert replay is not None
    assert sum(b'"type":"done"' in event for event in replay.events) == 1


async def test_a_worker_whose_loop_is_blocked_keeps_its_jobs(
    valkey_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    (tmp_path / "blocking.py").write_text(STAGE, encoding="utf-8")
    environ = {**LEASE, "PYTHONPATH": str(tmp_path)}
    blocked = await asyncio.to_thread(start_worker, valkey_url, toml=TOML, **environ)
    async with AsyncClient(valkey_url) as client:
        beside = await client.enqueue(" ".join(str(n) for n in range(200)))
        await running(beside)
        job = await client.enqueue("block the loop for four leases")
        await running(job)
        await asyncio.to_thread(start_worker, valkey_url, toml=TOML, **environ)
        results = [await one.result(timeout_s=SOON_S) for one in (job, beside)]
        assert [result.attempts for result in results] == [1, 1]
        assert results[0].text == "block the loop for four leases"
        await one_end(client, job)
        await one_end(client, beside)
    blocked.terminate()
    output, _ = await asyncio.to_thread(blocked.communicate, timeout=SOON_S)
    assert f"the event loop is blocked, at {tmp_path / 'blocking.py'}:" in output
    assert "Traceback" not in output


async def test_a_worker_that_was_stopped_for_a_while_is_refused_what_it_still_writes(
    valkey_url: str, start_worker: StartWorker
) -> None:
    toml = slow_echo(0.02)
    watched = {**LEASE, "SCHEDULER_LOG_LEVEL": "debug"}
    stopped = await asyncio.to_thread(start_worker, valkey_url, toml=toml, **watched)
    async with AsyncClient(valkey_url) as client:
        jobs = [await client.enqueue(" ".join(f"{at}.{n}" for n in range(150))) for at in range(5)]
        for job in jobs:
            await running(job)
        stopped.send_signal(signal.SIGSTOP)
        await asyncio.to_thread(start_worker, valkey_url, toml=toml, **LEASE)
        for job in jobs:
            await given_again(job)
        stopped.send_signal(signal.SIGCONT)
        for at, job in enumerate(jobs):
            result = await job.result(timeout_s=SOON_S)
            assert result.text == " ".join(f"{at}.{n}" for n in range(150))
            assert (result.attempts, (await job.info()).lost_leases) == (2, 1)
            await one_end(client, job)
    stopped.terminate()
    output, _ = await asyncio.to_thread(stopped.communicate, timeout=SOON_S)
    assert output.count("is not ours any more") == 5
    assert stopped.returncode == 0


async def test_the_wall_clock_of_a_worker_may_jump(
    valkey_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(JUMPING_CLOCK, encoding="utf-8")
    environ = {**LEASE, "PYTHONPATH": str(tmp_path), "SCHEDULER_LOG_LEVEL": "debug"}
    worker = await asyncio.to_thread(start_worker, valkey_url, toml=slow_echo(0.02), **environ)
    async with AsyncClient(valkey_url) as client:
        long = await client.enqueue(" ".join(str(n) for n in range(150)))
        late = await client.enqueue("a " * 500, deadline_s=1.5)
        began = asyncio.get_running_loop().time()
        delayed = await client.enqueue("later", delay_s=1)
        assert (await delayed.result(timeout_s=SOON_S)).text == "later"
        assert asyncio.get_running_loop().time() - began >= 1
        with pytest.raises(JobExpired):
            await late.result(timeout_s=SOON_S)
        assert (await long.result(timeout_s=SOON_S)).attempts == 1, "its lease was renewed all the time"
    worker.terminate()
    output, _ = await asyncio.to_thread(worker.communicate, timeout=SOON_S)
    assert worker.returncode == 0
    assert "Traceback" not in output


async def test_a_rolling_restart_of_four_workers_loses_and_repeats_nothing(
    valkey_url: str, start_worker: StartWorker
) -> None:
    toml = slow_echo(0.02, max_in_flight=16)
    workers = [await asyncio.to_thread(start_worker, valkey_url, toml=toml) for _ in range(4)]
    stop = asyncio.Event()
    jobs: list[Job] = []
    async with AsyncClient(valkey_url) as client:

        async def load() -> None:
            while not stop.is_set():
                requests = [PromptRequest(prompt=f"a b c d e f {len(jobs) + n}") for n in range(10)]
                jobs.extend(accepted(await client.enqueue_many(requests)))
                await asyncio.sleep(0.05)

        loading = asyncio.create_task(load())
        for worker in workers:
            await asyncio.to_thread(start_worker, valkey_url, toml=toml)
            worker.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.wait, SOON_S) == 0
        stop.set()
        await loading
        results = await asyncio.gather(*(job.result(timeout_s=SOON_S) for job in jobs))
        totals = await client.queue.redis.hgetall(client.queue.keys.fixed("meta"))  # type: ignore[misc]  # redis-py has one type for sync and async
    assert len(jobs) > 100
    assert [result.text for result in results] == [f"a b c d e f {n}" for n in range(len(jobs))]
    assert {result.attempts for result in results} == {1}
    assert int(totals[b"t:done"]) == len(jobs)
    assert b"t:lost" not in totals
