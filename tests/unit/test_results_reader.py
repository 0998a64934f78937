"""Readers against a stream and a channel whose timing, losses and repetitions a test decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError

from scheduler.errors import JobFailed, JobNotFound, SchedulerError
from scheduler.events import Delta, Event, parse_event_id
from scheduler.model import JobState
from scheduler.queue.records import START, Cursor, Replay
from scheduler.results.encoding import EventEncoder, encode_error
from scheduler.results.reader import read_events, read_raw_events, read_result
from scheduler.results.subscriptions import FEED_MESSAGES, Feed, Subscriptions
from tests.patience import SOON_S

RESULT = b'{"text":"whole"}'


class Room:
    """A job's stream and its channel, as one reader finds them."""

    def __init__(self) -> None:
        self.stream: dict[Cursor, bytes] = {}
        self.state = JobState.RUNNING
        self.feed = Feed()
        self.followers = 0
        self.replays = 0
        self.known = True
        self.errors: list[Exception] = []
        self.page = 1000
        self.turns = 0  # of the event loop that a replay's answer takes

    def channel(self, job_id: str) -> str:
        return f"channel of {job_id}"

    async def replay(self, job_id: str, after: Cursor = START, limit: int = 1000) -> Replay | None:
        assert self.followers, "subscribed before the first replay"
        self.replays += 1
        if self.errors:
            raise self.errors.pop(0)
        answer = self._replay(after) if self.known else None
        for _ in range(self.turns):
            await asyncio.sleep(0)
        return answer

    def _replay(self, after: Cursor) -> Replay:
        newer = [cursor for cursor in sorted(self.stream) if cursor > after]
        events = tuple(self.stream[cursor] for cursor in newer[: self.page])
        last = max(self.stream, default=(0, 1))
        return Replay(self.state, events, last, more=len(newer) > self.page)

    @asynccontextmanager
    async def follow(self, channel: str) -> AsyncIterator[Feed]:
        self.followers += 1
        await asyncio.sleep(0)
        try:
            yield self.feed
        finally:
            self.followers -= 1

    def write(self, event: bytes, *, heard: bool = True) -> None:
        cursor = parse_event_id(event.split(b'"', 4)[3].decode())
        self.stream[cursor] = event
        if b'"type":"done"' in event or b'"type":"failed"' in event:
            self.state = JobState.DONE
        if heard:
            self.feed.put(event)

    def read(self, *, after: Cursor = START, resync_s: float = 60.0) -> AsyncIterator[Event]:
        return read_events(self, cast("Subscriptions", self), "job", after=after, resync_s=resync_s)


async def collect(events: AsyncIterator[Event]) -> list[str]:
    async with asyncio.timeout(SOON_S):
        return [event.text if isinstance(event, Delta) else event.type async for event in events]


def story(*texts: str, token: int = 7) -> list[bytes]:
    """All events of an attempt that ends well."""
    encode = EventEncoder("job", token, 1)
    deltas = [encode.delta(seq, text, "", []) for seq, text in enumerate(texts, 2)]
    return [encode.started(1, "w"), *deltas, encode.done(len(texts) + 2) + RESULT + b"}"]


@dataclass(frozen=True)
class Step:
    """How one event reaches the reader, and what goes wrong around it."""

    turns: int
    heard: bool
    repeated: bool
    gap: bool
    retold: bool


steps = st.builds(
    Step,
    turns=st.integers(0, 3),
    heard=st.booleans(),
    repeated=st.booleans(),
    gap=st.booleans(),
    retold=st.booleans(),
)


@given(plan=st.lists(steps, min_size=2, max_size=10), turns=st.integers(0, 4), page=st.integers(1, 4))
def test_every_event_is_read_once_and_in_order_whatever_the_channel_does(
    plan: list[Step], turns: int, page: int
) -> None:
    texts = [str(n) for n in range(len(plan) - 2)]

    async def tell(room: Room) -> None:
        told: list[bytes] = []
        for step, event in zip(plan, story(*texts), strict=True):
            for _ in range(step.turns):
                await asyncio.sleep(0)
            room.write(event, heard=step.heard)
            told.append(event)
            if step.repeated:
                room.feed.put(event)
            if step.retold:
                room.feed.put(told[0])
            if step.gap:
                room.feed.miss()

    async def both() -> tuple[list[str], int]:
        room = Room()
        room.turns, room.page = turns, page
        telling = asyncio.create_task(tell(room))
        seen = await collect(room.read(resync_s=0.001))
        await telling
        return seen, room.followers

    assert asyncio.run(both()) == (["started", *texts, "done"], 0)


async def test_nothing_is_replayed_while_nothing_is_missing() -> None:
    room = Room()
    events = room.read()
    first, *rest = story("a", "b")
    room.write(first)
    assert (await anext(events)).type == "started"
    for event in rest:
        room.write(event)
    assert await collect(events) == ["a", "b", "done"]
    assert room.replays == 1


async def test_a_new_token_that_begins_in_the_middle_is_fetched_whole() -> None:
    room = Room()
    events = room.read()
    room.write(story("old")[0])
    await anext(events)
    for n, event in enumerate(story("a", "b", token=9)):
        room.write(event, heard=n > 1)
    assert await collect(events) == ["started", "a", "b", "done"]
    assert room.replays == 2


async def test_a_stream_that_lost_what_was_read_is_read_from_its_start() -> None:
    room = Room()
    for event in story("again", token=3):
        room.write(event, heard=False)
    assert await collect(room.read(after=(7, 4))) == ["started", "again", "done"]


async def test_a_reader_past_the_end_ends() -> None:
    room = Room()
    for event in story("a"):
        room.write(event, heard=False)
    assert await collect(room.read(after=(7, 3))) == []


async def test_an_outage_is_waited_for() -> None:
    room = Room()
    room.errors = [RedisConnectionError("gone"), TimeoutError(), OSError()]
    for event in story("a"):
        room.write(event, heard=False)
    assert await collect(room.read()) == ["started", "a", "done"]


async def test_a_job_whose_record_expires_is_not_found_any_more() -> None:
    room = Room()
    events = room.read()
    room.write(story("a")[0])
    await anext(events)
    room.known = False
    room.feed.miss()
    with pytest.raises(JobNotFound):
        await collect(events)
    assert room.followers == 0


@pytest.mark.parametrize("noise", [b"", b"hello", b"[]", b'{"id":1}', b'{"id":"x","type":"done"}', b"\xff"])
async def test_what_a_stranger_says_on_the_channel_ends_nothing(noise: bytes) -> None:
    room = Room()
    events = room.read()
    first, *rest = story("a")
    room.write(first)
    await anext(events)
    room.feed.put(noise)
    for event in rest:
        room.write(event)
    assert await collect(events) == ["a", "done"]


async def test_an_entry_that_is_no_event_is_said_to_be_none() -> None:
    room = Room()
    room.stream[7, 1] = b"hello"
    with pytest.raises(SchedulerError, match="not an event"):
        await collect(room.read())


async def test_a_reader_that_is_cancelled_leaves_nothing_behind() -> None:
    room = Room()
    reading = asyncio.create_task(collect(room.read()))
    while not room.replays:
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    assert room.followers == 0


async def test_result_is_that_of_the_end() -> None:
    room = Room()
    for event in story("a"):
        room.write(event, heard=False)
    assert (await read_result(room, cast("Subscriptions", room), "job")).text == "whole"


async def test_result_of_a_job_that_failed_says_why() -> None:
    room = Room()
    failed = EventEncoder("job", 7, 3).failed(1) + encode_error("worker_timeout", "too slow") + b"}"
    room.write(failed, heard=False)
    with pytest.raises(JobFailed, match="too slow") as raised:
        await read_result(room, cast("Subscriptions", room), "job")
    assert (raised.value.reason, raised.value.attempts) == ("worker_timeout", 3)


async def test_a_feed_that_is_too_full_says_so_and_keeps_within_its_bound() -> None:
    feed = Feed()
    for _ in range(FEED_MESSAGES + 1):
        feed.put(b"m")
    assert await feed.next(0) is None, "some were missed"
    assert await feed.next(0) == b"m", "the one that was too much"
    assert await feed.next(0) is None, "and no more"


async def test_a_feed_without_messages_returns_after_its_time() -> None:
    assert await Feed().next(0.001) is None


async def test_what_a_newer_worker_says_beside_is_left_out() -> None:
    room = Room()
    started, delta, done = story("one")
    room.write(started)
    room.write(b'{"id":"7-2","type":"thinking","job_id":"job","attempt":1}')
    room.write(delta.replace(b'"7-2"', b'"7-3"'))
    room.write(done.replace(b'"7-3"', b'"7-4"'))
    assert await collect(room.read()) == ["started", "one", "done"]


async def test_undecoded_events_are_the_bytes_of_the_stream_whatever_their_type() -> None:
    room = Room()
    started, delta, done = story("one")
    unknown = b'{"id":"7-3","type":"thinking","job_id":"job","attempt":1}'
    written = [started, delta, unknown, done.replace(b'"7-3"', b'"7-4"')]
    for event in written:
        room.write(event)
    async with asyncio.timeout(SOON_S):
        read = [event async for event in read_raw_events(room, cast("Subscriptions", room), "job")]
    assert [event.data for event in read] == written
    assert [(event.id, event.type) for event in read] == [
        ("7-1", "started"),
        ("7-2", "delta"),
        ("7-3", "thinking"),
        ("7-4", "done"),
    ]


async def test_what_a_stranger_says_has_the_stream_read() -> None:
    room = Room()
    events = room.read(resync_s=10 * SOON_S)
    first, *rest = story("a")
    room.write(first)
    await anext(events)
    for event in rest:
        room.write(event, heard=False)
    room.feed.put(b"hello")
    assert await collect(events) == ["a", "done"]


async def test_while_redis_is_away_it_is_asked_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    room, delays, sleep = Room(), [], asyncio.sleep

    async def noted(delay_s: float) -> None:
        if delay_s:
            delays.append(delay_s)
        await sleep(0)

    room.errors = [RedisConnectionError("gone") for _ in range(7)]
    for event in story("a"):
        room.write(event, heard=False)
    monkeypatch.setattr(asyncio, "sleep", noted)
    assert await collect(room.read()) == ["started", "a", "done"]
    longest = [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert all(most / 2 <= delay <= most for delay, most in zip(delays, longest, strict=True))


async def test_the_limit_of_a_wait_is_its_own() -> None:
    feed = Feed()
    loop = asyncio.get_running_loop()
    loop.call_later(0.01, feed.put, b"a")
    assert await feed.next(0.05) == b"a"
    loop.call_later(0.1, feed.put, b"b")
    assert await feed.next(None) == b"b", "the limit of the wait before has passed meanwhile"
    loop.call_later(0.1, feed.put, b"c")
    assert await feed.next(SOON_S) == b"c"
    assert await feed.next(0.01) is None, "a shorter limit comes before a longer one that was set before"
    feed.close()
