"""Memory: what a waiting job and a busy worker process take; and what idle worker processes cost.

A waiting job: 24,000 prompts with a dedup key and a deadline, payloads of 100 bytes, enqueued by a client
into a server of its own: the bundled one, and Redis from PATH if there is one. Then the same without a
deadline, and in a full run without a key as well. `used_memory` after less before, less the payloads. Hash
tables double when they are full: at this number of keys they are as full as on average.

Idle workers: worker processes with the default settings and nothing to do, 1, then 10, then 50 of them; each
time a round is a window of some seconds, the first after all have had time to share the work. `MONITOR` shows
each command, and whether a client sent it or a script did. "commands sent" is what the worker processes sent,
whatever for: a script call is one, and what it does inside is not counted. "commands executed" has that as
well, as `total_commands_processed` has. The measuring process itself sends none meanwhile. CPU is that of all
the worker processes together, and of the server.

Busy worker: resident memory of one process with `max_running = 1000`, before any prompt and with 1,000 in
flight at once that stream a word a second each: the most that was seen. MB are 10^6 bytes.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from redis.asyncio import Redis

from benchmarks.harness import (
    OURS,
    READY_TIMEOUT_S,
    Bench,
    Figures,
    cpu_s,
    refuse_errors,
    resident_mb,
    until_serving,
    worker_processes,
)
from scheduler import AsyncClient, PromptRequest, load_settings
from scheduler.payload import encode, payload_of
from scheduler.queue.inspection.status import read_status
from scheduler.redis_server.embedded import OLDEST, EmbeddedServer, bundled_binary, server_version

WAITING = "memory, waiting job"
IDLE = "idle workers"
BUSY = "memory, worker process"

WHOLE, NO_DEADLINE, BARE = "with a key and a deadline", "with a key", "with neither"
JOBS = 24_000
IN_FLIGHT = 1000
STEADY_BYTES = 10_000

STREAMING = """
[[routes.echo.endpoints]]
backend = "echo"
max_in_flight = {in_flight}
options = {{ delay_s = 1.0 }}
"""
WORDS = 90
"""Of a streamed answer: a word a second, longer than anybody looks."""


async def measure(bench: Bench) -> None:
    """Waiting jobs on each server, idle workers, a busy worker."""
    kinds = (WHOLE, NO_DEADLINE) if bench.quick else (WHOLE, NO_DEADLINE, BARE)
    await bench.alternate(
        WAITING, {name: partial(waiting_job, binary, kinds) for name, binary in servers().items()}
    )
    await idle_workers(bench, (1, 10) if bench.quick else (1, 10, 50))
    await bench.alternate(BUSY, {OURS: partial(busy_worker, bench)})


# A waiting job


def servers() -> dict[str, Path]:
    """The bundled server and the one on PATH, by name and version."""
    found = [bundled_binary(), Path(path) if (path := shutil.which("redis-server")) else None]
    return {
        f"{'Valkey' if 'valkey' in binary.name else 'Redis'} {'.'.join(map(str, version))}": binary
        for binary in found
        if binary and (version := server_version(binary)) >= OLDEST
    }


async def waiting_job(binary: Path, kinds: Sequence[str]) -> Figures:
    """Bytes that a job of each kind costs beyond its payload."""
    with EmbeddedServer(binary=binary) as server:
        settings = load_settings(environ={}, redis_url=server.url)
        async with AsyncClient(settings=settings) as client:
            return {(kind, "bytes"): await bytes_a_job(client, kind) for kind in kinds}


async def bytes_a_job(client: AsyncClient, kind: str) -> float:
    """Enqueue many of a kind, and ask the server."""
    redis = client.queue.redis
    await redis.flushall(asynchronous=False)
    # What the first call allocates, once, is no job's.
    await client.enqueue(request_of(kind))
    before, payloads = await used_bytes(redis), 0
    for _ in range(JOBS // 1000):
        requests = [request_of(kind) for _ in range(1000)]
        payloads += sum(len(encode(payload_of(request))) for request in requests)
        refuse_errors(await client.enqueue_many(requests))
    return (await used_bytes(redis) - before - payloads) / JOBS


def request_of(kind: str) -> PromptRequest:
    """A request of 100 bytes as it is stored."""
    return PromptRequest(
        prompt=f"{secrets.token_hex(8)}{'x' * 71}",
        model="echo",
        dedup_key=None if kind == BARE else secrets.token_hex(),
        deadline_s=3600 if kind == WHOLE else None,
    )


async def used_bytes(redis: Redis) -> int:
    """Memory in use, once the server has finished moving its tables about."""
    before, now = -1, int((await redis.info("memory"))["used_memory"])
    while abs(now - before) > STEADY_BYTES:
        await asyncio.sleep(0.2)
        before, now = now, int((await redis.info("memory"))["used_memory"])
    return now


# Idle workers


async def idle_workers(bench: Bench, numbers: Sequence[int]) -> None:
    """Start more and more worker processes, and look at each number of them for some windows."""
    window_s, settle_s = bench.size(10, 3), bench.size(10, 1)
    async with bench.redis() as redis:
        await redis.flushall()
    with ExitStack() as stack:
        workers: list[subprocess.Popen[bytes]] = []
        for number in numbers:
            workers += stack.enter_context(worker_processes(bench, number - len(workers)))
            await until_serving(bench, number)
            await asyncio.sleep(settle_s)
            rounds = [await idle_window(bench, workers, window_s) for _ in range(bench.rounds)]
            for what, unit in rounds[0]:
                values = [figures[what, unit] for figures in rounds]
                bench.add(IDLE, f"{number} idle", what, unit, *values)


async def idle_window(bench: Bench, workers: Sequence[subprocess.Popen[bytes]], window_s: float) -> Figures:
    """What goes on in so many seconds."""
    worker_s, server_s = sum(cpu_s(worker.pid) for worker in workers), cpu_s(bench.server_pid)
    began = time.perf_counter()
    sent, executed = await commands(bench, window_s)
    elapsed_s = time.perf_counter() - began
    worker_s = sum(cpu_s(worker.pid) for worker in workers) - worker_s
    server_s = cpu_s(bench.server_pid) - server_s
    return {
        ("commands sent", "/s"): sent / window_s,
        ("commands executed", "/s"): executed / window_s,
        ("workers' CPU", "%"): worker_s / elapsed_s * 100,
        ("server's CPU", "%"): server_s / elapsed_s * 100,
    }


async def commands(bench: Bench, window_s: float) -> tuple[int, int]:
    """How many commands clients send in a window, and how many the server executes, scripts' own included."""
    sent = executed = 0
    async with bench.redis() as redis, redis.monitor() as monitor:
        with suppress(TimeoutError):
            async with asyncio.timeout(window_s):
                async for command in monitor.listen():
                    executed += 1
                    sent += command["client_type"] != "lua"
    return sent, executed


# A busy worker


async def busy_worker(bench: Bench) -> Figures:
    """Resident memory without and with a thousand in flight."""
    watch_s = bench.size(10, 2)
    async with bench.client() as client:
        toml, most = STREAMING.format(in_flight=IN_FLIGHT), 0.0
        with worker_processes(
            bench, toml=toml, SCHEDULER_MAX_RUNNING=str(IN_FLIGHT), SCHEDULER_DRAIN_S="0.1"
        ) as (worker,):
            await until_serving(bench, 1)
            await asyncio.sleep(1)  # for what it does at its start
            idle = resident_mb(worker.pid)
            requests = [PromptRequest(prompt="word " * WORDS, model="echo")] * IN_FLIGHT
            refuse_errors(await client.enqueue_many(requests))
            await until_running(client, IN_FLIGHT)
            end_at = time.monotonic() + watch_s
            while time.monotonic() < end_at:
                most = max(most, resident_mb(worker.pid))
                await asyncio.sleep(0.1)
            await until_running(client, IN_FLIGHT)
    return {("idle", "MB"): idle, (f"{IN_FLIGHT:,} in flight", "MB"): most}


async def until_running(client: AsyncClient, jobs: int) -> None:
    """Wait until so many jobs run.

    Raises:
        TimeoutError: they never do.
    """
    async with asyncio.timeout(READY_TIMEOUT_S):
        while (await read_status(client.queue)).running < jobs:
            await asyncio.sleep(0.1)
