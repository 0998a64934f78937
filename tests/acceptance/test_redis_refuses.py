"""Worker processes on a Redis that is there, and takes no writes, forgets, stands still, or jumps in time."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from scheduler import AsyncClient, JobNotFound, JobResult, JobState, PromptRequest, RedisOutOfMemory
from tests.acceptance.conftest import StartWorker, slow_echo
from tests.conftest import accepted
from tests.integration.lone_server import LoneServer
from tests.patience import SOON_S

LONG = " ".join(str(n) for n in range(40))
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)

Step: TypeAlias = Callable[[LoneServer, Redis], Awaitable[object]]


@dataclass(frozen=True)
class Refusal:
    """A state in which a whole Redis refuses writes; and what a worker process logs as it comes and goes."""

    begin: Step
    end: Step
    says: str = "Redis is away"
    says_then: str = "Redis is back"
    says_at_start: str = "Redis is away"


async def fill(_: LoneServer, redis: Redis) -> None:
    """Let all memory be used."""
    await redis.config_set("maxmemory", 1)


async def lose_the_folder(server: LoneServer, redis: Redis) -> None:
    """Let a snapshot fail, after which Redis refuses writes, and PING."""
    shutil.rmtree(server.socket.parent)
    await redis.config_set("save", "3600 1")
    await redis.bgsave()
    while (await redis.info("persistence"))["rdb_last_bgsave_status"] == "ok":
        await asyncio.sleep(0.05)


async def hang(server: LoneServer, _: Redis) -> None:
    """Let a script run until it is killed."""
    with socket.create_connection(("127.0.0.1", server.port)) as runner:
        runner.sendall(b"EVAL 'while true do end' 0\r\n")
        async with Redis.from_url(server.url) as probe:
            while True:
                try:
                    await probe.ping()
                except ResponseError:
                    return
                await asyncio.sleep(0.05)


REFUSALS = {
    "NOREPLICAS": Refusal(
        lambda _, redis: redis.config_set("min-replicas-to-write", 1),
        lambda _, redis: redis.config_set("min-replicas-to-write", 0),
    ),
    "READONLY": Refusal(
        lambda _, redis: redis.execute_command("REPLICAOF", "127.0.0.1", "1"),
        lambda _, redis: redis.execute_command("REPLICAOF", "NO", "ONE"),
    ),
    "OOM": Refusal(
        fill,
        lambda _, redis: redis.config_set("maxmemory", 0),
        says="Redis is full",
        says_then="Redis has room again",
    ),
    "MISCONF": Refusal(
        lose_the_folder,
        lambda _, redis: redis.config_set("stop-writes-on-bgsave-error", "no"),
        says_at_start="takes no commands",
    ),
    "BUSY": Refusal(hang, lambda _, redis: redis.script_kill(), says_at_start="takes no commands"),
}
NO_REPLICAS = REFUSALS["NOREPLICAS"]


class Output:
    """What a process has said since this began to listen."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout
        self.lines.extend(iter(self._process.stdout.readline, ""))

    def count(self, text: str) -> int:
        return sum(text in line for line in self.lines)

    async def hear(self, text: str) -> None:
        """Wait until it has said that."""
        async with asyncio.timeout(SOON_S):
            while not self.count(text):
                assert self._thread.is_alive() or self.count(text), "".join(self.lines)
                await asyncio.sleep(0.02)

    async def end(self, number: signal.Signals | None = signal.SIGTERM) -> int:
        """Send a signal, if any; the exit status when all has been said."""
        if number is not None:
            self._process.send_signal(number)
        status = await asyncio.to_thread(self._process.wait, SOON_S)
        await asyncio.to_thread(self._thread.join, SOON_S)
        return status


@pytest.fixture
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LoneServer]:
    """A server of the test's own: Valkey, unless the test says "redis"."""
    folder = tmp_path / "redis"
    folder.mkdir()
    binary: Path = request.getfixturevalue(f"{getattr(request, 'param', 'valkey')}_binary")
    server = LoneServer(binary, folder, "--lua-time-limit", "200")
    await server.start()
    yield server
    server.kill()


@pytest.fixture
async def operator(server: LoneServer) -> AsyncIterator[Redis]:
    """Who does to the server what has to be done."""
    async with Redis.from_url(server.url) as redis:
        yield redis


@pytest.fixture
async def client(server: LoneServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.url) as client:
        yield client


async def begin(
    start_worker: StartWorker,
    url: str,
    *arguments: str,
    toml: str = slow_echo(0.05),
    lease_s: float = 3,
    wait: bool = True,
    **environ: str,
) -> Output:
    environ["SCHEDULER_LEASE_S"] = str(lease_s)
    return Output(
        await asyncio.to_thread(lambda: start_worker(url, *arguments, toml=toml, wait=wait, **environ))
    )


async def run_of(client: AsyncClient, job_id: str, attempt: int = 1) -> None:
    """Wait until an attempt at a job runs."""
    async with asyncio.timeout(SOON_S):
        while True:
            info = await client.job(job_id).info()
            if info.state is JobState.RUNNING and info.attempts >= attempt:
                return
            assert not info.state.ended, info
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("server", ["valkey", "redis"], indirect=True)
@pytest.mark.parametrize("name", REFUSALS)
async def test_a_redis_that_refuses_ends_no_process_and_costs_no_job(
    name: str, server: LoneServer, operator: Redis, client: AsyncClient, start_worker: StartWorker
) -> None:
    refusal = REFUSALS[name]
    output = await begin(start_worker, server.url)
    job = await client.enqueue(LONG)
    await run_of(client, job.id)
    await refusal.begin(server, operator)
    await output.hear(refusal.says)
    await refusal.end(server, operator)
    await output.hear(refusal.says_then)
    result = await job.result(timeout_s=SOON_S)
    assert (result.text, result.attempts) == (LONG, 1), (
        "the attempt that ran through it is the one that counts"
    )
    assert (await client.run("after", timeout_s=SOON_S)).text == "after"
    assert await output.end() == 0
    assert output.count("Traceback") == 0
    assert output.count("Redis is") + output.count("Redis has") == 2, "one line each way"


@pytest.mark.parametrize("name", [name for name in REFUSALS if name != "OOM"])
async def test_a_process_starts_once_redis_takes_writes(
    name: str, server: LoneServer, operator: Redis, client: AsyncClient, start_worker: StartWorker
) -> None:
    refusal = REFUSALS[name]
    await refusal.begin(server, operator)
    output = await begin(start_worker, server.url, wait=False)
    await output.hear(refusal.says_at_start)
    await refusal.end(server, operator)
    await output.hear(" serves ")
    assert (await client.run("hello", timeout_s=SOON_S)).text == "hello"
    assert await output.end() == 0


async def test_a_full_redis_is_emptied_by_processes_that_start(
    server: LoneServer, operator: Redis, client: AsyncClient, start_worker: StartWorker
) -> None:
    jobs = accepted(await client.enqueue_many([PromptRequest(prompt=f"p {n}") for n in range(50)]))
    await fill(server, operator)
    output = await begin(start_worker, server.url, "--burst", wait=False)
    for job in jobs:
        await job.result(timeout_s=SOON_S)
    assert await output.end(None) == 0
    assert output.count("Traceback") == 0


async def test_a_burst_waits_for_a_redis_that_refuses(
    server: LoneServer, operator: Redis, client: AsyncClient, start_worker: StartWorker
) -> None:
    job = await client.enqueue(LONG)
    output = await begin(start_worker, server.url, "--burst", wait=False)
    await run_of(client, job.id)
    await NO_REPLICAS.begin(server, operator)
    await output.hear(NO_REPLICAS.says)
    await NO_REPLICAS.end(server, operator)
    assert await output.end(None) == 0
    assert (await job.result(timeout_s=SOON_S)).attempts == 1


async def test_a_process_stops_within_its_limits_while_redis_refuses(
    server: LoneServer, operator: Redis, client: AsyncClient, start_worker: StartWorker
) -> None:
    idle = await begin(start_worker, server.url)
    busy = await begin(start_worker, server.url, SCHEDULER_DRAIN_S="0.5")
    job = await client.enqueue(LONG)
    await run_of(client, job.id)
    await NO_REPLICAS.begin(server, operator)
    late = await begin(start_worker, server.url, wait=False)
    for output in (idle, busy, late):
        await output.hear(NO_REPLICAS.says)
    for output in (idle, busy, late):
        assert await output.end() == 0
        assert output.count("Traceback") == 0
    await NO_REPLICAS.end(server, operator)
    await begin(start_worker, server.url)
    assert (await job.result(timeout_s=SOON_S)).text == LONG


async def test_outages_quarantine_nobody_whoever_is_killed_in_them(
    server: LoneServer, operator: Redis, client: AsyncClient, start_worker: StartWorker
) -> None:
    forever = slow_echo(60)
    output = await begin(start_worker, server.url, toml=forever, lease_s=1)
    job = await client.enqueue("an innocent one")
    for attempt in range(1, 5):
        await run_of(client, job.id, attempt)
        await NO_REPLICAS.begin(server, operator)
        await output.hear(NO_REPLICAS.says)
        await output.end(signal.SIGKILL)
        output = await begin(start_worker, server.url, toml=forever, lease_s=1, wait=False)
        await output.hear(NO_REPLICAS.says)
        await asyncio.sleep(1.0)  # the lease ends
        await NO_REPLICAS.end(server, operator)
    await run_of(client, job.id, 5)
    assert (await operator.hget(client.queue.keys.of("record", job.id), "o")) is None  # type: ignore[misc]  # redis-py has one type for sync and async


async def test_a_redis_that_forgets_ends_no_process(
    server: LoneServer, operator: Redis, client: AsyncClient, start_worker: StartWorker
) -> None:
    output = await begin(start_worker, server.url, toml=slow_echo(0.01))
    forgets: list[Callable[[], Awaitable[object]]] = [operator.script_flush, operator.flushall]
    for forget in forgets * 3:
        jobs = accepted(await client.enqueue_many([PromptRequest(prompt=f"a b {n}") for n in range(100)]))
        await jobs[0].result(timeout_s=SOON_S)
        await forget()
        ends = await asyncio.gather(*(job.result(timeout_s=SOON_S) for job in jobs), return_exceptions=True)
        if forget == operator.script_flush:
            assert all(isinstance(end, JobResult) for end in ends)
        else:
            assert all(isinstance(end, JobResult | JobNotFound) for end in ends), ends
        assert (await client.run("after", timeout_s=SOON_S)).text == "after"
    assert await output.end() == 0
    assert output.count("Traceback") == 0


async def test_a_redis_that_evicts_ends_no_process(
    server: LoneServer, operator: Redis, client: AsyncClient, start_worker: StartWorker
) -> None:
    output = await begin(start_worker, server.url, toml=slow_echo(0.01))
    await operator.config_set("maxmemory-policy", "allkeys-lru")
    await operator.config_set("maxmemory", (await operator.info("memory"))["used_memory"] + 1_000_000)
    for n in range(40):
        with suppress(OutOfMemoryError, RedisOutOfMemory):
            await client.enqueue_many([PromptRequest(prompt=f"a b {n} {m}") for m in range(20)])
            for m in range(20):
                await operator.set(f"other:{n}:{m}", "x" * 10_000)
    assert (await operator.info("stats"))["evicted_keys"] > 100
    await operator.config_set("maxmemory", 0)
    assert (await client.run("after", timeout_s=SOON_S)).text == "after"
    assert await output.end() == 0
    assert output.count("Traceback") == 0


async def test_a_server_that_stands_still_is_waited_for(
    server: LoneServer, client: AsyncClient, start_worker: StartWorker
) -> None:
    output = await begin(start_worker, server.url, SCHEDULER_REDIS_TIMEOUT_S="1")
    job = await client.enqueue(LONG)
    await run_of(client, job.id)
    server.send_signal(signal.SIGSTOP)
    await output.hear("Redis is away")
    server.send_signal(signal.SIGCONT)
    await output.hear("Redis is back")
    result = await job.result(timeout_s=SOON_S)
    assert (result.text, result.attempts) == (LONG, 1)
    assert await output.end() == 0
    assert output.count("Traceback") == 0
    assert output.count("Redis is") == 2


@pytest.mark.skipif(FAKETIME is None, reason="there is no libfaketime")
@pytest.mark.parametrize("jump_s", [-3600, 3600])
async def test_the_clock_of_redis_may_jump(
    jump_s: int, valkey_binary: Path, tmp_path: Path, start_worker: StartWorker
) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    stamp = tmp_path / "clock"
    stamp.write_text("+0\n")
    environ = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(stamp), "FAKETIME_NO_CACHE": "1"}
    server = LoneServer(valkey_binary, folder, environ={**environ, "FAKETIME_DONT_FAKE_MONOTONIC": "1"})
    await server.start()
    try:
        toml = f"[tenants.limited]\nrequests_per_minute = 600\n{slow_echo(0.2)}"
        killed, kept = [
            await begin(start_worker, server.url, toml=toml, lease_s=2, SCHEDULER_RESULT_TTL_S="9000")
            for _ in range(2)
        ]
        async with AsyncClient(server.url) as client:
            running = [await client.enqueue("a b c d e f g h i j") for _ in range(10)]
            for job in running:
                await run_of(client, job.id)
            limited = [await client.enqueue("x", tenant="limited") for _ in range(70)]
            delayed = [await client.enqueue("x", delay_s=3, deadline_s=600) for _ in range(3)]
            stamp.write_text(f"{jump_s:+}\n")
            await killed.end(signal.SIGKILL)
            for job in (*running, *limited, *delayed, await client.enqueue("new")):
                await job.result(timeout_s=SOON_S)
        assert await kept.end() == 0
        assert kept.count("Traceback") == 0
    finally:
        server.kill()
