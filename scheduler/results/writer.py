"""The one writer of a worker process: events, returns and ends of all its jobs, a round trip a turn."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scheduler.connection import AWAY
from scheduler.model import JobState
from scheduler.queue.records import ClaimedJob, Ending, Publication, Return
from scheduler.results.encoding import EventEncoder, encode_error
from scheduler.results.ports import WritePort
from workers.base import Piece

logger = logging.getLogger(__name__)

COALESCE_S = 0.02
# A stream is bounded by writing less often the longer it gets: the wait doubles every so many events.
EVENTS_A_DOUBLING = 2000
BATCH_JOBS = 256
BATCH_BYTES = 1 << 20
PENDING_BYTES = 64 << 20

DEFAULT_RESULT_TTL_MS = 3_600_000

Callback = Callable[[str, int], None]


class JobWriter:
    """Writes what happens to one attempt. Its methods never wait; after an end nothing more is taken."""

    __slots__ = (
        "_encode",
        "_events",
        "_reasonings",
        "_seq",
        "_texts",
        "_tool_calls",
        "_worker",
        "_writer",
        "bytes",
        "end",
        "first_seq",
        "job",
        "queued",
        "streamed",
        "timer",
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
        self.job = job
        self.first_seq = 1
        self.end: Ending | Return | None = None
        self.queued = False  # in the writer's list of those with something to write now
        self.streamed = False
        self.timer: asyncio.TimerHandle | None = None
        self.bytes = 0

    def started(self) -> None:
        """The attempt has begun."""
        if self.end is None:
            self._events.append(self._encode.started(self._next_seq(), self._worker))
            self._writer.wake(self)

    def piece(self, piece: Piece) -> None:
        """Some more of the answer. The first goes at once, the rest is gathered for a while."""
        if self.end is not None:
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
        elif not self.queued and self.timer is None:
            self._writer.wake_later(self, COALESCE_S * 2 ** (self._seq // EVENTS_A_DOUBLING))

    def done(self, result: bytes) -> None:
        """The job is done; `result` is the JSON of its `JobResult`."""
        if self.end is None:
            seq = self._close()
            self._end(JobState.DONE, seq, self._encode.done(seq, result), result=result)

    def failed(self, code: str, message: str) -> None:
        """The job has failed for good."""
        if self.end is None:
            error, seq = encode_error(code, message), self._close()
            self._end(JobState.FAILED, seq, self._encode.failed(seq, error), reason=code, error=error)

    def expired(self) -> None:
        """The job's deadline has passed."""
        if self.end is None:
            seq = self._close()
            self._end(JobState.EXPIRED, seq, self._encode.expired(seq), reason="deadline")

    def retry(self, code: str, message: str, *, delay_ms: int, counts: bool) -> None:
        """The job goes back to its lane, after `delay_ms`; `counts`: the attempt was a failure."""
        if self.end is None:
            error, seq = encode_error(code, message), self._close()
            event = self._encode.retrying(seq, error, delay_ms)
            self.end = Return(self.job.id, self.job.token, seq, event, counts, delay_ms, error)
            self._writer.wake(self)

    def take(self) -> tuple[Publication | None, Ending | Return | None]:
        """What is to be written now."""
        self._gather()
        publication = None
        if self._events:
            publication = Publication(self.job.id, self.job.token, self.first_seq, tuple(self._events))
            self.first_seq += len(self._events)
            self._events.clear()
        self._writer.pending_bytes -= self.bytes
        self.bytes = 0
        return publication, self.end

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _gather(self) -> None:
        if self._texts or self._reasonings or self._tool_calls:
            text, reasoning = "".join(self._texts), "".join(self._reasonings)
            self._events.append(self._encode.delta(self._next_seq(), text, reasoning, self._tool_calls))
            self._texts.clear()
            self._reasonings.clear()
            self._tool_calls.clear()

    def _close(self) -> int:
        """Put what is gathered before the end, and return the end's seq."""
        self._gather()
        return self._next_seq()

    def _end(self, state: JobState, seq: int, event: bytes, *, result: bytes = b"", **why: Any) -> None:
        ttl_ms = self.job.result_ttl_ms or self._writer.result_ttl_ms
        job = self.job
        self.end = Ending(job.id, job.token, state, seq, event, result, result_ttl_ms=ttl_ms, **why)
        self.bytes += len(event) + len(result)
        self._writer.pending_bytes += len(event) + len(result)
        self._writer.wake(self)


@dataclass(slots=True)
class _Batch:
    publications: list[Publication] = field(default_factory=list)
    returns: list[Return] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)

    def add(self, publication: Publication | None, end: Ending | Return | None) -> None:
        if publication is not None:
            self.publications.append(publication)
        if isinstance(end, Ending):
            self.endings.append(end)
        elif end is not None:
            self.returns.append(end)

    def apart(self) -> list[_Batch]:
        """The same, a batch a write."""
        return (
            [_Batch(publications=[one]) for one in self.publications]
            + [_Batch(returns=[one]) for one in self.returns]
            + [_Batch(endings=[one]) for one in self.endings]
        )

    @property
    def size(self) -> int:
        return len(self.publications) + len(self.returns) + len(self.endings)

    def members(self) -> set[tuple[str, int]]:
        every: Sequence[Publication | Return | Ending] = [*self.publications, *self.returns, *self.endings]
        return {(one.job_id, one.token) for one in every}


class EventWriter:
    """Writes for all jobs of the process, one round trip at a time; what happens meanwhile shares the next.

    While Redis is away it keeps what it has and goes on trying. `on_refused(job_id, token)`: a write was
    refused, the job is not this token's any more. `on_ended(job_id, token)`: an end, or a return, has been
    written.
    """

    def __init__(
        self,
        queue: WritePort,
        *,
        on_refused: Callback,
        on_ended: Callback,
        result_ttl_ms: int = DEFAULT_RESULT_TTL_MS,
    ) -> None:
        self._queue = queue
        self._on_refused = on_refused
        self._on_ended = on_ended
        self.result_ttl_ms = result_ttl_ms
        self.pending_bytes = 0
        self._ready: list[JobWriter] = []
        self._timers = 0
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._busy = False
        self._away = False

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
                await self.flush()
        except TimeoutError:
            logger.warning("leaving %d job(s) unwritten; their leases bring them back", len(self._ready))
        task.cancel()
        await asyncio.wait([task])

    async def flush(self) -> None:
        """Return once all that happened so far is written."""
        while self._ready or self._timers or self._busy:
            self._written.clear()
            self._wake.set()
            await self._written.wait()

    async def room(self) -> None:
        """Return once the memory that pending writes take is within its bound."""
        while self.pending_bytes > PENDING_BYTES:
            self._written.clear()
            await self._written.wait()

    def wake(self, job: JobWriter) -> None:
        """Write what `job` has in the next round."""
        if job.timer is not None:
            job.timer.cancel()
            job.timer = None
            self._timers -= 1
        if not job.queued:
            job.queued = True
            self._ready.append(job)
            self._wake.set()

    def wake_later(self, job: JobWriter, delay_s: float) -> None:
        """Write what `job` has after `delay_s`, unless something else makes it go before."""
        self._timers += 1
        job.timer = asyncio.get_running_loop().call_later(delay_s, self.wake, job)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            # All that happens in the same turn of the event loop shares the round trip.
            await asyncio.sleep(0)
            self._wake.clear()
            while self._ready:
                self._busy = True
                await self._write(self._next_batch())
                self._busy = False
                self._written.set()
            self._written.set()

    def _next_batch(self) -> _Batch:
        batch, size = _Batch(), 0
        ready, self._ready = self._ready[:BATCH_JOBS], self._ready[BATCH_JOBS:]
        for at, job in enumerate(ready):
            if size > BATCH_BYTES:
                self._ready = ready[at:] + self._ready
                break
            size += job.bytes
            job.queued = False
            batch.add(*job.take())
        return batch

    async def _write(self, batch: _Batch) -> None:
        if not batch.size:
            return
        delay_s = 0.05
        while True:
            try:
                outcome = await self._queue.write(
                    publications=batch.publications, returns=batch.returns, endings=batch.endings
                )
            except AWAY as error:
                self._went(error)
                await asyncio.sleep(delay_s * (0.5 + random.random() / 2))
                delay_s = min(1.0, delay_s * 2)
            except Exception as error:
                await self._isolate(batch, error)
                return
            else:
                self._came()
                self._tell(batch, outcome.refused)
                return

    async def _isolate(self, batch: _Batch, error: Exception) -> None:
        """One bad write must not take the others along: write each alone, and let go of the bad one."""
        if batch.size > 1:
            for one in batch.apart():
                await self._write(one)
            return
        for job_id, token in batch.members():
            logger.error("job %s: what happened to it cannot be written: %s", job_id, error)
            self._on_refused(job_id, token)

    def _tell(self, batch: _Batch, refused: frozenset[tuple[str, int]]) -> None:
        ends: list[Return | Ending] = [*batch.returns, *batch.endings]
        for end in ends:
            if (end.job_id, end.token) not in refused:
                self._on_ended(end.job_id, end.token)
        for job_id, token in refused:
            self._on_refused(job_id, token)

    def _went(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            logger.warning("events wait: Redis is away (%s)", type(error).__name__)

    def _came(self) -> None:
        if self._away:
            self._away = False
            logger.info("events are written again")
