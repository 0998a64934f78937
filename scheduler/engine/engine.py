"""The engine of a worker process: wires together the services that claim, run, renew and maintain.

It knows nothing of arq: `scheduler.host` runs it under arq; `dev` and `scheduler.testing` run it alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

from redis.asyncio import Redis
from redis.exceptions import RedisError

from scheduler.engine.attempts import Attempts
from scheduler.engine.calls import ScriptCalls
from scheduler.engine.claim_signal import ClaimSignal
from scheduler.engine.claimer import Claimer
from scheduler.engine.context import EngineContext
from scheduler.engine.control import Control
from scheduler.engine.keeper import LeaseKeeper
from scheduler.engine.leases import Deadlines, Leases
from scheduler.engine.maintenance import MaintenanceLoop
from scheduler.engine.patience import Outage, Patience
from scheduler.engine.permits import Permits
from scheduler.engine.presence import Presence
from scheduler.engine.published_settings import PublishedSettings
from scheduler.engine.routes import Route, rebuild_routes
from scheduler.engine.service import Service, end
from scheduler.engine.serving import Serving, first_health
from scheduler.engine.shares import Division, Shares
from scheduler.errors import SchedulerError
from scheduler.logs import identify
from scheduler.observations import Observer, Observers
from scheduler.queue.queue import PromptQueue
from scheduler.results.subscriptions import Subscriptions
from scheduler.routing import Endpoint
from scheduler.settings import Settings

logger = logging.getLogger(__name__)

BURST_POLL_S = 0.05

SAY_GOODBYE_S = 2.0
"""How long stopping may take to leave the list of processes, if Redis is away."""


def worker_id(settings: Settings) -> str:
    """A unique name for this process: the configured name or the host's, and some random digits."""
    name = settings.worker_name or socket.gethostname()
    return f"{name}:{os.getpid()}:{uuid.uuid4().hex[:6]}"


class Engine:
    """Moves prompts from the queue through the stages. `start()` and `stop()` are safe to call twice.

    An engine runs once: to go on after `stop()`, make another.
    `script_flags` is false for a Redis that does not know `#!lua` (fakeredis). `observers` are as
    `scheduler.observations` says. `name` tells the engine from all others; without one it makes one. Pass
    `outage` if other parts of the process wait for Redis, too. `connect` makes another client of the same
    Redis: with it, leases are kept while the event loop is blocked.
    """

    def __init__(
        self,
        settings: Settings,
        redis: Redis,
        *,
        script_flags: bool = True,
        observers: Iterable[Observer] = (),
        name: str | None = None,
        outage: Outage | None = None,
        connect: Callable[[], Redis] | None = None,
    ) -> None:
        self.id = name or worker_id(settings)
        self.queue = PromptQueue(redis, settings.queue, script_flags=script_flags)
        self.serving = Serving(settings)
        signal, observing = ClaimSignal(), Observers.of(observers)
        self._context = context = EngineContext(
            worker=self.id,
            queue=self.queue,
            calls=ScriptCalls(Patience(redis, outage), observing),
            serving=self.serving,
            permits=Permits(on_due=signal.look_again),
            signal=signal,
            observers=observing,
        )
        self._subscriptions = Subscriptions(redis)
        self._shares = Shares(self.queue, self.id, lease_ms=self.serving.lease_ms)
        self.attempts = Attempts(context)
        self.claimer = Claimer(context, self.attempts)
        self._presence = Presence(context, self.attempts)
        leases = Leases(context, self.attempts, self._presence)
        self._keeper: LeaseKeeper | None = None
        if connect is not None:
            self._keeper = LeaseKeeper(partial(leases.renew_by, connect), lease_s=settings.lease_s)
        self.published = PublishedSettings(context)
        self._maintenance = MaintenanceLoop(context, on_data_lost=self.published.check_soon)
        self._services: Sequence[Service] = (
            leases,
            Division(context, self._shares),
            self.published,
            Deadlines(context, self.attempts.overdue, leases),
            self._presence,
            self._maintenance,
            Control(
                self._subscriptions,
                self.queue.control_channel,
                on_cancel=self.attempts.lost,
                on_forgive=self._forgive,
            ),
        )
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    @property
    def settings(self) -> Settings:
        """The settings in use; a reload changes them."""
        return self.serving.settings

    @property
    def routes(self) -> dict[str, Route]:
        """The routes in use, by name; a reload changes them."""
        return self.serving.routes

    @property
    def endpoints(self) -> list[Endpoint]:
        """The endpoints of all routes."""
        return self.serving.endpoints

    @property
    def running(self) -> int:
        """How many jobs are in flight in this process."""
        return self.attempts.running

    @property
    def leads(self) -> bool:
        """Whether this process does the queue's maintenance."""
        return self._maintenance.leads

    @property
    def draining(self) -> bool:
        """Whether it finishes its jobs and claims no more."""
        return self.serving.draining

    @property
    def redis_is_away(self) -> bool:
        """Whether Redis does not answer, or takes no writes."""
        return self._context.calls.outage.is_away

    @property
    def pending_write_bytes(self) -> int:
        """Text of answers that waits to be written."""
        return self.attempts.writer.pending_bytes

    @property
    def metrics_url(self) -> str:
        """Where this process serves its metrics; "" if it does not."""
        return self._presence.metrics_url

    @metrics_url.setter
    def metrics_url(self, url: str) -> None:
        self._presence.metrics_url = url

    @property
    def why_not_ready(self) -> str:
        """Why it takes no jobs now; "" when it does."""
        if self.draining:
            return "it is stopping"
        if not self.claimer.has_started:
            return "it is starting"
        return "Redis is away" if self.redis_is_away else ""

    async def start(self) -> None:
        """Publish the settings and begin to claim. Waits while Redis is away, or takes no writes.

        Raises:
            ConfigError: a stage cannot start.
            SchedulerError: this engine has been stopped before.
            redis.exceptions.RedisError: Redis refuses for good, because a right is missing, say.
        """
        if self._stopping is not None:
            raise SchedulerError("this engine has been stopped and does not start again: make another")
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name="start")
        try:
            await asyncio.shield(self._starting)
        except BaseException:
            await self.stop(drain_s=0)
            raise

    async def _start(self) -> None:
        identify(queue=self.settings.queue, worker=self.id)
        await self.serving.start(self._endpoint_changed, self._context.observers)
        await self._context.calls.until_done(self._enter)
        await self.attempts.writer.start()
        if self._keeper is not None:
            self._keeper.start()
        await first_health(self.routes.values())
        for service in (*self._services, self.claimer):
            await service.start()
        logger.info("worker %s serves %s from queue %r", self.id, ", ".join(self.routes), self.settings.queue)

    async def _enter(self) -> None:
        """Load the scripts, and publish what this process serves."""
        await self.queue.load()
        await self._announce()

    async def _announce(self) -> None:
        await self.published.publish()
        await self._presence.renew(())
        await self._shares.update(self.endpoints)

    def _endpoint_changed(self, endpoint: Endpoint) -> None:
        self._context.signal.look_again()
        self._presence.endpoint_changed(endpoint)

    def _forgive(self, subject: str) -> None:
        """An administrator has reset the limit of `e:<endpoint>` or of a tenant."""
        self._context.permits.clear()
        for endpoint in self.endpoints:
            if subject == f"e:{endpoint.name}":
                endpoint.end_pause()
        self._context.signal.look_again()

    async def stop(self, *, drain_s: float | None = None) -> None:
        """Stop claiming, finish what runs within `drain_s` (default: the setting), give back the rest.

        A second call waits for the first.
        """
        if self._stopping is None:
            limit_s = self.settings.drain_s if drain_s is None else drain_s
            self._stopping = asyncio.create_task(self._stop(limit_s), name="stop")
        await asyncio.shield(self._stopping)

    async def _stop(self, drain_s: float) -> None:
        identify(queue=self.settings.queue, worker=self.id)
        if self._starting is not None and not self._starting.done():
            await end(self._starting)
        self.serving.draining = True
        was_claiming = self.claimer.has_started
        await self.claimer.stop()
        await self.attempts.drain(drain_s)
        if self._keeper is not None:
            await self._keeper.stop()
        await self.attempts.writer.stop()
        self.attempts.abandon()
        await asyncio.gather(*(service.stop() for service in self._services))
        await self._subscriptions.aclose()
        await self.serving.stop()
        if was_claiming:
            await self._say_goodbye()
            logger.info("worker %s has stopped", self.id)

    async def _say_goodbye(self) -> None:
        """Pass on wake tokens that the last wait may have taken, and leave the list of processes."""
        with suppress(RedisError, OSError):
            async with asyncio.timeout(SAY_GOODBYE_S):
                await self.claimer.pass_on()
                await self._shares.give_up(self.endpoints)
                await self.queue.forget_worker(self.id)

    async def run_until_drained(self) -> None:
        """Return once no job waits, is delayed, or runs in this process, as `arq --burst` does."""
        while not self.draining:
            left = await self._context.calls.until_done(lambda: self.queue.unfinished(list(self.routes)))
            # A job leaves the count when it is claimed: it is here then, or on its way.
            if not left and not self.attempts and not self.claimer.under_way.locked():
                return
            await asyncio.sleep(BURST_POLL_S)

    async def reload(self, settings: Settings) -> None:
        """Change the settings of queue and routes; the process' own stay as they are.

        An unchanged route keeps its endpoints and what is known of them. One that was changed or removed
        finishes the jobs that it has.

        Raises:
            ConfigError: a route cannot be made or started; nothing has changed.
        """
        settings = self.serving.keep_fixed(settings)
        routes = rebuild_routes(settings, self.routes)
        fresh = [route for name, route in routes.items() if route is not self.routes.get(name)]
        await self._start_fresh(fresh)
        async with self.claimer.under_way:
            old = self.serving.replace(settings, routes)
            self._context.permits.clear()
            self.attempts.writer.result_ttl_ms = round(settings.result_ttl_s * 1000)
        self.serving.retire(old)
        gone = [route.name for route in old if route.name not in routes]
        await self._context.calls.until_done(self._announce)
        if gone:
            await self._context.calls.until_done(lambda: self.published.withdraw(gone))
        self._context.signal.look_again()

    async def _start_fresh(self, routes: Sequence[Route]) -> None:
        try:
            for route in routes:
                await route.start(self._endpoint_changed, self._context.observers)
        except BaseException:
            for route in routes:
                await route.stop()
            raise
        await first_health(routes)
