"""The settings of the queue and its routes, as this process publishes them to Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from contextlib import suppress

from scheduler.engine.context import EngineContext, EngineService
from scheduler.engine.queue_settings import disagreements, limit_disagreements
from scheduler.engine.routes import describe_routes
from scheduler.queue.inspection.workers import read_workers
from scheduler.queue.stored_settings import queue_settings

logger = logging.getLogger(__name__)


class PublishedSettings(EngineService):
    """Publishes the settings; checks once a lease, and when asked, that Redis still has them."""

    def __init__(self, context: EngineContext) -> None:
        super().__init__("settings", context)
        self._logged = ""  # the disagreements that the log has
        self._asked = asyncio.Event()

    async def run(self) -> None:
        """Check once a lease, and when asked."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._serving.settings.lease_s)
            self._asked.clear()
            await self._calls.until_done(self.mend)

    def check_soon(self) -> None:
        """Check at once: Redis has lost data."""
        self._asked.set()

    async def publish(self) -> None:
        """Publish the settings, for clients, administrators and scripts."""
        serving = self._serving
        await self._queue.configure(
            conf=queue_settings(serving.settings),
            routes=describe_routes(serving.routes, max_result_ttl_s=serving.settings.max_result_ttl_s),
            limits=serving.limits,
        )

    async def mend(self) -> None:
        """Publish again what Redis has lost, with its data perhaps; log where other processes disagree."""
        serving = self._serving
        own, published = queue_settings(serving.settings), await self._queue.settings()
        own_limits, limits = serving.limits.fields(), await self._queue.limits()
        routes = await self._queue.routes()
        lost = not own.keys() <= published.keys() or bool(published.get("limits") and not limits)
        if lost or not serving.routes.keys() <= routes.keys():
            await self.publish()
            return
        self._log("; ".join([*disagreements(own, published), *limit_disagreements(own_limits, limits)]))

    def _log(self, differences: str) -> None:
        if differences and differences != self._logged:
            logger.warning(
                "another worker process has published other settings of this queue, and they hold for all: "
                "%s. Give all processes the same settings",
                differences,
            )
        self._logged = differences

    async def withdraw(self, gone: Collection[str]) -> None:
        """Unpublish routes that this process no longer serves, unless another does."""
        if not gone:
            return
        served = {name for worker in await read_workers(self._queue) for name in worker.routes}
        await self._queue.forget_routes([name for name in gone if name not in served])
