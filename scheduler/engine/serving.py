"""The settings that a worker process serves now, and the routes made from them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

from scheduler.engine.limits import limits_of
from scheduler.engine.retry import RetryPolicy, bounds_of
from scheduler.engine.routes import Route, build_routes
from scheduler.engine.service import end
from scheduler.observations import Observers
from scheduler.routing import Endpoint
from scheduler.settings import Settings

logger = logging.getLogger(__name__)

FIRST_HEALTH_S = 1.0
"""How long to wait for the first health reports; a back end that is silent for longer may get jobs."""

RETIRE_POLL_S = 0.2

FIXED = (
    "redis_url",
    "data_dir",
    "queue",
    "worker_name",
    "log_format",
    "lease_s",
    "redis_wait_s",
    "redis_timeout_s",
    "metrics_port",
    "metrics_host",
    "traces",
    "traces_per_s",
)
"""Settings that a process keeps for its life."""


class Serving:
    """The settings and routes in use. A reload replaces them in place; old routes retire when they are idle.

    `draining`: the process finishes its jobs and claims no more.
    """

    def __init__(self, settings: Settings) -> None:
        self.draining = False
        self._retiring: dict[asyncio.Task[None], Route] = {}
        self._take(settings, build_routes(settings))

    def _take(self, settings: Settings, routes: dict[str, Route]) -> None:
        self.settings = settings
        self.routes = routes
        self.limits = limits_of(settings)
        self.retry_policy = RetryPolicy(settings.retry_base_s, settings.retry_cap_s)
        self.bounds = bounds_of(settings)

    @property
    def endpoints(self) -> list[Endpoint]:
        """The endpoints of all routes."""
        return [endpoint for route in self.routes.values() for endpoint in route.endpoints]

    @property
    def lease_ms(self) -> int:
        """The lease of a claim."""
        return round(self.settings.lease_s * 1000)

    async def start(self, on_change: Callable[[Endpoint], None], observers: Observers) -> None:
        """Start all routes.

        Raises:
            ConfigError: a stage cannot start.
        """
        for route in self.routes.values():
            await route.start(on_change, observers)

    async def stop(self) -> None:
        """Close all routes, those that retire too. Safe to call twice."""
        retiring = dict(self._retiring)
        await end(*retiring)
        for route in (*self.routes.values(), *retiring.values()):
            await route.stop()

    def keep_fixed(self, settings: Settings) -> Settings:
        """The new settings, with those that need a restart as they are."""
        fixed = [name for name in FIXED if getattr(settings, name) != getattr(self.settings, name)]
        if not fixed:
            return settings
        logger.warning("%s: restart the process to change this; the rest is reloaded", ", ".join(fixed))
        return settings.model_copy(update={name: getattr(self.settings, name) for name in fixed})

    def replace(self, settings: Settings, routes: dict[str, Route]) -> list[Route]:
        """Serve these from now on. Returns the routes that were changed or removed: `retire` them."""
        old = [route for name, route in self.routes.items() if route is not routes.get(name)]
        self._take(settings, routes)
        for route in routes.values():
            route.fall_back_on(routes)
        return old

    def retire(self, routes: Iterable[Route]) -> None:
        """Close each of these routes once it has no work left."""
        for route in routes:
            task = asyncio.create_task(self._retire(route), name=f"retire {route.name}")
            self._retiring[task] = route
            task.add_done_callback(self._retiring.pop)

    async def _retire(self, route: Route) -> None:
        while self.is_needed(route):  # noqa: ASYNC110  it is rare, and may take minutes
            await asyncio.sleep(RETIRE_POLL_S)
        await route.stop()

    def is_needed(self, route: Route) -> bool:
        """Whether it has work, or a job of a route that falls back on it may still come."""
        others = (*self.routes.values(), *self._retiring.values())
        return route.busy or any(other.running and route in other.fallbacks for other in others)


async def first_health(routes: Iterable[Route]) -> None:
    """Wait a moment for the first health reports: a back end that is not ready should get no jobs at all."""
    with suppress(TimeoutError):
        async with asyncio.timeout(FIRST_HEALTH_S):
            for route in routes:
                await route.asked()
