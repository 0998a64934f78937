"""The attempts of a worker process, from the claim until their ends are written."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Iterator
from functools import partial

from scheduler.engine.attempt import Attempt, Stop, close_attempt, run_attempt
from scheduler.engine.calls import PatientWrites
from scheduler.engine.context import EngineContext
from scheduler.engine.overdue import Overdue
from scheduler.logs import ids_of
from scheduler.model import is_urgent
from scheduler.observations import Written
from scheduler.queue.records import ClaimedJob
from scheduler.results.writer import EventWriter

logger = logging.getLogger(__name__)

LARGE_BYTES = 32 << 10
"""A larger payload is kept only until it is decoded."""

LET_GO_S = 5.0
"""How long a stage may take to end once it is cancelled."""

ARRIVED_S = 0.05
"""An urgent job has reached its endpoint after this time."""

NO_PERMIT_MS = 1000


class Attempts:
    """The registry of attempts, by token. It begins them, and forgets each once its end is in Redis.

    `running` counts the jobs whose stages still run, `running_bytes` their payloads. `writer` writes their
    events and ends; `overdue` has those whose deadlines have passed.
    """

    def __init__(self, context: EngineContext) -> None:
        self._context = context
        self._attempts: dict[int, Attempt] = {}
        self._suspects: set[int] = set()  # tokens of jobs that may have killed a process; one at most
        self.overdue = Overdue()
        self.writer = EventWriter(
            PatientWrites(context.queue, context.calls),
            on_refused=self.lost,
            on_ended=self._ended,
            on_written=None if context.observers.written is None else self._written,
            result_ttl_ms=round(context.serving.settings.result_ttl_s * 1000),
        )
        self.running = 0
        self.running_bytes = 0

    def __len__(self) -> int:
        return len(self._attempts)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(tuple(self._attempts.values()))

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens of all attempts."""
        return tuple(self._attempts)

    @property
    def has_suspect(self) -> bool:
        """Whether a job runs that may have killed a worker process before."""
        return bool(self._suspects)

    def find(self, token: int) -> Attempt | None:
        """The attempt with this token; None if it is not here (any more)."""
        return self._attempts.get(token)

    def leases(self, tokens: Iterable[int]) -> list[tuple[str, int]]:
        """The leases of those attempts that are still here: pairs of job id and token."""
        found = ((self._attempts.get(token), token) for token in tokens)
        return [(attempt.job.id, token) for attempt, token in found if attempt is not None]

    def begin(self, job: ClaimedJob) -> None:
        """Run a claimed job in a task of its own."""
        serving, writer = self._context.serving, self.writer
        route = serving.routes[job.lane]
        payload = job.payload
        if len(payload) > LARGE_BYTES:
            job = job._replace(payload=b"")
        attempt = Attempt(job, payload, route, writer.open(job, self._context.worker), self.overdue.add)
        if serving.limits.endpoints:
            attempt.take_permit = partial(self._take_permit, job)
        attempt.is_held_back = self._context.permits.is_held_back
        attempt.observers = self._context.observers
        self._attempts[job.token] = attempt
        if job.suspect:
            self._mark_suspect(job)
        self._count(attempt)
        if job.remaining_ms is not None:
            attempt.set_deadline(time.monotonic() + job.remaining_ms / 1000)
        bounds = serving.bounds[job.lane]
        attempt.task = task = asyncio.create_task(
            run_attempt(attempt, writer.wait_for_memory, serving.retry_policy, bounds)
        )
        # A task cancelled before its first step never runs: what must happen in any case happens here.
        task.add_done_callback(partial(self._finished, attempt))

    def _mark_suspect(self, job: ClaimedJob) -> None:
        self._suspects.add(job.token)
        logger.warning(
            "job %s has lost its worker process before; it runs as the only suspect",
            job.id,
            extra=ids_of(job),
        )

    def _count(self, attempt: Attempt) -> None:
        self.running += 1
        self.running_bytes += attempt.payload_bytes
        attempt.route.running += 1
        if is_urgent(attempt.job.priority) and any(endpoint.kept for endpoint in attempt.route.endpoints):
            # Until it has reached its endpoint, it counts as if it took a slot for all.
            asyncio.get_running_loop().call_later(ARRIVED_S, self._context.signal.notify)

    async def _take_permit(self, job: ClaimedJob, endpoint: str) -> int:
        wait = await self._context.calls.until_done(lambda: self._context.queue.take_permit(job, endpoint))
        if wait == "lost":
            self.lost(job.id, job.token)
            return NO_PERMIT_MS
        if wait:
            self._context.permits.refuse(job.lane, (endpoint,), wait / 1000)
        return wait

    def _finished(self, attempt: Attempt, task: asyncio.Task[None]) -> None:
        self.running -= 1
        self.running_bytes -= attempt.payload_bytes
        attempt.route.running -= 1
        self._context.signal.notify()
        close_attempt(attempt, task)
        if attempt.stop is Stop.LOST:
            self._forget(attempt.job.token)

    def _written(self, jobs: int, lag_s: float) -> None:
        if (observe := self._context.observers.written) is not None:
            observe(Written(jobs, lag_s))

    def _ended(self, job_id: str, token: int) -> None:
        """The end of an attempt is in Redis."""
        self._forget(token)

    def lost(self, job_id: str, token: int) -> None:
        """Redis refused a token: the job was cancelled, has expired, or belongs to another process now."""
        attempt = self._attempts.get(token)
        if attempt is None or attempt.job.id != job_id or attempt.stop is Stop.LOST:
            return
        # Most likely a user has cancelled it, which is nothing to warn about.
        logger.debug("job %s is not ours any more; letting go of it", job_id, extra=ids_of(attempt.job))
        if attempt.task is not None and attempt.task.done():
            self._forget(token)
        else:
            attempt.end_early(Stop.LOST)

    def _forget(self, token: int) -> None:
        attempt = self._attempts.pop(token, None)
        if attempt is not None:
            self._report_end(attempt)
        if token in self._suspects:
            self._suspects.discard(token)
            self._context.signal.look_again()  # the next suspect may come

    def _report_end(self, attempt: Attempt) -> None:
        observe = self._context.observers.attempt_ended
        watcher = attempt.context.watcher if attempt.context is not None else None
        if observe is not None:
            observe(attempt)
        if watcher is not None:
            watcher.attempt_ended(attempt)

    async def drain(self, limit_s: float) -> None:
        """Wait up to `limit_s` for the jobs to finish, then give back the rest."""
        tasks = [attempt.task for attempt in self if attempt.task]
        if not tasks:
            return
        logger.info("draining: %d job(s) in flight have %g s to finish", len(tasks), limit_s)
        began = time.monotonic()
        done, late = await asyncio.wait(tasks, timeout=limit_s)
        stuck = await self._stop_late(late) if late else set()
        logger.log(
            logging.WARNING if late else logging.INFO,
            "drained in %.1f s: %d job(s) have ended, %d given back",
            time.monotonic() - began,
            len(done),
            len(late) - len(stuck),
        )

    async def _stop_late(self, late: Collection[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        """Cancel the attempts, so that their jobs wait again; returns the tasks that ignore it."""
        for attempt in self:
            attempt.end_early(Stop.DRAIN)
        _, stuck = await asyncio.wait(late, timeout=LET_GO_S)
        if stuck:
            logger.error(
                "%d job(s) do not let go: a stage ignores its cancellation; they come back "
                "when their leases end",
                len(stuck),
            )
        return stuck

    def abandon(self) -> None:
        """Forget the attempts that are stuck or unwritten; their jobs come back when their leases end."""
        for token, attempt in tuple(self._attempts.items()):
            attempt.stop = Stop.LOST
            self._forget(token)
