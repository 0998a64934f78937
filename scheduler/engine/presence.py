"""The parts of this process that others see: its report about itself, and its endpoints' breakers."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Sequence
from typing import Literal

from scheduler.engine.attempts import Attempts
from scheduler.engine.context import EngineContext, EngineService
from scheduler.engine.routes import Route
from scheduler.queue.worker_report import RouteReport, WorkerReport, encode_report
from scheduler.routing import BreakerState, Endpoint, report_of

AGAIN_S = 0.5
"""The least time between two reports because of breakers."""


class Presence(EngineService):
    """Reports this process to Redis with each renewal of leases, and soon after a breaker has changed.

    `last_report` is the report of the last renewal; `metrics_url` is where the process serves its metrics.
    """

    def __init__(self, context: EngineContext, attempts: Attempts) -> None:
        super().__init__("breakers", context)
        self._attempts = attempts
        self._started_at_ms = time.time_ns() // 1_000_000
        self._breakers: dict[str, BreakerState] = {}
        self._breaker_changed = asyncio.Event()
        self.last_report = b"{}"
        self.metrics_url = ""

    async def run(self) -> None:
        """Report changes of breakers."""
        while True:
            await self._breaker_changed.wait()
            self._breaker_changed.clear()
            await self._calls.until_done(lambda: self.renew(()))
            await asyncio.sleep(AGAIN_S)

    def endpoint_changed(self, endpoint: Endpoint) -> None:
        """Report soon if the endpoint's breaker has changed its state."""
        state = endpoint.breaker.state
        if state is not self._breakers.get(endpoint.name, BreakerState.CLOSED):
            self._breakers[endpoint.name] = state
            self._breaker_changed.set()

    async def renew(self, leases: Sequence[tuple[str, int]]) -> list[int | Literal["lost"] | None]:
        """Report to Redis and renew these leases; the replies are those of `PromptQueue.renew`."""
        self.last_report = encode_report(self._report())
        return await self._calls.timed(
            "renew",
            self._queue.renew(self._worker, leases, lease_ms=self._serving.lease_ms, about=self.last_report),
        )

    def _report(self) -> WorkerReport:
        serving = self._serving
        return WorkerReport(
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at_ms=self._started_at_ms,
            running=self._attempts.running,
            max_running=serving.settings.max_running,
            draining=serving.draining,
            metrics_url=self.metrics_url,
            routes={name: self._report_route(route) for name, route in serving.routes.items()},
        )

    def _report_route(self, route: Route) -> RouteReport:
        return RouteReport(
            running=route.running,
            stages={stage: gate.running for stage, gate in route.pipeline.gates.items()},
            endpoints=tuple(
                report_of(endpoint, permit_in_s=self._permits.wait_s(route.name, endpoint.name))
                for endpoint in route.endpoints
            ),
        )
