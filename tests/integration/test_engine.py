"""The engine on its own, with a model worker that does what the test says."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import orjson
import pytest
from redis.exceptions import ResponseError

from scheduler import (
    AsyncClient,
    InvalidRequest,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobState,
    PromptRequest,
    SchedulerError,
    Settings,
)
from scheduler.admin import forgive_endpoint
from scheduler.engine import Engine
from scheduler.engine import attempts as attempts_module
from scheduler.engine import claimer as claimer_module
from scheduler.engine import engine as engine_module
from scheduler.engine import waker as waker_module
from scheduler.queue.records import Claim, ClaimedJob
from scheduler.routing import headroom
from scheduler.stages.base import PromptContext
from tests.conftest import accepted
from tests.contracts.queue_driver import QueueDriver
from tests.integration.engine_room import (
    PuppetCall,
    Room,
    install,
    puppet_of,
    puppet_route,
    settings_of,
    until,
)
from tests.patience import SOON_S
from workers.errors import WorkerUnavailable


class HeldClaims:
    """Lets an engine's claims through to Redis and holds their replies back."""

    def __init__(self, engine: Engine) -> None:
        self._claim = engine.queue.claim
        self.made = 0
        self.jobs_held = asyncio.Event()
        self.go_on = asyncio.Event()
        engine.queue.claim = self.claim

    async def claim(self, *args: Any, **options: Any) -> Claim:
        self.made += 1
        claim = await self._claim(*args, **options)
        if claim.jobs:
            self.jobs_held.set()
            await self.go_on.wait()
        return claim


def at_rest(engine: Engine) -> bool:
    return engine.running == 0 and not engine.attempts and all(not r.running for r in engine.routes.values())


# Starting and stopping


async def test_starting_and_stopping_twice_does_no_harm(room: Room) -> None:
    engine = await room.engine()
    await engine.start()
    client = await room.client()
    job = await client.enqueue("one")
    (await puppet_of(engine).next_call()).finish("answer")
    assert (await job.result(timeout_s=SOON_S)).text == "answer"
    await asyncio.gather(engine.stop(), engine.stop())
    await engine.stop()
    assert puppet_of(engine).closed


async def test_a_stopped_engine_says_that_it_does_not_start_again(room: Room) -> None:
    engine = await room.engine()
    await engine.stop()
    with pytest.raises(SchedulerError, match="make another"):
        await engine.start()


async def test_an_engine_that_never_started_can_be_stopped(room: Room) -> None:
    engine = await room.engine(start=False)
    await engine.stop()
    assert puppet_of(engine).closed


async def test_stopping_leaves_no_task_behind(room: Room) -> None:
    before = asyncio.all_tasks()
    engine = await room.engine()
    client = await room.client()
    await client.enqueue("one")
    await puppet_of(engine).next_call()
    await engine.stop(drain_s=0)
    left = {task for task in asyncio.all_tasks() - before if task.get_name() != "subscriptions"}
    assert left <= {asyncio.current_task()}


async def test_a_start_that_fails_leaves_nothing_running(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[str] = []

    class Careful:
        name = "careful"

        async def stop(self) -> None:
            stopped.append(self.name)

        async def run(self, context: PromptContext) -> None: ...

    install(monkeypatch, "careful_stage", Careful=Careful)
    stages = ["careful_stage:Careful", "inference", "stream"]
    engine = await room.engine(settings_of(routes={"echo": puppet_route(stages=stages)}), start=False)

    async def refuse() -> None:
        raise ResponseError("NOPERM this user has no permissions to run the 'script|load' command")

    monkeypatch.setattr(engine.queue, "load", refuse)
    before = asyncio.all_tasks()
    with pytest.raises(ResponseError):
        await engine.start()
    assert stopped == ["careful"]
    assert asyncio.all_tasks() == before


async def test_stopping_gives_a_job_back_at_its_own_place_and_counts_no_failure(room: Room) -> None:
    engine = await room.engine(settings_of(max_running=1))
    client = await room.client()
    first = await client.enqueue("first")
    call = await puppet_of(engine).next_call()
    later = await client.enqueue("later")
    await engine.stop(drain_s=0)
    assert call.aborted.is_set()
    info = await first.info()
    assert (info.state, info.failures, info.attempts) == (JobState.WAITING, 0, 1)
    assert await client.queue.position(first.id) == 0
    assert await client.queue.position(later.id) == 1
    assert "given_back" in [entry.what for entry in info.history]


async def test_what_runs_may_finish_while_the_engine_stops(room: Room) -> None:
    engine = await room.engine()
    client = await room.client()
    job = await client.enqueue("one")
    call = await puppet_of(engine).next_call()
    stopping = asyncio.create_task(engine.stop(drain_s=SOON_S))
    await until(lambda: engine.draining)
    late = await client.enqueue("too late for this engine")
    call.finish("made it")
    await stopping
    assert (await job.result(timeout_s=SOON_S)).text == "made it"
    assert (await late.info()).attempts == 0


async def test_a_claim_that_is_answered_after_stop_gives_its_jobs_back(room: Room) -> None:
    engine = await room.engine(start=False)
    held = HeldClaims(engine)
    await engine.start()
    client = await room.client()
    job = await client.enqueue("one")
    await asyncio.wait_for(held.jobs_held.wait(), SOON_S)
    stopping = asyncio.create_task(engine.stop(drain_s=0))
    await until(lambda: engine.draining)
    held.go_on.set()
    await stopping
    info = await job.info()
    assert (info.state, info.failures) == (JobState.WAITING, 0)
    assert at_rest(engine)


async def test_stopping_ends_though_redis_is_away(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claimer_module, "LAST_CLAIM_S", 0.05)
    engine = await room.engine()
    room.server.connected = False
    async with asyncio.timeout(SOON_S):
        await engine.stop()


async def test_a_stage_that_ignores_its_cancellation_does_not_hold_up_the_stop(
    room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attempts_module, "LET_GO_S", 0.05)
    entered, leave = asyncio.Event(), asyncio.Event()

    class Stubborn:
        name = "stubborn"

        async def run(self, context: PromptContext) -> None:
            entered.set()
            while not leave.is_set():
                try:
                    await leave.wait()
                except asyncio.CancelledError:
                    continue

    install(monkeypatch, "stubborn_stage", Stubborn=Stubborn)
    stages = ["stubborn_stage:Stubborn", "inference", "stream"]
    engine = await room.engine(settings_of(routes={"echo": puppet_route(stages=stages)}))
    client = await room.client()
    await client.enqueue("one")
    await asyncio.wait_for(entered.wait(), SOON_S)
    async with asyncio.timeout(SOON_S):
        await engine.stop(drain_s=0)
    assert "do not let go" in caplog.text
    leave.set()
    await until(lambda: engine.running == 0)


# Burst


async def test_run_until_drained_waits_for_what_is_delayed_and_what_runs(room: Room) -> None:
    engine = await room.engine()
    client = await room.client()
    await client.enqueue("soon", delay_s=0.1)
    drained = asyncio.create_task(engine.run_until_drained())
    call = await puppet_of(engine).next_call()
    await asyncio.sleep(3 * engine_module.BURST_POLL_S)
    assert not drained.done()
    call.finish()
    await asyncio.wait_for(drained, SOON_S)


async def test_run_until_drained_knows_of_jobs_whose_claim_is_under_way(room: Room) -> None:
    engine = await room.engine(start=False)
    held = HeldClaims(engine)
    await engine.start()
    client = await room.client()
    await client.enqueue("one")
    await asyncio.wait_for(held.jobs_held.wait(), SOON_S)
    drained = asyncio.create_task(engine.run_until_drained())
    await asyncio.sleep(3 * engine_module.BURST_POLL_S)
    assert not drained.done()
    held.go_on.set()
    (await puppet_of(engine).next_call()).finish()
    await asyncio.wait_for(drained, SOON_S)


# Claiming and waking


@pytest.fixture
def long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait for work runs out, so what begins was woken."""
    monkeypatch.setattr(waker_module, "BLOCK_S", 10 * SOON_S)


def two_routes(**values: Any) -> Settings:
    routes = {"narrow": puppet_route(max_in_flight=1), "wide": puppet_route()}
    return settings_of(routes=routes, **values)


async def test_a_full_lane_does_not_hold_up_the_others(room: Room) -> None:
    engine = await room.engine(two_routes())
    client = await room.client(two_routes())
    for _ in range(3):
        await client.enqueue("x", model="narrow")
    call = await puppet_of(engine, "narrow").next_call()
    for _ in range(3):
        job = await client.enqueue("y", model="wide")
        (await puppet_of(engine, "wide").next_call()).finish("well")
        assert (await job.result(timeout_s=SOON_S)).text == "well"
    assert puppet_of(engine, "narrow").most_active == 1
    call.finish()
    (await puppet_of(engine, "narrow").next_call()).finish()


async def test_a_lane_that_was_full_is_listened_to_again(room: Room, long_waits: None) -> None:
    engine = await room.engine(two_routes())
    client = await room.client(two_routes())
    first = await client.enqueue("x", model="narrow")
    call = await puppet_of(engine, "narrow").next_call()
    # Now it waits for work of the wide lane alone.
    await until(lambda: engine.claimer.waker.waits and engine.claimer.waker.lanes == {("wide", False)})
    call.finish()
    await first.result(timeout_s=SOON_S)
    await until(
        lambda: (
            engine.claimer.waker.waits
            and {lane for lane, _ in engine.claimer.waker.lanes} == {"narrow", "wide"}
        )
    )
    await client.enqueue("x", model="narrow")
    (await puppet_of(engine, "narrow").next_call()).finish()


def reserving(max_in_flight: int, reserved: int, **values: Any) -> Settings:
    endpoint = {"backend": "puppet", "max_in_flight": max_in_flight, "reserved": reserved}
    return settings_of(routes={"echo": {"endpoints": [endpoint]}}, **values)


async def test_an_urgent_job_gets_the_reserved_place_at_once_and_others_do_not(room: Room) -> None:
    settings = reserving(3, 1)
    engine = await room.engine(settings)
    client = await room.client(settings)
    for n in range(10):
        await client.enqueue(f"bulk {n}", priority=7)
    calls = [await puppet_of(engine).next_call() for _ in range(2)]
    await until(lambda: engine.claimer.waker.waits and engine.claimer.waker.lanes == {("echo", True)})
    claims = engine.claimer.claims
    await client.enqueue("more bulk")
    await asyncio.sleep(0.1)
    assert engine.claimer.claims == claims, "what it has no place for does not keep it busy"
    urgent = await client.enqueue("now", priority=8)
    call = await puppet_of(engine).next_call()
    assert call.generation.prompt == "now"
    call.finish("here")
    assert (await urgent.result(timeout_s=SOON_S)).text == "here"
    await asyncio.sleep(0.05)
    assert puppet_of(engine).calls.empty(), "its place stays free"
    calls[0].finish()
    assert (await puppet_of(engine).next_call()).generation.prompt == "bulk 2"


async def test_a_place_stays_free_for_the_urgent_once_they_have_come(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headroom, "slots_for", lambda load, slots: 1)
    settings = settings_of(
        routes={"echo": {"endpoints": [{"backend": "puppet", "max_in_flight": 3, "reserved": "auto"}]}}
    )
    engine = await room.engine(settings)
    client = await room.client(settings)
    urgent = await client.enqueue("now", priority=9)
    (await puppet_of(engine).next_call()).finish()
    await urgent.result(timeout_s=SOON_S)
    for n in range(3):
        await client.enqueue(f"bulk {n}")
    assert [(await puppet_of(engine).next_call()).generation.prompt for _ in range(2)] == ["bulk 0", "bulk 1"]
    await until(lambda: engine.claimer.waker.waits and engine.claimer.waker.lanes == {("echo", True)})
    await client.enqueue("now", priority=9)
    assert (await puppet_of(engine).next_call()).generation.prompt == "now"


async def test_a_process_that_is_full_leaves_room_for_reserved_places(room: Room) -> None:
    settings = reserving(8, 2, max_running=4)
    engine = await room.engine(settings)
    client = await room.client(settings)
    for n in range(6):
        await client.enqueue(f"bulk {n}")
    await until(lambda: engine.running == 2)
    for _ in range(3):
        await client.enqueue("now", priority=9)
    await until(lambda: engine.running == 4)
    prompts = [(await puppet_of(engine).next_call()).generation.prompt for _ in range(4)]
    assert prompts == ["bulk 0", "bulk 1", "now", "now"]


async def test_a_wake_token_that_comes_to_a_full_engine_goes_to_others(room: Room) -> None:
    settings = settings_of(max_running=1)
    full = await room.engine(settings)
    client = await room.client(settings)
    await client.enqueue("keeps it busy")
    await puppet_of(full).next_call()
    await until(lambda: not full.claimer.waker.waits)
    assert full.claimer.room().over_all.free == 0
    await client.enqueue("for somebody else")
    wake = client.queue.keys.of("wake", "echo")

    async def take_token() -> None:
        async with asyncio.timeout(SOON_S):
            while await client.queue.redis.lpop(wake) is None:  # type: ignore[misc]  # redis-py has one type for sync and async
                await asyncio.sleep(0)

    # The engine has nothing to wait with now: let it have waited, and got the token.
    full.claimer.waker._task = token = asyncio.create_task(take_token())
    await token
    full._context.signal.notify()
    async with asyncio.timeout(SOON_S):
        while not await client.queue.redis.llen(wake):  # type: ignore[misc]  # redis-py has one type for sync and async
            await asyncio.sleep(0)


async def test_one_job_among_many_idle_engines_wakes_one(room: Room, long_waits: None) -> None:
    settings = settings_of(routes={"echo": puppet_route(20 * 8)})
    engines = [await room.engine(settings) for _ in range(20)]
    claims = [HeldClaims(engine) for engine in engines]
    for each in claims:
        each.go_on.set()
    await until(lambda: all(engine.claimer.waker.waits for engine in engines))
    client = await room.client()
    before = sum(each.made for each in claims)
    job = await client.enqueue("one")
    await until(lambda: any(engine.running for engine in engines))
    owner = next(engine for engine in engines if engine.running)
    (await puppet_of(owner).next_call()).finish()
    await job.result(timeout_s=SOON_S)
    assert sum(each.made for each in claims) - before <= 3, "the others slept on"


async def test_every_idle_engine_gets_its_share_of_a_burst_at_once(room: Room, long_waits: None) -> None:
    settings = settings_of(max_running=1, routes={"echo": puppet_route(10)})
    engines = [await room.engine(settings) for _ in range(10)]
    await until(lambda: all(engine.claimer.waker.waits for engine in engines))
    client = await room.client(settings)
    await client.enqueue_many([PromptRequest(prompt=f"p {n}") for n in range(10)])
    await until(lambda: all(engine.running == 1 for engine in engines))


async def test_with_max_running_1_one_job_runs_after_the_other(room: Room) -> None:
    settings = settings_of(max_running=1)
    engine = await room.engine(settings)
    client = await room.client(settings)
    jobs = accepted(await client.enqueue_many([PromptRequest(prompt=f"p {n}") for n in range(5)]))
    for number in range(5):
        call = await puppet_of(engine).next_call()
        assert call.generation.prompt == f"p {number}"
        call.finish()
    for job in jobs:
        await job.result(timeout_s=SOON_S)
    assert puppet_of(engine).most_active == 1
    await until(lambda: at_rest(engine))


async def test_requests_that_run_at_once_are_bounded_in_bytes(room: Room) -> None:
    settings = settings_of(max_running_bytes=1000)
    engine = await room.engine(settings)
    client = await room.client(settings)
    jobs = accepted(await client.enqueue_many([PromptRequest(prompt=f"{n}" + "x" * 600) for n in range(4)]))
    for pair in ("01", "23"):
        calls = [await puppet_of(engine).next_call() for _ in pair]
        assert [(call.generation.prompt or "")[0] for call in calls] == list(pair)
        assert engine.claimer.room().over_all.free == 0
        for call in calls:
            call.finish()
    for job in jobs:
        await job.result(timeout_s=SOON_S)
    assert puppet_of(engine).most_active == 2
    await until(lambda: at_rest(engine))


async def test_a_request_that_is_larger_than_all_may_be_runs_alone(room: Room) -> None:
    settings = settings_of(max_running_bytes=1)
    engine = await room.engine(settings)
    client = await room.client(settings)
    jobs = accepted(await client.enqueue_many([PromptRequest(prompt=f"p {n}") for n in range(3)]))
    for n in range(3):
        call = await puppet_of(engine).next_call()
        assert (call.generation.prompt, engine.running) == (f"p {n}", 1)
        call.finish()
    for job in jobs:
        await job.result(timeout_s=SOON_S)


async def test_suspects_run_one_after_the_other_beside_all_else(room: Room, long_waits: None) -> None:
    engine = await room.engine(start=False)
    client = await room.client()
    driver = QueueDriver(client.queue)
    await client.enqueue_many([PromptRequest(prompt=f"suspect {n}") for n in (1, 2)])
    for _ in range(2):
        for job in (await driver.claim_all(lanes={"echo": 9})).jobs:
            await driver.lose_lease(job)
        await driver.tick()
    await client.enqueue_many([PromptRequest(prompt=prompt) for prompt in ("one", "two")])
    await engine.start()
    calls = {(call := await puppet_of(engine).next_call()).generation.prompt: call for _ in range(3)}
    assert calls.keys() == {"suspect 1", "one", "two"}
    calls["one"].finish()
    calls["two"].finish()
    await until(lambda: engine.running == 1)
    assert puppet_of(engine).calls.empty()
    calls["suspect 1"].finish()
    assert (await puppet_of(engine).next_call()).generation.prompt == "suspect 2"


async def test_a_claim_that_fails_for_an_unknown_reason_does_not_end_claiming(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await room.engine(start=False)
    claim, failures = engine.queue.claim, iter([KeyError("?")])

    async def fails_once(*args: Any, **options: Any) -> Claim:
        if error := next(failures, None):
            raise error
        return await claim(*args, **options)

    engine.queue.claim = fails_once
    await engine.start()
    client = await room.client()
    await client.enqueue("one")
    (await puppet_of(engine).next_call()).finish()
    assert "'claim' failed" in caplog.text


# How attempts end


async def start_one(room: Room, **fields: Any) -> tuple[Engine, AsyncClient, Any, PuppetCall]:
    engine, client = await room.engine(settings_of(lease_s=0.5)), await room.client()
    job = await client.enqueue("one", **fields)
    return engine, client, job, await puppet_of(engine).next_call()


async def test_a_cancelled_job_lets_go_of_its_call_and_its_place(room: Room) -> None:
    engine, _, job, call = await start_one(room)
    assert await job.cancel()
    await asyncio.wait_for(call.aborted.wait(), SOON_S)
    with pytest.raises(JobCancelled):
        await job.result(timeout_s=SOON_S)
    await until(lambda: at_rest(engine))


async def test_a_control_message_of_another_job_cancels_nothing(room: Room) -> None:
    engine, client = await room.engine(), await room.client()
    job = await client.enqueue("a")
    call = await puppet_of(engine).next_call()
    (token,) = engine.attempts.tokens
    strangers: tuple[object, ...] = (
        {"cancel": "another", "token": token},
        {"cancel": job.id, "token": token + 1},
        [],
        7,
    )
    for order in strangers:
        await room.redis.publish(engine.queue.control_channel, orjson.dumps(order))
    other = await client.enqueue("b")
    other_call = await puppet_of(engine).next_call()
    await other.cancel()  # heard after all of those
    await asyncio.wait_for(other_call.aborted.wait(), SOON_S)
    assert not call.aborted.is_set()
    call.finish("answer")
    assert (await job.result(timeout_s=SOON_S)).text == "answer"


async def test_a_job_cancelled_between_claim_and_first_step_takes_no_place(room: Room) -> None:
    engine = await room.engine(start=False)
    held = HeldClaims(engine)
    await engine.start()
    client = await room.client()
    job = await client.enqueue("one")
    await asyncio.wait_for(held.jobs_held.wait(), SOON_S)
    begin = engine.attempts.begin

    def cancelled_at_once(job: ClaimedJob) -> None:
        begin(job)
        engine.attempts.lost(job.id, job.token)

    engine.attempts.begin = cancelled_at_once
    assert await job.cancel()
    held.go_on.set()
    await until(lambda: held.made > 1)
    await until(lambda: at_rest(engine))
    assert puppet_of(engine).calls.empty()


async def test_a_job_cancelled_before_its_claim_is_answered_never_reaches_the_model(room: Room) -> None:
    engine = await room.engine(start=False)
    held = HeldClaims(engine)
    await engine.start()
    client = await room.client()
    job = await client.enqueue("one")
    await asyncio.wait_for(held.jobs_held.wait(), SOON_S)
    assert await job.cancel()
    held.go_on.set()
    with pytest.raises(JobCancelled):
        await job.result(timeout_s=SOON_S)
    await until(lambda: held.made > 1)
    await until(lambda: at_rest(engine))


async def test_a_lost_lease_aborts_the_call_and_drops_its_writes(room: Room) -> None:
    engine, client, job, call = await start_one(room)
    call.say("heard ")
    async for event in job.events():
        if event.type == "delta":
            break
    # Another worker process has been given the job.
    await client.queue.redis.hset(client.queue.keys.of("record", job.id), "k", "9999")  # type: ignore[misc]  # redis-py has one type for sync and async
    call.say("not heard")
    await asyncio.wait_for(call.aborted.wait(), SOON_S)
    await until(lambda: at_rest(engine))
    replay = await client.queue.replay(job.id)
    assert replay is not None
    assert b"not heard" not in b"".join(replay.events)
    assert replay.state is JobState.RUNNING, "its end is the other's to write"


async def test_a_deadline_ends_a_running_job_and_its_call(room: Room) -> None:
    engine, _, job, call = await start_one(room, deadline_s=1.5)
    with pytest.raises(JobExpired):
        await job.result(timeout_s=SOON_S)
    assert call.aborted.is_set()
    await until(lambda: at_rest(engine))


async def test_a_deadline_counts_though_redis_is_away(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.engine.attempt.CONFIRM_S", 0.1)
    _, _, _, call = await start_one(room, deadline_s=1.5)
    room.server.connected = False
    await asyncio.wait_for(call.aborted.wait(), SOON_S)


@pytest.mark.parametrize("deadline_s", [None, 30.0])
async def test_a_duplicate_that_joins_moves_the_deadline_of_the_running_job(
    room: Room, deadline_s: float | None
) -> None:
    engine, client = await room.engine(settings_of(lease_s=60)), await room.client()
    job = await client.enqueue("one", dedup_key="twin", deadline_s=1.5)
    call = await puppet_of(engine).next_call()
    again: dict[str, Any] = {} if deadline_s is None else {"deadline_s": deadline_s}
    twin = await client.enqueue("one", dedup_key="twin", **again)
    assert twin.deduplicated
    (attempt,) = engine.attempts
    first = attempt.expires_at
    await until(lambda: attempt.expires_at != first)
    assert attempt.context
    assert attempt.context.expires_at == attempt.expires_at, "stages see the new one too"
    call.finish("in time after all")
    assert (await job.result(timeout_s=SOON_S)).text == "in time after all"


async def test_cancellation_inside_a_stage_is_a_failure_and_not_an_endless_round(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tangled:
        name = "tangled"

        async def run(self, context: PromptContext) -> None:
            raise asyncio.CancelledError

    install(monkeypatch, "tangled_stage", Tangled=Tangled)
    stages = ["tangled_stage:Tangled", "inference", "stream"]
    settings = settings_of(routes={"echo": puppet_route(stages=stages)}, retry_base_s=0.001)
    engine, client = await room.engine(settings), await room.client(settings)
    job = await client.enqueue("one", max_attempts=2)
    with pytest.raises(JobFailed) as failed:
        await job.result(timeout_s=SOON_S)
    assert (failed.value.reason, failed.value.attempts) == ("internal_error", 2)
    await until(lambda: at_rest(engine))


async def test_an_error_in_a_stage_fails_the_job_and_its_words_are_nowhere(
    room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        name = "broken"

        async def run(self, context: PromptContext) -> None:
            raise RuntimeError(f"cannot digest {context.prompt}")

    install(monkeypatch, "broken_stage", Broken=Broken)
    stages = ["broken_stage:Broken", "inference", "stream"]
    settings = settings_of(routes={"echo": puppet_route(stages=stages)})
    engine, client = await room.engine(settings), await room.client(settings)
    job = await client.enqueue("a private matter", max_attempts=1)
    with pytest.raises(JobFailed) as failed:
        await job.result(timeout_s=SOON_S)
    assert failed.value.reason == "internal_error"
    assert "private" not in str(failed.value)
    assert f"job {job.id}: an unexpected error in the stages of route echo" in caplog.text
    assert "RuntimeError" in caplog.text
    assert "test_engine.py" in caplog.text, "the place is there"
    assert "private" not in caplog.text
    await until(lambda: at_rest(engine))


async def test_a_result_that_cannot_be_written_fails_the_job(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _, job, call = await start_one(room, max_attempts=1)

    def no_result(*args: Any, **options: Any) -> bytes:
        raise TypeError("no JSON")

    monkeypatch.setattr("scheduler.engine.attempt.build_result", no_result)
    call.finish("text")
    with pytest.raises(JobFailed, match="TypeError in a stage"):
        await job.result(timeout_s=SOON_S)
    await until(lambda: at_rest(engine))


async def test_half_a_character_from_a_model_worker_stops_nobody(room: Room) -> None:
    engine, client, job, call = await start_one(room, max_attempts=1)
    call.say("bad \ud83d half")
    async for event in job.events():
        if event.type == "delta":
            assert event.text == "bad ? half"
            break
    await job.cancel()
    other = await client.enqueue("two")
    (await puppet_of(engine).next_call()).finish("fine")
    assert (await other.result(timeout_s=SOON_S)).text == "fine"


async def test_a_request_written_by_hand_that_is_garbage_fails_and_stops_nobody(room: Room) -> None:
    engine, client = await room.engine(start=False), await room.client()
    garbage = [await client.enqueue("soon spoilt") for _ in range(3)]
    for job, payload in zip(garbage, [b"\xff\x00", b'["a list"]', b'{"prompt":7}'], strict=True):
        await client.queue.redis.set(client.queue.keys.of("payload", job.id), payload)
    good = await client.enqueue("good")
    await engine.start()
    (await puppet_of(engine).next_call()).finish("good")
    assert (await good.result(timeout_s=SOON_S)).text == "good"
    for job in garbage:
        with pytest.raises(JobFailed) as failed:
            await job.result(timeout_s=SOON_S)
        assert failed.value.reason == "bad_record"


async def test_a_job_of_an_unknown_kind_fails_with_a_code_and_stops_nobody(room: Room) -> None:
    engine, client = await room.engine(start=False), await room.client()
    unknown, good = await client.enqueue("soon another"), await client.enqueue("good")
    key = client.queue.keys.of("payload", unknown.id)
    await client.queue.redis.set(key, b'{"kind":"film","input":["text"]}')
    await engine.start()
    (await puppet_of(engine).next_call()).finish("good")
    assert (await good.result(timeout_s=SOON_S)).text == "good"
    with pytest.raises(JobFailed, match="asks for 'film' work") as failed:
        await unknown.result(timeout_s=SOON_S)
    assert failed.value.reason == "unknown_kind"


async def test_nothing_is_left_after_jobs_of_every_fate(room: Room) -> None:
    settings = settings_of(retry_base_s=0.001)
    engine, client = await room.engine(settings), await room.client(settings)
    done = await client.enqueue("done")
    (await puppet_of(engine).next_call()).finish()
    failed = await client.enqueue("failed", max_attempts=1)
    (await puppet_of(engine).next_call()).fail(WorkerUnavailable("down"))
    retried = await client.enqueue("retried", max_attempts=2)
    (await puppet_of(engine).next_call()).fail(WorkerUnavailable("down"))
    (await puppet_of(engine).next_call()).finish()
    expired = await client.enqueue("expired", deadline_s=1.5)
    await puppet_of(engine).next_call()
    cancelled = await client.enqueue("cancelled")
    await puppet_of(engine).next_call()
    await cancelled.cancel()
    ends = []
    for job in (done, failed, retried, expired, cancelled):
        ends.append([event.type async for event in job.events()][-1])
    assert ends == ["done", "failed", "done", "expired", "cancelled"]
    await until(lambda: at_rest(engine))
    await until(lambda: puppet_of(engine).active == 0)


# Redis away


async def test_settings_that_redis_lost_are_published_again(room: Room) -> None:
    engine, client = await room.engine(settings_of(lease_s=0.5)), await room.client()
    await client.queue.redis.flushall()
    async with asyncio.timeout(SOON_S):
        while not await client.queue.routes():
            await asyncio.sleep(0.01)
    assert (await client.queue.redis.hlen(client.queue.keys.fixed("conf"))) > 0  # type: ignore[misc]  # redis-py has one type for sync and async
    assert engine.running == 0


async def test_settings_are_published_again_with_the_next_tick_once_redis_has_lost_them(room: Room) -> None:
    engine, client = await room.engine(settings_of(lease_s=3600)), await room.client()
    await until(lambda: engine.leads)
    await client.queue.redis.flushall()
    async with asyncio.timeout(SOON_S):
        while not await client.queue.routes():
            await asyncio.sleep(0.01)


async def test_settings_of_the_queue_that_redis_lost_are_published_again(room: Room) -> None:
    engine = await room.engine(settings_of(lease_s=0.5))
    await engine.queue.redis.delete(engine.queue.keys.fixed("conf"))
    async with asyncio.timeout(SOON_S):
        while not await engine.queue.settings():
            await asyncio.sleep(0.01)


async def test_processes_that_disagree_on_the_queue_are_told_once(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    tenants = {"acme": {"requests_per_minute": 5}}
    first = await room.engine(settings_of(max_waiting=7, result_ttl_s=60.0, tenants=tenants))
    await room.engine(settings_of(max_waiting=9, result_ttl_s=90.5))
    for _ in range(3):
        await first.published.mend()
    (said,) = [record.getMessage() for record in caplog.records if "other settings" in record.getMessage()]
    assert "max_waiting is 9, and 7 here; result_ttl_s is 90.5, and 60 here" in said
    assert "tenants.acme has no limits of its own, and 5 requests and any tokens a minute here" in said
    assert (await first.queue.settings())["max_waiting"] == "9", "the last one's hold"


async def test_an_endpoint_that_is_forgiven_takes_prompts_again(room: Room) -> None:
    engine = await room.engine()
    (endpoint,) = engine.endpoints
    endpoint.pause(3600)
    assert not endpoint.admits
    await forgive_endpoint(engine.queue, endpoint.name)
    await until(lambda: endpoint.admits)
    with pytest.raises(InvalidRequest, match=r"no 'nobody\.0' in queue"):
        await forgive_endpoint(engine.queue, "nobody.0")


async def test_an_outage_is_said_once_when_it_begins_and_once_when_it_ends(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="scheduler")
    engine, _, job, call = await start_one(room)
    room.server.connected = False
    call.say("said while Redis is away")
    await until(lambda: "Redis is away" in caplog.text)
    await asyncio.sleep(0.5)
    room.server.connected = True
    call.finish()
    assert (await job.result(timeout_s=SOON_S)).text == "said while Redis is away"
    await until(lambda: at_rest(engine))
    said = [record.getMessage() for record in caplog.records if "Redis" in record.getMessage()]
    assert len(said) == 2
    assert said[0].startswith("Redis is away")
    assert said[1] == "Redis is back"
