"""One line when Redis goes and one when it is back, whatever the calls that are under way then come to."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ResponseError

from scheduler.engine.patience import Outage, Patience
from tests.patience import SOON_S


class Call:
    """One call to Redis: the test says what each try comes to."""

    def __init__(self) -> None:
        self.tries: asyncio.Queue[asyncio.Future[str]] = asyncio.Queue()

    async def __call__(self) -> str:
        reply: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.tries.put_nowait(reply)
        return await reply

    async def next_try(self) -> asyncio.Future[str]:
        async with asyncio.timeout(SOON_S):
            return await self.tries.get()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Patience:
    async def at_once(_: float) -> None:
        return None

    monkeypatch.setattr("scheduler.engine.patience.asyncio.sleep", at_once)
    nobody: Any = None
    return Patience(nobody)


async def test_calls_under_way_when_redis_goes_and_comes_add_no_lines(
    patience: Patience, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    calls = [Call() for _ in range(3)]
    tasks = [asyncio.create_task(patience.until_done(call)) for call in calls]
    first, second, third = [await call.next_try() for call in calls]

    first.set_exception(RedisConnectionError("gone"))
    first = await calls[0].next_try()
    assert len(caplog.messages) == 1
    second.set_result("its reply was on the way")
    await tasks[1]
    third.set_exception(RedisConnectionError("gone"))
    third = await calls[2].next_try()
    assert [line.partition(" (")[0] for line in caplog.messages] == ["Redis is away"]

    first.set_result("there again")
    await tasks[0]
    third.set_exception(RedisConnectionError("it began while Redis was away"))
    (await calls[2].next_try()).set_result("there as well")
    await tasks[2]
    assert [line.partition(" (")[0] for line in caplog.messages] == ["Redis is away", "Redis is back"]


async def test_each_outage_has_its_lines(patience: Patience, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        call = Call()
        task = asyncio.create_task(patience.until_done(call))
        for _ in range(3):
            (await call.next_try()).set_exception(RedisConnectionError("gone"))
        (await call.next_try()).set_result("there")
        await task
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"] * 2


def test_an_outage_is_told_of_once_and_not_before_it_is_over() -> None:
    now = 0.0
    outage = Outage(lambda: now)
    assert outage.untold_ms == 0
    outage.began(outage.changes, RedisConnectionError("gone"))
    now = 2.0
    assert outage.untold_ms == 2000
    outage.told()
    now = 3.0
    assert outage.untold_ms == 3000, "it lasts"
    outage.ended(outage.changes)
    now = 9.0
    assert outage.untold_ms == 3000
    outage.told()
    assert outage.untold_ms == 0


async def test_a_full_redis_is_no_outage(patience: Patience, caplog: pytest.LogCaptureFixture) -> None:
    call = Call()
    task = asyncio.create_task(patience.until_done(call))
    (await call.next_try()).set_exception(OutOfMemoryError("full"))
    (await call.next_try()).set_result("there is room")
    assert await task == "there is room"
    assert caplog.messages == []


async def test_what_is_the_calls_own_fault_is_raised(
    patience: Patience, caplog: pytest.LogCaptureFixture
) -> None:
    call = Call()
    task = asyncio.create_task(patience.until_done(call))
    (await call.next_try()).set_exception(ResponseError("WRONGTYPE"))
    with pytest.raises(ResponseError):
        await task
    assert caplog.messages == []
