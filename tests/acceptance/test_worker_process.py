"""What the README promises, with real processes on a real server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
import redis.asyncio
from arq import create_pool
from arq.connections import RedisSettings
from arq.jobs import SerializationError

from scheduler import (
    AsyncClient,
    Client,
    Delta,
    Done,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobState,
    Priority,
    PromptRequest,
    Queued,
    ResultTimeout,
    Started,
    arq_jobs,
)
from scheduler.queue.keys import Keys
from tests.acceptance.conftest import StartWorker, slow_echo, wait_for_line
from tests.chaos.proxy import ChaosProxy
from tests.conftest import accepted
from tests.integration.lone_server import LoneServer
from tests.patience import SOON_S

ROOT = Path(__file__).parents[2]
ARQ_QUEUE = "ps:{default}:arq"


async def test_a_prompt_goes_in_and_its_answer_streams_out(
    server_url: str, start_worker: StartWorker
) -> None:
    start_worker(server_url)
    async with AsyncClient(server_url) as client:
        job = await client.enqueue(
            "Why is the sky blue?", model="echo", priority=Priority.HIGH, dedup_key="sky"
        )
        events = [event async for event in job.events()]
        result = await job.result(timeout_s=SOON_S)
        info = await job.info()
    assert isinstance(events[0], Queued)
    assert isinstance(events[1], Started)
    assert isinstance(events[-1], Done)
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "Why is the sky blue?"
    assert result == events[-1].result
    assert result.text == "Why is the sky blue?"
    assert result.usage.output_tokens == 5
    assert info.state is JobState.DONE
    assert [entry.what for entry in info.history] == ["enqueued", "claimed", "done"]


async def test_a_plain_subscriber_sees_each_token_and_the_result_as_json(
    server_url: str, start_worker: StartWorker
) -> None:
    start_worker(server_url, toml=slow_echo(0.05))
    async with AsyncClient(server_url) as client, redis.asyncio.Redis.from_url(server_url) as plain:
        job = await client.enqueue("one two three four", model="echo", delay_s=0.3)
        pubsub = plain.pubsub()
        await pubsub.subscribe(job.channel)
        heard: list[bytes] = []
        seen: list[dict[str, object]] = []
        async for message in pubsub.listen():
            if message["type"] == "message":
                heard.append(message["data"])
                seen.append(json.loads(heard[-1]))
                if seen[-1]["type"] == "done":
                    break
        await pubsub.aclose()
        replay = await client.queue.replay(job.id)
    assert replay is not None
    assert heard == list(replay.events[1:]), "the channel carries what a replay gives, byte for byte"
    assert {event["job_id"] for event in seen} == {job.id}
    token = str(seen[0]["id"]).partition("-")[0]
    assert [event["id"] for event in seen] == [f"{token}-{n}" for n in range(1, len(seen) + 1)]
    assert "".join(str(event["text"]) for event in seen if event["type"] == "delta") == "one two three four"
    assert len([event for event in seen if event["type"] == "delta"]) >= 3
    result = seen[-1]["result"]
    assert isinstance(result, dict)
    assert result["text"] == "one two three four"


async def test_urgent_prompts_overtake_a_backlog_and_duplicates_run_once(
    valkey_url: str, start_worker: StartWorker
) -> None:
    async with AsyncClient(valkey_url) as client:
        backlog = [PromptRequest(prompt=f"bulk {n}", priority=Priority.BACKGROUND) for n in range(100)]
        jobs = accepted(await client.enqueue_many(backlog))
        urgent = await client.enqueue("now", priority=Priority.CRITICAL)
        twins = [await client.enqueue("same", dedup_key="twin") for _ in range(5)]
        assert len({job.id for job in twins}) == 1
        assert [job.deduplicated for job in twins] == [False, True, True, True, True]
        start_worker(valkey_url, toml=slow_echo(0.02, max_in_flight=4))
        started = [event async for event in urgent.events() if isinstance(event, Started)]
        assert started[0].cursor[0] == 1, "the first claim of all was the urgent one"
        results = await asyncio.gather(*(job.result(timeout_s=SOON_S) for job in twins))
        assert {result.text for result in results} == {"same"}
        for job in jobs:
            await job.result(timeout_s=SOON_S)
        done = int(await client.queue.redis.hget(client.queue.keys.fixed("meta"), "t:done"))  # type: ignore[misc]  # redis-py has one type for sync and async
        assert done == 102


async def test_a_killed_worker_loses_nothing_and_no_job_is_done_twice(
    server_url: str, start_worker: StartWorker
) -> None:
    toml = slow_echo(0.02, max_in_flight=16)
    workers = [start_worker(server_url, toml=toml, SCHEDULER_LEASE_S="2") for _ in range(2)]
    async with AsyncClient(server_url) as client:
        meta = client.queue.keys.fixed("meta")
        requests = [PromptRequest(prompt=f"prompt number {n}") for n in range(500)]
        jobs = accepted(await client.enqueue_many(requests))
        while int(await client.queue.redis.hget(meta, "t:done") or 0) < 150:  # type: ignore[misc]  # redis-py has one type for sync and async
            await asyncio.sleep(0.01)
        workers[0].kill()
        results = await asyncio.gather(*(job.result(timeout_s=SOON_S) for job in jobs))
        totals = await client.queue.redis.hgetall(meta)  # type: ignore[misc]  # redis-py has one type for sync and async
    assert sorted(result.text for result in results) == sorted(f"prompt number {n}" for n in range(500))
    assert int(totals[b"t:done"]) == 500
    assert int(totals[b"t:lost"]) > 0, "the kill hit jobs in flight"
    assert any(result.attempts == 2 for result in results)


async def test_sigterm_drains_and_gives_back_what_cannot_finish(
    valkey_url: str, start_worker: StartWorker
) -> None:
    worker = start_worker(valkey_url, toml=slow_echo(0.1), SCHEDULER_DRAIN_S="0.5")
    async with AsyncClient(valkey_url) as client:
        short = await client.enqueue("a b")
        long = await client.enqueue(" ".join("word" for _ in range(600)))
        while (await long.info()).state is not JobState.RUNNING:
            await asyncio.sleep(0.01)
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait, SOON_S) == 0
        assert (await short.result(timeout_s=SOON_S)).text == "a b"
        info = await long.info()
        assert info.state is JobState.WAITING
        assert info.failures == 0
        assert "given_back" in [entry.what for entry in info.history]
        assert await client.queue.redis.zcard(client.queue.keys.fixed("workers")) == 0
        start_worker(valkey_url)
        result = await long.result(timeout_s=SOON_S)
        assert result.attempts == 2


async def test_a_second_signal_ends_the_process_at_once(valkey_url: str, start_worker: StartWorker) -> None:
    worker = start_worker(valkey_url, toml=slow_echo(0.1))
    async with AsyncClient(valkey_url) as client:
        job = await client.enqueue(" ".join("word" for _ in range(600)))
        while (await job.info()).state is not JobState.RUNNING:
            await asyncio.sleep(0.01)
        worker.send_signal(signal.SIGINT)
        await asyncio.to_thread(wait_for_line, worker, "no more claims")
        worker.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(worker.wait, SOON_S) == 1


async def test_sighup_and_a_changed_file_bring_new_settings(
    valkey_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(valkey_url, toml=slow_echo(0))
    config = tmp_path / "worker0.toml"
    config.write_text(f"{slow_echo(0)}[[routes.second.endpoints]]\nbackend = 'echo'\n")
    worker.send_signal(signal.SIGHUP)
    assert "echo, second" in wait_for_line(worker, "settings reloaded")
    async with AsyncClient(valkey_url) as client:
        assert (await client.run("hello", model="second")).text == "hello"
        config.write_text("[routes]\nmistake")
        assert "is not valid TOML" in wait_for_line(worker, "settings not reloaded, the old ones stay")
        assert (await client.run("still", model="second")).text == "still"


async def test_burst_drains_the_queue_and_exits(valkey_url: str, start_worker: StartWorker) -> None:
    async with AsyncClient(valkey_url) as client:
        requests = [PromptRequest(prompt=f"p {n}", delay_s=0.2 * (n % 2)) for n in range(20)]
        jobs = accepted(await client.enqueue_many(requests))
        worker = start_worker(valkey_url, "--burst", wait=False)
        assert await asyncio.to_thread(worker.wait, SOON_S) == 0
        for job in jobs:
            await job.result(timeout_s=SOON_S)


def test_check_tells_whether_a_worker_lives(valkey_url: str, start_worker: StartWorker) -> None:
    check = start_worker(valkey_url, "--check", wait=False)
    assert check.wait(SOON_S) == 1
    worker = start_worker(valkey_url)
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline and start_worker(valkey_url, "--check", wait=False).wait(SOON_S):
        pass
    assert start_worker(valkey_url, "--check", wait=False).wait(SOON_S) == 0
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(SOON_S) == 0


async def test_an_arq_application_uses_run_prompt(valkey_url: str, start_worker: StartWorker) -> None:
    start_worker(valkey_url)
    pool = await create_pool(
        RedisSettings.from_dsn(valkey_url), job_serializer=orjson.dumps, job_deserializer=orjson.loads
    )
    async with AsyncClient(valkey_url) as client:
        queue_name = client.queue.keys.fixed("arq")
    request = {"prompt": "hello from arq", "model": "echo"}
    job = await pool.enqueue_job("run_prompt", request, _queue_name=queue_name)
    assert job
    result = await job.result(timeout=SOON_S)
    assert result["text"] == "hello from arq"
    await pool.aclose()


async def test_an_arq_application_aborts_its_prompt(valkey_url: str, start_worker: StartWorker) -> None:
    start_worker(valkey_url)
    pool = await create_pool(
        RedisSettings.from_dsn(valkey_url), job_serializer=arq_jobs.encode, job_deserializer=arq_jobs.decode
    )
    async with AsyncClient(valkey_url) as client:
        request = {"prompt": "later", "delay_s": 3600, "job_id": "mine"}
        job = await pool.enqueue_job("run_prompt", request, _queue_name=client.queue.keys.fixed("arq"))
        assert job
        async with asyncio.timeout(SOON_S):
            while await client.queue.replay("mine") is None:
                await asyncio.sleep(0.05)
        assert await job.abort(timeout=SOON_S)
        with pytest.raises(JobCancelled):
            await client.job("mine").result(timeout_s=SOON_S)
    await pool.aclose()


async def test_the_example_of_an_arq_application_runs(valkey_url: str, start_worker: StartWorker) -> None:
    start_worker(valkey_url)
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "examples" / "arq_application.py"),
        env={**os.environ, "REDIS_URL": valkey_url},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await program.communicate()
    assert program.returncode == 0
    answer, failure = out.decode().splitlines()
    assert answer == "hello"
    assert failure.startswith("unknown_model: model: no route 'nobody'; there are: echo")


async def test_an_arq_application_without_this_package_reads_why_a_prompt_failed(
    valkey_url: str, start_worker: StartWorker
) -> None:
    start_worker(valkey_url)
    pool = await create_pool(
        RedisSettings.from_dsn(valkey_url), job_serializer=orjson.dumps, job_deserializer=orjson.loads
    )
    job = await pool.enqueue_job("run_prompt", {"prompt": "x", "model": "no"}, _queue_name=ARQ_QUEUE)
    assert job
    with pytest.raises(SerializationError) as failed:
        await job.result(timeout=SOON_S)
    assert failed.value.args[0]["code"] == "unknown_model"
    assert failed.value.args[0]["field"] == "model"
    await pool.aclose()


async def test_garbage_in_the_queue_of_arq_ends_no_process(
    valkey_url: str, start_worker: StartWorker
) -> None:
    worker = start_worker(valkey_url)
    pool = await create_pool(
        RedisSettings.from_dsn(valkey_url), job_serializer=orjson.dumps, job_deserializer=orjson.loads
    )
    queue_name = Keys("default").fixed("arq")
    sound: dict[str, object] = {"t": None, "f": "run_prompt", "a": [{"prompt": "x"}], "k": {}, "et": 1}
    bodies: list[dict[str, object]] = [{"et": "soon"}, {"t": "first"}, {"f": ["x"]}, {"a": 5}, {"k": []}]
    for n, wrong in enumerate(bodies):
        await pool.set(f"arq:job:{n}", orjson.dumps(sound | wrong))
        await pool.zadd(queue_name, {str(n): 1})
    for body in (b"[1]", b"\xff"):
        await pool.set(f"arq:job:{body!r}", body)
        await pool.zadd(queue_name, {repr(body): 1})
    await pool.zadd(queue_name, {b"\xff\xfe": 1})
    await pool.zadd(queue_name, {"before all time": "-inf"})
    request = {"prompt": "hello from arq"}
    job = await pool.enqueue_job("run_prompt", request, _queue_name=queue_name)
    assert job
    assert (await job.result(timeout=SOON_S))["text"] == "hello from arq"
    while await pool.zcard(queue_name):
        await asyncio.sleep(0.05)
    await pool.set(queue_name, "no queue at all")
    await asyncio.to_thread(wait_for_line, worker, "arq's part of the process failed")
    async with AsyncClient(valkey_url) as client:
        assert (await client.run("still here", timeout_s=SOON_S)).text == "still here"
    await pool.delete(queue_name)
    worker.terminate()
    assert await asyncio.to_thread(worker.wait, SOON_S) == 0
    await pool.aclose()


async def test_cancelling_a_running_job_stops_it(valkey_url: str, start_worker: StartWorker) -> None:
    start_worker(valkey_url, toml=slow_echo(0.05, max_in_flight=1))
    async with AsyncClient(valkey_url) as client:
        job = await client.enqueue(" ".join("word" for _ in range(600)))
        async for event in job.events():
            if isinstance(event, Delta):
                assert await job.cancel()
        with pytest.raises(JobCancelled):
            await job.result(timeout_s=SOON_S)
        # The one place of the endpoint is free again long before 600 words are over.
        assert (await client.run("next", timeout_s=SOON_S)).text == "next"


async def test_deadlines_end_waiting_and_running_jobs(valkey_url: str, start_worker: StartWorker) -> None:
    start_worker(valkey_url, toml=slow_echo(0.05, max_in_flight=1))
    async with AsyncClient(valkey_url) as client:
        running = await client.enqueue(" ".join("word" for _ in range(600)), deadline_s=3)
        waiting = await client.enqueue("never runs", deadline_s=1.5)
        with pytest.raises(JobExpired):
            await waiting.result(timeout_s=SOON_S)
        with pytest.raises(JobExpired):
            await running.result(timeout_s=SOON_S)
        assert (await waiting.info()).attempts == 0


async def test_failures_are_retried_and_then_given_up(valkey_url: str, start_worker: StartWorker) -> None:
    toml = """
        retry_base_s = 0.01
        [routes.echo]
        [[routes.echo.endpoints]]
        backend = "echo"
        options = { failure_rate = 1.0 }
    """
    start_worker(valkey_url, toml=toml)
    async with AsyncClient(valkey_url) as client:
        job = await client.enqueue("doomed", max_attempts=3)
        with pytest.raises(JobFailed) as failed:
            await job.result(timeout_s=SOON_S)
        info = await job.info()
    assert failed.value.reason == "worker_unavailable"
    assert (info.attempts, info.failures) == (3, 2)
    assert [entry.what for entry in info.history] == ["enqueued", "failed", "claimed", "failed"]
    assert [entry.count for entry in info.history] == [1, 2, 1, 1], "what repeats is one entry"


async def test_a_result_that_is_late_cancels_nothing(valkey_url: str, start_worker: StartWorker) -> None:
    async with AsyncClient(valkey_url) as client:
        job = await client.enqueue("later")
        with pytest.raises(ResultTimeout):
            await job.result(timeout_s=0.2)
        start_worker(valkey_url)
        assert (await job.result(timeout_s=SOON_S)).text == "later"


def test_the_client_without_async(valkey_url: str, start_worker: StartWorker) -> None:
    start_worker(valkey_url)
    with Client(valkey_url) as client:
        job = client.enqueue("no await here", model="echo")
        assert "".join(event.text for event in job.events() if isinstance(event, Delta)) == "no await here"
        assert job.result(timeout_s=SOON_S).text == "no await here"
        assert client.job(job.id).info().state is JobState.DONE


async def test_redis_may_restart_under_a_running_worker(
    valkey_binary: Path, start_worker: StartWorker, tmp_path: Path
) -> None:
    server = LoneServer(valkey_binary, tmp_path)
    await server.start()
    worker = start_worker(server.url, toml=slow_echo(0.05))
    try:
        async with AsyncClient(server.url) as client:
            job = await client.enqueue(" ".join(str(n) for n in range(60)))
            collected = asyncio.create_task(job.result(timeout_s=SOON_S))
            while (await job.info()).state is not JobState.RUNNING:
                await asyncio.sleep(0.01)
            server.kill()
            await asyncio.sleep(0.5)
            await server.start()
            result = await collected
        assert result.text == " ".join(str(n) for n in range(60))
        assert result.attempts == 1, "the attempt that ran through the outage is the one that counts"
        assert worker.poll() is None
    finally:
        server.kill()


async def test_a_worker_lives_while_a_proxy_before_redis_ends_every_connection(
    valkey_url: str, start_worker: StartWorker
) -> None:
    async with ChaosProxy("127.0.0.1", int(valkey_url.rpartition(":")[2])) as proxy:
        worker = await asyncio.to_thread(start_worker, f"redis://127.0.0.1:{proxy.port}")
        proxy.refuse()
        # Longer than arq waits between two looks at its own queue.
        await asyncio.sleep(5)
        proxy.heal()
        async with AsyncClient(valkey_url) as client:
            assert (await client.run("still here", timeout_s=SOON_S)).text == "still here"
        assert worker.poll() is None
        worker.terminate()
        output, _ = await asyncio.to_thread(worker.communicate, timeout=SOON_S)
    assert worker.returncode == 0
    assert "Traceback" not in output
    assert output.count("Redis is away") == 1, output


@pytest.mark.parametrize(
    ("environ", "code", "words"),
    [
        (
            {"SCHEDULER_REDIS_URL": "redis://127.0.0.1:1", "SCHEDULER_REDIS_WAIT_S": "0.3"},
            1,
            "no Redis answers",
        ),
        ({"SCHEDULER_LEASE": "5"}, 2, "did you mean SCHEDULER_LEASE_S?"),
        ({"SCHEDULER_ROUTES": '{"x": {"endpoints": [{"backend": "ecko"}]}}'}, 2, "echo"),
        ({"SCHEDULER_CONFIG": "/nowhere.toml"}, 2, "/nowhere.toml"),
    ],
)
def test_a_worker_that_cannot_start_says_why_in_one_line(
    valkey_url: str, environ: dict[str, str], code: int, words: str
) -> None:
    import os

    ran = subprocess.run(
        [sys.executable, "-m", "arq", "scheduler.WorkerSettings"],
        env={**os.environ, "SCHEDULER_REDIS_URL": valkey_url, **environ},
        capture_output=True,
        text=True,
        timeout=SOON_S,
        check=False,
    )
    assert ran.returncode == code, ran.stderr
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr
