"""Enqueue: jobs a second one by one, by 100 callers at once, and in bulk; beside us the peers.

A producer process of its own connects, then takes the time around making and enqueuing the jobs alone; no
worker runs. Ours gives every job a dedup key of its own, and the bound on waiting jobs is on (the default,
100,000). Bulk is `enqueue_many` with all jobs; a peer without such a call does it in its fastest way. The
server's CPU is that from the start of the producer process to its end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import uvloop

from benchmarks import peers
from benchmarks.harness import OURS, Bench, Figures, cpu_s, refuse_errors
from benchmarks.peers.peer import How, Produced, ask_producer
from scheduler import AsyncClient, PromptRequest, load_settings

ROOT = Path(__file__).parent.parent
CONCURRENT = 100
OURS_JOBS = 30_000  # below the bound
WAYS: Mapping[How, str] = {"one": "one by one", "hundred": "100 at once", "many": "bulk"}


async def measure(bench: Bench) -> None:
    """Each way in turn."""
    found = peers.available(bench)
    for how, name in WAYS.items():
        n = jobs_of(bench, how, OURS_JOBS)
        cases: dict[str, Callable[[], Awaitable[Figures]]] = {
            OURS: partial(figures_of, bench, n, partial(produce_ours, bench, how, n))
        }
        if how == "many":
            without = partial(produce_ours, bench, how, n, dedup=False)
            cases[f"{OURS}, no dedup"] = partial(figures_of, bench, n, without)
        for peer in found:
            n = jobs_of(bench, how, peer.jobs)
            cases[peer.name] = partial(figures_of, bench, n, partial(peer.produce, bench, how, n))
        await bench.alternate(f"enqueue, {name}", cases)


def jobs_of(bench: Bench, how: How, jobs: int) -> int:
    """How many of `jobs` to enqueue this way: a second or more of it in a full run."""
    n = jobs // 5 if how == "one" else jobs
    return bench.size(n, n // 5)


async def figures_of(bench: Bench, n: int, produce: Callable[[], Awaitable[Produced]]) -> Figures:
    """Run a producer and see what it cost the server."""
    server_s = cpu_s(bench.server_pid)
    produced = await produce()
    return {
        ("rate", "jobs/s"): n / produced.elapsed_s,
        ("producer CPU", "µs/job"): produced.cpu_s / n * 1e6,
        ("server CPU", "µs/job"): (cpu_s(bench.server_pid) - server_s) / n * 1e6,
    }


async def produce_ours(bench: Bench, how: How, n: int, *, dedup: bool = True) -> Produced:
    """Enqueue with our client, in a process of its own like the peers."""
    command = (
        sys.executable,
        "-m",
        "benchmarks.enqueue",
        bench.url,
        how,
        str(n),
        *(("--dedup",) if dedup else ()),
    )
    return Produced(**await ask_producer(command, environ={}, cwd=ROOT))


async def produce(url: str, how: How, n: int, *, dedup: bool) -> Produced:
    """In the producer process: connect, then make and enqueue the jobs, and say what that took."""

    def request(number: int) -> PromptRequest:
        key = f"key number {number}" if dedup else None
        return PromptRequest(prompt=f"prompt number {number}", model="echo", dedup_key=key)

    async with AsyncClient(settings=load_settings(environ={}, redis_url=url)) as client:
        started, started_cpu = time.perf_counter(), time.process_time()
        requests = (request(number) for number in range(n))
        if how == "many":
            await in_bulk(client, requests)
        else:
            await by_callers(client, requests, 1 if how == "one" else CONCURRENT)
        return Produced(time.perf_counter() - started, time.process_time() - started_cpu)


async def in_bulk(client: AsyncClient, requests: Iterable[PromptRequest]) -> None:
    """Enqueue all of them in one call."""
    refuse_errors(await client.enqueue_many(requests))


async def by_callers(client: AsyncClient, requests: Iterator[PromptRequest], callers: int) -> None:
    """Enqueue with so many callers, each of which goes on when its job is in."""

    async def caller() -> None:
        for request in requests:
            await client.enqueue(request)

    await asyncio.gather(*(caller() for _ in range(callers)))


def main() -> None:
    """The producer process; prints one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("how", choices=[*WAYS])
    parser.add_argument("n", type=int)
    parser.add_argument("--dedup", action="store_true", help="give each job a dedup key")
    options = parser.parse_args()
    produced = uvloop.run(produce(options.url, options.how, options.n, dedup=options.dedup))
    print(json.dumps({"elapsed_s": produced.elapsed_s, "cpu_s": produced.cpu_s}))


if __name__ == "__main__":
    main()
