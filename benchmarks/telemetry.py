"""What it costs to be looked on: the drain without extras, and with metrics that are scraped each second.

That is far more often than Prometheus does.
"""

from __future__ import annotations

import asyncio
from functools import partial

import httpx

from benchmarks.drain import drain_ours
from benchmarks.harness import OURS, Bench, Figures

MEASURE = "telemetry, drain"
METRICS_PORT = 19_464
SCRAPE_EVERY_S = 1.0


async def measure(bench: Bench) -> None:
    """Drain with one process, looked on in one way after the other."""
    await bench.alternate(
        MEASURE,
        {
            OURS: partial(drain_ours, bench, 1),
            "with metrics": partial(drain_with_metrics, bench),
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
    async with httpx.AsyncClient() as client:
        while True:
            await asyncio.sleep(SCRAPE_EVERY_S)
            try:
                await client.get(f"http://127.0.0.1:{METRICS_PORT}/metrics")
            except httpx.TransportError:
                continue  # it is only starting
