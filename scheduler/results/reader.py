"""Reads a job's events: what was, then what comes, and what was again wherever something may be missing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple

import orjson

from scheduler.errors import JobNotFound, SchedulerError
from scheduler.events import EVENT_TYPES, Done, Event, decode_event, ended_error, parse_event_id
from scheduler.model import JobResult
from scheduler.queue.records import START, Cursor, Replay
from scheduler.redis_server.errors import passes
from scheduler.results.ports import ReplayPort
from scheduler.results.subscriptions import Subscriptions

RESYNC_S = 5.0
TERMINAL = frozenset({"done", "failed", "cancelled", "expired", "shed"})

_HEAD = re.compile(rb'\{"id":"(\d+)-(\d+)","type":"(\w+)"')


class _Head(NamedTuple):
    cursor: Cursor
    type: str

    @property
    def terminal(self) -> bool:
        return self.type in TERMINAL


async def read_events(
    queue: ReplayPort,
    subscriptions: Subscriptions,
    job_id: str,
    *,
    after: Cursor = START,
    resync_s: float = RESYNC_S,
) -> AsyncGenerator[Event, None]:
    """All events of a job after a cursor, in order; ends after one terminal event. Waits while Redis is away.

    Raises:
        JobNotFound: there is no such job, or its record expired meanwhile.
    """
    async with aclosing(_read(queue, subscriptions, job_id, after, resync_s)) as events:
        async for data, head in events:
            # A newer worker process may say more than this reader knows.
            if head.type in EVENT_TYPES:
                yield decode_event(data)


async def read_result(
    queue: ReplayPort, subscriptions: Subscriptions, job_id: str, *, resync_s: float = RESYNC_S
) -> JobResult:
    """Wait for a job's end.

    Raises:
        JobFailed, JobCancelled, JobExpired, JobShed: it ended without a result.
        JobNotFound: there is no such job, or its record expired meanwhile.
    """
    async with aclosing(_read(queue, subscriptions, job_id, START, resync_s)) as events:
        async for data, head in events:
            if head.terminal:
                event = decode_event(data)
                if isinstance(event, Done):
                    return event.result
                raise ended_error(event)  # type: ignore[arg-type]
    raise _not_found(job_id)


async def _read(
    queue: ReplayPort, subscriptions: Subscriptions, job_id: str, cursor: Cursor, resync_s: float
) -> AsyncGenerator[tuple[bytes, _Head], None]:
    # Subscribed before the first replay: what is published in between is heard.
    async with subscriptions.follow(queue.channel(job_id)) as feed:
        behind = True
        while True:
            if behind:
                replay = await _replay(queue, job_id, cursor)
                if replay.last < cursor:
                    cursor = START  # Redis lost data: this is another stream than the one read so far
                    continue
                for data in replay.events:
                    head = _head(data)
                    cursor = head.cursor
                    yield data, head
                    if head.terminal:
                        return
                if replay.state.ended and not replay.more:
                    return  # the cursor was past the terminal event
                behind = replay.more
                continue
            message = await feed.next(resync_s)
            if message is None:
                behind = True
                continue
            try:
                head = _head(message)
            except SchedulerError:
                behind = True  # somebody else's message: what counts is in the stream
                continue
            if head.cursor <= cursor:
                continue
            if not _follows(head.cursor, cursor):
                behind = True
                continue
            cursor = head.cursor
            yield message, head
            if head.terminal:
                return


async def _replay(queue: ReplayPort, job_id: str, cursor: Cursor) -> Replay:
    delay_s = 0.05
    while True:
        try:
            replay = await queue.replay(job_id, cursor)
        except Exception as error:
            if not passes(error):
                raise
            await asyncio.sleep(delay_s)
            delay_s = min(1.0, delay_s * 2)
        else:
            if replay is None:
                raise _not_found(job_id)
            return replay


def _follows(new: Cursor, last: Cursor) -> bool:
    """Whether nothing is missing between two: seq has no gaps, and a new token starts the text again."""
    if new[0] == last[0]:
        return new[1] == last[1] + 1
    return new[1] == 1


def _head(data: bytes) -> _Head:
    """Id and kind of an event without decoding it whole: every writer puts them first.

    Raises:
        SchedulerError: it is no event.
    """
    match = _HEAD.match(data)
    if match:
        token, seq, kind = match.groups()
        return _Head((int(token), int(seq)), kind.decode())
    try:
        raw = orjson.loads(data)
        return _Head(parse_event_id(raw["id"]), str(raw["type"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SchedulerError(f"not an event: {error!r}") from error


def _not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"no job {job_id}: unknown, or its record has expired")
