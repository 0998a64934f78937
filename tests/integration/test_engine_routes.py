"""Routes at work: failover, fallbacks, breakers, shares of several processes, settings that change."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, cast

import pytest

from scheduler import AsyncClient, ConfigError, Job, JobFailed, JobState, Retrying, Settings
from scheduler.batching import patience
from scheduler.engine import Engine, SettingsReloader
from scheduler.engine import reload as reload_module
from scheduler.routing import BreakerState
from scheduler.settings import load_settings
from tests.integration.engine_room import (
    Puppet,
    Room,
    puppet_of,
    puppet_route,
    settings_of,
    until,
)
from tests.patience import SOON_S
from workers.base import Health
from workers.errors import (
    ModelNotFound,
    RequestRejected,
    UnsupportedParameter,
    WorkerAuthError,
    WorkerFailed,
    WorkerOverloaded,
    WorkerUnavailable,
)

BREAKER = {"failures": 1, "open_s": 0.05}


def puppet_at(engine: Engine, at: int, route: str = "echo") -> Puppet:
    worker = engine.routes[route].endpoints[at].worker
    assert isinstance(worker, Puppet)
    return worker


def endpoint(**values: Any) -> dict[str, Any]:
    return {"backend": "puppet", "max_in_flight": 4, "breaker": BREAKER, **values}


def two_endpoints(**values: Any) -> Settings:
    return settings_of(routes={"echo": {"endpoints": [endpoint(), endpoint()]}}, retry_base_s=0.01, **values)


async def settled(engine: Engine) -> None:
    """Return once all ends of attempts are written."""
    await until(lambda: not engine.attempts)


class Switch:
    """Says for a puppet whether it is ready."""

    def __init__(self, puppet: Puppet, *, ready: bool = False) -> None:
        self.ready = ready
        puppet.health = self._health

    async def _health(self) -> Health:
        return Health(ready=self.ready, detail="" if self.ready else "loading")


# Failover


@pytest.mark.parametrize(
    "error",
    [
        WorkerUnavailable("gone"),
        WorkerAuthError("no key"),
        WorkerOverloaded("x"),
        UnsupportedParameter("params.n: no"),
    ],
)
async def test_endpoint_that_fails_before_its_first_token_is_followed_by_the_next(
    room: Room, error: Exception
) -> None:
    engine = await room.engine(two_endpoints())
    client = await room.client()
    job = await client.enqueue("one", model="echo", max_attempts=1)
    (await puppet_at(engine, 0).next_call()).fail(error)
    (await puppet_at(engine, 1).next_call()).finish("answer")
    result = await job.result(timeout_s=SOON_S)
    assert (result.text, result.endpoint, result.attempts) == ("answer", "echo.1", 1)


async def test_answer_that_breaks_off_is_begun_again_in_a_new_attempt(room: Room) -> None:
    engine = await room.engine(two_endpoints())
    Switch(puppet_at(engine, 0))
    client = await room.client()
    job = await client.enqueue("one", model="echo")
    call = await puppet_at(engine, 0).next_call()
    call.say("half")
    call.fail(WorkerUnavailable("gone"))
    (await puppet_at(engine, 1).next_call()).finish("answer")
    seen = [type(event) async for event in job.events()]
    assert Retrying in seen
    assert (await job.result(timeout_s=SOON_S)).text == "answer"


async def test_request_that_is_refused_goes_to_no_other_endpoint(room: Room) -> None:
    engine = await room.engine(two_endpoints())
    client = await room.client()
    job = await client.enqueue("one", model="echo")
    (await puppet_at(engine, 0).next_call()).fail(RequestRejected("too hot"))
    await until(lambda: engine.running == 0)
    assert (await job.info()).state is JobState.FAILED
    assert puppet_at(engine, 1).calls.empty()


async def test_fallback_answers_while_no_endpoint_of_its_own_can(room: Room) -> None:
    routes = {
        "echo": {"endpoints": [endpoint()], "fallbacks": ["small"]},
        "small": {"endpoints": [endpoint(model="little")]},
    }
    engine = await room.engine(settings_of(routes=routes))
    Switch(puppet_of(engine))
    client = await room.client()
    first = await client.enqueue("one", model="echo")
    (await puppet_of(engine).next_call()).fail(WorkerUnavailable("gone"))
    call = await puppet_of(engine, "small").next_call()
    assert call.generation.model == "little"
    call.finish("answer")
    assert (await first.result(timeout_s=SOON_S)).endpoint == "small.0"

    second = await client.enqueue("two", model="echo")
    (await puppet_of(engine, "small").next_call()).finish("again")
    assert (await second.result(timeout_s=SOON_S)).text == "again"
    assert puppet_of(engine).calls.empty()


async def test_model_worker_that_never_answers_is_ended_and_the_next_endpoint_asked(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "GRACE_S", 0.05)
    engine = await room.engine(
        settings_of(routes={"echo": {"endpoints": [endpoint(timeout_s=0.05), endpoint()]}})
    )
    client = await room.client()
    job = await client.enqueue("one", max_attempts=1)
    silent = await puppet_at(engine, 0).next_call()
    (await puppet_at(engine, 1).next_call()).finish("answer")
    assert (await job.result(timeout_s=SOON_S)).endpoint == "echo.1"
    assert silent.aborted.is_set()


# Breakers


async def test_job_whose_every_endpoint_is_down_waits_in_redis_and_runs_when_one_is_back(room: Room) -> None:
    settings = settings_of(routes={"echo": {"endpoints": [endpoint()]}}, retry_base_s=0.01)
    engine = await room.engine(settings)
    switch = Switch(puppet_of(engine))
    client = await room.client()
    broken = await client.enqueue("one", model="echo", max_attempts=2)
    (await puppet_of(engine).next_call()).fail(WorkerUnavailable("gone"))
    await until(lambda: engine.routes["echo"].endpoints[0].breaker.state is BreakerState.OPEN)
    late = await client.enqueue("two", model="echo", max_attempts=1)
    await asyncio.sleep(0.3)  # several probes find it away
    assert (await late.info()).state is JobState.WAITING
    assert (await late.info()).attempts == 0

    switch.ready = True
    for _ in range(2):
        (await puppet_of(engine).next_call()).finish("back")
    assert (await broken.result(timeout_s=SOON_S)).attempts == 2
    assert (await late.result(timeout_s=SOON_S)).attempts == 1


async def test_requests_that_fail_open_nothing_while_others_succeed(room: Room) -> None:
    """One tenant's garbage, with an engine's 500 for each of it, beside the good prompts of another."""
    routes = {"echo": {"endpoints": [endpoint(), endpoint()], "max_attempts": 1}}
    engine = await room.engine(settings_of(routes=routes))
    puppets = [puppet_at(engine, at) for at in range(2)]
    endpoints = engine.routes["echo"].endpoints

    async def answer(puppet: Puppet) -> None:
        while True:
            call = await puppet.calls.get()
            if call.generation.prompt == "bad":
                call.fail(WorkerFailed("template error"))
            else:
                call.finish("answer")

    answering = [asyncio.create_task(answer(puppet)) for puppet in puppets]
    client = await room.client()
    bad = [await client.enqueue("bad", tenant="careless") for _ in range(10)]
    good = [await client.enqueue(f"p {n}", tenant="other", max_attempts=1) for n in range(10)]
    for job in good:
        assert (await job.result(timeout_s=SOON_S)).attempts == 1
    for job in bad:
        with pytest.raises(JobFailed):
            await job.result(timeout_s=SOON_S)
        info = await job.info()
        assert info.error is not None
        assert info.error.message == "template error"
    await until(lambda: not any(one.breaker.suspected for one in endpoints))
    assert [one.breaker.state for one in endpoints] == [BreakerState.CLOSED] * 2
    assert sum(puppet.checks for puppet in puppets) > 0
    for task in answering:
        task.cancel()


async def test_endpoint_that_has_opened_is_checked_with_no_prompt_of_a_user(room: Room) -> None:
    settings = settings_of(routes={"echo": {"endpoints": [endpoint()]}}, retry_base_s=0.01)
    engine = await room.engine(settings)
    puppet, breaker = puppet_of(engine), engine.routes["echo"].endpoints[0].breaker
    puppet.failure = WorkerFailed("CUDA error")
    client = await room.client()
    job = await client.enqueue("one", max_attempts=2)
    (await puppet.next_call()).fail(WorkerFailed("CUDA error"))
    await until(lambda: puppet.checks > 3)
    assert not breaker.admits
    assert puppet.calls.empty()
    puppet.failure = None
    (await puppet.next_call()).finish("back")
    await job.result(timeout_s=SOON_S)
    # It may have been claimed once more before the endpoint was left alone: a wait, and no failure.
    assert (await job.info()).failures == 1
    assert breaker.admits


async def test_endpoint_that_is_known_not_to_serve_its_model_gets_not_even_one_job(room: Room) -> None:
    engine = await room.engine(
        settings_of(routes={"echo": {"endpoints": [endpoint(model="large"), endpoint()]}}), start=False
    )
    missing, serves = puppet_at(engine, 0), puppet_at(engine, 1)

    async def health() -> Health:
        return Health(ready=True, models=("small",), exclusive=True)

    missing.health = health
    client = await room.client()
    jobs = [await client.enqueue(f"p {n}") for n in range(3)]
    await engine.start()
    for _ in jobs:
        (await serves.next_call()).finish()
    for job in jobs:
        assert (await job.result(timeout_s=SOON_S)).endpoint == "echo.1"
    assert missing.calls.empty()
    assert missing.checks == 0


async def test_endpoint_that_does_not_serve_the_model_is_out_after_its_first_answer(room: Room) -> None:
    engine = await room.engine(two_endpoints())
    missing, serves = puppet_at(engine, 0), puppet_at(engine, 1)
    missing.failure = ModelNotFound("no such model")
    client = await room.client()
    job = await client.enqueue("one", max_attempts=1)
    (await missing.next_call()).fail(ModelNotFound("no such model"))
    (await serves.next_call()).finish("answer")
    assert (await job.result(timeout_s=SOON_S)).endpoint == "echo.1"
    await until(lambda: not engine.routes["echo"].endpoints[0].admits)
    for n in range(6):
        await client.enqueue(f"p {n}")
    for _ in range(4):  # as many as it holds
        await serves.next_call()
    assert missing.calls.empty()


async def test_endpoint_that_is_not_ready_at_the_start_gets_nothing_until_it_is(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await room.engine(settings_of(routes={"echo": {"endpoints": [endpoint()]}}), start=False)
    switch = Switch(puppet_of(engine))
    with caplog.at_level(logging.INFO):
        await engine.start()
        await until(lambda: engine.routes["echo"].free == 0)
        client = await room.client()
        job = await client.enqueue("one")
        switch.ready = True
        (await puppet_of(engine).next_call()).finish()
        await job.result(timeout_s=SOON_S)
    assert "endpoint echo.0 is unused" in caplog.text
    assert "loading" in caplog.text
    assert "endpoint echo.0 is well again" in caplog.text


async def test_wait_that_the_back_end_asks_for_is_kept_and_costs_no_attempt(room: Room) -> None:
    settings = settings_of(routes={"echo": {"endpoints": [endpoint()]}}, retry_base_s=0.0)
    engine = await room.engine(settings)
    client = await room.client()
    job = await client.enqueue("one", max_attempts=1)
    (await puppet_of(engine).next_call()).fail(WorkerOverloaded("slow down", retry_after_s=0.3))
    await until(lambda: engine.routes["echo"].endpoints[0].paused)
    other = await client.enqueue("two")
    await asyncio.sleep(0.1)
    assert (await other.info()).state is JobState.WAITING
    for _ in range(2):
        (await puppet_of(engine).next_call()).finish()
    assert (await job.result(timeout_s=SOON_S)).attempts == 2
    assert (await job.info()).failures == 0
    await other.result(timeout_s=SOON_S)


async def test_job_that_met_a_pause_is_the_first_to_go_when_it_is_over(room: Room) -> None:
    settings = settings_of(routes={"echo": {"endpoints": [endpoint(max_in_flight=1)]}}, aging_s=0.0)
    engine = await room.engine(settings)
    client = await room.client()
    jobs = [await client.enqueue("p 0")]
    call = await puppet_of(engine).next_call()
    jobs += [await client.enqueue(f"p {n}") for n in range(1, 4)]
    call.fail(WorkerOverloaded("slow down", retry_after_s=0.6))
    await until(lambda: engine.running == 0)
    await settled(engine)
    info = await jobs[0].info()
    assert (info.state, info.position, info.failures) == (JobState.WAITING, 0, 0)
    for n in range(4):
        call = await puppet_of(engine).next_call()
        assert call.generation.prompt == f"p {n}"
        call.finish()
    retrying = [event async for event in jobs[0].events() if isinstance(event, Retrying)]
    assert [event.delay_s for event in retrying] == [0.6], "readers are told of the wait"


@pytest.mark.parametrize("by", ["job", "route", "queue"])
async def test_waits_without_end_end_the_job_with_the_reason(room: Room, by: str) -> None:
    few = {"max_waits": 2}
    route = {"endpoints": [endpoint()], **(few if by == "route" else {})}
    settings = settings_of(routes={"echo": route}, retry_base_s=0.0, **(few if by == "queue" else {}))
    engine = await room.engine(settings)
    client = await room.client()
    job = await client.enqueue("one", max_waits=2) if by == "job" else await client.enqueue("one")
    for _ in range(3):
        (await puppet_of(engine).next_call()).fail(WorkerOverloaded("quota used up", retry_after_s=0.01))
    with pytest.raises(JobFailed) as caught:
        await job.result(timeout_s=SOON_S)
    assert caught.value.reason == "too_many_waits"
    info = await job.info()
    assert info.failures == 0
    assert info.error is not None
    for said in ("waited 2 times", "max_waits", "quota used up"):
        assert said in info.error.message


# Shares


async def test_two_processes_together_keep_max_in_flight(room: Room) -> None:
    settings = settings_of(routes={"echo": puppet_route(4)}, lease_s=0.6)
    engines = [await room.engine(settings), await room.engine(settings)]
    client = await room.client()
    for n in range(12):
        await client.enqueue(f"p {n}")
    limits = [engine.routes["echo"].endpoints[0] for engine in engines]
    await until(lambda: [one.limit for one in limits] == [2, 2])
    assert (
        sum(engine.running for engine in engines) <= 4 + 4
    )  # the first may have had all when the second came

    await engines[1].stop(drain_s=0)
    await until(lambda: limits[0].limit == 4)


async def test_process_that_drains_leaves_what_it_needs_no_more_to_others(room: Room) -> None:
    few = [endpoint(max_in_flight=4)]
    routes = {
        "busy": {"endpoints": few, "fallbacks": ["spare"]},
        "spare": {"endpoints": few},
        "idle": {"endpoints": few},
    }
    settings = settings_of(routes=routes, lease_s=0.6)
    first = await room.engine(settings)
    client = await room.client(settings)
    job = await client.enqueue("one", model="busy")
    call = await puppet_of(first, "busy").next_call()
    other = await room.engine(settings)

    def limits() -> list[int]:
        return [other.routes[name].endpoints[0].limit for name in routes]

    await until(lambda: limits() == [2, 2, 2])
    draining = asyncio.create_task(first.stop(drain_s=60))
    await until(lambda: limits() == [2, 2, 4])
    assert not draining.done()
    call.finish("answer")
    await draining
    assert (await job.result(timeout_s=SOON_S)).text == "answer"
    await until(lambda: limits() == [4, 4, 4])


async def test_twenty_processes_do_not_mean_twenty_times_the_load(room: Room) -> None:
    settings = settings_of(routes={"echo": puppet_route(6)}, lease_s=3.0)
    engines = [await room.engine(settings) for _ in range(20)]
    endpoints = [engine.routes["echo"].endpoints[0] for engine in engines]
    # Until the others have been heard of, the first has all.
    await until(lambda: sorted(one.limit for one in endpoints) == [0] * 14 + [1] * 6)
    client = await room.client()
    for n in range(40):
        await client.enqueue(f"p {n}")
    await until(lambda: sum(engine.running for engine in engines) == 6)
    await asyncio.sleep(0.5)
    assert sum(engine.running for engine in engines) == 6
    await until(lambda: sum(one.limit for one in endpoints) == 6)


async def test_newcomer_takes_nothing_until_the_others_have_made_room(room: Room) -> None:
    settings = settings_of(routes={"echo": puppet_route(4)}, lease_s=60.0)
    first = await room.engine(settings)
    second = await room.engine(settings)
    assert first.routes["echo"].endpoints[0].limit == 4
    assert second.routes["echo"].free == 0
    client = await room.client()
    for n in range(8):
        await client.enqueue(f"p {n}")
    await until(lambda: first.running == 4)
    await asyncio.sleep(0.1)
    assert second.running == 0


# Settings that change


def settings_with(**routes: dict[str, Any]) -> Settings:
    return settings_of(routes=routes)


async def finished(job: Job) -> str:
    return (await job.result(timeout_s=SOON_S)).text


async def test_new_route_is_served_after_a_reload_and_others_keep_their_endpoints(room: Room) -> None:
    engine = await room.engine(settings_with(echo=puppet_route()))
    kept = engine.routes["echo"]
    await engine.reload(settings_with(echo=puppet_route(), more=puppet_route()))
    assert engine.routes["echo"] is kept
    client: AsyncClient = await room.client(settings_with(echo=puppet_route(), more=puppet_route()))
    job = await client.enqueue("one", model="more")
    (await puppet_of(engine, "more").next_call()).finish("new")
    assert await finished(job) == "new"
    assert set(await engine.queue.routes()) == {"echo", "more"}


async def test_route_that_goes_is_taken_off_the_list_once_nobody_serves_it(room: Room) -> None:
    both = settings_with(echo=puppet_route(), more=puppet_route())
    first, second = await room.engine(both), await room.engine(both)
    await first.reload(settings_with(echo=puppet_route()))
    assert set(await first.queue.routes()) == {"echo", "more"}
    await second.reload(settings_with(echo=puppet_route()))
    assert set(await first.queue.routes()) == {"echo"}


async def test_route_that_changes_finishes_what_it_has_with_the_old_settings(room: Room) -> None:
    engine = await room.engine(settings_with(echo=puppet_route()))
    client = await room.client()
    old = puppet_of(engine)
    first = await client.enqueue("one")
    call = await old.next_call()
    await engine.reload(settings_with(echo=puppet_route(3)))
    assert puppet_of(engine) is not old
    second = await client.enqueue("two")
    (await puppet_of(engine).next_call()).finish("new")
    assert await finished(second) == "new"
    assert not old.closed
    call.finish("old")
    assert await finished(first) == "old"
    await until(lambda: old.closed)


async def test_fallback_that_goes_stays_for_the_jobs_that_may_still_need_it(room: Room) -> None:
    def settings(max_in_flight: int) -> Settings:
        few = endpoint(max_in_flight=max_in_flight)
        return settings_with(
            echo={"endpoints": [few], "fallbacks": ["small"]}, small={"endpoints": [few], "fallbacks": []}
        )

    engine = await room.engine(settings(1))
    own, fallback = puppet_of(engine), puppet_of(engine, "small")
    client = await room.client(settings(1))
    job = await client.enqueue("one", model="echo", max_attempts=1)
    call = await own.next_call()
    await engine.reload(settings(2))
    assert not fallback.closed
    call.fail(WorkerUnavailable("gone"))
    (await fallback.next_call()).finish("answer")
    assert await finished(job) == "answer"
    await until(lambda: own.closed and fallback.closed)


async def test_reload_that_fails_changes_nothing(room: Room) -> None:
    engine = await room.engine(settings_with(echo=puppet_route()))
    before = dict(engine.routes)
    bad = {"endpoints": [{"backend": "puppet"}], "rag": {"documents": "/nowhere"}}
    with pytest.raises(ConfigError, match="nowhere"):
        await engine.reload(settings_with(echo=puppet_route(3), bad=bad))
    assert engine.routes == before
    client = await room.client()
    job = await client.enqueue("one", model="echo")
    (await puppet_of(engine).next_call()).finish("still")
    assert await finished(job) == "still"


async def test_what_takes_a_restart_is_said_and_stays(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    engine = await room.engine(settings_with(echo=puppet_route()))
    await engine.reload(settings_of(routes={"echo": puppet_route()}, lease_s=5.0, max_running=3))
    assert "lease_s: restart the process to change this" in caplog.text
    assert (engine.settings.lease_s, engine.settings.max_running) == (settings_of().lease_s, 3)


async def test_changed_file_is_taken_up_and_an_invalid_one_is_explained(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reload_module, "LOOK_S", 0.02)
    path = tmp_path / "settings.toml"
    one = '[[routes.echo.endpoints]]\nbackend = "puppet"\n'
    path.write_text(one)
    engine = await room.engine(load_settings(path, environ={}))
    reloader = SettingsReloader(engine, lambda: load_settings(path, environ={}), path)
    await reloader.start()
    try:
        path.write_text(f"{one}[[routes.more.endpoints]]\nbackend = 'puppet'\n")
        await until(lambda: "more" in engine.routes)
        path.write_text("[routes.echo]\nendpoint = 1\n")
        await until(lambda: "settings not reloaded, the old ones stay" in caplog.text)
        assert "did you mean endpoints?" in caplog.text
        assert set(engine.routes) == {"echo", "more"}
        caplog.clear()
        path.write_text("")
        await until(lambda: "is it complete?" in caplog.text)
        assert set(engine.routes) == {"echo", "more"}
        path.write_text(one)
        await until(lambda: "more" not in engine.routes)
    finally:
        await reloader.stop()
        await reloader.stop()


def test_a_file_that_still_changes_is_left_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("")
    reloader = SettingsReloader(cast("Any", None), cast("Any", None), path)
    assert not reloader.has_settled()
    for size in (1, 2):
        path.write_text("x" * size)
        assert not reloader.has_settled()
    assert reloader.has_settled()
    assert not reloader.has_settled(), "it is known now"
