"""The engine of a worker process: claims what it can run, runs it, keeps its leases, does the maintenance.

It knows nothing of arq: `scheduler.worker` hosts it under arq, `dev` and `scheduler.testing` run it as it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from scheduler.engine.attempt import Attempt, Stop, run_attempt
from scheduler.engine.patience import Patience
from scheduler.engine.retry import RetryPolicy
from scheduler.engine.routes import Route, build_routes, describe_routes, learn_capacity
from scheduler.queue.queue import CLAIM_CHUNK, PromptQueue
from scheduler.queue.records import Claim, ClaimedJob
from scheduler.results.subscriptions import Subscriptions
from scheduler.results.writer import EventWriter
from scheduler.settings import Settings

logger = logging.getLogger(__name__)

BLOCK_S = 5.0  # a cancelled BLPOP can swallow a wake token, so it ends by itself soon enough
WRITE_OUT_S = 5.0
BURST_POLL_S = 0.05


def worker_id(settings: Settings) -> str:
    """A name for this process that no other has: the configured name or the host's, and some chance."""
    name = settings.worker_name or socket.gethostname()
    return f"{name}:{os.getpid()}:{uuid.uuid4().hex[:6]}"


class Engine:
    """Moves prompts from the queue through the stages. `start()` and `stop()` are safe to call twice.

    `script_flags` is false for a Redis that does not know `#!lua` (fakeredis).
    """

    def __init__(self, settings: Settings, redis: Redis, *, script_flags: bool = True) -> None:
        self.settings = settings
        self.id = worker_id(settings)
        self.queue = PromptQueue(redis, settings.queue, script_flags=script_flags)
        self.routes: dict[str, Route] = build_routes(settings)
        self._attempts: dict[int, Attempt] = {}  # by token, until the end is written
        self._running = 0
        self._patience = Patience()
        self._policy = RetryPolicy(settings.retry_base_s, settings.retry_cap_s)
        self._writer = EventWriter(
            self.queue,
            on_refused=self._refused,
            on_ended=self._ended,
            result_ttl_ms=round(settings.result_ttl_s * 1000),
        )
        self._subscriptions = Subscriptions(redis)
        self._room = asyncio.Event()
        self._draining = asyncio.Event()
        self._claimer: asyncio.Task[None] | None = None
        self._services: list[asyncio.Task[None]] = []
        self._waker: asyncio.Task[None] | None = None
        self._started_at_ms = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """How many jobs are in flight in this process."""
        return self._running

    @property
    def lease_ms(self) -> int:
        """The lease of a claim."""
        return round(self.settings.lease_s * 1000)

    async def start(self) -> None:
        """Publish the settings, and begin to claim.

        Raises:
            ConfigError: a stage cannot start.
            redis.exceptions.RedisError: Redis cannot be reached.
        """
        if self._claimer is not None:
            return
        self._started_at_ms = time.time_ns() // 1_000_000
        for route in self.routes.values():
            await route.pipeline.start()
        await self.queue.load()
        await self.queue.configure(conf=self._conf(), routes=describe_routes(self.routes))
        await self._renew_once()
        await self._writer.start()
        self._serve("leases", self._keep_leases)
        self._serve("tick", self._maintain)
        self._serve("control", self._listen)
        for route in self.routes.values():
            for endpoint in route.endpoints:
                if endpoint.settings.max_in_flight is None:
                    self._serve(
                        f"capacity of {endpoint.name}", partial(learn_capacity, endpoint, self._room.set)
                    )
        self._claimer = asyncio.create_task(self._claim_forever(), name="claim")
        logger.info("worker %s serves %s from queue %r", self.id, ", ".join(self.routes), self.settings.queue)

    async def stop(self, *, drain_s: float | None = None) -> None:
        """Stop claiming, finish what runs within `drain_s` (default: the setting), give back the rest."""
        claimer, self._claimer = self._claimer, None
        if claimer is None:
            return
        self._draining.set()
        await asyncio.wait([claimer])
        if not claimer.cancelled() and (error := claimer.exception()):
            logger.error("claiming had stopped", exc_info=error)
        await self._drain(self.settings.drain_s if drain_s is None else drain_s)
        await self._writer.stop()
        for service in self._services:
            service.cancel()
        await asyncio.gather(*self._services, return_exceptions=True)
        self._services.clear()
        await self._subscriptions.aclose()
        await self._close_routes()
        with suppress(RedisError, OSError):
            await self.queue.forget_worker(self.id)
        logger.info("worker %s has stopped", self.id)

    async def run_until_drained(self) -> None:
        """Return once no job waits, is delayed, or runs in this process: what `arq --burst` wants."""
        while self._claimer is not None and not self._claimer.done():
            await self._idle.wait()
            left = await self._patience.until_done(lambda: self.queue.unfinished(list(self.routes)))
            if not left and not self._attempts:
                return
            await asyncio.sleep(BURST_POLL_S)

    async def _drain(self, limit_s: float) -> None:
        tasks = [attempt.task for attempt in self._attempts.values() if attempt.task]
        if not tasks:
            return
        logger.info("draining: %d job(s) in flight have %g s to finish", len(tasks), limit_s)
        _, late = await asyncio.wait(tasks, timeout=limit_s)
        if late:
            logger.warning("giving back %d job(s) that did not finish within %g s", len(late), limit_s)
            for attempt in list(self._attempts.values()):
                attempt.end_early(Stop.DRAIN)
            await asyncio.wait(late)

    async def _close_routes(self) -> None:
        for route in self.routes.values():
            await route.pipeline.stop()
            for endpoint in route.endpoints:
                await endpoint.batcher.aclose()
                await endpoint.worker.aclose()

    def _serve(self, name: str, service: Callable[[], Awaitable[None]]) -> None:
        self._services.append(asyncio.create_task(self._supervise(name, service), name=name))

    async def _supervise(self, name: str, service: Callable[[], Awaitable[None]]) -> None:
        """A service of the process may fail for a reason nobody thought of; it must not stay away."""
        while True:
            try:
                await service()
            except Exception:
                logger.exception("service %r failed; it starts again", name)
                await asyncio.sleep(1.0)

    # Claiming

    async def _claim_forever(self) -> None:
        number = 0
        while not self._draining.is_set():
            self._room.clear()
            limit = min(self.settings.max_running - self._running, CLAIM_CHUNK)
            if limit < 1 or not any(route.free for route in self.routes.values()):
                await self._wait_for(self._room)
                continue
            number += 1
            claim = await self._claim(f"{self.id}:{number}", limit)
            for job in claim.jobs:
                self._begin(job)
            if not claim.jobs:
                await self._wait_for_work()
        await self._stop_waker()

    async def _claim(self, claim_id: str, limit: int) -> Claim:
        # Lanes without room are named too: the script passes their wake tokens on.
        lanes = {name: route.free for name, route in self.routes.items()}
        try:
            return await self._patience.until_done(
                lambda: self.queue.claim(claim_id, self.id, lanes, limit=limit, lease_ms=self.lease_ms)
            )
        except RedisError:
            logger.exception("claiming failed; it goes on in a second")
            await asyncio.sleep(1.0)
            return Claim((), more=False)

    async def _wait_for_work(self) -> None:
        """Until a wake token comes for a lane with room, room changes, or some seconds have gone."""
        if self._waker is None:
            lanes = [name for name, route in self.routes.items() if route.free]
            self._waker = asyncio.create_task(self._wait_for_token(lanes), name="wake")
        await self._wait_for(self._room, self._waker)
        if self._waker.done():
            self._waker = None

    async def _wait_for_token(self, lanes: list[str]) -> None:
        await self._patience.until_done(lambda: self.queue.wait_for_work(lanes, BLOCK_S))

    async def _wait_for(self, event: asyncio.Event, task: asyncio.Task[None] | None = None) -> None:
        waits: set[asyncio.Task[Any]] = {
            asyncio.create_task(event.wait()),
            asyncio.create_task(self._draining.wait()),
        }
        try:
            await asyncio.wait(waits | ({task} if task else set()), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _stop_waker(self) -> None:
        waker, self._waker = self._waker, None
        if waker is not None:
            waker.cancel()
            await asyncio.wait([waker])

    # Running

    def _begin(self, job: ClaimedJob) -> None:
        route = self.routes[job.lane]
        expires_at = None if job.remaining_ms is None else time.monotonic() + job.remaining_ms / 1000
        attempt = Attempt(job, route, self._writer.open(job, self.id), expires_at)
        self._attempts[job.token] = attempt
        self._running += 1
        route.running += 1
        self._idle.clear()
        attempt.task = asyncio.create_task(self._run(attempt))
        if expires_at is not None:
            attempt.set_deadline(expires_at)

    async def _run(self, attempt: Attempt) -> None:
        job = attempt.job
        max_attempts = job.max_attempts or attempt.route.settings.max_attempts or self.settings.max_attempts
        try:
            await self._writer.room()
            await run_attempt(attempt, self._policy, max_attempts)
        finally:
            self._running -= 1
            attempt.route.running -= 1
            self._room.set()
            if attempt.stop is Stop.LOST:
                self._forget(job.token)

    def _ended(self, job_id: str, token: int) -> None:
        """The writer has written the end of an attempt."""
        self._forget(token)

    def _refused(self, job_id: str, token: int) -> None:
        """A write was refused: the job was cancelled, expired, or given to another."""
        attempt = self._attempts.get(token)
        if attempt is None:
            return
        logger.info("job %s is not ours any more; letting go of it", job_id)
        if attempt.task is not None and attempt.task.done():
            self._forget(token)
        else:
            attempt.end_early(Stop.LOST)

    def _forget(self, token: int) -> None:
        self._attempts.pop(token, None)
        if not self._attempts:
            self._idle.set()

    # Leases, maintenance, control

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self.settings.lease_s / 3)
            await self._patience.until_done(self._renew_once)

    async def _renew_once(self) -> None:
        held = [(attempt.job.id, token) for token, attempt in self._attempts.items()]
        replies = await self.queue.renew(self.id, held, lease_ms=self.lease_ms, about=self._about())
        now = time.monotonic()
        for (job_id, token), reply in zip(held, replies, strict=True):
            attempt = self._attempts.get(token)
            if attempt is None or attempt.task is None or attempt.task.done():
                continue
            if reply == "lost":
                self._refused(job_id, token)
            elif reply is None and attempt.expires_at is not None:
                attempt.set_deadline(None)
            elif reply is not None and attempt.expires_at is not None:
                # A duplicate that joined may have moved the deadline out.
                attempt.set_deadline(now + reply / 1000)

    async def _maintain(self) -> None:
        lock_ms = min(2000, max(500, self.lease_ms // 4))
        while True:
            report = await self._patience.until_done(
                lambda: self.queue.tick(self.id, lease_ms=self.lease_ms, lock_ms=lock_ms)
            )
            # Those who wait for the lock spread out: fifty idle processes must not knock all at once.
            spread_ms = 0.0 if report.leader else random.random() * lock_ms
            await asyncio.sleep((max(report.next_ms, 1) + spread_ms) / 1000)

    async def _listen(self) -> None:
        """Hear at once of cancelled jobs; leases and refused writes tell as well, later."""
        async with self._subscriptions.follow(self.queue.control_channel) as feed:
            while True:
                message = await feed.next()
                if message is None:
                    continue
                with suppress(ValueError, KeyError, TypeError):
                    order = orjson.loads(message)
                    self._refused(order["cancel"], int(order["token"]))

    # What others read

    def _conf(self) -> dict[str, str | int]:
        settings = self.settings
        conf: dict[str, str | int] = {
            "max_waiting": settings.max_waiting,
            "when_full": settings.when_full,
            "aging_ms": round(settings.aging_s * 1000),
            "dedup_ttl_ms": round(settings.dedup_ttl_s * 1000),
            "result_ttl_ms": round(settings.result_ttl_s * 1000),
            "dead_ttl_ms": round(settings.dead_ttl_s * 1000),
        }
        for name, route in settings.routes.items():
            if route.max_waiting is not None:
                conf[f"max_waiting:{name}"] = route.max_waiting
        return conf

    def _about(self) -> bytes:
        return orjson.dumps(
            {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "started_at_ms": self._started_at_ms,
                "running": self._running,
                "max_running": self.settings.max_running,
                "draining": self._draining.is_set(),
                "routes": {
                    name: {
                        "running": route.running,
                        "stages": {stage: gate.running for stage, gate in route.pipeline.gates.items()},
                        "endpoints": [
                            {
                                "name": endpoint.name,
                                "backend": endpoint.settings.backend,
                                "in_flight": endpoint.window.in_flight,
                                "max_in_flight": endpoint.window.limit,
                            }
                            for endpoint in route.endpoints
                        ],
                    }
                    for name, route in self.routes.items()
                },
            }
        )
