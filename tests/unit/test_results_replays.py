"""Replays of many readers: those of one turn share a round trip, and nobody has another's trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from scheduler.model import JobState
from scheduler.queue.records import START, Cursor, Replay
from scheduler.results.replays import REPLAY_CHUNK, Replays


class Store:
    """Answers by the job's name, and remembers who was asked for together."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, Cursor]]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None
        self.replays = Replays(self.read_many, "channel of {}".format)

    async def read_many(self, wanted: Sequence[tuple[str, Cursor]]) -> list[Replay | Exception | None]:
        self.asked.append(list(wanted))
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return [self.read(job_id, after) for job_id, after in wanted]

    @staticmethod
    def read(job_id: str, after: Cursor) -> Replay | Exception | None:
        if job_id == "unknown":
            return None
        return ValueError(job_id) if job_id == "bad" else Replay(JobState.RUNNING, (job_id.encode(),), after)


@pytest.fixture
async def store() -> Store:
    return Store()


async def test_those_of_one_turn_share_a_round_trip(store: Store) -> None:
    found = await asyncio.gather(*(store.replays.replay(f"j{n}", (n, n)) for n in range(REPLAY_CHUNK + 3)))
    assert [replay.events for replay in found if replay] == [
        (f"j{n}".encode(),) for n in range(REPLAY_CHUNK + 3)
    ]
    assert [len(asked) for asked in store.asked] == [REPLAY_CHUNK, 3]
    assert store.asked[1][0] == (f"j{REPLAY_CHUNK}", (REPLAY_CHUNK, REPLAY_CHUNK))


async def test_a_later_one_does_not_wait_for_those_before(store: Store) -> None:
    store.open.clear()
    first = asyncio.create_task(store.replays.replay("a"))
    while not store.asked:
        await asyncio.sleep(0)
    store.open.set()
    assert (await store.replays.replay("b")) == Replay(JobState.RUNNING, (b"b",), START)
    await first
    assert store.asked == [[("a", START)], [("b", START)]]


async def test_an_error_of_one_job_is_its_own(store: Store) -> None:
    names = ("a", "bad", "unknown", "c")
    found = await asyncio.gather(*map(store.replays.replay, names), return_exceptions=True)
    assert [type(one) for one in found] == [Replay, ValueError, type(None), Replay]
    assert len(store.asked) == 1


async def test_what_fails_as_a_whole_is_everyones_error_and_passes(store: Store) -> None:
    store.error = ConnectionError("away")
    found = await asyncio.gather(*map(store.replays.replay, "abc"), return_exceptions=True)
    assert found == [store.error] * 3
    store.error = None
    assert await store.replays.replay("a")


async def test_a_reader_that_leaves_disturbs_nobody(store: Store) -> None:
    store.open.clear()
    leaving, staying = (asyncio.create_task(store.replays.replay(name)) for name in "ab")
    while not store.asked:
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    store.open.set()
    replay = await staying
    assert replay is not None
    assert replay.events == (b"b",)
    assert leaving.cancelled()


async def test_the_channel_is_that_of_the_queue(store: Store) -> None:
    assert store.replays.channel("a") == "channel of a"
