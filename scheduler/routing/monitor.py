"""Polls a back end and reports to its endpoint."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from scheduler.batching import within
from scheduler.logs import traced
from scheduler.routing.breaker import BreakerState
from scheduler.routing.check import ASK_S, ask_health, try_prompt
from scheduler.routing.endpoint import Endpoint

logger = logging.getLogger(__name__)

CAPACITY_S = 30.0
UNTIL_KNOWN_S = 2.0
LOAD_S = 1.0
AGAIN_S = 30.0

CROWDED_SHARE = 0.1
"""An engine is crowded if it queues more than this fraction of what it runs: a step leaves less behind."""


class EndpointMonitor:
    """Keeps an endpoint's breaker, limit and capacity in line with its back end.

    While the breaker is open it polls the back end's health; before the breaker opens or closes it sends a
    known good prompt. While prompts are in flight it polls the length of the engine's own queue. If the
    settings give no capacity, it asks for that too. `start()` and `stop()` are safe to call twice.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.asked = asyncio.Event()  # the back end's health was checked once
        self._tasks: list[asyncio.Task[None]] = []
        self._warnings: tuple[str, ...] = ()

    async def start(self) -> None:
        """Start polling."""
        if self._tasks:
            return
        name = self._endpoint.name
        services = {"health": self._watch_health, "load": self._watch_load}
        if self._endpoint.settings.max_in_flight is None:
            services["capacity"] = self._learn_capacity
        self._tasks = [
            asyncio.create_task(self._for_ever(service), name=f"{what} of {name}")
            for what, service in services.items()
        ]

    async def stop(self) -> None:
        """Stop polling."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _for_ever(self, service: Callable[[], Awaitable[None]]) -> None:
        """Keep polling although a third-party adapter may raise what it must not."""
        while True:
            try:
                await service()
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                logger.error("endpoint %s: its model worker cancelled who asked it", self._endpoint.name)
            except Exception as error:
                cause = traced(error, logger)
                logger.error(
                    "endpoint %s cannot be watched; trying again", self._endpoint.name, exc_info=cause
                )
            await asyncio.sleep(AGAIN_S)

    async def _watch_health(self) -> None:
        endpoint, breaker = self._endpoint, self._endpoint.breaker
        if not await self._ready():
            breaker.trip()
        self.asked.set()
        while True:
            await endpoint.in_doubt.wait()
            endpoint.in_doubt.clear()
            if breaker.suspected:
                endpoint.checked(well=await self._well())
            while breaker.state is not BreakerState.CLOSED:
                await asyncio.sleep(endpoint.usable_in_s)
                breaker.probed(ready=await self._ready())
                if breaker.state is BreakerState.HALF_OPEN:
                    endpoint.checked(well=await self._answers())

    async def _well(self) -> bool:
        return await self._ready() and await self._answers()

    async def _ready(self) -> bool:
        health = await ask_health(self._endpoint)
        if not health.ready:
            self._endpoint.failed(health.detail)
        elif health.warnings != self._warnings:
            self._warnings = health.warnings
            for warning in health.warnings:
                logger.warning("endpoint %s: %s", self._endpoint.name, warning)
        return health.ready

    async def _answers(self) -> bool:
        error = await try_prompt(self._endpoint)
        if error is not None:
            self._endpoint.failed(str(error), log_text=error.log_text or error.code)
        return error is None

    async def _watch_load(self) -> None:
        endpoint = self._endpoint
        crowded = 0
        while True:
            await asyncio.sleep(LOAD_S * (0.5 + random.random()))
            load = await within(ASK_S, endpoint.worker.load()) if endpoint.window.in_flight else None
            # A queue seen twice in a row is no momentary one.
            crowded = crowded + 1 if load and load.waiting > CROWDED_SHARE * load.running else 0
            if crowded >= 2:
                endpoint.crowded()

    async def _learn_capacity(self) -> None:
        endpoint = self._endpoint
        while True:
            capacity = await within(ASK_S, endpoint.worker.capacity())
            if capacity:
                endpoint.holds(capacity)
            await asyncio.sleep(CAPACITY_S if endpoint.max_in_flight else UNTIL_KNOWN_S)
