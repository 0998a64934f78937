"""Puts requests into the queue: many share a round trip, and a full queue is waited for if it says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from scheduler.client.connection import Connection
from scheduler.client.job import Job
from scheduler.client.routes import KnownRoutes
from scheduler.client.submission import new_job
from scheduler.coalescer import Chunks, Coalescer
from scheduler.errors import DedupConflict, InvalidRequest, QueueFull, SchedulerError
from scheduler.model import JobRequest
from scheduler.queue.records import Conflict, Enqueued, EnqueueOutcome, Full, NewJob
from scheduler.queue.submissions import ENQUEUE_CHUNK
from scheduler.redis_server.errors import translated
from scheduler.settings import Settings

MAX_SPACE_WAITS = 4
"""Each wait for space in a full queue blocks a connection. Further callers wait their turn."""
SPACE_WAIT_S = 1.0
"""How long one such wait blocks at most; then the jobs are sent again."""
YIELD_EVERY = 16
"""How many jobs are made in a row before other tasks get a turn of the event loop."""

Outcome: TypeAlias = Job | SchedulerError
"""What became of a request: its job, or the reason why there is none."""


class Enqueuer:
    """Enqueues over one connection. `handle` makes a caller's `Job` for what the queue accepted."""

    def __init__(
        self, connection: Connection, settings: Settings, handle: Callable[[NewJob, Enqueued], Job]
    ) -> None:
        self._connection = connection
        self._handle = handle
        self._block_timeout_s = settings.block_timeout_s
        self._routes = KnownRoutes(settings, self._read_routes)
        self._space_waits = asyncio.Semaphore(MAX_SPACE_WAITS)
        self._single_jobs: Coalescer[NewJob, EnqueueOutcome] = Coalescer(
            connection.enqueue, chunk=ENQUEUE_CHUNK, size=lambda job: len(job.payload)
        )

    async def enqueue(self, request: JobRequest, trace: bytes = b"") -> Job:
        """Enqueue one request, together with those of other callers. `trace`: see `payload.encode`."""
        made = await self._new_job(request, trace)
        outcome = made if isinstance(made, SchedulerError) else (await self._enqueue_chunk({0: made}))[0]
        if isinstance(outcome, SchedulerError):
            raise outcome
        return outcome

    async def enqueue_many(self, requests: Sequence[JobRequest], trace: bytes = b"") -> list[Outcome]:
        """Enqueue requests in order, chunk by chunk; one outcome each."""
        outcomes: dict[int, Outcome] = {}
        sending: asyncio.Task[dict[int, Outcome]] | None = None
        try:
            async for chunk in self._chunks(requests, outcomes, trace):
                # Chunks go in order; the next one is made while this one is on its way.
                if sending is not None:
                    outcomes |= await sending
                sending = asyncio.create_task(self._enqueue_chunk(chunk))
            if sending is not None:
                outcomes |= await sending
        finally:
            if sending is not None and not sending.done():
                sending.cancel()
                await asyncio.wait([sending])
        return [outcomes[at] for at in range(len(requests))]

    async def _chunks(
        self, requests: Sequence[JobRequest], outcomes: dict[int, Outcome], trace: bytes
    ) -> AsyncIterator[dict[int, NewJob]]:
        """The jobs by index, as many as share a call. The errors of the others go into `outcomes`."""
        chunks: Chunks[tuple[int, NewJob]] = Chunks(ENQUEUE_CHUNK)
        for at, request in enumerate(requests):
            if at % YIELD_EVERY == 0:
                await asyncio.sleep(0)  # lets the previous chunk leave, and other tasks run
            made = await self._new_job(request, trace)
            if isinstance(made, InvalidRequest):
                outcomes[at] = made
            elif full := chunks.add((at, made), len(made.payload)):
                yield dict(full)
        if chunks.left:
            yield dict(chunks.left)

    async def _new_job(self, request: JobRequest, trace: bytes) -> NewJob | InvalidRequest:
        try:
            route = await self._routes.find(request.model, request.kind)
            return new_job(request, route, trace=trace)
        except InvalidRequest as error:
            return error

    async def _read_routes(self) -> Mapping[str, Any]:
        async with self._connection.commands() as queue:
            return await queue.routes()

    async def _enqueue_chunk(self, jobs: dict[int, NewJob]) -> dict[int, Outcome]:
        """Send a chunk. Jobs for which the queue blocks are sent again once there may be space."""
        outcomes: dict[int, Outcome] = {}
        give_up_at = time.monotonic() + self._block_timeout_s
        while True:
            replies = await self._send(list(jobs.values()))
            blocked: dict[int, NewJob] = {}
            for (at, job), reply in zip(jobs.items(), replies, strict=True):
                outcomes[at] = self._outcome(job, reply)
                if isinstance(reply, Full) and reply.when_full == "block":
                    blocked[at] = job
            left_s = give_up_at - time.monotonic()
            if not blocked or left_s <= 0:
                return outcomes
            jobs = blocked
            await self._wait_for_space(left_s)

    async def _send(self, jobs: list[NewJob]) -> Sequence[EnqueueOutcome]:
        """Send a chunk as it is, a single job together with those of other callers."""
        if len(jobs) == 1:
            return [await self._single_jobs.ask(jobs[0])]
        return await self._connection.enqueue(jobs)

    async def _wait_for_space(self, limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await self._space_waits.acquire()
        except TimeoutError:
            return
        # Redis ends the wait by its host's clock, which may be put back meanwhile: hence a limit of our own.
        try:
            self._connection.check()
            # The limit is no error of Redis, which `translated` would take it for.
            with translated(self._connection.url), suppress(TimeoutError):
                async with asyncio.timeout(2 * SPACE_WAIT_S):
                    await self._connection.queue.wait_for_space(max(0.01, min(SPACE_WAIT_S, limit_s)))
        finally:
            self._space_waits.release()

    def _outcome(self, job: NewJob, reply: EnqueueOutcome) -> Outcome:
        if isinstance(reply, Enqueued):
            return self._handle(job, reply)
        return _conflict(reply) if isinstance(reply, Conflict) else _queue_full(reply)


def _conflict(reply: Conflict) -> DedupConflict:
    return DedupConflict(
        f"dedup_key: job {reply.job_id} has this key and other content; "
        "use another key, dedup='replace', or dedup_key='auto'",
        job_id=reply.job_id,
    )


def _queue_full(reply: Full) -> QueueFull:
    where = f"lane {reply.lane!r}" if reply.lane else "the queue"
    retry_after_s = reply.retry_after_ms / 1000
    return QueueFull(
        f"{where} is full: {reply.waiting:,} of at most {reply.max_waiting:,} jobs are waiting; "
        f"try again in {retry_after_s:g} s",
        retry_after_s=retry_after_s,
    )
