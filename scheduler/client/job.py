"""A caller's handle on one job."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from scheduler.errors import (
    InvalidRequest,
    InvalidTransition,
    JobNotFound,
    NoTicket,
    ResultTimeout,
    SchedulerError,
)
from scheduler.events import Done, Event, parse_event_id
from scheduler.model import Duration, JobInfo, JobResult, JobState, Priority, invalid_request
from scheduler.queue.inspection.jobs import read_job
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import START, Cursor, Reuse
from scheduler.results.reader import read_events, read_result

if TYPE_CHECKING:
    from scheduler.client.async_client import AsyncClient

T = TypeVar("T")

_DELAY: TypeAdapter[float] = TypeAdapter(Annotated[Duration, Field(ge=0)])


class Job:
    """One job, as one caller sees it.

    `id` names the job; for a duplicate it is the id of the job that was joined, and `deduplicated` is true.
    `channel` is the Redis pub/sub channel of its events; how it is made up is not for users to rely on.
    """

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
        """The pub/sub channel on which this job's events appear as JSON."""
        return self._client.queue.channel(self.id)

    async def events(self, *, after: str | None = None) -> AsyncGenerator[Event, None]:
        """All events of the job: those that were, then those to come. Ends after one terminal event.

        `after` is the `id` of an event: you get those that follow it, none if it was the last one. If the
        job's events do not reach that far (Redis lost data), you get all of them.
        While Redis is away it waits.

        Raises:
            InvalidRequest: `after` is no event id.
            JobNotFound: no job has this id, or its record has expired.
        """
        cursor = START if after is None else _cursor(after)
        while True:
            try:
                async with aclosing(self._events(cursor)) as events:
                    async for event in events:
                        yield event
            except JobNotFound:
                if not await self._is_joined():
                    raise
            else:
                return

    async def _events(self, cursor: Cursor) -> AsyncGenerator[Event, None]:
        async with (
            self._client.reading() as (queue, subscriptions),
            aclosing(read_events(queue, subscriptions, self.id, after=cursor)) as events,
        ):
            async for event in events:
                if isinstance(event, Done):
                    yield replace(event, result=self._marked(event.result))
                else:
                    yield event

    async def result(self, *, timeout_s: float | None = None) -> JobResult:
        """Wait until the job is done.

        Raises:
            JobFailed, JobCancelled, JobExpired, JobShed: it ended otherwise.
            JobNotFound: no job has this id, or its record has expired.
            ResultTimeout: it had not ended after `timeout_s` seconds. Nothing is cancelled.
            InvalidRequest: `timeout_s` is no number.
        """
        check_timeout(timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return self._marked(await self._result())
        except TimeoutError:
            raise ResultTimeout(f"job {self.id} had not ended after {timeout_s} s; it goes on") from None

    async def _result(self) -> JobResult:
        while True:
            try:
                async with self._client.reading() as (queue, subscriptions):
                    return await read_result(queue, subscriptions, self.id)
            except JobNotFound:
                if not await self._is_joined():
                    raise

    def _marked(self, result: JobResult) -> JobResult:
        """The result, with what is this caller's own in it: that the answer was there when it asked."""
        if self._reuse is None:
            return result
        age_s = self._reuse.age_ms / 1000
        return result.model_copy(update={"reused": True, "hits": self._reuse.hits, "age_s": age_s})

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
            InvalidRequest: no such priority.
            InvalidTransition: the job has ended.
            JobNotFound: no job has this id, or its record has expired.
        """
        if type(priority) not in (int, Priority) or not 0 <= priority <= 9:
            raise InvalidRequest(f"priority: {priority!r} is not an integer from 0 to 9", field="priority")
        state = await self._ask(lambda queue, job_id: queue.set_priority(job_id, int(priority)))
        if state.ended:
            raise InvalidTransition(f"job {self.id} is {state.value}; its priority changes no more")

    async def reschedule(self, delay_s: float | timedelta) -> None:
        """Let a delayed job become due in `delay_s` seconds; 0 lets it run now.

        Raises:
            InvalidRequest: no such delay.
            InvalidTransition: the job is not delayed. A waiting one may be told to run now.
            JobNotFound: no job has this id, or its record has expired.
        """
        delay_ms = _delay_ms(delay_s)
        state = await self._ask(lambda queue, job_id: queue.reschedule(job_id, delay_ms))
        if state.ended or state is JobState.RUNNING or (delay_ms and state is not JobState.DELAYED):
            raise InvalidTransition(f"job {self.id} is {state.value}; only a delayed one can be rescheduled")

    async def delete(self) -> None:
        """Forget an ended job now, with its request, its answer and its events.

        A finished answer that serves again under its dedup key serves no more.

        Raises:
            InvalidTransition: the job has not ended; cancel it first.
            JobNotFound: no job has this id, or its record has expired.
        """
        reply = await self._ask(lambda queue, job_id: _found(queue.delete(job_id)))
        if reply != "deleted":
            raise InvalidTransition(
                f"job {self.id} is {reply}; only an ended one can be deleted: cancel it first"
            )

    async def cancel(self, *, force: bool = False) -> bool:
        """Give this caller's ticket back; the last one ends the job. `force` ends it whoever holds tickets.

        Returns whether the job is cancelled now: false where others still want it, or where it had ended.

        Raises:
            NoTicket: this handle was attached by id and holds no ticket.
            JobNotFound: no job has this id, or its record has expired.
        """
        if self._ticket is None and not force:
            raise NoTicket(
                f"this handle of job {self.id} holds no ticket; cancel(force=True) ends it for everybody"
            )
        ticket = None if force else self._ticket
        return await self._ask(lambda queue, job_id: _found(queue.cancel(job_id, ticket))) == "cancelled"

    async def _ask(self, call: Callable[[PromptQueue, str], Awaitable[T | None]]) -> T:
        """The answer of a call that gets the job's id, and answers None where there is no such job."""
        while True:
            async with self._client.commands() as queue:
                answer = await call(queue, self.id)
            if answer is not None:
                return answer
            if not await self._is_joined():
                raise self._not_found()

    async def _is_joined(self) -> bool:
        """Whether a caller proposed this id and then joined another job: its id is that job's from now on."""
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


async def _found(reply: Awaitable[str]) -> str | None:
    said = await reply
    return None if said == "not_found" else said


def check_timeout(timeout_s: float | None) -> None:
    """Refuse what is no number of seconds.

    Raises:
        InvalidRequest: it is none.
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
