"""Reads a job's events: first a replay, then the channel, and a replay again whenever one may be missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from scheduler.backoff import backoff
from scheduler.errors import JobNotFound, SchedulerError
from scheduler.events import EVENT_TYPES, Done, Event, RawEvent, decode_event, ended_error, raw_event
from scheduler.model import JobResult
from scheduler.queue.records import START, Cursor, Replay
from scheduler.redis_server.errors import passes
from scheduler.results.ports import ReplayPort
from scheduler.results.subscriptions import Subscriptions

RESYNC_S = 5.0
"""A reader that hears nothing for this long replays: its connection may be half open."""


async def read_raw_events(
    queue: ReplayPort,
    subscriptions: Subscriptions,
    job_id: str,
    *,
    after: Cursor = START,
    resync_s: float = RESYNC_S,
) -> AsyncGenerator[RawEvent, None]:
    """All events of a job after a cursor, in order, as JSON; ends after one terminal event.

    Types that this version does not know are included. Waits while Redis is away.

    Raises:
        JobNotFound: there is no such job, or its record expired meanwhile.
    """
    cursor = after
    # Subscribe before the first replay, so that nothing published in between is lost.
    async with subscriptions.follow(queue.channel(job_id)) as feed:
        behind = True
        while True:
            if behind:
                replay = await _replay(queue, job_id, cursor)
                if replay.last < cursor:
                    cursor = START  # Redis lost data: this is another stream than the one read so far
                    continue
                for data in replay.events:
                    event = raw_event(data)
                    cursor = event.cursor
                    yield event
                    if event.terminal:
                        return
                if replay.state.ended and not replay.more:
                    return  # the cursor was past the terminal event
                behind = replay.more
                continue
            message = await feed.next(resync_s)
            found = None if message is None else _next_event(message, cursor)
            if found is None:
                behind = True
            elif found.cursor > cursor:
                cursor = found.cursor
                yield found
                if found.terminal:
                    return


async def read_events(
    queue: ReplayPort,
    subscriptions: Subscriptions,
    job_id: str,
    *,
    after: Cursor = START,
    resync_s: float = RESYNC_S,
) -> AsyncGenerator[Event, None]:
    """All events of a job after a cursor, decoded; see `read_raw_events`. Unknown types are left out."""
    raw = read_raw_events(queue, subscriptions, job_id, after=after, resync_s=resync_s)
    async with aclosing(raw) as events:
        async for event in events:
            # A newer worker process may publish types that this version does not know.
            if event.type in EVENT_TYPES:
                yield decode_event(event.data)


async def read_result(
    queue: ReplayPort, subscriptions: Subscriptions, job_id: str, *, resync_s: float = RESYNC_S
) -> JobResult:
    """Wait for a job's end, and return its result.

    Raises:
        JobFailed, JobCancelled, JobExpired, JobShed: it ended without a result.
        JobNotFound: there is no such job, or its record expired meanwhile.
    """
    async with aclosing(read_raw_events(queue, subscriptions, job_id, resync_s=resync_s)) as events:
        async for event in events:
            if event.terminal:
                return _result(decode_event(event.data))
    raise _not_found(job_id)


def _result(event: Event) -> JobResult:
    if isinstance(event, Done):
        return event.result
    raise ended_error(event)  # type: ignore[arg-type]  # terminal, and not Done


async def _replay(queue: ReplayPort, job_id: str, cursor: Cursor) -> Replay:
    waits = backoff()
    while True:
        try:
            replay = await queue.replay(job_id, cursor)
        except Exception as error:
            if not passes(error):
                raise
            await asyncio.sleep(next(waits))
        else:
            if replay is None:
                raise _not_found(job_id)
            return replay


def _next_event(message: bytes, cursor: Cursor) -> RawEvent | None:
    """The event in a message, which may be a repetition; None if one before it is missing."""
    try:
        event = raw_event(message)
    except SchedulerError:
        return None  # published by somebody else: the stream has what counts
    return event if event.cursor <= cursor or _follows(event.cursor, cursor) else None


def _follows(new: Cursor, last: Cursor) -> bool:
    """Whether nothing is missing in between: seq has no gaps, and begins at 1 for each token."""
    if new[0] == last[0]:
        return new[1] == last[1] + 1
    return new[1] == 1


def _not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"no job {job_id}: unknown, or its record has expired")
