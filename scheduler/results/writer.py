"""The one writer of a worker process: events, returns and ends of all its jobs, one round trip per turn."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence

from scheduler.logs import ids_of, traced
from scheduler.queue.records import ClaimedJob
from scheduler.results.batch import Batch
from scheduler.results.job_writer import JobWriter
from scheduler.results.ports import WritePort

logger = logging.getLogger(__name__)

TICK_S = 0.003
"""Deltas other than the first wait for the next tick and share a write, which halves their cost."""
TURNS = 4
"""Whatever happens within this many turns of the event loop shares a round trip.

That is as long as a short answer takes from start to end. It costs microseconds when there is little to do.
"""
BATCH_JOBS = 256
BATCH_BYTES = 1 << 20
PENDING_BYTES = 64 << 20

DEFAULT_RESULT_TTL_MS = 3_600_000

Callback = Callable[[str, int], None]


class EventWriter:
    """Writes for all jobs of the process, one round trip at a time. Later events share the next one.

    `queue` waits while Redis is away; events collect in the meantime. The callbacks:

    - `on_refused(job_id, token)`: a write was refused because the token is no longer valid. Nothing more is
      written for the job.
    - `on_ended(job_id, token)`: an end, or a return, has been written. Every end leads to one of these two.
    - `on_written(jobs, lag_s)`: the events of `jobs` jobs have been written, `lag_s` after the first of them
      was ready.
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
        self._ready_at = 0.0  # when the first job got onto the ready list, on the event loop's clock
        self.result_ttl_ms = result_ttl_ms
        self.pending_bytes = 0
        self._ready: list[JobWriter] = []
        self._ticks: dict[int, list[JobWriter]] = {}  # jobs with deltas, by the tick that they wait for
        self._timer: asyncio.TimerHandle | None = None  # for the first tick, `_timer_tick`
        self._timer_tick = 0
        # How often jobs got onto the ready list, and how often their writes were over: `flush` compares them.
        self._queued = 0
        self._handled = 0
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self, job: ClaimedJob, worker: str) -> JobWriter:
        """The writer for one attempt."""
        return JobWriter(self, job, worker)

    async def start(self) -> None:
        """Start writing. Safe to call twice."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="writer")

    async def stop(self, *, limit_s: float = 5.0) -> None:
        """Write pending events, for at most `limit_s`, and stop. Safe to call twice."""
        task, self._task = self._task, None
        if task is None:
            return
        try:
            async with asyncio.timeout(limit_s):
                while self._ticks or self._handled < self._queued:
                    await self.flush()
        except TimeoutError:
            unwritten = self._queued - self._handled
            logger.warning("leaving %d job(s) unwritten; they run again when their leases end", unwritten)
        if self._timer is not None:
            self._timer.cancel()
        task.cancel()
        await asyncio.wait([task])

    async def flush(self) -> None:
        """Return once everything that has happened so far is written."""
        self._tick_over(math.inf)
        last = self._queued
        while self._handled < last:
            self._written.clear()
            await self._written.wait()

    async def wait_for_memory(self) -> None:
        """Return once the pending writes take no more memory than they may."""
        while self.pending_bytes > PENDING_BYTES:
            self._written.clear()
            await self._written.wait()

    def wake(self, job: JobWriter) -> None:
        """Write the events of `job` in the next round."""
        job.due = None
        if not job.queued:
            job.queued = True
            self._queued += 1
            if self._on_written is not None and not self._ready:
                self._ready_at = asyncio.get_running_loop().time()
            self._ready.append(job)
            self._wake.set()

    def wake_at(self, job: JobWriter, at: float) -> None:
        """Write the events of `job` at the first tick after `at`, a time of the event loop, or earlier."""
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
        # The timer may fire a little early by the loop's clock.
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
            self._handled += len(jobs)
            self._written.set()

    def _next(self) -> list[JobWriter]:
        """Take as many jobs off the ready list as may share a write, at least one."""
        size = taken = 0
        for job in self._ready[:BATCH_JOBS]:
            if size > BATCH_BYTES:
                break
            size += job.bytes
            taken += 1
        jobs, self._ready = self._ready[:taken], self._ready[taken:]
        return jobs

    def _gather(self, jobs: Sequence[JobWriter]) -> Batch:
        batch = Batch()
        for job in jobs:
            job.queued = False
            publication = job.take()
            if job.refused:
                if job.end is not None:
                    self._tell(self._on_refused, job)
            elif publication is not None or job.end is not None:
                batch.add(job, publication, job.end)
        return batch

    async def _write(self, batch: Batch) -> None:
        try:
            outcome = await self._queue.write(
                publications=batch.publications, returns=batch.returns, endings=batch.endings
            )
        except Exception as error:
            await self._isolate(batch, error)
        else:
            self._notify(batch, outcome.refused)

    async def _isolate(self, batch: Batch, error: Exception) -> None:
        """Write each job alone, and give up the bad one: it must not take the others along."""
        if len(batch.jobs) > 1:
            for alone in batch.apart():
                await self._write(alone)
            return
        for job in batch.jobs:
            # Redis' message may repeat the beginning of the data.
            logger.error(
                "job %s: its events or its end cannot be written",
                job.job.id,
                exc_info=traced(error, logger),
                extra=ids_of(job.job),
            )
            self._refuse(job)

    def _notify(self, batch: Batch, refused: frozenset[tuple[str, int]]) -> None:
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
                "job %s: a callback of the writer failed",
                job.job.id,
                exc_info=traced(error, logger),
                extra=ids_of(job.job),
            )
