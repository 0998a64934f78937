"""A caller's handle on one job."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from scheduler.errors import (
    InvalidRequest,
    InvalidTransition,
    JobNotFound,
    NoTicket,
    ResultTimeout,
    SchedulerError,
)
from scheduler.events import Done, Event, RawEvent, parse_event_id
from scheduler.model import Duration, JobInfo, JobResult, JobState, Priority, invalid_request
from scheduler.queue.inspection.jobs import read_job
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import START, Cursor, Reuse
from scheduler.results.ports import ReplayPort
from scheduler.results.reader import read_events, read_raw_events, read_result
from scheduler.results.subscriptions import Subscriptions

if TYPE_CHECKING:
    from scheduler.client.async_client import AsyncClient

T = TypeVar("T")
E_co = TypeVar("E_co", covariant=True)

_DELAY: TypeAdapter[float] = TypeAdapter(Annotated[Duration, Field(ge=0)])


class ReadEvents(Protocol[E_co]):
    """Reads a job's events, decoded or not."""

    def __call__(
        self, queue: ReplayPort, subscriptions: Subscriptions, job_id: str, *, after: Cursor
    ) -> AsyncGenerator[E_co, None]:
        """All events after a cursor."""
        ...


class Job:
    """One job, as one caller sees it."""

    id: str
    """The job's id. For a duplicate it is the id of the job that it joined."""
    deduplicated: bool
    """Whether the request was a duplicate."""

    __slots__ = ("_client", "_reuse", "_ticket", "deduplicated", "id")

    def __init__(
        self,
        client: AsyncClient,
        job_id: str,
        *,
        ticket: str | None = None,
        deduplicated: bool = False,
        reuse: Reuse | None = None,
    ) -> None:
        self._client = client
        self._ticket = ticket
        self._reuse = reuse
        self.id = job_id
        self.deduplicated = deduplicated

    def __repr__(self) -> str:
        return f"Job({self.id!r}, deduplicated={self.deduplicated})"

    @property
    def channel(self) -> str:
        """The pub/sub channel with this job's events as JSON. Do not rely on how the name is made up."""
        return self._client.queue.channel(self.id)

    async def events(self, *, after: str | None = None) -> AsyncGenerator[Event, None]:
        """All events of the job: past ones first, then new ones as they come. Ends after the terminal event.

        `after` is the `id` of an event: you get the events that follow it. If Redis has lost data and the
        job's events do not reach that far, you get all of them. Waits while Redis is away.

        Raises:
            InvalidRequest: `after` is not an event id.
            JobNotFound: no job has this id, or its record has expired.
        """
        async with aclosing(self._follow(read_events, after)) as events:
            async for event in events:
                yield self._marked_event(event)

    async def events_json(self, *, after: str | None = None) -> AsyncGenerator[RawEvent, None]:
        """The same events, not decoded: `event.data` is JSON, the same bytes as on the channel.

        For gateways that pass events on: a token is neither decoded nor encoded again. Event types that this
        version does not know are included. `after` and errors are those of `events`.
        """
        async with aclosing(self._follow(read_raw_events, after)) as events:
            async for event in events:
                yield self._marked_json(event)

    async def _follow(self, read: ReadEvents[T], after: str | None) -> AsyncGenerator[T, None]:
        cursor = START if after is None else _cursor(after)
        while True:
            try:
                async with (
                    self._client.reading() as (queue, subscriptions),
                    aclosing(read(queue, subscriptions, self.id, after=cursor)) as events,
                ):
                    async for event in events:
                        yield event
            except JobNotFound:
                if not await self._is_joined():
                    raise
            else:
                return

    async def result(self, *, timeout_s: float | None = None) -> JobResult:
        """Wait until the job is done, and return its result.

        Raises:
            JobFailed, JobCancelled, JobExpired, JobShed: it ended without a result.
            JobNotFound: no job has this id, or its record has expired.
            ResultTimeout: it had not ended after `timeout_s` seconds. Nothing is cancelled.
            InvalidRequest: `timeout_s` is not a number.
        """
        check_timeout(timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return self._marked(await self._result())
        except TimeoutError:
            raise ResultTimeout.of(self.id, timeout_s) from None

    async def _result(self) -> JobResult:
        while True:
            try:
                async with self._client.reading() as (queue, subscriptions):
                    return await read_result(queue, subscriptions, self.id)
            except JobNotFound:
                if not await self._is_joined():
                    raise

    def _marked(self, result: JobResult) -> JobResult:
        """The result; if it was there before this caller asked, it says so."""
        return result if self._reuse is None else result.model_copy(update=_marks(self._reuse))

    def _marked_event(self, event: Event) -> Event:
        if self._reuse is None or not isinstance(event, Done):
            return event
        return replace(event, result=self._marked(event.result))

    def _marked_json(self, event: RawEvent) -> RawEvent:
        if self._reuse is None or event.type != Done.type:
            return event
        fields = orjson.loads(event.data)
        fields["result"] |= _marks(self._reuse)
        return event._replace(data=orjson.dumps(fields))

    async def info(self) -> JobInfo:
        """The job's record: state, position, attempts, error, tickets, times, history.

        Raises:
            JobNotFound: no job has this id, or its record has expired.
        """
        async with self._client.commands() as queue:
            info = await read_job(queue, self.id)
        if info is None:
            raise self._not_found()
        return info

    async def set_priority(self, priority: int) -> None:
        """Change the priority, 0 to 9. A waiting job keeps its enqueue time.

        Raises:
            InvalidRequest: `priority` is not an integer from 0 to 9.
            InvalidTransition: the job has ended.
            JobNotFound: no job has this id, or its record has expired.
        """
        if type(priority) not in (int, Priority) or not 0 <= priority <= 9:
            raise InvalidRequest(f"priority: {priority!r} is not an integer from 0 to 9", field="priority")
        state = await self._ask(lambda queue, job_id: queue.set_priority(job_id, int(priority)))
        if state.ended:
            raise InvalidTransition(f"job {self.id} is {state.value}; its priority cannot change any more")

    async def reschedule(self, delay_s: float | timedelta) -> None:
        """Make a delayed job due in `delay_s` seconds; 0 runs it as soon as it is its turn.

        Raises:
            InvalidRequest: `delay_s` is not a duration.
            InvalidTransition: the job is not delayed. With 0, a waiting job is fine as well.
            JobNotFound: no job has this id, or its record has expired.
        """
        delay_ms = _delay_ms(delay_s)
        state = await self._ask(lambda queue, job_id: queue.reschedule(job_id, delay_ms))
        if state.ended or state is JobState.RUNNING or (delay_ms and state is not JobState.DELAYED):
            raise InvalidTransition(f"job {self.id} is {state.value}; only delayed jobs can be rescheduled")

    async def delete(self) -> None:
        """Delete an ended job now, with its request, its result and its events.

        Its result is not reused under its dedup key any more.

        Raises:
            InvalidTransition: the job has not ended; cancel it first.
            JobNotFound: no job has this id, or its record has expired.
        """
        reply = await self._ask(lambda queue, job_id: _found(queue.delete(job_id)))
        if reply != "deleted":
            raise InvalidTransition(
                f"job {self.id} is {reply}; only ended jobs can be deleted: cancel it first"
            )

    async def cancel(self, *, force: bool = False) -> bool:
        """Give this caller's ticket back. The job is cancelled with its last ticket; with `force` at once.

        Returns whether the job is cancelled now: false if others still hold tickets, or if it had ended.

        Raises:
            NoTicket: this handle was attached by id and has no ticket.
            JobNotFound: no job has this id, or its record has expired.
        """
        if self._ticket is None and not force:
            raise NoTicket(
                f"this handle of job {self.id} has no ticket; cancel(force=True) cancels it for everybody"
            )
        ticket = None if force else self._ticket
        return await self._ask(lambda queue, job_id: _found(queue.cancel(job_id, ticket))) == "cancelled"

    async def _ask(self, call: Callable[[PromptQueue, str], Awaitable[T | None]]) -> T:
        """The answer of `call`, which gets the job's id and returns None if there is no such job."""
        while True:
            async with self._client.commands() as queue:
                answer = await call(queue, self.id)
            if answer is not None:
                return answer
            if not await self._is_joined():
                raise self._not_found()

    async def _is_joined(self) -> bool:
        """Whether the id was proposed by a caller who joined another job; from now on this is that job."""
        async with self._client.commands() as queue:
            joined = await queue.joined(self.id)
        if joined is None or joined == self.id:
            return False
        self.id = joined
        return True

    def _not_found(self) -> JobNotFound:
        return JobNotFound(
            f"no job {self.id} in queue {self._client.queue.name!r}: unknown, or its record has expired"
        )


def _marks(reuse: Reuse) -> dict[str, Any]:
    return {"reused": True, "hits": reuse.hits, "age_s": reuse.age_ms / 1000}


async def _found(reply: Awaitable[str]) -> str | None:
    said = await reply
    return None if said == "not_found" else said


def check_timeout(timeout_s: float | None) -> None:
    """Refuse a time-out that is not a number of seconds.

    Raises:
        InvalidRequest: it is not.
    """
    is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if timeout_s is not None and (not is_number or math.isnan(timeout_s)):
        raise InvalidRequest(f"timeout_s: give seconds as a number, not {timeout_s!r}", field="timeout_s")


def _delay_ms(delay_s: object) -> int:
    try:
        return round(_DELAY.validate_python(delay_s) * 1000)
    except ValidationError as error:
        raise InvalidRequest(f"delay_s: {invalid_request(error)}", field="delay_s") from None


def _cursor(event_id: object) -> Cursor:
    try:
        return parse_event_id(event_id)
    except SchedulerError:
        raise InvalidRequest(
            f"after: give the id of an event, as '3-7', not {event_id!r}", field="after"
        ) from None
