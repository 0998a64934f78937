"""The engine of a worker process: claims what it can run, runs it, keeps its leases, does the maintenance.

It knows nothing of arq: `scheduler.host` runs it under arq, `dev` and `scheduler.testing` run it as it is.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from scheduler.engine.attempt import Attempt, Stop, run_attempt, settle
from scheduler.engine.keeper import LeaseKeeper
from scheduler.engine.limits import limits_of, offers_of
from scheduler.engine.patience import Outage, Patience
from scheduler.engine.queue_settings import disagreements, limit_disagreements
from scheduler.engine.retry import RetryPolicy, bounds_of
from scheduler.engine.routes import (
    NO_PLACES,
    Places,
    Room,
    Route,
    build_routes,
    describe_routes,
    rebuild_routes,
)
from scheduler.engine.shares import Shares
from scheduler.errors import SchedulerError
from scheduler.logs import identify, ids_of, traced
from scheduler.model import is_urgent
from scheduler.observations import (
    Claimed,
    Observer,
    Observers,
    RoundTrip,
    Ticked,
    Written,
)
from scheduler.queue.inspection.workers import read_workers
from scheduler.queue.leases import LANES_A_CLAIM
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import (
    NOTHING_CLAIMED,
    Claim,
    ClaimedJob,
    Ending,
    Offer,
    Publication,
    Return,
    TickReport,
    WriteOutcome,
)
from scheduler.queue.stored_settings import queue_settings
from scheduler.results.subscriptions import Subscriptions
from scheduler.results.writer import EventWriter
from scheduler.routing import BreakerState, Endpoint
from scheduler.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Few, so that the server works while this process runs what it has; many, for the price of one round trip.
CLAIM_AT_ONCE = 64
LARGE_BYTES = 32 << 10
BLOCK_S = 5.0  # a cancelled BLPOP can swallow a wake token, so it ends by itself soon enough
BURST_POLL_S = 0.05
# What stopping waits for, where Redis is away or a stage does not listen.
LAST_CLAIM_S = 2.0
LET_GO_S = 5.0
SAY_GOODBYE_S = 2.0

EARLY_S = 0.002  # by which timers, whose unit is a millisecond, may be early
FIRST_WORD_S = 1.0  # back ends that say nothing for so long when the process starts may get jobs
NO_PERMIT_MS = 1000
RENEWALS_A_LOOK = 3  # after so many renewals it is looked whether Redis still has the settings
RETIRE_POLL_S = 0.2
SETTLED_IN_S = 0.05
TELL_AGAIN_S = 0.5

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


def worker_id(settings: Settings) -> str:
    """A name for this process that no other has: the configured name or the host's, and some chance."""
    name = settings.worker_name or socket.gethostname()
    return f"{name}:{os.getpid()}:{uuid.uuid4().hex[:6]}"


class Engine:
    """Moves prompts from the queue through the stages. `start()` and `stop()` are safe to call twice.

    An engine runs once: to go on after `stop()`, make another.
    `script_flags` is false for a Redis that does not know `#!lua` (fakeredis). `observers` are as
    `scheduler.observations` says. `name` tells the engine from all others; without one it makes one. `outage`
    is for a process in which others than the engine wait for Redis, too. `connect` makes another client of
    the same Redis: by it leases are kept while the event loop is blocked.
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
        self.settings = settings
        self.id = name or worker_id(settings)
        self.leads = False  # it does the queue's maintenance
        self.metrics_url = ""  # where its metrics are, for who looks at the list of processes
        self._observers = Observers.of(observers)
        self.queue = PromptQueue(redis, settings.queue, script_flags=script_flags)
        self.routes: dict[str, Route] = build_routes(settings)
        self._limits = limits_of(settings)
        # By lane, the endpoints that have used up their rate limits, and until when on the loop's clock.
        self._without_permit: dict[str, dict[str, float]] = {}
        self._shares = Shares(self.queue, self.id, lease_ms=self.lease_ms)
        self._attempts: dict[int, Attempt] = {}  # by token, until the end is written
        self._suspects: set[int] = set()  # those of them that may have killed a process; one at most
        self._running = 0
        self._running_bytes = 0  # of the requests of those jobs
        self._patience = Patience(redis, outage)
        self._ticked_at: float | None = None  # when a tick was last answered, see _steady_s
        self._policy = RetryPolicy(settings.retry_base_s, settings.retry_cap_s)
        self._bounds = bounds_of(settings)
        self._writer = EventWriter(
            _PatientWrites(self.queue, self._patience, self._timed),
            on_refused=self._refused,
            on_ended=self._ended,
            on_written=None if self._observers.written is None else self._written,
            result_ttl_ms=round(settings.result_ttl_s * 1000),
        )
        self._subscriptions = Subscriptions(redis)
        self._news = asyncio.Event()  # something has changed for the claimer
        self._look = True  # there may be work that no wake token tells of
        self._about_text = b"{}"  # what it said of itself when it last renewed its leases
        self._keeper: LeaseKeeper | None = None
        if connect is not None:
            self._keeper = LeaseKeeper(partial(self._renew_by, connect), lease_s=settings.lease_s)
        self._overdue: set[int] = set()  # tokens of attempts whose deadline has come
        self._deadlines = asyncio.Event()
        self._draining = False
        self._claiming = asyncio.Lock()  # held from asking for jobs until they have begun
        self._retiring: dict[asyncio.Task[None], Route] = {}
        self._breakers = asyncio.Event()  # one has changed its state
        self._breaker_states: dict[str, BreakerState] = {}
        self._claims = 0
        self._turn = 0  # which part of very many lanes is asked first
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._claimer: asyncio.Task[None] | None = None
        self._services: list[asyncio.Task[None]] = []
        self._waker: asyncio.Task[None] | None = None
        # What it waits for: lanes, each for work of any priority or (True) for urgent work alone.
        self._waker_lanes: frozenset[tuple[str, bool]] = frozenset()
        self._started_at_ms = 0
        self._told_of_settings = ""  # how those that hold differ from ours, as the log has it

    @property
    def running(self) -> int:
        """How many jobs are in flight in this process."""
        return self._running

    @property
    def endpoints(self) -> list[Endpoint]:
        """The endpoints of all its routes."""
        return [endpoint for route in self.routes.values() for endpoint in route.endpoints]

    @property
    def draining(self) -> bool:
        """Whether it finishes what it has, and claims no more."""
        return self._draining

    @property
    def redis_is_away(self) -> bool:
        """Whether Redis does not answer, or takes no writes."""
        return self._patience.is_away

    @property
    def pending_write_bytes(self) -> int:
        """Text of answers that waits to be written."""
        return self._writer.pending_bytes

    @property
    def why_not_ready(self) -> str:
        """Why it takes no jobs now; "" when it does."""
        if self._draining:
            return "it is stopping"
        if self._claimer is None:
            return "it is starting"
        return "Redis is away" if self.redis_is_away else ""

    @property
    def lease_ms(self) -> int:
        """The lease of a claim."""
        return round(self.settings.lease_s * 1000)

    async def start(self) -> None:
        """Publish the settings, and begin to claim. Waits while Redis is away, or takes no writes.

        Raises:
            ConfigError: a stage cannot start.
            SchedulerError: this engine has been stopped before.
            redis.exceptions.RedisError: Redis refuses for good, for want of a right, say.
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
        self._started_at_ms = time.time_ns() // 1_000_000
        for route in self.routes.values():
            await route.start(self._endpoint_changed, self._observers)
        await self._patience.until_done(self._enter)
        await self._writer.start()
        if self._keeper is not None:
            self._keeper.start()
        await _until_asked(self.routes.values())
        self._serve("leases", self._keep_leases)
        self._serve("deadlines", self._confirm_deadlines)
        self._serve("breakers", self._tell_of_breakers)
        self._serve("tick", self._maintain)
        self._serve("control", self._listen)
        self._claimer = asyncio.create_task(self._supervise("claim", self._claim_forever), name="claim")
        logger.info("worker %s serves %s from queue %r", self.id, ", ".join(self.routes), self.settings.queue)

    async def _enter(self) -> None:
        """Make sure of the scripts, and tell others what this process serves."""
        await self.queue.load()
        await self._publish_settings()
        await self._renew(())
        await self._shares.update(self.endpoints)

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
            await _end(self._starting)
        self._draining = True
        self._news.set()
        if self._claimer is not None:
            # A claim that is under way brings jobs; with Redis away there is nothing to wait for.
            await asyncio.wait([self._claimer], timeout=LAST_CLAIM_S)
            await _end(self._claimer)
        await self._drain(drain_s)
        if self._keeper is not None:
            await self._keeper.stop()
        await self._writer.stop()
        self._leave_the_rest()
        await _end(*self._services)
        self._services.clear()
        await self._subscriptions.aclose()
        await self._close_routes()
        if self._claimer is not None:
            await self._say_goodbye()
            logger.info("worker %s has stopped", self.id)

    async def run_until_drained(self) -> None:
        """Return once no job waits, is delayed, or runs in this process: what `arq --burst` wants."""
        while not self._draining:
            left = await self._patience.until_done(lambda: self.queue.unfinished(list(self.routes)))
            # A job leaves the count when it is claimed: it is here then, or on its way.
            if not left and not self._attempts and not self._claiming.locked():
                return
            await asyncio.sleep(BURST_POLL_S)

    async def _drain(self, limit_s: float) -> None:
        tasks = [attempt.task for attempt in self._attempts.values() if attempt.task]
        if not tasks:
            return
        logger.info("draining: %d job(s) in flight have %g s to finish", len(tasks), limit_s)
        began = time.monotonic()
        done, late = await asyncio.wait(tasks, timeout=limit_s)
        stuck = await self._give_back(late) if late else set()
        logger.log(
            logging.WARNING if late else logging.INFO,
            "drained in %.1f s: %d job(s) have ended, %d given back",
            time.monotonic() - began,
            len(done),
            len(late) - len(stuck),
        )

    async def _give_back(self, late: Collection[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        """Let these attempts go back to their places; returns those that do not let go."""
        for attempt in list(self._attempts.values()):
            attempt.end_early(Stop.DRAIN)
        _, stuck = await asyncio.wait(late, timeout=LET_GO_S)
        if stuck:
            logger.error(
                "%d job(s) do not let go: a stage ignores its cancellation; they come back "
                "when their leases end",
                len(stuck),
            )
        return stuck

    async def _close_routes(self) -> None:
        retiring = dict(self._retiring)
        await _end(*retiring)
        for route in (*self.routes.values(), *retiring.values()):
            await route.stop()

    async def _say_goodbye(self) -> None:
        """Hand on wake tokens that the last wait may have taken, and leave the list of processes."""
        with suppress(RedisError, OSError):
            async with asyncio.timeout(SAY_GOODBYE_S):
                await self._pass_on()
                await self._shares.give_up(self.endpoints)
                await self.queue.forget_worker(self.id)

    def _serve(self, name: str, service: Callable[[], Awaitable[None]]) -> None:
        self._services.append(asyncio.create_task(self._supervise(name, service), name=name))

    async def _supervise(self, name: str, service: Callable[[], Awaitable[None]]) -> None:
        """A service of the process may fail for a reason nobody thought of; it must not stay away."""
        while True:
            try:
                return await service()
            except Exception as error:
                logger.error("service %r failed; it starts again", name, exc_info=traced(error, logger))
                await asyncio.sleep(1.0)

    # Claiming

    async def _claim_forever(self) -> None:
        try:
            while not self._draining:
                self._news.clear()
                room = self._room()
                if room.over_all.free < 1:
                    await self._wait_for_room()
                elif self._will_be_woken(room):
                    await self._news.wait()
                elif claim := await self._claim(room):
                    room = self._room()  # what has begun has taken some
                    # What only waits for places is claimed when there are some: to look before is of no use.
                    more = claim.more if room.over_all.for_all else claim.more_urgent
                    if more or claim.without_permit:
                        self._look = True
                    leads_on = more and (claim.jobs or claim.without_permit)
                    del claim  # with the requests of its jobs
                    if room.over_all.free and not leads_on:
                        await self._wait_for_work(room)
        finally:
            await self._stop_waker()

    def _room(self) -> Room:
        """How many jobs may be claimed now; endpoints without a permit take none."""
        lanes = {
            name: route.places(without=self._refused_permits(name)) for name, route in self.routes.items()
        }
        return Room(lanes, self._over_all(lanes))

    def _over_all(self, lanes: Mapping[str, Places]) -> Places:
        if not any(places.free for places in lanes.values()):
            return NO_PLACES
        if self._free_bytes <= 0:
            return NO_PLACES
        most = self.settings.max_running
        free = min(most - self._running, CLAIM_AT_ONCE)
        # What endpoints keep for the urgent is of no use to them in a process that is full.
        kept = min(sum(endpoint.kept for endpoint in self.endpoints if endpoint.admits), most // 2)
        for_all = min(free, max(0, most - kept - self._running))
        if not any(places.for_all for places in lanes.values()):
            for_all = 0
        return Places(free, free - for_all)

    @property
    def _free_bytes(self) -> int:
        """What the requests of jobs that are yet to come may have; a claim may go beyond it by one job."""
        return self.settings.max_running_bytes - self._running_bytes

    async def _claim(self, room: Room) -> Claim | None:
        """Claim and begin; None where that failed. Of very many lanes some are asked after the others."""
        self._look = False
        claim = NOTHING_CLAIMED
        async with self._claiming:
            for asked, lanes in enumerate(turns := self._turns(room), 1):
                self._claims += 1
                ask = partial(self._ask, f"{self.id}:{self._claims}", room, lanes)
                try:
                    reply = await self._patience.until_done(ask)
                except RedisError as error:
                    logger.error("claiming failed; it goes on in a second", exc_info=traced(error, logger))
                    await asyncio.sleep(1.0)
                    return None
                claim = reply if len(turns) == 1 else claim.and_then(reply)
                if claim.jobs:
                    if asked < len(turns):
                        claim = replace(claim, more=True, more_urgent=True)
                    break
            if (tell := self._observers.claimed) is not None and claim.jobs:
                tell(Claimed(claim.jobs))
            for job in claim.jobs:
                self._begin(job)
        return claim

    def _turns(self, room: Room) -> Sequence[Sequence[str]]:
        """The lanes in parts that a claim may name, beginning with those whose turn it is."""
        names = tuple(room.lanes)
        if len(names) <= LANES_A_CLAIM:
            return (names,)
        turns = [names[at : at + LANES_A_CLAIM] for at in range(0, len(names), LANES_A_CLAIM)]
        self._turn = (self._turn + 1) % len(turns)
        return turns[self._turn :] + turns[: self._turn]

    def _refused_permits(self, lane: str) -> Container[str]:
        refused = self._without_permit.get(lane)
        if not refused:
            return ()
        now = asyncio.get_running_loop().time()
        return {endpoint for endpoint, until in refused.items() if until > now}

    def _is_held_back(self, route: Route) -> bool:
        """Whether none of the endpoints that would take its jobs does so now."""
        without = self._refused_permits(route.name)
        return not any(endpoint.admits and endpoint.name not in without for endpoint in route.in_use)

    def _leave_alone(self, lane: str, endpoints: Iterable[str], wait_s: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        self._without_permit.setdefault(lane, {}).update(dict.fromkeys(endpoints, until))
        loop.call_at(until + EARLY_S, self._look_again)

    def _permit_in_s(self, lane: str, endpoint: str) -> float:
        until = self._without_permit.get(lane, {}).get(endpoint, 0.0)
        return round(max(0.0, until - asyncio.get_running_loop().time()), 1)

    async def _ask(self, claim_id: str, room: Room, lanes: Sequence[str]) -> Claim:
        # Lanes without room are named too: the script passes their wake tokens on.
        offers: dict[str, list[Offer]] = {}
        if self._limits.endpoints:
            offers = {
                name: offers_of(self.routes[name], without=self._refused_permits(name)) for name in lanes
            }
        claim = await self._timed(
            "claim",
            self.queue.claim(
                claim_id,
                self.id,
                {name: room.lanes[name].free for name in lanes},
                limit=room.over_all.free,
                kept=room.over_all.kept,
                lanes_kept={name: room.lanes[name].kept for name in lanes},
                lease_ms=self.lease_ms,
                suspects=not self._suspects,
                offers=offers,
                max_bytes=max(1, self._free_bytes),
            ),
        )
        for lane, refusal in claim.without_permit.items():
            self._leave_alone(lane, refusal.endpoints, refusal.wait_ms / 1000)
        return claim

    async def _pass_on(self) -> None:
        """Claim nothing: the script wakes others where there is work."""
        room = self._room()._replace(over_all=NO_PLACES)
        for lanes in self._turns(room):
            self._claims += 1
            await self._ask(f"{self.id}:{self._claims}", room, lanes)

    async def _wait_for_room(self) -> None:
        """Until a job has ended or a window has grown."""
        if self._waker is not None and self._waker.done():
            # A wake token that comes to who has no room is for others.
            self._waker = None
            await self._patience.until_done(self._pass_on)
            return
        await self._news.wait()

    def _look_again(self) -> None:
        self._look = True
        self._news.set()

    def _will_be_woken(self, room: Room) -> bool:
        """Whether a wake token is sure to tell of whatever could be claimed: to ask before is of no use."""
        waits = self._waker is not None and not self._waker.done()
        return waits and not self._look and room.wanted_lanes() <= self._waker_lanes

    async def _wait_for_work(self, room: Room) -> None:
        """Until a wake token comes for a lane with room, room changes, or some seconds have gone."""
        lanes = room.wanted_lanes()
        if self._waker is not None and self._waker.done():
            self._waker = None
        if self._waker is not None and not lanes <= self._waker_lanes:
            # What it took away with it, the claim that comes before the next wait will find.
            await self._stop_waker()
            return
        if self._waker is None:
            self._waker_lanes = lanes
            self._waker = asyncio.create_task(self._wait_for_token(lanes), name="wake")
            self._waker.add_done_callback(self._woken)
        await self._news.wait()

    async def _wait_for_token(self, lanes: Collection[tuple[str, bool]]) -> None:
        urgent = sorted(lane for lane, urgent_only in lanes if urgent_only)
        others = sorted(lane for lane, urgent_only in lanes if not urgent_only)
        # Redis ends the wait by the clock of its host, which may be put back meanwhile.
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * BLOCK_S):
                await self._patience.until_done(
                    lambda: self.queue.wait_for_work(others, BLOCK_S, urgent_lanes=urgent)
                )

    def _woken(self, waker: asyncio.Task[None]) -> None:
        if not waker.cancelled() and (error := waker.exception()):
            logger.error("waiting for work failed", exc_info=traced(error, logger))
        self._look_again()

    async def _stop_waker(self) -> None:
        waker, self._waker = self._waker, None
        if waker is not None:
            await _end(waker)

    # Running

    def _begin(self, job: ClaimedJob) -> None:
        route = self.routes[job.lane]
        payload = job.payload
        if len(payload) > LARGE_BYTES:
            job = job._replace(payload=b"")  # who keeps the job does not keep its request
        attempt = Attempt(job, payload, route, self._writer.open(job, self.id), self._deadline_came)
        if self._limits.endpoints:
            attempt.take_permit = partial(self._take_permit, job)
        attempt.is_held_back = self._is_held_back
        attempt.observers = self._observers
        self._attempts[job.token] = attempt
        if job.suspect:
            self._suspects.add(job.token)
            logger.warning(
                "job %s has lost its worker process before; it runs as the only suspect",
                job.id,
                extra=ids_of(job),
            )
        self._running += 1
        self._running_bytes += attempt.payload_bytes
        route.running += 1
        if is_urgent(job.priority) and any(endpoint.kept for endpoint in route.endpoints):
            # Until it is in its place, it counts as if it took one of the others'.
            asyncio.get_running_loop().call_later(SETTLED_IN_S, self._news.set)
        if job.remaining_ms is not None:
            attempt.set_deadline(time.monotonic() + job.remaining_ms / 1000)
        bounds = self._bounds[job.lane]
        task = asyncio.create_task(run_attempt(attempt, self._writer.room, self._policy, bounds))
        attempt.task = task
        # A task cancelled before its first step never runs: what must happen in any case happens here.
        task.add_done_callback(partial(self._finished, attempt))

    async def _take_permit(self, job: ClaimedJob, endpoint: str) -> int:
        wait = await self._patience.until_done(lambda: self.queue.take_permit(job, endpoint))
        if wait == "lost":
            self._refused(job.id, job.token)
            return NO_PERMIT_MS
        if wait:
            self._leave_alone(job.lane, (endpoint,), wait / 1000)
        return wait

    def _finished(self, attempt: Attempt, task: asyncio.Task[None]) -> None:
        self._running -= 1
        self._running_bytes -= attempt.payload_bytes
        attempt.route.running -= 1
        self._news.set()
        settle(attempt, task)
        if attempt.stop is Stop.LOST:
            self._forget(attempt.job.token)

    def _written(self, jobs: int, lag_s: float) -> None:
        if (tell := self._observers.written) is not None:
            tell(Written(jobs, lag_s))

    def _ended(self, job_id: str, token: int) -> None:
        """The writer has written the end of an attempt."""
        self._forget(token)

    def _refused(self, job_id: str, token: int) -> None:
        """A write was refused: the job was cancelled, expired, or given to another."""
        attempt = self._attempts.get(token)
        if attempt is None or attempt.job.id != job_id or attempt.stop is Stop.LOST:
            return
        # Cancelled, most likely: that is no event of this process.
        logger.debug("job %s is not ours any more; letting go of it", job_id, extra=ids_of(attempt.job))
        if attempt.task is not None and attempt.task.done():
            self._forget(token)
        else:
            attempt.end_early(Stop.LOST)

    def _forget(self, token: int) -> None:
        attempt = self._attempts.pop(token, None)
        if attempt is not None:
            self._tell_of_end(attempt)
        if token in self._suspects:
            self._suspects.discard(token)
            self._look_again()  # the next suspect may come

    def _tell_of_end(self, attempt: Attempt) -> None:
        tell = self._observers.attempt_ended
        watcher = attempt.context.watcher if attempt.context is not None else None
        if tell is not None:
            tell(attempt)
        if watcher is not None:
            watcher.attempt_ended(attempt)

    def _leave_the_rest(self) -> None:
        """Jobs that do not let go, or whose end could not be written: their leases will end."""
        for token, attempt in tuple(self._attempts.items()):
            attempt.stop = Stop.LOST
            self._forget(token)

    # Leases, maintenance, control

    async def _keep_leases(self) -> None:
        for renewals in itertools.count(1):
            await asyncio.sleep(self.settings.lease_s / 3)
            await self._patience.until_done(lambda: self._renew(tuple(self._attempts)))
            await self._patience.until_done(self._divide)
            if renewals % RENEWALS_A_LOOK == 0:
                await self._patience.until_done(self._mend_settings)

    async def _divide(self) -> None:
        """Keep the shares up to date; a process that drains leaves to others what it needs no more."""
        if self._draining:
            idle = [route for route in self.routes.values() if not self._is_needed(route)]
            await self._shares.give_up([endpoint for route in idle for endpoint in route.endpoints])
            needed = [route for route in self.routes.values() if route not in idle]
            await self._shares.update([endpoint for route in needed for endpoint in route.endpoints])
        else:
            await self._shares.update(self.endpoints)

    async def _tell_of_breakers(self) -> None:
        """Show administrators at once when an endpoint is left alone, and when it is well again."""
        while True:
            await self._breakers.wait()
            self._breakers.clear()
            await self._patience.until_done(lambda: self._renew(()))
            await asyncio.sleep(TELL_AGAIN_S)

    def _endpoint_changed(self, endpoint: Endpoint) -> None:
        self._look_again()
        if endpoint.breaker.state is not self._breaker_states.get(endpoint.name, BreakerState.CLOSED):
            self._breaker_states[endpoint.name] = endpoint.breaker.state
            self._breakers.set()

    async def _confirm_deadlines(self) -> None:
        """Ask about deadlines that have come by our clock: a duplicate that joined may have moved them."""
        while True:
            await self._deadlines.wait()
            self._deadlines.clear()
            overdue = tuple(self._overdue)
            self._overdue.clear()
            await self._patience.until_done(partial(self._renew, overdue))

    def _deadline_came(self, token: int) -> None:
        self._overdue.add(token)
        self._deadlines.set()

    async def _renew(self, tokens: Sequence[int]) -> None:
        """Renew the leases of these attempts, and hear of their deadlines."""
        held = [(self._attempts[token].job.id, token) for token in tokens if token in self._attempts]
        self._about_text = self._about()
        replies = await self._timed(
            "renew", self.queue.renew(self.id, held, lease_ms=self.lease_ms, about=self._about_text)
        )
        now = time.monotonic()
        for (job_id, token), reply in zip(held, replies, strict=True):
            attempt = self._attempts.get(token)
            if attempt is None or attempt.task is None or attempt.task.done():
                continue
            if reply == "lost":
                self._refused(job_id, token)
            elif reply == 0:
                attempt.end_early(Stop.EXPIRED)
            elif attempt.expires_at is not None:
                attempt.set_deadline(None if reply is None else now + reply / 1000)

    async def _renew_by(self, connect: Callable[[], Redis]) -> None:
        """Renew all leases on another thread's event loop: what the replies say is heard at the next time."""
        held = [(attempt.job.id, token) for token, attempt in tuple(self._attempts.items())]
        redis = connect()
        try:
            queue = PromptQueue(redis, self.settings.queue)
            await queue.renew(self.id, held, lease_ms=self.lease_ms, about=self._about_text)
        finally:
            await redis.aclose()

    async def _publish_settings(self) -> None:
        await self.queue.configure(
            conf=queue_settings(self.settings),
            routes=describe_routes(self.routes, max_result_ttl_s=self.settings.max_result_ttl_s),
            limits=self._limits,
        )

    async def _mend_settings(self) -> None:
        """Redis may have come back without its data: clients and scripts would miss what we serve."""
        own, published = queue_settings(self.settings), await self.queue.settings()
        own_limits, limits = self._limits.fields(), await self.queue.limits()
        routes = await self.queue.routes()
        lost = not own.keys() <= published.keys() or bool(published.get("limits") and not limits)
        if lost or not self.routes.keys() <= routes.keys():
            await self._publish_settings()
            return
        differ = "; ".join([*disagreements(own, published), *limit_disagreements(own_limits, limits)])
        if differ and differ != self._told_of_settings:
            logger.warning(
                "another worker process has published other settings of this queue, and they hold for all: "
                "%s. Give all processes the same settings",
                differ,
            )
        self._told_of_settings = differ

    async def _maintain(self) -> None:
        lock_ms = min(2000, max(500, self.lease_ms // 4))
        while True:
            report = await self._tick(lock_ms)
            if report.in_doubt:
                report = await self._tick(lock_ms, is_sure=True)
            self.leads = report.leader
            if (tell := self._observers.ticked) is not None:
                tell(Ticked(report))
            # Those who wait for the lock spread out: fifty idle processes must not knock all at once.
            spread_ms = 0.0 if report.leader else random.random() * lock_ms
            await asyncio.sleep((max(report.next_ms, 1) + spread_ms) / 1000)

    async def _tick(self, lock_ms: int, *, is_sure: bool = False) -> TickReport:
        def tick() -> Awaitable[TickReport]:
            silent_s = None if self._ticked_at is None else _steady_s() - self._ticked_at
            return self.queue.tick(
                self.id,
                lease_ms=self.lease_ms,
                lock_ms=lock_ms,
                silent_ms=None if silent_s is None else round(silent_s * 1000),
                is_sure=is_sure,
                away_ms=self._patience.outage.untold_ms,
            )

        report = await self._patience.until_done(lambda: self._timed("tick", tick()))
        self._patience.outage.told()
        if not report.in_doubt:
            self._ticked_at = _steady_s()
        return report

    async def _listen(self) -> None:
        """Hear at once of cancelled jobs, of which leases and refused writes tell later, and of pardons."""
        async with self._subscriptions.follow(self.queue.control_channel) as feed:
            while True:
                message = await feed.next()
                if message is None:
                    continue
                with suppress(ValueError, KeyError, TypeError):
                    order = orjson.loads(message)
                    if "forgive" in order:
                        self._forgiven(str(order["forgive"]))
                    else:
                        self._refused(order["cancel"], int(order["token"]))

    def _forgiven(self, subject: str) -> None:
        """An administrator lets `e:<endpoint>`, or a tenant, have again all that it may use."""
        self._without_permit.clear()
        for endpoint in self.endpoints:
            if subject == f"e:{endpoint.name}":
                endpoint.end_pause()
        self._look_again()

    async def _timed(self, script: str, call: Awaitable[T]) -> T:
        """Await a script's reply, and let observers know how long it took."""
        tell = self._observers.round_trip
        if tell is None:
            return await call
        began = time.perf_counter()
        reply = await call
        tell(RoundTrip(script, time.perf_counter() - began))
        return reply

    # Settings that change while it runs

    async def reload(self, settings: Settings) -> None:
        """Go on with other settings: of queue and routes, not of the process itself.

        A route that stays as it was keeps its endpoints and what is known of them. One that has changed or
        gone finishes the jobs that it has.

        Raises:
            ConfigError: a route cannot be made or started; all stays as it was.
        """
        if fixed := [name for name in FIXED if getattr(settings, name) != getattr(self.settings, name)]:
            logger.warning("%s: to change this takes a restart; the rest is reloaded", ", ".join(fixed))
            settings = settings.model_copy(update={name: getattr(self.settings, name) for name in fixed})
        routes = rebuild_routes(settings, self.routes)
        fresh = [route for name, route in routes.items() if route is not self.routes.get(name)]
        try:
            for route in fresh:
                await route.start(self._endpoint_changed, self._observers)
        except BaseException:
            for route in fresh:
                await route.stop()
            raise
        await _until_asked(fresh)
        async with self._claiming:
            old = [route for name, route in self.routes.items() if route is not routes.get(name)]
            self.settings, self.routes = settings, routes
            self._limits = limits_of(settings)
            self._without_permit.clear()
            for route in routes.values():
                route.fall_back_on(routes)
            self._policy = RetryPolicy(settings.retry_base_s, settings.retry_cap_s)
            self._bounds = bounds_of(settings)
            self._writer.result_ttl_ms = round(settings.result_ttl_s * 1000)
        for route in old:
            task = asyncio.create_task(self._retire(route), name=f"retire {route.name}")
            self._retiring[task] = route
            task.add_done_callback(self._retiring.pop)
        gone = [route.name for route in old if route.name not in routes]
        await self._patience.until_done(lambda: self._republish(gone))
        self._look_again()

    async def _republish(self, gone: Sequence[str]) -> None:
        await self._publish_settings()
        await self._renew(())
        await self._shares.update(self.endpoints)
        if gone:
            others = await read_workers(self.queue)
            served = {name for worker in others for name in worker.routes}
            await self.queue.forget_routes([name for name in gone if name not in served])

    async def _retire(self, route: Route) -> None:
        while self._is_needed(route):  # noqa: ASYNC110  it is rare, and may take minutes
            await asyncio.sleep(RETIRE_POLL_S)
        await route.stop()

    def _is_needed(self, route: Route) -> bool:
        """Whether it has work, or a job of a route that falls back on it may still come."""
        others = (*self.routes.values(), *self._retiring.values())
        return route.busy or any(other.running and route in other.fallbacks for other in others)

    # What others read

    def _about(self) -> bytes:
        return orjson.dumps(
            {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "started_at_ms": self._started_at_ms,
                "running": self._running,
                "max_running": self.settings.max_running,
                "draining": self._draining,
                "metrics_url": self.metrics_url,
                "routes": {
                    name: {
                        "running": route.running,
                        "stages": {stage: gate.running for stage, gate in route.pipeline.gates.items()},
                        "endpoints": [
                            {**endpoint.describe(), "permit_in_s": self._permit_in_s(name, endpoint.name)}
                            for endpoint in route.endpoints
                        ],
                    }
                    for name, route in self.routes.items()
                },
            }
        )


async def _until_asked(routes: Iterable[Route]) -> None:
    """Wait a moment for what back ends say: who is not ready, or lacks its model, gets no jobs at all."""
    with suppress(TimeoutError):
        async with asyncio.timeout(FIRST_WORD_S):
            for route in routes:
                await route.asked()


def _steady_s() -> float:
    """A clock that nobody sets, and that goes on while the machine sleeps, as Redis' does."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Timed(Protocol):
    def __call__(self, script: str, call: Awaitable[T], /) -> Awaitable[T]: ...


class _PatientWrites:
    """The queue as the writer needs it. Waits for Redis with the other loops: one log line for all."""

    def __init__(self, queue: PromptQueue, patience: Patience, timed: _Timed) -> None:
        self._queue = queue
        self._patience = patience
        self._timed = timed

    async def write(
        self,
        *,
        publications: Sequence[Publication] = (),
        returns: Sequence[Return] = (),
        endings: Sequence[Ending] = (),
    ) -> WriteOutcome:
        return await self._patience.until_done(
            lambda: self._timed(
                "write", self._queue.write(publications=publications, returns=returns, endings=endings)
            )
        )
