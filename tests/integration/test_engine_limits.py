"""Rate limits of tenants and endpoints, through the engine."""

from __future__ import annotations

import asyncio
from typing import Any

from scheduler import JobState, Settings
from scheduler.queue.inspection.status import read_status
from tests.integration.engine_room import Puppet, Room, puppet_of, settings_of, until
from tests.patience import SOON_S
from workers.base import Completed, TokenUsage
from workers.errors import WorkerUnavailable


def endpoint(**values: Any) -> dict[str, Any]:
    return {"backend": "puppet", "max_in_flight": 8, **values}


async def test_tenant_over_its_limit_is_held_and_others_pass(room: Room) -> None:
    settings = settings_of(
        routes={"echo": {"endpoints": [endpoint()]}}, tenants={"acme": {"requests_per_minute": 20}}
    )
    engine = await room.engine(settings)
    client = await room.client(settings)
    many = [await client.enqueue(f"acme {n}", tenant="acme") for n in range(6)]
    other = await client.enqueue("other", tenant="else")
    prompts = {(await puppet_of(engine).next_call()).generation.prompt for _ in range(3)}
    assert prompts == {"acme 0", "acme 1", "other"}  # a burst is a tenth of the limit
    await until(lambda: engine.running == 3)
    states = [(await job.info()).state for job in many]
    assert states == [JobState.RUNNING] * 2 + [JobState.HELD] * 4
    assert (await many[-1].info()).attempts == 0
    assert (await other.info()).state is JobState.RUNNING


async def test_held_jobs_run_when_the_limit_lets_them(room: Room) -> None:
    settings = settings_of(
        routes={"echo": {"endpoints": [endpoint()]}}, tenants={"*": {"requests_per_minute": 600}}
    )
    engine = await room.engine(settings)
    client = await room.client(settings)
    jobs = [await client.enqueue(f"p {n}") for n in range(63)]  # 60 at once, and then ten a second
    for _ in jobs:
        (await puppet_of(engine).next_call()).finish()
    for job in jobs:
        assert (await job.result(timeout_s=SOON_S)).attempts == 1


async def test_endpoint_that_has_used_up_its_limit_gets_no_more_and_the_other_does(room: Room) -> None:
    endpoints = [endpoint(requests_per_minute=20), endpoint()]
    engine = await room.engine(settings_of(routes={"echo": {"endpoints": endpoints}}))
    client = await room.client()
    for n in range(8):
        await client.enqueue(f"p {n}")
    await until(lambda: engine.running == 8)
    limited, free = (one.worker for one in engine.routes["echo"].endpoints)
    assert isinstance(limited, Puppet)
    assert isinstance(free, Puppet)
    await until(lambda: limited.active + free.active == 8)
    assert limited.active == 2


async def test_lane_without_permits_waits_and_comes_again_by_itself(room: Room) -> None:
    endpoints = [endpoint(requests_per_minute=600)]
    engine = await room.engine(settings_of(routes={"echo": {"endpoints": endpoints}}))
    client = await room.client()
    jobs = [await client.enqueue(f"p {n}") for n in range(63)]
    for _ in jobs:
        (await puppet_of(engine).next_call()).finish()
    for job in jobs:
        assert (await job.result(timeout_s=SOON_S)).attempts == 1


async def test_endpoint_without_permits_is_told(room: Room) -> None:
    engine = await room.engine(
        settings_of(
            routes={"echo": {"endpoints": [endpoint(requests_per_minute=1), endpoint()]}}, lease_s=0.6
        )
    )
    client = await room.client()
    limited, free = (one.worker for one in engine.routes["echo"].endpoints)
    assert isinstance(limited, Puppet)
    assert isinstance(free, Puppet)
    for n in range(9):
        await client.enqueue(f"p {n}")
    await until(lambda: (limited.active, free.active) == (1, 8))
    await client.enqueue("one more")
    async with asyncio.timeout(SOON_S):
        while not (first := (await read_status(client.queue)).endpoints[0]).permit_in_s:
            await asyncio.sleep(0.01)
    assert (first.name, first.usable_in_s) == ("echo.0", 0.0)
    assert 50 < first.permit_in_s <= 60
    assert (await read_status(client.queue)).endpoints[1].permit_in_s == 0.0


async def test_endpoint_without_permits_keeps_nobody_from_another_with_room(room: Room) -> None:
    endpoints = [endpoint(requests_per_minute=1), endpoint(max_in_flight=1)]
    engine = await room.engine(settings_of(routes={"echo": {"endpoints": endpoints}}))
    client = await room.client()
    jobs = [await client.enqueue(f"p {n}") for n in range(6)]
    limited, free = (one.worker for one in engine.routes["echo"].endpoints)
    assert isinstance(limited, Puppet)
    assert isinstance(free, Puppet)
    (await limited.next_call()).finish()
    for _ in range(5):
        (await free.next_call()).finish()
    for job in jobs:
        assert (await job.result(timeout_s=SOON_S)).attempts == 1


async def test_limit_that_is_raised_counts_at_once(room: Room) -> None:
    def settings(rate: int) -> Settings:
        return settings_of(routes={"echo": {"endpoints": [endpoint(requests_per_minute=rate)]}})

    engine = await room.engine(settings(1))
    client = await room.client()
    jobs = [await client.enqueue(f"p {n}") for n in range(3)]
    (await puppet_of(engine).next_call()).finish()
    await until(lambda: not engine.running)
    await asyncio.sleep(0.05)  # it has been refused a permit
    await engine.reload(settings(60_000))
    for _ in range(2):
        (await puppet_of(engine).next_call()).finish()
    for job in jobs:
        await job.result(timeout_s=SOON_S)


async def test_failover_needs_a_permit_of_the_other_endpoint(room: Room) -> None:
    endpoints = [endpoint(), endpoint(requests_per_minute=1)]
    engine = await room.engine(settings_of(routes={"echo": {"endpoints": endpoints}}, retry_base_s=0.01))
    client = await room.client()
    jobs = [await client.enqueue(f"p {n}", max_attempts=1) for n in range(2)]
    first, second = (one.worker for one in engine.routes["echo"].endpoints)
    assert isinstance(first, Puppet)
    assert isinstance(second, Puppet)
    await until(lambda: first.calls.qsize() + second.calls.qsize() == 2)
    while not first.calls.empty():
        (await first.next_call()).fail(WorkerUnavailable("gone"))
    await until(lambda: second.active == 1)
    await asyncio.sleep(0.05)
    assert second.most_active == 1
    (await second.next_call()).finish("answer")
    outcomes = await asyncio.gather(*(job.result(timeout_s=SOON_S) for job in jobs), return_exceptions=True)
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) >= 1


async def test_tokens_that_were_used_count(room: Room) -> None:
    settings = settings_of(
        routes={"echo": {"endpoints": [endpoint()]}}, tenants={"*": {"tokens_per_minute": 1000}}
    )
    engine = await room.engine(settings)
    client = await room.client(settings)
    first = await client.enqueue("a")
    call = await puppet_of(engine).next_call()
    call.outputs.put_nowait(Completed(0, "stop", TokenUsage(input_tokens=400, output_tokens=900)))
    await first.result(timeout_s=SOON_S)
    second = await client.enqueue("b")
    await asyncio.sleep(0.2)
    assert (await second.info()).state is JobState.HELD
    status = await read_status(client.queue)
    assert status.running == 0
