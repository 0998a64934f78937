"""Operations on whole lanes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import fakeredis
import pytest

from scheduler.admin import known_lanes, lanes, purge
from scheduler.errors import InvalidRequest
from scheduler.queue import PromptQueue
from tests.contracts.queue_driver import QueueDriver, drain, new_job


@pytest.fixture
async def q() -> AsyncIterator[QueueDriver]:
    async with fakeredis.FakeAsyncRedis() as redis:
        yield QueueDriver(PromptQueue(redis, script_flags=False))


async def test_lanes_are_those_of_routes_and_of_jobs(q: QueueDriver) -> None:
    with pytest.raises(InvalidRequest, match="nothing has been enqueued yet"):
        await known_lanes(q.queue, "chat")
    await q.configure()
    await q.enqueue(new_job("a", lane="code"))
    assert await known_lanes(q.queue) == ["chat", "code"]
    assert await known_lanes(q.queue, "code") == ["code"]
    with pytest.raises(InvalidRequest, match="no 'cod' in queue 'default'; there are: chat, code"):
        await known_lanes(q.queue, "cod")


async def test_purge_goes_in_chunks_and_keeps_other_levels_and_lanes(
    q: QueueDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "PURGE_CHUNK", 2)
    await q.enqueue(*(new_job(f"low{n}", 3) for n in range(5)), new_job("high", 7), new_job("c", lane="code"))
    assert [chunk async for chunk in purge(q.queue, "chat", 3)] == [2, 2, 1]
    assert await q.event_types("low0") == ["queued", "cancelled"]
    assert await drain(q, ["chat", "code"]) == ["high", "c"]
