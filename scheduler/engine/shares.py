"""This process's share of what each endpoint may hold, over all the processes that use it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from scheduler.engine.context import EngineContext, EngineService
from scheduler.queue.queue import PromptQueue
from scheduler.routing import Endpoint

HELD_FOR_LEASES = 1.5
"""A process that has not been heard of for so long has lost its share."""

KNOWN_IN_LEASES = 0.3
"""After so long every process has asked again: each does so three times a lease."""


class _View(NamedTuple):
    """How many processes there are and which of them this is; since when, on the clock, it has been so."""

    division: tuple[int, int]
    since: float


class Shares:
    """Divides endpoints among the worker processes that use them.

    A share that shrinks does so at once. One that grows does so when the division has been the same for so
    long that every other process has heard of it: together they do not exceed the limit. A newcomer among
    others begins with nothing, unless nobody has said what the limit is.
    """

    def __init__(
        self,
        queue: PromptQueue,
        worker: str,
        *,
        lease_ms: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._worker = worker
        self._holds_ms = round(lease_ms * HELD_FOR_LEASES)
        self._known_in_s = lease_ms / 1000 * KNOWN_IN_LEASES
        self._clock = clock
        self._seen: dict[str, _View] = {}

    async def update(self, endpoints: Sequence[Endpoint]) -> None:
        """Tell the others of these endpoints, and divide them; to be called some three times a lease."""
        shared = [endpoint for endpoint in endpoints if endpoint.shared]
        names = [endpoint.name for endpoint in shared]
        divisions = await self._queue.share_endpoints(self._worker, names, holds_ms=self._holds_ms)
        seen, self._seen = self._seen, {}
        for endpoint, division in zip(shared, divisions, strict=True):
            self._divide(endpoint, division, seen.get(endpoint.name))

    async def give_up(self, endpoints: Sequence[Endpoint]) -> None:
        """Leave these endpoints to the others."""
        names = [endpoint.name for endpoint in endpoints if endpoint.shared]
        await self._queue.share_endpoints(self._worker, names, holds_ms=0)

    def _divide(self, endpoint: Endpoint, division: tuple[int, int], before: _View | None) -> None:
        now = self._clock()
        view = before if before is not None and before.division == division else _View(division, now)
        self._seen[endpoint.name] = view
        processes, index = division
        settled = processes == 1 or now - view.since >= self._known_in_s
        unlimited = before is None and endpoint.max_in_flight is None
        if settled or unlimited or endpoint.share_among(processes, index) <= endpoint.share:
            endpoint.divide(processes, index)


class Division(EngineService):
    """Keeps the shares up to date, three times a lease."""

    def __init__(self, context: EngineContext, shares: Shares) -> None:
        super().__init__("shares", context)
        self._shares = shares

    async def run(self) -> None:
        """Divide for ever."""
        while True:
            await asyncio.sleep(self._serving.settings.lease_s / 3)
            if any(endpoint.shared for endpoint in self._serving.endpoints):
                await self._calls.until_done(self._divide)

    async def _divide(self) -> None:
        """A process that drains leaves to others the endpoints it no longer needs."""
        serving = self._serving
        if not serving.draining:
            await self._shares.update(serving.endpoints)
            return
        needed: list[Endpoint] = []
        idle: list[Endpoint] = []
        for route in serving.routes.values():
            (needed if serving.is_needed(route) else idle).extend(route.endpoints)
        await self._shares.give_up(idle)
        await self._shares.update(needed)
