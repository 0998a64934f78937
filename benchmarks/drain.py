"""Drain: how fast jobs that wait go through worker processes; beside us the peers, and a bare loop in Lua.

The jobs are enqueued first and the worker processes started then; the clock runs from the first job seen done
to the last. Ours runs all five stages on `echo`, writes and publishes every event, stores every result. The
bare loop leases 32 jobs in one script and publishes and finishes them in another, with nothing between.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial

from benchmarks import peers
from benchmarks.harness import (
    OURS,
    Bench,
    Figures,
    done_of_ours,
    processes,
    refuse_errors,
    watch_drain,
    worker_processes,
)
from scheduler import PromptRequest

BARE = [sys.executable, "-m", "benchmarks.bare_loop"]


async def measure(bench: Bench) -> None:
    """Drain with one process, with the peers in turn; then with two."""
    cases: dict[str, Callable[[], Awaitable[Figures]]] = {
        OURS: partial(drain_ours, bench, 1),
        "bare loop": partial(drain_bare, bench),
    }
    cases |= {peer.name: partial(drain_peer, bench, peer) for peer in peers.available(bench)}
    await bench.alternate("drain, one process", cases)
    await bench.alternate("drain, two processes", {OURS: partial(drain_ours, bench, 2)})


async def drain_ours(bench: Bench, n_workers: int, **environ: str) -> Figures:
    """Fill our queue and drain it; `environ` is for the worker processes."""
    prompts = bench.size(30_000, 6_000)
    async with bench.client() as client:
        requests = [PromptRequest(prompt=f"prompt number {n}", model="echo") for n in range(prompts)]
        refuse_errors(await client.enqueue_many(requests))
    return await drain_jobs(bench, n_workers, prompts, **environ)


async def drain_jobs(bench: Bench, n_workers: int, jobs: int, **environ: str) -> Figures:
    """Drain what waits in our queue."""
    async with bench.redis() as redis:
        with worker_processes(bench, n_workers, **environ) as workers:
            span = await watch_drain(bench, workers, partial(done_of_ours, redis), jobs)
    return span.figures()


async def drain_bare(bench: Bench) -> Figures:
    """Run the bare loop."""
    jobs = bench.size(30_000, 6_000)
    async with bench.redis() as redis:

        async def done() -> int:
            return int(await redis.get("bare:done") or 0)

        with processes(BARE, environ={"BARE_URL": bench.url, "BARE_JOBS": str(jobs)}) as workers:
            span = await watch_drain(bench, workers, done, jobs)
    return span.figures()


async def drain_peer(bench: Bench, peer: peers.Peer) -> Figures:
    """Let a peer do the same work."""
    jobs = bench.size(peer.jobs, peer.jobs // 5)
    await peer.enqueue(bench, "many", jobs)
    async with bench.redis() as redis:
        with processes(peer.worker, environ=peer.environ(bench), cwd=peer.folder) as workers:
            span = await watch_drain(bench, workers, partial(peer.done, redis, jobs), jobs)
    return span.figures()
