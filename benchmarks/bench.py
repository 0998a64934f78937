"""How fast prompts go through one worker process, and stock arq on the same server in the same run.

    make bench           # or: python benchmarks/bench.py --prompts 20000 --rounds 3 --json out.json

Drain: the prompts are enqueued first; a worker process is started; the clock runs from the first job seen
done to the last. Ours runs all five stages on `echo`, writes and publishes every event and stores every
result. arq runs a coroutine that returns its argument, at its best settings: poll_delay 1 ms, 100 jobs at
once, uvloop. Runs alternate and medians are printed. Latency: enqueue to terminal event, one prompt at a
time, on an idle system.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import redis.asyncio
from arq.connections import ArqRedis

from scheduler import AsyncClient, PromptRequest, load_settings
from scheduler.embedded import EmbeddedServer

ARQ = [sys.executable, "-m", "arq"]
HERE = Path(__file__).parent
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Drain:
    """One run: jobs a second, and CPU microseconds a job of the worker and of the server."""

    jobs_per_s: float
    worker_us: float
    server_us: float


def cpu_s(pid: int) -> float:
    """User and system CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


async def watch(done: Callable[[], Awaitable[int]], total: int, worker: int, server: int) -> Drain:
    """Time a drain from the first progress seen to the end."""
    give_up_at = time.monotonic() + 120
    while (first := await done()) == 0:
        if time.monotonic() > give_up_at:
            raise SystemExit("the worker process did not start; run it by hand to see why")
        await asyncio.sleep(0.001)
    started, worker_s, server_s = time.perf_counter(), cpu_s(worker), cpu_s(server)
    while (ended := await done()) < total:
        if time.monotonic() > give_up_at:
            raise SystemExit(f"only {ended} of {total} jobs were done in time")
        await asyncio.sleep(0.005)
    jobs, elapsed = total - first, time.perf_counter() - started
    return Drain(
        jobs / elapsed, (cpu_s(worker) - worker_s) / jobs * 1e6, (cpu_s(server) - server_s) / jobs * 1e6
    )


async def drain_ours(url: str, server: int, prompts: int) -> tuple[Drain, float]:
    """Drain our queue; also returns prompts a second of the bulk enqueue before."""
    async with AsyncClient(url, settings=load_settings(environ={}, redis_url=url)) as client:
        await client.queue.redis.flushall()
        requests = [PromptRequest(prompt=f"prompt number {n}", model="echo") for n in range(prompts)]
        started = time.perf_counter()
        outcomes = await client.enqueue_many(requests)
        enqueue_rate = prompts / (time.perf_counter() - started)
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if errors:
            raise SystemExit(f"enqueue failed: {errors[0]}")

        async def done() -> int:
            return int(await client.queue.redis.hget(client.queue.keys.fixed("meta"), "t:done") or 0)

        worker = start_worker("scheduler.WorkerSettings", SCHEDULER_REDIS_URL=url)
        try:
            return await watch(done, prompts, worker.pid, server), enqueue_rate
        finally:
            stop(worker)


async def drain_arq(url: str, server: int, prompts: int) -> Drain:
    """Drain stock arq."""
    pool = ArqRedis.from_url(url)
    await pool.flushall()
    for start in range(0, prompts, 100):
        await asyncio.gather(
            *(pool.enqueue_job("echo", f"prompt number {n}") for n in range(start, start + 100))
        )

    async def done() -> int:
        return prompts - int(await pool.zcard("arq:queue"))

    worker = start_worker("arq_peer.WorkerSettings", PEER_REDIS_URL=url, PYTHONPATH=str(HERE))
    try:
        return await watch(done, prompts, worker.pid, server)
    finally:
        stop(worker)
        await pool.aclose()


async def latency(url: str, prompts: int) -> list[float]:
    """Milliseconds from enqueue to terminal event, one prompt after the other."""
    worker = start_worker("scheduler.WorkerSettings", SCHEDULER_REDIS_URL=url)
    times: list[float] = []
    try:
        async with AsyncClient(url, settings=load_settings(environ={}, redis_url=url)) as client:
            await client.run("warm up", model="echo", timeout_s=30)
            for n in range(prompts):
                started = time.perf_counter()
                await client.run(f"prompt {n}", model="echo", timeout_s=30)
                times.append((time.perf_counter() - started) * 1000)
    finally:
        stop(worker)
    return times


def start_worker(settings: str, **environment: str) -> subprocess.Popen[bytes]:
    """Start an arq worker process."""
    environ = {**os.environ, **environment}
    return subprocess.Popen(
        [*ARQ, settings], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def stop(worker: subprocess.Popen[bytes]) -> None:
    """End a worker process and wait for it."""
    worker.terminate()
    try:
        worker.wait(30)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def median(runs: list[Drain]) -> Drain:
    """Field by field."""
    return Drain(
        *(statistics.median(values) for values in zip(*(asdict(run).values() for run in runs), strict=True))
    )


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """Alternate the runs on one server."""
    ours: list[Drain] = []
    arq: list[Drain] = []
    enqueues: list[float] = []
    with EmbeddedServer() as server:
        async with redis.asyncio.Redis.from_url(server.url) as client:
            pid = int((await client.info("server"))["process_id"])
        for number in range(options.rounds):
            run, enqueue_rate = await drain_ours(server.url, pid, options.prompts)
            ours.append(run)
            enqueues.append(enqueue_rate)
            arq.append(await drain_arq(server.url, pid, options.prompts // 4))
            print(
                f"round {number + 1}: ours {ours[-1].jobs_per_s:,.0f}/s, arq {arq[-1].jobs_per_s:,.0f}/s",
                flush=True,
            )
        times = await latency(server.url, options.latency_prompts)
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {
        "ours": asdict(median(ours)),
        "arq": asdict(median(arq)),
        "ratio": median(ours).jobs_per_s / median(arq).jobs_per_s,
        "enqueue_many_per_s": statistics.median(enqueues),
        "latency_ms": {"p50": cuts[49], "p99": cuts[98]},
    }


def report(figures: dict[str, object]) -> None:
    """Print the table."""
    print(f"\n{'drain, one worker process':28} {'prompts/s':>10} {'worker µs':>10} {'server µs':>10}")
    for name, key in (("prompt-scheduler, 5 stages", "ours"), ("arq, no-op", "arq")):
        run = figures[key]
        assert isinstance(run, dict)
        print(f"{name:28} {run['jobs_per_s']:10,.0f} {run['worker_us']:10,.0f} {run['server_us']:10,.0f}")
    print(f"{'ratio':28} {figures['ratio']:10.1f}")
    print(f"\nenqueue_many                 {figures['enqueue_many_per_s']:10,.0f} prompts/s")
    times = figures["latency_ms"]
    assert isinstance(times, dict)
    print(f"enqueue to terminal event    p50 {times['p50']:.2f} ms   p99 {times['p99']:.2f} ms, idle system")


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--prompts", type=int, default=20_000, help="prompts a drain of ours; arq gets a quarter"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency-prompts", type=int, default=500)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    figures = asyncio.run(measure(options))
    report(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
