"""Runs any number of requests: enqueues them as the queue has space, and gives their outcomes in order."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice

from scheduler.client.async_client import AsyncClient
from scheduler.client.job import Job
from scheduler.errors import JobEnded, JobNotFound, QueueFull, ResultTimeout, SchedulerError
from scheduler.model import JobRequest, JobResult

CHUNK = 64
"""How many requests are enqueued together."""
WINDOW = 1024
"""How many jobs are followed, and results kept, at once. Each outcome makes space for another request."""
LAST_ANSWER_S = 2.0
"""How long a cancelled run waits for the answer to the chunk that it is sending."""


class BulkState(StrEnum):
    """What became of a request."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    SHED = "shed"
    REFUSED = "refused"
    """It was not enqueued, because of an error."""
    TIMEOUT = "timeout"
    """Its job had not ended in time; the job is unaffected."""
    LOST = "lost"
    """The job's record expired before its result was read."""
    ENQUEUED = "enqueued"
    """Its job is in the queue. The run does not wait for results, or was cancelled."""
    NOT_SENT = "not_sent"
    """The run was cancelled while the queue had no space for it."""
    UNKNOWN = "unknown"
    """The run was cancelled before Redis had answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkOutcome:
    """The outcome of one request."""

    index: int
    """The position of the request; the first one has the run's `first`."""
    state: BulkState
    job_id: str | None = None
    """None if it was not enqueued, as far as is known."""
    deduplicated: bool = False
    """Whether it joined another job."""
    result: JobResult | None = None
    """Set if the state is `done`."""
    error: SchedulerError | None = None
    """Set if the job ended without a result, or if there is no result for another reason."""


class BulkRun:
    """One run over many requests. Memory does not grow with their number.

    `wait`: wait for the jobs' results, each for `timeout_s` seconds at most; otherwise only enqueue.
    `first` is the index of the first request. `on_end` is called whenever a request has come to its end,
    which may be long before its outcome is due.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        wait: bool = True,
        timeout_s: float | None = None,
        first: int = 0,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._wait = wait
        self._timeout_s = timeout_s
        self._on_end = on_end
        self._window = asyncio.Semaphore(WINDOW)
        self._open: dict[int, BulkOutcome] = {}
        self._ended: dict[int, BulkOutcome] = {}
        self._news = asyncio.Event()
        self._next = first
        self.position = first
        """The index of the next request to send: where another run would resume."""
        self.states: Counter[BulkState] = Counter()
        """How many requests have ended in each state."""

    @property
    def ended(self) -> int:
        """How many requests have come to their end."""
        return self.states.total()

    @property
    def failed(self) -> int:
        """How many of them came to another end than they should."""
        return self.ended - self.states[BulkState.DONE if self._wait else BulkState.ENQUEUED]

    @property
    def in_queue(self) -> int:
        """How many jobs have been enqueued and have not ended."""
        return sum(one.state is BulkState.ENQUEUED for one in self._open.values())

    async def outcomes(self, requests: Iterable[JobRequest]) -> AsyncGenerator[BulkOutcome, None]:
        """Send all requests; yields one outcome each, in order.

        If it is cancelled or raises, `unfinished` has the outcomes that it has not yielded. Use `aclosing`.

        Raises:
            RedisError: Redis cannot take the requests.
        """
        sending = asyncio.create_task(self._send(requests))
        sending.add_done_callback(lambda _: self._news.set())
        try:
            while True:
                while (outcome := self._ended.pop(self._next, None)) is not None:
                    self._next += 1
                    self._window.release()
                    yield outcome
                if sending.done():
                    break
                self._news.clear()
                await self._news.wait()
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            # Asked for in any case, so that asyncio logs nothing.
            failed = None if sending.cancelled() else sending.exception()
        if failed:
            raise failed

    def unfinished(self) -> list[BulkOutcome]:
        """After a run that was cut short: the outcomes, so far, of the requests that were sent or read."""
        rest = self._open | self._ended
        return [rest[index] for index in sorted(rest)]

    async def _send(self, requests: Iterable[JobRequest]) -> None:
        try:
            await self._send_all(requests)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # the first one has ended the others

    async def _send_all(self, requests: Iterable[JobRequest]) -> None:
        numbered = enumerate(requests, self.position)
        async with asyncio.TaskGroup() as followers:
            while chunk := dict(islice(numbered, CHUNK)):
                self.position += len(chunk)
                for index, outcome in (await self._enqueue(chunk)).items():
                    await self._window.acquire()
                    if isinstance(outcome, SchedulerError):
                        self._end(BulkOutcome(index=index, state=BulkState.REFUSED, error=outcome))
                    elif self._wait:
                        followers.create_task(self._follow(index, outcome))
                    else:
                        self._end(_enqueued(index, outcome))

    async def _enqueue(self, requests: dict[int, JobRequest]) -> dict[int, Job | SchedulerError]:
        """Enqueue a chunk. Requests for which there is no space are sent again later."""
        outcomes: dict[int, Job | SchedulerError] = {}
        self._mark(requests, BulkState.NOT_SENT)
        while requests:
            outcomes |= await self._enqueue_once(requests)
            full = {at: reply for at in requests if isinstance(reply := outcomes[at], QueueFull)}
            requests = {at: requests[at] for at in full}
            if full:
                await asyncio.sleep(max(reply.retry_after_s for reply in full.values()))
        return dict(sorted(outcomes.items()))

    async def _enqueue_once(self, requests: dict[int, JobRequest]) -> dict[int, Job | SchedulerError]:
        """Enqueue, and take note of the answer even if the run is cancelled meanwhile."""
        self._mark(requests, BulkState.UNKNOWN)
        sending = asyncio.create_task(self._client.enqueue_many(list(requests.values())))
        try:
            await asyncio.wait([sending])
        except asyncio.CancelledError:
            await asyncio.wait([sending], timeout=LAST_ANSWER_S)
            sending.cancel()
            raise
        finally:
            if sending.done() and not sending.cancelled() and sending.exception() is None:
                self._note(dict(zip(requests, sending.result(), strict=True)))
        return dict(zip(requests, sending.result(), strict=True))

    def _mark(self, indexes: Iterable[int], state: BulkState) -> None:
        self._open |= {index: BulkOutcome(index=index, state=state) for index in indexes}

    def _note(self, replies: dict[int, Job | SchedulerError]) -> None:
        self._mark(replies, BulkState.NOT_SENT)
        self._open |= {
            at: _enqueued(at, one) for at, one in replies.items() if not isinstance(one, SchedulerError)
        }

    async def _follow(self, index: int, job: Job) -> None:
        self._end(await self._outcome(_enqueued(index, job), job))

    async def _outcome(self, enqueued: BulkOutcome, job: Job) -> BulkOutcome:
        try:
            result = await job.result(timeout_s=self._timeout_s)
        except JobEnded as error:
            return replace(enqueued, state=BulkState(error.state), error=error)
        except ResultTimeout as error:
            return replace(enqueued, state=BulkState.TIMEOUT, error=error)
        except JobNotFound as error:
            return replace(enqueued, state=BulkState.LOST, error=error)
        return replace(enqueued, state=BulkState.DONE, result=result)

    def _end(self, outcome: BulkOutcome) -> None:
        self.states[outcome.state] += 1
        self._on_end()
        self._open.pop(outcome.index, None)
        self._ended[outcome.index] = outcome
        self._news.set()


def _enqueued(index: int, job: Job) -> BulkOutcome:
    return BulkOutcome(index=index, state=BulkState.ENQUEUED, job_id=job.id, deduplicated=job.deduplicated)
