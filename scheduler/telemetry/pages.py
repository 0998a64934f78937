"""The pages of a worker process: `/metrics`, `/healthz`, `/readyz`."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from scheduler.engine import Engine
from scheduler.telemetry.queue_metrics import QueueMetrics
from scheduler.telemetry.worker_metrics import WorkerMetrics

READ_S = 2.0


class MetricsPage:
    """`/metrics`: what an engine's process has counted and, if it leads, how the queue stands."""

    def __init__(self, engine: Engine, metrics: WorkerMetrics) -> None:
        self._engine = engine
        self._queue_metrics = QueueMetrics(engine.queue)
        self._registry = CollectorRegistry()
        metrics.watch(engine)
        for collector in (metrics, self._queue_metrics):
            self._registry.register(collector)
        for made in (ProcessCollector, PlatformCollector, GCCollector):
            made(registry=self._registry)
        self._reading = asyncio.Lock()

    @property
    def routes(self) -> list[Route]:
        """For the server."""
        return [Route("/metrics", self._metrics)]

    async def _metrics(self, request: Request) -> Response:
        async with self._reading:  # one scrape at a time: they share what was read
            await self._read_queue()
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
            return Response(encode(self._registry), media_type=None, headers={"Content-Type": content_type})

    async def _read_queue(self) -> None:
        if not self._engine.leads:
            self._queue_metrics.forget()
            return
        try:
            async with asyncio.timeout(READ_S):
                await self._queue_metrics.read()
        except (RedisError, OSError, TimeoutError):
            self._queue_metrics.forget()  # redis_up says it, and the engine has logged it


class HealthPages:
    """`/healthz` and `/readyz`, for what starts and restarts processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def routes(self) -> list[Route]:
        """For the server."""
        return [Route("/healthz", self._healthz), Route("/readyz", self._readyz)]

    async def _healthz(self, request: Request) -> Response:
        """The event loop answers: nothing else could be mended by a restart."""
        return PlainTextResponse("ok\n")

    async def _readyz(self, request: Request) -> Response:
        """Whether this process takes jobs now."""
        why_not = self._engine.why_not_ready
        return JSONResponse({"ready": not why_not, "why": why_not}, status_code=503 if why_not else 200)
