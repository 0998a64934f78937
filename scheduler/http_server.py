"""The little HTTP server of a worker process: `/metrics`, `/healthz`, `/readyz`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Iterator

import uvicorn
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from scheduler.engine import Engine
from scheduler.errors import ConfigError
from scheduler.telemetry.queue_metrics import QueueMetrics
from scheduler.telemetry.worker_metrics import WorkerMetrics

logger = logging.getLogger(__name__)

PORTS_TO_TRY = 64
"""So many worker processes on one host may be given the same port: each takes the next that is free."""

READ_S = 2.0
STOP_S = 1.0
REQUEST_S = 10.0
"""How long a client may take for a request and its answer; as long as Prometheus gives a scrape."""
IDLE_S = 5
MAX_CONNECTIONS = 64


class MetricsServer:
    """Serves the metrics of one engine. `start()` and `stop()` are safe to call twice.

    On `host`, at `port` or the next of 64 that is free; `port` 0: any that is free.
    """

    def __init__(self, engine: Engine, metrics: WorkerMetrics, *, host: str, port: int) -> None:
        self._engine = engine
        self._host, self._port = host, port
        self._queue_metrics = QueueMetrics(engine.queue)
        self._registry = CollectorRegistry()
        metrics.watch(engine)
        for collector in (metrics, self._queue_metrics):
            self._registry.register(collector)
        for made in (ProcessCollector, PlatformCollector, GCCollector):
            made(registry=self._registry)
        self._reading = asyncio.Lock()
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.url = ""

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: no port is free, or the host is not one of this machine's.
        """
        if self._server is not None:
            return
        listener = _listen(self._host, self._port)
        host, port = listener.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
        config = uvicorn.Config(
            self._app(),
            http=_Connection,
            ws="none",
            timeout_keep_alive=IDLE_S,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="metrics")
        self._engine.metrics_url = self.url
        logger.info("metrics are at %s", self.url)

    async def stop(self) -> None:
        """Stop listening; scrapes under way have a second."""
        server, task, self._task = self._server, self._task, None
        if server is None or task is None:
            return
        server.should_exit = True
        _, late = await asyncio.wait([task], timeout=STOP_S)
        for one in late:
            one.cancel()
            await asyncio.wait([one])

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/metrics", self._metrics),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
            ]
        )

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

    async def _healthz(self, request: Request) -> Response:
        """The event loop answers: that is all that a restart could mend."""
        return PlainTextResponse("ok\n")

    async def _readyz(self, request: Request) -> Response:
        """Whether this process takes jobs now."""
        why_not = self._engine.why_not_ready
        return JSONResponse({"ready": not why_not, "why": why_not}, status_code=503 if why_not else 200)


class _Connection(H11Protocol):
    """One of a few connections, and each request on it has its time: uvicorn waits for a head without end."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client is there."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._wait_for_a_request()

    def on_response_complete(self) -> None:
        """An answer is on its way; the next request may come."""
        self._wait_for_a_request()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _wait_for_a_request(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        # Not close(): that waits for a client that reads nothing.
        self._deadline = self.loop.call_later(REQUEST_S, self.transport.abort)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the worker process."""
        yield


def _listen(host: str, port: int) -> socket.socket:
    last = port + PORTS_TO_TRY if port else 1
    for at in range(port, min(last, 65_536)):
        try:
            return socket.create_server((host, at), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(
                    f"metrics_host, metrics_port: cannot listen on {host}:{at}: {error.strerror}"
                ) from None
    raise ConfigError(f"metrics_port: all ports from {port} to {last - 1} on {host} are taken; give another")
