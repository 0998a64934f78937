"""What an endpoint with `reserved = "auto"` does while urgent prompts are about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from scheduler.routing import Endpoint, headroom
from scheduler.routing.urgent_load import LATELY_S
from tests.patience import SOON_S
from tests.unit.scripted_endpoint import Clock, Worker, endpoint
from workers.base import Generation
from workers.errors import WorkerError

SLOTS = 16


def begin(one: Endpoint, prompt: str, priority: int) -> asyncio.Task[object]:
    """A prompt that runs on the endpoint until its task is cancelled."""
    work = Generation(model="m", prompt=prompt, priority=priority)
    return asyncio.create_task(one.batcher.run(work, lambda _: None, tokens=1))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not true():
            await asyncio.sleep(0.001)


async def give_up(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def urgent(one: Endpoint, clock: Clock, *, takes_s: float) -> None:
    """An urgent prompt that is given up after a while, which is an end like others."""
    running = one.window.in_flight
    task = begin(one, "now", 9)
    await until(lambda: one.window.in_flight > running)
    await asyncio.sleep(0)
    clock.now += takes_s
    await give_up(task)


async def test_slots_are_kept_once_urgent_prompts_are_about_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(headroom, "LOOK_S", 0.001)
    one = endpoint(limit=SLOTS, reserved="auto", clock=(clock := Clock()), worker=Worker(hangs=True))
    assert (one.reserved, one.room_for(0), one.may_start) == (0, SLOTS, SLOTS)
    await urgent(one, clock, takes_s=30)
    assert (one.reserved, one.window.kept) == (1, 1)
    assert (one.room_for(0), one.room_for(9), one.may_start) == (SLOTS - 1, SLOTS, SLOTS - 1)
    told = asyncio.Event()
    one.on_change = told.set
    clock.now += LATELY_S
    async with asyncio.timeout(SOON_S):
        await told.wait()
    assert (one.reserved, one.window.kept, one.may_start) == (0, 0, SLOTS)
    await one.aclose()


async def test_nothing_is_kept_for_prompts_that_are_not_urgent() -> None:
    one = endpoint(limit=SLOTS, reserved="auto", clock=(clock := Clock()), worker=Worker(hangs=True))
    task = begin(one, "bulk", 7)
    await until(lambda: one.window.in_flight == 1)
    clock.now += 30
    assert (one.reserved, one.room_for(0), one.may_start) == (0, SLOTS - 1, SLOTS - 1)
    await give_up(task)
    await one.aclose()


async def test_a_number_that_is_set_stays_whatever_comes() -> None:
    one = endpoint(limit=SLOTS, reserved=0, clock=(clock := Clock()), worker=Worker(hangs=True))
    await urgent(one, clock, takes_s=300)
    assert (one.reserved, one.may_start) == (0, SLOTS)
    await one.aclose()


async def test_prompts_beside_urgent_ones_start_a_few_at_a_time_and_it_is_told_when_more_may() -> None:
    one = endpoint(limit=SLOTS, reserved="auto", clock=(clock := Clock()), worker=Worker(), max_size=1)
    one.on_change = (told := asyncio.Event()).set
    async with asyncio.timeout(SOON_S):
        await begin(one, "now", 9)
        one.worker.hangs = True  # type: ignore[attr-defined]  # the scripted worker's
        call = one.call_began()
        clock.now += 0.16
        one.call_ended(call, 1, None)  # an answer takes that long
        tasks = [begin(one, "bulk", 5) for _ in range(one.may_start)]
        await until(lambda: one.window.in_flight == len(tasks))
        await asyncio.sleep(0)
        assert (len(tasks), one.may_start) == (2, 0), "so that they do not all end together"
        assert one.room_for(9) == SLOTS - 2, "an urgent prompt waits for none of this"
        told.clear()
        clock.now += 0.02
        await told.wait()
        assert one.may_start >= 1
    await give_up(*tasks)
    await one.aclose()


async def test_prompts_that_start_out_of_turn_leave_nobody_waiting_for_ever() -> None:
    one = endpoint(limit=SLOTS, reserved="auto", clock=(clock := Clock()), worker=Worker(), max_size=1)
    one.on_change = (told := asyncio.Event()).set
    async with asyncio.timeout(SOON_S):
        await begin(one, "now", 9)
        call = one.call_began()
        clock.now += 0.16
        one.call_ended(call, 1, None)
        await asyncio.gather(*(begin(one, "bulk", 5) for _ in range(6)))  # claimed before, and done
        while not one.may_start:  # the turns that they took are still to pass
            told.clear()
            clock.now += 0.01
            await told.wait()
    await one.aclose()


async def test_calls_that_fail_or_are_given_up_leave_no_load_behind() -> None:
    one = endpoint(
        limit=SLOTS, reserved="auto", clock=(clock := Clock()), worker=Worker(failure=OSError("gone"))
    )
    for _ in range(3):
        with pytest.raises(WorkerError):
            await begin(one, "now", 9)
    one.worker.failure, one.worker.hangs = None, True  # type: ignore[attr-defined]  # the scripted worker's
    await urgent(one, clock, takes_s=0.1)
    clock.now += 50
    await urgent(one, clock, takes_s=0.1)
    assert one.reserved == 0, "no prompt runs, and those that did took no time"
    await one.aclose()
