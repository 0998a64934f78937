"""Latency: how soon a prompt is started, says its first word and is done, as its client sees it.

One worker process serves `echo`; the client runs in the measuring process, in a thread with an event loop of
its own (uvloop's where it is installed), and has one prompt under way at a time. The clock starts when
`enqueue()` is called and is read when `Job.events()` yields `Started`, the first `Delta`, and `Done`. For
`run` it starts when `client.run()` is called and is read when that returns; the two take turns. The first
prompts of a client warm up and are not counted. p99.9 is given from 1,000 prompts on.

Idle: nothing else is in the queue. Peers in turn: from enqueue to result, 500 times, with a client of theirs.

Half load: the same prompts while another process enqueues half of what the system can take, evenly, in a
group every 5 ms. What it can take is found once, before the rounds: some thousand prompts are enqueued in
bulk while a worker process serves, and the clock runs from the first enqueue to the last end. "load done" is
what was done during the probes; "waiting at the end" shows whether the worker process kept up.

Urgent: prompts of priority 9 while many of priority 1 wait, and while none do, with the same configuration:
one endpoint of 64 places, four of them reserved, that says a word every quarter of a second. The backlog's
answers have two to nine words, so that 60 of them stream at any time and places come free one by one; the
urgent prompt is one word, which takes the endpoint no time. From `enqueue()` to `Started`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from redis.asyncio import Redis

from benchmarks import peers
from benchmarks.harness import (
    META,
    OURS,
    READY_TIMEOUT_S,
    Bench,
    Figures,
    cpu_s,
    done_of_ours,
    processes,
    quantiles,
    refuse_errors,
    until_serving,
    worker_processes,
)
from scheduler import (
    AsyncClient,
    Delta,
    Done,
    Priority,
    PromptRequest,
    Started,
    load_settings,
)
from scheduler.queue.inspection.status import read_status

IDLE = "latency, idle"
HALF_LOAD = "latency, half load"
URGENT = "latency, urgent"

PROMPT = "What is the capital of France?"
WARM_UP = 50
ENOUGH_FOR_P999 = 1000
FILL_CHUNK = 10_000
GROUP_S = 0.005
"""How often the process that makes the load enqueues."""
SETTLE_S = 1.0

SENDER = [sys.executable, "-m", "benchmarks.latency"]

PLACES = """
max_waiting = 200_000
[[routes.echo.endpoints]]
backend = "echo"
max_in_flight = 64
reserved = 4
options = { delay_s = 0.25 }
"""

T = TypeVar("T")


async def measure(bench: Bench) -> None:
    """Idle, with the peers in turn; at half load; urgent prompts without and with a backlog in turn."""
    idle: dict[str, Callable[[], Awaitable[Figures]]] = {OURS: partial(idle_of_ours, bench)}
    idle |= {peer.name: partial(idle_of_peer, bench, peer) for peer in peers.available(bench)}
    await bench.alternate(IDLE, idle)
    rate = await capacity(bench) / 2
    await bench.alternate(HALF_LOAD, {OURS: partial(half_load, bench, rate)})
    backlog = bench.size(100_000, 20_000)
    await bench.alternate(
        URGENT,
        {"idle": partial(urgent, bench, 0), f"{backlog:,} waiting": partial(urgent, bench, backlog)},
    )


# Idle


async def idle_of_ours(bench: Bench) -> Figures:
    """Probe an idle system."""
    with worker_processes(bench):
        await until_serving(bench)
        return await on_loop_of_its_own(probe(bench, bench.size(1000, 200)))


async def idle_of_peer(bench: Bench, peer: peers.Peer) -> Figures:
    """Let a peer do the same."""
    return figures_of("done", await peer.latency_ms(bench, bench.size(500, 100)))


# Half load


async def capacity(bench: Bench) -> float:
    """Prompts a second that go in and out: the middle of a few tries."""
    prompts, tries = bench.size(10_000, 4_000), bench.size(3, 1)
    rates = []
    async with bench.client() as client, bench.redis() as redis:
        await redis.flushall()
        with worker_processes(bench):
            await until_serving(bench)
            for number in range(1, tries + 1):
                began = time.perf_counter()
                await fill(client, prompts, priority=Priority.NORMAL)
                await until_done(redis, prompts * number)
                rates.append(prompts / (time.perf_counter() - began))
    return statistics.median(rates)


async def half_load(bench: Bench, rate: float) -> Figures:
    """Probe while so many prompts a second come in."""
    load = {"LOAD_URL": bench.url, "LOAD_RATE": f"{rate:.0f}"}
    async with bench.redis() as redis:
        with worker_processes(bench) as workers:
            await until_serving(bench)
            with processes(SENDER, environ=load):
                await until_done(redis, int(rate * SETTLE_S))
                return await under_load(bench, redis, workers[0].pid, rate)


async def under_load(bench: Bench, redis: Redis, worker_pid: int, rate: float) -> Figures:
    """Probe while the load runs, and see what of it was done."""
    done, began = await done_of_ours(redis), time.perf_counter()
    worker_s, server_s = cpu_s(worker_pid), cpu_s(bench.server_pid)
    figures = await on_loop_of_its_own(probe(bench, bench.size(1000, 100)))
    elapsed_s = time.perf_counter() - began
    done = await done_of_ours(redis) - done
    waiting = int(await redis.hget(META, "n") or 0)  # type: ignore[misc]  # sync or async in the stubs
    return {
        **figures,
        ("load sent", "jobs/s"): rate,
        ("load done", "jobs/s"): done / elapsed_s,
        ("waiting at the end", "jobs"): waiting,
        ("worker CPU", "%"): (cpu_s(worker_pid) - worker_s) / elapsed_s * 100,
        ("server CPU", "%"): (cpu_s(bench.server_pid) - server_s) / elapsed_s * 100,
    }


async def send(url: str, rate: float) -> None:
    """Enqueue prompts evenly until the process is ended."""
    async with AsyncClient(settings=load_settings(environ={}, redis_url=url)) as client:
        began, sent = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - began) * rate)
            requests = [PromptRequest(prompt=f"load {n}", model="echo") for n in range(sent, due)]
            refuse_errors(await client.enqueue_many(requests))
            sent = due
            await asyncio.sleep(GROUP_S)


# Urgent


async def urgent(bench: Bench, backlog: int) -> Figures:
    """Probe with urgent prompts while so many others wait."""
    async with bench.client() as client:
        # What runs in the end need not be waited for.
        with worker_processes(bench, toml=PLACES, SCHEDULER_DRAIN_S="0.1"):
            await until_serving(bench)
            await fill(client, backlog, priority=Priority.BACKGROUND)
            await asyncio.sleep(SETTLE_S if backlog else 0)
            figures = await on_loop_of_its_own(probe_urgent(bench, bench.size(1000, 300)))
            status = await read_status(client.queue)
    if backlog and (status.waiting < 0.9 * backlog or status.running < 50):
        raise SystemExit(f"no backlog: {status.waiting} prompts waited, {status.running} ran")
    return figures


async def probe_urgent(bench: Bench, prompts: int) -> Figures:
    """From enqueue to started, of urgent prompts."""
    async with bench.client() as client:
        for _ in range(WARM_UP):
            await one_prompt(client, "now", Priority.CRITICAL)
        times = [await one_prompt(client, "now", Priority.CRITICAL) for _ in range(prompts)]
    return figures_of("started", [one.started_ms for one in times])


# Probes


@dataclass(frozen=True, slots=True)
class Times:
    """From the call of `enqueue()` until each event was there."""

    started_ms: float
    first_ms: float
    done_ms: float


async def probe(bench: Bench, prompts: int) -> Figures:
    """So many prompts one after the other, and as many calls of `run` between them."""
    async with bench.client() as client:
        for _ in range(WARM_UP):
            await one_prompt(client, PROMPT)
        times, runs = [], []
        for _ in range(prompts):
            times.append(await one_prompt(client, PROMPT))
            runs.append(await one_run(client))
    return {
        **figures_of("started", [one.started_ms for one in times]),
        **figures_of("first token", [one.first_ms for one in times]),
        **figures_of("done", [one.done_ms for one in times]),
        **figures_of("run", runs),
    }


async def one_prompt(client: AsyncClient, prompt: str, priority: int = Priority.NORMAL) -> Times:
    """Enqueue one, and follow it to its end."""
    started_ms = first_ms = None
    began = time.perf_counter()
    job = await client.enqueue(prompt, model="echo", priority=priority)
    async for event in job.events():
        passed_ms = (time.perf_counter() - began) * 1000
        match event:
            case Started():
                started_ms = passed_ms
            case Delta() if first_ms is None:
                first_ms = passed_ms
            case Done() if started_ms is not None and first_ms is not None:
                return Times(started_ms, first_ms, passed_ms)
    raise SystemExit(f"job {job.id} ended without an answer")


async def one_run(client: AsyncClient) -> float:
    """Milliseconds that `run` takes."""
    began = time.perf_counter()
    await client.run(PROMPT, model="echo")
    return (time.perf_counter() - began) * 1000


def figures_of(what: str, times_ms: list[float]) -> Figures:
    """The quantiles that so many times can give."""
    return {
        (f"{what} {name}", "ms"): value
        for name, value in quantiles(times_ms).items()
        if name != "p99.9" or len(times_ms) >= ENOUGH_FOR_P999
    }


# What the cases share


async def on_loop_of_its_own(work: Coroutine[Any, Any, T]) -> T:
    """Run it in a thread, on uvloop where that is installed: the loop that a user in a hurry has."""
    loop_factory = None
    if importlib.util.find_spec("uvloop"):
        import uvloop  # noqa: PLC0415  an extra

        loop_factory = uvloop.new_event_loop

    def run() -> T:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(work)

    return await asyncio.to_thread(run)


async def until_done(redis: Redis, jobs: int) -> None:
    """Wait until so many jobs have been done.

    Raises:
        TimeoutError: it takes too long.
    """
    async with asyncio.timeout(READY_TIMEOUT_S):
        while await done_of_ours(redis) < jobs:
            await asyncio.sleep(0.02)


async def fill(client: AsyncClient, jobs: int, *, priority: int) -> None:
    """Enqueue many, whose prompts have two to nine words."""
    texts = [" ".join(["word"] * words) for words in range(2, 10)]
    for start in range(0, jobs, FILL_CHUNK):
        requests = [
            PromptRequest(prompt=texts[n % len(texts)], model="echo", priority=priority)
            for n in range(start, min(start + FILL_CHUNK, jobs))
        ]
        refuse_errors(await client.enqueue_many(requests))


if __name__ == "__main__":
    asyncio.run(send(os.environ["LOAD_URL"], float(os.environ["LOAD_RATE"])))
