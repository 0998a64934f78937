"""What losing a worker process costs, what a backlog costs in memory, and what it costs a critical prompt.

    make bench-loss      # or: python -m benchmarks.resilience --json out.json

Recovery: pairs of worker processes with jobs in flight; one of a pair is killed (SIGKILL) at a random moment,
and the clock runs until each of its jobs has been started by the other. Lease 10 s, the default.
Memory: 200,000 jobs wait behind an engine that takes calls and never answers, while a client follows a job
that streams, and a second subscriber of the same channel reads nothing. Resident memory of each process.
Urgency: a backlog of background prompts keeps all places of an endpoint busy, whose calls take 200 ms, and
critical prompts come in between: from enqueue to started, without and with reserved places.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scheduler import AsyncClient, Job, JobState, PromptRequest, Started, load_settings
from scheduler.queue.inspection.status import read_status
from scheduler.queue.inspection.workers import read_workers
from scheduler.redis_server.embedded import EmbeddedServer

LEASE_S = 10.0
ARQ_DEFAULT_S = 310.0
"""arq's default: the longest function's timeout, 300 s, and 10 s more; nothing renews it."""

SLOW = """
[[routes.echo.endpoints]]
backend = "echo"
max_in_flight = 64
options = { delay_s = 0.1 }
"""
HANGING = """
max_waiting = 1_000_000
[routes.hanging]
[[routes.hanging.endpoints]]
backend = "openai"
base_url = "http://127.0.0.1:{port}/v1"
model = "tiny"
max_in_flight = 256
[routes.echo]
[[routes.echo.endpoints]]
backend = "echo"
options = {{ delay_s = 0.0001 }}
"""
BUSY = """
[[routes.echo.endpoints]]
backend = "echo"
max_in_flight = 32
reserved = {reserved}
options = {{ first_delay_s = 0.2 }}
"""
CALL_MS = 200.0


class Fleet:
    """Worker processes with one configuration."""

    def __init__(self, url: str, folder: Path, toml: str, queue: str = "default") -> None:
        self._config = folder / f"{queue}.toml"
        self._config.write_text(toml, encoding="utf-8")
        self._environ = {
            "SCHEDULER_REDIS_URL": url,
            "SCHEDULER_CONFIG": str(self._config),
            "SCHEDULER_QUEUE": queue,
        }
        self._log = folder / f"{queue}.log"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        """Start one more."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "arq", "scheduler.WorkerSettings"],
                env={**os.environ, **self._environ},
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def kill(self) -> None:
        """End all."""
        for process in self.processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def fleet(url: str, toml: str, queue: str = "default") -> Iterator[Fleet]:
    """Worker processes that end with the block."""
    with tempfile.TemporaryDirectory() as folder:
        workers = Fleet(url, Path(folder), toml, queue)
        try:
            yield workers
        finally:
            workers.kill()


def client(url: str, queue: str = "default") -> AsyncClient:
    """A client without settings of the surroundings."""
    return AsyncClient(settings=load_settings(environ={}, redis_url=url, queue=queue))


async def serving(one: AsyncClient, processes: int) -> None:
    """Wait until so many worker processes can be seen."""
    async with asyncio.timeout(60):
        while len(await read_workers(one.queue)) < processes:
            await asyncio.sleep(0.05)


# Recovery


async def recovery(url: str, kills: int, pairs: int) -> list[float]:
    """Seconds from each kill until the last job of the dead process has been started by the other."""
    share = [kills // pairs + (at < kills % pairs) for at in range(pairs)]
    times = await asyncio.gather(*(_pair(url, f"pair{at}", n) for at, n in enumerate(share)))
    return [one for each in times for one in each]


async def _pair(url: str, queue: str, kills: int) -> list[float]:
    times = []
    with fleet(url, SLOW, queue) as workers:
        workers.start()
        async with client(url, queue) as one:
            for _ in range(kills):
                living = sum(process.poll() is None for process in workers.processes)
                victim = workers.start()
                await serving(one, living + 1)
                # The newcomer has a share once the other has heard of it.
                await asyncio.sleep(LEASE_S / 2)
                times.append(await _kill_and_wait(one, victim))
                await _forgotten(one, victim.pid)
    return times


async def _kill_and_wait(one: AsyncClient, victim: subprocess.Popen[bytes]) -> float:
    prompt = " ".join(["word"] * 600)
    jobs = [
        job for job in await one.enqueue_many([PromptRequest(prompt=prompt)] * 64) if isinstance(job, Job)
    ]
    mine: list[Job] = []
    while not mine:
        infos = [await job.info() for job in jobs]
        if all(info.state is JobState.RUNNING for info in infos):
            mine = [
                job
                for job, info in zip(jobs, infos, strict=True)
                if info.worker and f":{victim.pid}:" in info.worker
            ]
        await asyncio.sleep(0.05)
    await asyncio.sleep(random.uniform(0, LEASE_S / 3))
    victim.kill()
    killed_at = time.monotonic()
    victim.wait()
    await asyncio.gather(*(_started_again(job) for job in mine))
    took = time.monotonic() - killed_at
    for job in jobs:
        await job.cancel()
    return took


async def _started_again(job: Job) -> None:
    async for event in job.events():
        if isinstance(event, Started) and event.attempt > 1:
            return


async def _forgotten(one: AsyncClient, pid: int) -> None:
    """Until the dead process has no share any more."""
    async with asyncio.timeout(60):
        while any(worker.pid == pid for worker in await read_workers(one.queue)):
            await asyncio.sleep(0.2)


# Memory


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"process {pid} has ended; see its output")


async def memory(url: str, server_pid: int, jobs: int, seconds: float) -> dict[str, float]:
    """The most resident memory that each was seen with, in MB."""
    hung = await asyncio.start_server(_never_answer, "127.0.0.1", 0)
    toml = HANGING.format(port=hung.sockets[0].getsockname()[1])
    most = {"worker": 0.0, "client": 0.0, "server": 0.0}
    with fleet(url, toml) as workers:
        worker = workers.start()
        async with client(url) as one:
            await serving(one, 1)
            user = await asyncio.create_subprocess_exec(
                *(sys.executable, __file__, "--as-client", url, "--jobs", str(jobs)),
                stdout=asyncio.subprocess.PIPE,
            )
            pids = {"worker": worker.pid, "client": user.pid, "server": server_pid}
            assert user.stdout is not None
            ready = asyncio.create_task(user.stdout.readline())
            end_at = float("inf")
            while time.monotonic() < end_at:
                if ready.done() and end_at == float("inf"):
                    end_at = time.monotonic() + seconds
                most = {name: max(most[name], resident_mb(pid)) for name, pid in pids.items()}
                await asyncio.sleep(0.1)
            waiting = (await read_status(one.queue)).waiting
        user.kill()
        await user.wait()
    hung.close()
    return {**most, "waiting": waiting}


async def _never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.CancelledError, OSError):
        while await reader.read(65_536):
            pass
    writer.close()


async def as_client(url: str, jobs: int) -> None:
    """Enqueue all, then follow streams without reading them."""
    async with client(url) as one:
        for start in range(0, jobs, 2000):
            requests = [
                PromptRequest(prompt=f"waiting {n}", model="hanging")
                for n in range(start, min(jobs, start + 2000))
            ]
            for outcome in await one.enqueue_many(requests):
                if isinstance(outcome, Exception):
                    raise SystemExit(f"enqueue failed: {outcome}")
        long = " ".join(["word"] * 200_000)
        streaming = await one.enqueue(long)
        host, port = url.removeprefix("redis://").split(":")
        deaf = socket.create_connection((host, int(port)))
        deaf.sendall(f"SUBSCRIBE {streaming.channel}\r\n".encode())
        events = streaming.events()
        await anext(events)  # and then it reads no more
        print("ready", flush=True)
        await asyncio.Event().wait()


# Urgency


async def urgency(url: str, reserved: int, samples: int) -> list[float]:
    """Milliseconds from the enqueue of each critical prompt until it is started."""
    queue = f"reserved{reserved}"
    times: list[float] = []
    with fleet(url, BUSY.format(reserved=reserved), queue) as workers:
        for _ in range(2):
            workers.start()
        async with client(url, queue) as one:
            await serving(one, 2)
            await one.enqueue_many([PromptRequest(prompt=f"bulk {n}", priority=1) for n in range(20_000)])
            await asyncio.sleep(LEASE_S)
            for n in range(samples):
                await asyncio.sleep(random.expovariate(20))
                began = time.perf_counter()
                job = await one.enqueue(f"now {n}", priority=9)
                async for event in job.events():
                    if isinstance(event, Started):
                        times.append((time.perf_counter() - began) * 1000)
                        break
            if (await read_status(one.queue)).waiting < 1000:
                raise SystemExit("the backlog ran dry; ask for fewer samples")
    return times


# Report


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and worst."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98], "worst": max(values)}


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One after the other, each on a server of its own."""
    figures: dict[str, Any] = {}
    if "recovery" in options.only:
        with EmbeddedServer() as server:
            times = await recovery(server.url, options.kills, options.pairs)
        figures["recovery_s"] = {**quantiles(times), "kills": len(times), "all": sorted(times)}
    if "urgency" in options.only:
        with EmbeddedServer() as server:
            for reserved in (0, 4):
                times = await urgency(server.url, reserved, options.samples)
                figures[f"urgent_ms_reserved_{reserved}"] = {**quantiles(times), "samples": len(times)}
    if "memory" in options.only:
        with EmbeddedServer() as server:
            async with client(server.url) as one:
                pid = int((await one.queue.redis.info("server"))["process_id"])
            figures["memory_mb"] = await memory(server.url, pid, options.jobs, options.seconds)
    return figures


def report(figures: dict[str, Any]) -> None:
    """Print what was measured."""
    if times := figures.get("recovery_s"):
        print(
            f"recovery after SIGKILL, {times['kills']} kills, lease {LEASE_S:g} s: "
            f"median {times['p50']:.1f} s, worst {times['worst']:.1f} s "
            f"(promise {2 * LEASE_S:g} s, stock arq {ARQ_DEFAULT_S:g} s)"
        )
    for reserved in (0, 4):
        if times := figures.get(f"urgent_ms_reserved_{reserved}"):
            print(
                f"critical prompt to started, {reserved} of 32 places reserved: p50 {times['p50']:.1f} ms, "
                f"p99 {times['p99']:.1f} ms, worst {times['worst']:.1f} ms (a call takes {CALL_MS:g} ms)"
            )
    if most := figures.get("memory_mb"):
        print(
            f"memory with {most['waiting']:,.0f} jobs waiting: worker process {most['worker']:.0f} MB, "
            f"client {most['client']:.0f} MB, server {most['server']:.0f} MB"
        )


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=["recovery", "urgency", "memory"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=4, help="pairs of worker processes, side by side")
    parser.add_argument("--samples", type=int, default=200, help="critical prompts")
    parser.add_argument("--jobs", type=int, default=200_000, help="jobs that wait")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to look at the memory")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--as-client", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_client:
        asyncio.run(as_client(options.as_client, options.jobs))
        return
    figures = asyncio.run(measure(options))
    report(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
