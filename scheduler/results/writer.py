"""The one writer of a worker process: events, returns and ends of all its jobs, a round trip a turn."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scheduler.logs import ids_of, traced
from scheduler.model import JobState
from scheduler.queue.records import ClaimedJob, Ending, Publication, Return
from scheduler.redis_server.connection import passes
from scheduler.results.encoding import EventEncoder, encode_error
from scheduler.results.ports import WritePort
from workers.base import Piece

logger = logging.getLogger(__name__)

# Between two writes of one job's deltas is this long at least.
COALESCE_S = 0.02
# All deltas but the first go with those of other jobs, every so often: a write for each would cost twice as
# much.
TICK_S = 0.003
# A stream is bounded by writing less often the longer it gets: the wait doubles every so many events.
EVENTS_A_DOUBLING = 2000
# All that happens within so many turns of the event loop shares a round trip: a short answer takes as many
# from its start to its end. It costs microseconds where there is little to do, and spares most where there is
# much.
TURNS = 4
BATCH_JOBS = 256
BATCH_BYTES = 1 << 20
PENDING_BYTES = 64 << 20
# What comes in one piece, or while Redis was away, is cut: no event has more.
EVENT_CHARS = 64 << 10

DEFAULT_RESULT_TTL_MS = 3_600_000

Callback = Callable[[str, int], None]


class JobWriter:
    """Writes what happens to one attempt. Its methods never wait; after an end nothing more is taken."""

    __slots__ = (
        "_encode",
        "_events",
        "_reasonings",
        "_seq",
        "_taken_at",
        "_texts",
        "_tool_calls",
        "_worker",
        "_writer",
        "bytes",
        "code",
        "due",
        "end",
        "first_seq",
        "job",
        "queued",
        "refused",
        "streamed",
        "used_tokens",
    )

    def __init__(self, writer: EventWriter, job: ClaimedJob, worker: str) -> None:
        self._writer = writer
        self._worker = worker
        self._encode = EventEncoder(job.id, job.token, job.attempt)
        self._events: list[bytes] = []
        self._texts: list[str] = []
        self._reasonings: list[str] = []
        self._tool_calls: list[Mapping[str, Any]] = []
        self._seq = 0
        self._taken_at = 0.0  # when events were last written, on the event loop's clock
        self.job = job
        self.first_seq = 1
        self.end: Ending | Return | None = None
        self.code = ""  # of the error that the attempt ended with
        self.queued = False  # in the writer's list of those with something to write now
        self.refused = False  # the job is not this token's any more: nothing of it is worth a write
        self.streamed = False
        self.due: int | None = None  # the tick with which what is gathered goes
        self.bytes = 0
        self.used_tokens: int | None = None  # what the attempt cost, for the limits; to be set before its end

    def started(self) -> None:
        """The attempt has begun."""
        if self.end is None:
            self._events.append(self._encode.started(self._next_seq(), self._worker))
            self._writer.wake(self)

    def piece(self, piece: Piece) -> None:
        """Some more of the answer. It goes at once, or is gathered if events have only just gone."""
        if self.end is not None or self.refused:
            return
        if piece.text:
            self._texts.append(piece.text)
        if piece.reasoning:
            self._reasonings.append(piece.reasoning)
        if piece.tool_calls:
            self._tool_calls += piece.tool_calls
        size = len(piece.text) + len(piece.reasoning) + 100 * len(piece.tool_calls)
        self.bytes += size
        self._writer.pending_bytes += size
        if not self.streamed:
            self.streamed = True
            self._writer.wake(self)
        elif not self.queued and self.due is None:
            wait_s = COALESCE_S * 2 ** (self._seq // EVENTS_A_DOUBLING)
            self._writer.wake_at(self, self._taken_at + wait_s)

    def done(self, result: bytes) -> None:
        """The job is done; `result` is the JSON of its `JobResult`."""
        if self.end is None:
            self._end(JobState.DONE, self._encode.done(self._close()), result)

    def failed(self, code: str, message: str) -> None:
        """The job has failed for good."""
        if self.end is None:
            self.code = code
            error = encode_error(code, message)
            self._end(JobState.FAILED, self._encode.failed(self._close()), error, reason=code)

    def expired(self) -> None:
        """The job's deadline has passed."""
        if self.end is None:
            self._end(JobState.EXPIRED, self._encode.expired(self._close()), reason="deadline")

    def retry(
        self, code: str, message: str, *, delay_ms: int, counts: bool, wait_ms: int | None = None
    ) -> None:
        """The job goes back to its lane, after `delay_ms`; `counts`: the attempt was a failure.

        `wait_ms` is what readers are told where they wait longer than that: the job does so in its lane.
        """
        if self.end is None:
            self.code = code
            error = encode_error(code, message)
            event = self._encode.retrying(self._close(), error, delay_ms if wait_ms is None else wait_ms)
            self.end = Return(self.job.id, self.job.token, event, counts, delay_ms, error, self.used_tokens)
            self._writer.wake(self)

    def take(self) -> Publication | None:
        """The events to be written now; `end` goes after them, and has some itself."""
        publication = None
        if self.end is None:
            self._gather()
        if self._events:
            self._taken_at = asyncio.get_running_loop().time()
            publication = Publication(self.job.id, self.job.token, *self._take_events())
        self._writer.pending_bytes -= self.bytes
        self.bytes = 0
        return publication

    def _take_events(self) -> tuple[int, tuple[bytes, ...]]:
        first_seq, events = self.first_seq, tuple(self._events)
        self.first_seq += len(events)
        self._events.clear()
        return first_seq, events

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _gather(self) -> None:
        if self._texts or self._reasonings or self._tool_calls:
            text, reasoning = "".join(self._texts), "".join(self._reasonings)
            while len(text) > EVENT_CHARS or len(reasoning) > EVENT_CHARS:
                self._add_delta(text[:EVENT_CHARS], reasoning[:EVENT_CHARS], ())
                text, reasoning = text[EVENT_CHARS:], reasoning[EVENT_CHARS:]
            self._add_delta(text, reasoning, self._tool_calls)
            self._texts.clear()
            self._reasonings.clear()
            self._tool_calls.clear()

    def _add_delta(self, text: str, reasoning: str, tool_calls: Sequence[Mapping[str, Any]]) -> None:
        try:
            event = self._encode.delta(self._seq + 1, text, reasoning, tool_calls)
        except (TypeError, ValueError, RecursionError) as error:
            # A model worker's mistake must stop neither the other jobs' writes nor this job's end.
            what = type(error).__name__
            logger.error(
                "job %s: a piece of its answer is no JSON and is left out (%s)",
                self.job.id,
                what,
                extra=ids_of(self.job),
            )
        else:
            self._seq += 1
            self._events.append(event)

    def _close(self) -> int:
        """Put what is gathered before the end, and return the end's seq."""
        self._gather()
        return self._next_seq()

    def _end(self, state: JobState, head: bytes, value: bytes = b"", *, reason: str = "") -> None:
        job = self.job
        first_seq, events = self._take_events()
        ttl_ms = job.result_ttl_ms or self._writer.result_ttl_ms
        self.end = Ending(
            job.id, job.token, state, first_seq, events, head, value, reason, ttl_ms, self.used_tokens
        )
        self.bytes += len(value)
        self._writer.pending_bytes += len(value)
        self._writer.wake(self)


@dataclass(slots=True)
class _Batch:
    jobs: list[JobWriter] = field(default_factory=list)
    publications: list[Publication] = field(default_factory=list)
    returns: list[Return] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)

    def add(self, job: JobWriter, publication: Publication | None, end: Ending | Return | None) -> None:
        self.jobs.append(job)
        if publication is not None:
            self.publications.append(publication)
        if isinstance(end, Ending):
            self.endings.append(end)
        elif end is not None:
            self.returns.append(end)

    def apart(self) -> list[_Batch]:
        """The same, a job a write: its events stay before its end."""
        events = {one.token: one for one in self.publications}
        ends: dict[int, Ending | Return] = {one.token: one for one in self.returns}
        ends |= {one.token: one for one in self.endings}
        batches = []
        for job in self.jobs:
            batch = _Batch()
            batch.add(job, events.get(job.job.token), ends.get(job.job.token))
            batches.append(batch)
        return batches


class EventWriter:
    """Writes for all jobs of the process, one round trip at a time; what happens meanwhile shares the next.

    While Redis is away it keeps what it has and goes on trying. `on_refused(job_id, token)`: a write was
    refused, the job is not this token's any more, and nothing more of it will be written. `on_ended(job_id,
    token)`: an end, or a return, has been written. Every end is answered by one of the two. `on_written(jobs,
    lag_s)`: so many jobs' news have been written, that long after the first of them was ready.
    """

    def __init__(
        self,
        queue: WritePort,
        *,
        on_refused: Callback,
        on_ended: Callback,
        on_written: Callable[[int, float], None] | None = None,
        result_ttl_ms: int = DEFAULT_RESULT_TTL_MS,
    ) -> None:
        self._queue = queue
        self._on_refused = on_refused
        self._on_ended = on_ended
        self._on_written = on_written
        self._ready_at = 0.0  # when the first of the ready list got there, on the event loop's clock
        self.result_ttl_ms = result_ttl_ms
        self.pending_bytes = 0
        self._ready: list[JobWriter] = []
        self._ticks: dict[int, list[JobWriter]] = {}  # by the tick that they wait for, those with deltas
        self._timer: asyncio.TimerHandle | None = None  # for the first of them, `_timer_tick`
        self._timer_tick = 0
        # How often a job was put into, and came out of, the ready list: what `flush` waits by.
        self._queued = 0
        self._settled = 0
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self, job: ClaimedJob, worker: str) -> JobWriter:
        """The writer for one attempt."""
        return JobWriter(self, job, worker)

    async def start(self) -> None:
        """Begin to write. Safe to call twice."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="writer")

    async def stop(self, *, limit_s: float = 5.0) -> None:
        """Write what is pending, for at most `limit_s`, and end. Safe to call twice."""
        task, self._task = self._task, None
        if task is None:
            return
        try:
            async with asyncio.timeout(limit_s):
                while self._ticks or self._settled < self._queued:
                    await self.flush()
        except TimeoutError:
            unwritten = self._queued - self._settled
            logger.warning("leaving %d job(s) unwritten; their leases bring them back", unwritten)
        if self._timer is not None:
            self._timer.cancel()
        task.cancel()
        await asyncio.wait([task])

    async def flush(self) -> None:
        """Return once all that happened so far is written."""
        self._tick_over(math.inf)
        last = self._queued
        while self._settled < last:
            self._written.clear()
            await self._written.wait()

    async def room(self) -> None:
        """Return once the memory that pending writes take is within its bound."""
        while self.pending_bytes > PENDING_BYTES:
            self._written.clear()
            await self._written.wait()

    def wake(self, job: JobWriter) -> None:
        """Write what `job` has in the next round."""
        job.due = None
        if not job.queued:
            job.queued = True
            self._queued += 1
            if self._on_written is not None and not self._ready:
                self._ready_at = asyncio.get_running_loop().time()
            self._ready.append(job)
            self._wake.set()

    def wake_at(self, job: JobWriter, at: float) -> None:
        """Write what `job` has at the tick that follows, or after that time of the event loop.

        Something else may make it go before.
        """
        loop = asyncio.get_running_loop()
        job.due = int(max(at, loop.time()) / TICK_S) + 1
        self._ticks.setdefault(job.due, []).append(job)
        if self._timer is None or job.due < self._timer_tick:
            self._set_timer(loop, job.due)

    def _set_timer(self, loop: asyncio.AbstractEventLoop, tick: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_tick = tick
        self._timer = loop.call_at(tick * TICK_S, self._tick)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        # The loop's clock may be a little short of the time that was asked for.
        self._tick_over(loop.time() / TICK_S + 0.1)
        if self._ticks:
            self._set_timer(loop, min(self._ticks))

    def _tick_over(self, now: float) -> None:
        for tick in [tick for tick in self._ticks if tick <= now]:
            for job in self._ticks.pop(tick):
                if job.due == tick:
                    self.wake(job)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            for _ in range(TURNS):
                await asyncio.sleep(0)
            self._wake.clear()
            while self._ready:
                await self._write_some()

    async def _write_some(self) -> None:
        jobs, ready_at = self._next(), self._ready_at
        try:
            batch = self._gather(jobs)
            if batch.jobs:
                await self._write(batch)
                if self._on_written is not None:
                    self._on_written(len(batch.jobs), asyncio.get_running_loop().time() - ready_at)
        finally:
            self._settled += len(jobs)
            self._written.set()

    def _next(self) -> list[JobWriter]:
        """Take as many jobs off the ready list as may share a write; one at least."""
        size = taken = 0
        for job in self._ready[:BATCH_JOBS]:
            if size > BATCH_BYTES:
                break
            size += job.bytes
            taken += 1
        jobs, self._ready = self._ready[:taken], self._ready[taken:]
        return jobs

    def _gather(self, jobs: Sequence[JobWriter]) -> _Batch:
        batch = _Batch()
        for job in jobs:
            job.queued = False
            publication = job.take()
            if job.refused:
                if job.end is not None:
                    self._tell(self._on_refused, job)
            elif publication is not None or job.end is not None:
                batch.add(job, publication, job.end)
        return batch

    async def _write(self, batch: _Batch) -> None:
        delay_s = 0.05
        while True:
            try:
                outcome = await self._queue.write(
                    publications=batch.publications, returns=batch.returns, endings=batch.endings
                )
            except Exception as error:
                if not passes(error):
                    await self._isolate(batch, error)
                    return
                # Whoever asked Redis has said that it is away.
                logger.debug("events wait: Redis is away, or takes no writes", exc_info=True)
                await asyncio.sleep(delay_s * (0.5 + random.random() / 2))
                delay_s = min(1.0, delay_s * 2)
            else:
                self._settle(batch, outcome.refused)
                return

    async def _isolate(self, batch: _Batch, error: Exception) -> None:
        """One bad write must not take the others along: write each job alone, and let go of the bad one."""
        if len(batch.jobs) > 1:
            for alone in batch.apart():
                await self._write(alone)
            return
        for job in batch.jobs:
            # The words of Redis may repeat the beginning of what was to be written.
            logger.error(
                "job %s: what happened to it cannot be written",
                job.job.id,
                exc_info=traced(error, logger),
                extra=ids_of(job.job),
            )
            self._refuse(job)

    def _settle(self, batch: _Batch, refused: frozenset[tuple[str, int]]) -> None:
        ended = {end.token for ends in (batch.returns, batch.endings) for end in ends}
        for job in batch.jobs:
            if refused and (job.job.id, job.job.token) in refused:
                self._refuse(job)
            elif job.job.token in ended:
                self._tell(self._on_ended, job)

    def _refuse(self, job: JobWriter) -> None:
        job.refused = True
        self._tell(self._on_refused, job)

    def _tell(self, callback: Callback, job: JobWriter) -> None:
        try:
            callback(job.job.id, job.job.token)
        except Exception as error:
            logger.error(
                "job %s: whoever was told of its writes failed",
                job.job.id,
                exc_info=traced(error, logger),
                extra=ids_of(job.job),
            )
