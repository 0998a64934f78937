"""What it costs to be looked on: the drain without extras, with metrics, and with traces.

Metrics are scraped each second, far more often than Prometheus does. Of the traces one in ten is sampled, by
who enqueued, and sent by OTLP to a process that throws them away; the exporter has its own defaults. A worker
process traces 50 jobs a second at most; without that bound it makes thousands of spans a second here.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence
from functools import partial

import httpx
import orjson

from benchmarks.drain import drain_jobs, drain_ours
from benchmarks.harness import OURS, Bench, Figures, processes
from scheduler import PromptRequest
from scheduler.client.routes import KnownRoute
from scheduler.client.submission import new_job
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import NewJob

MEASURE = "telemetry, drain"
METRICS_PORT = 19_464
OTLP_PORT = 14_318
SCRAPE_EVERY_S = 1.0
SAMPLED = 0.1
CHUNK = 128


async def measure(bench: Bench) -> None:
    """Drain with one process, looked on in one way after the other."""
    await bench.alternate(
        MEASURE,
        {
            OURS: partial(drain_ours, bench, 1),
            "with metrics": partial(drain_with_metrics, bench),
            "with traces": partial(drain_with_traces, bench),
            "with traces, all of the sampled": partial(
                drain_with_traces, bench, SCHEDULER_TRACES_PER_S="1e9"
            ),
        },
    )


async def drain_with_metrics(bench: Bench) -> Figures:
    """Drain while somebody scrapes."""
    scraper = asyncio.create_task(_scrape())
    try:
        return await drain_ours(bench, 1, SCHEDULER_METRICS_PORT=str(METRICS_PORT))
    finally:
        scraper.cancel()


async def _scrape() -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            await asyncio.sleep(SCRAPE_EVERY_S)
            try:
                await client.get(f"http://127.0.0.1:{METRICS_PORT}/metrics")
            except httpx.TransportError:
                continue  # it is only starting


async def drain_with_traces(bench: Bench, **environ: str) -> Figures:
    """Drain jobs that bring traces along."""
    prompts = bench.size(30_000, 6_000)
    async with bench.client() as client:
        await _enqueue(client.queue, [_traced(n) for n in range(prompts)])
    sink = [sys.executable, "-m", "benchmarks.otlp_sink", str(OTLP_PORT)]
    with processes(sink, environ={}):
        endpoint = f"http://127.0.0.1:{OTLP_PORT}"
        traced = {"SCHEDULER_TRACES": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        return await drain_jobs(bench, 1, prompts, **traced, **environ)


async def _enqueue(queue: PromptQueue, jobs: Sequence[NewJob]) -> None:
    for at in range(0, len(jobs), CHUNK):
        await queue.enqueue(jobs[at : at + CHUNK])


def _traced(n: int) -> NewJob:
    """The job of a prompt whose caller has a trace; its client is instrumented in the usual way."""
    flag = "01" if random.random() < SAMPLED else "00"
    traceparent = f"00-{random.getrandbits(128):032x}-{random.getrandbits(64):016x}-{flag}"
    request = PromptRequest(prompt=f"prompt number {n}", model="echo")
    trace = orjson.dumps({"traceparent": traceparent})
    return new_job(request, KnownRoute("echo", "", uses_metadata=False), trace=trace)
