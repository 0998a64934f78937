"""What the engine tells its observers: each thing that happens once, and nothing to nobody."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import fields
from functools import partial
from typing import Any

import pytest

from scheduler import observations
from scheduler.observations import Observer, Observers, Outcome
from tests.integration.engine_room import (
    Room,
    install,
    puppet_of,
    puppet_route,
    settings_of,
    until,
)
from tests.patience import SOON_S
from workers.base import Completed, Generation, TokenUsage
from workers.errors import WorkerOverloaded, WorkerUnavailable


class Notes(Observer):
    """Wants to hear of all there is, and keeps it in order: what kind it is, and what was said."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []
        for kind in fields(Observers):
            setattr(self, kind.name, partial(self._hear, kind.name))

    def _hear(self, kind: str, said: Any) -> None:
        self.heard.append((kind, said))

    def of(self, kind: str) -> list[Any]:
        return [said for heard, said in self.heard if heard == kind]

    @property
    def outcomes(self) -> list[Outcome]:
        return [end.outcome for end in self.of("attempt_ended")]

    async def ends(self, n: int = 1) -> list[Any]:
        await until(lambda: len(self.outcomes) >= n)
        return self.of("attempt_ended")


async def test_a_prompt_is_heard_of_at_each_step_once_and_in_order(room: Room) -> None:
    notes = Notes()
    engine = await room.engine(observers=[notes])
    client = await room.client()
    job = await client.enqueue("hello", model="echo", priority=7)
    call = await puppet_of(engine).next_call()
    call.say("he")
    call.outputs.put_nowait(Completed(0, "stop", TokenUsage(3, 2), "puppet-1"))
    await job.result(timeout_s=SOON_S)
    (end,) = await notes.ends()
    kinds = [kind for kind, _ in notes.heard]
    steps = ["claimed", "attempt_began", "call_began", "call_ended", "attempt_ended"]
    assert [kind for kind in kinds if kind in steps] == steps
    assert {"written", "round_trip", "ticked"} <= set(kinds)
    (claimed,), (began,) = notes.of("claimed"), notes.of("attempt_began")
    (call_began,), (call_ended,) = notes.of("call_began"), notes.of("call_ended")
    assert [one.id for one in claimed.jobs] == [job.id] == [began.job.id] == [end.job.id]
    assert (end.job.priority, end.job.attempt, end.outcome, end.code) == (7, 1, Outcome.DONE, "")
    assert end.claimed_at <= end.progress.first_token_at <= end.ended_at
    assert (end.progress.endpoint, end.progress.model) == ("echo.0", "echo")
    assert end.progress.completed.usage == TokenUsage(3, 2)
    assert [one.request_id for one in call_began.work] == [job.id]
    assert call_began.call is call_ended
    assert (call_ended.endpoint, call_ended.error, call_ended.given_up) == ("echo.0", None, False)
    assert notes.of("flushed") == []  # it went alone and at once


async def test_gathered_prompts_are_heard_of_as_one_batch(room: Room) -> None:
    notes = Notes()
    route = puppet_route(max_in_flight=1)
    settings = settings_of(routes={"echo": route})
    engine = await room.engine(settings, observers=[notes])
    batcher = engine.endpoints[0].batcher
    generations = [Generation(model="echo", prompt=text) for text in ("one", "two")]
    runs = [asyncio.create_task(batcher.run(one, lambda _: None, tokens=1)) for one in generations]
    for _ in runs:
        (await puppet_of(engine).next_call()).finish("hi")
    await asyncio.gather(*runs)
    (second,) = notes.of("flushed")
    assert (second.endpoint, second.flush.size) == ("echo.0", 1)
    assert second.flush.waited_s > 0
    assert batcher.at_once == 1


async def test_a_failed_attempt_is_retried_and_the_last_one_fails(room: Room) -> None:
    notes = Notes()
    settings = settings_of(retry_base_s=0.0, max_attempts=2)
    engine = await room.engine(settings, observers=[notes])
    client = await room.client(settings)
    job = await client.enqueue("hello", model="echo")
    for _ in range(2):
        (await puppet_of(engine).next_call()).fail(WorkerUnavailable("gone"))
    first, second = await notes.ends(2)
    assert (first.outcome, first.code, first.job.attempt) == (Outcome.RETRIED, "worker_unavailable", 1)
    assert (second.outcome, second.code, second.job.attempt) == (Outcome.FAILED, "worker_unavailable", 2)
    assert [str(end.error) for end in notes.of("call_ended")] == ["gone", "gone"]
    assert first.job.id == second.job.id == job.id


async def test_a_retry_that_costs_no_attempt_is_no_giving_back(room: Room) -> None:
    notes = Notes()
    engine = await room.engine(observers=[notes])
    client = await room.client()
    await client.enqueue("hello", model="echo")
    (await puppet_of(engine).next_call()).fail(WorkerOverloaded("full", retry_after_s=60.0))
    (end,) = await notes.ends()
    assert end.outcome is Outcome.RETRIED


async def test_a_cancelled_job_is_lost_to_its_attempt_and_its_call_given_up(room: Room) -> None:
    notes = Notes()
    engine = await room.engine(observers=[notes])
    client = await room.client()
    job = await client.enqueue("hello", model="echo")
    await puppet_of(engine).next_call()
    await job.cancel()
    (end,) = await notes.ends()
    assert end.outcome is Outcome.LOST
    (call,) = notes.of("call_ended")
    assert call.given_up


async def test_a_deadline_ends_an_attempt_as_expired(room: Room) -> None:
    notes = Notes()
    engine = await room.engine(observers=[notes])
    client = await room.client()
    await client.enqueue("hello", model="echo", deadline_s=1.5)
    await puppet_of(engine).next_call()
    (end,) = await notes.ends()
    assert end.outcome is Outcome.EXPIRED


async def test_a_stopping_engine_gives_back_what_runs_and_says_so(room: Room) -> None:
    notes = Notes()
    engine = await room.engine(observers=[notes])
    client = await room.client()
    await client.enqueue("hello", model="echo")
    await puppet_of(engine).next_call()
    await engine.stop(drain_s=0)
    assert notes.outcomes == [Outcome.GIVEN_BACK]


async def test_a_request_that_cannot_be_read_ends_without_progress(room: Room) -> None:
    notes = Notes()
    await room.engine(observers=[notes])
    client = await room.client()
    await client.queue.pause("echo")
    job = await client.enqueue("hello", model="echo")
    await client.queue.redis.set(client.queue.keys.of("payload", job.id), b"garbage")
    await client.queue.resume("echo")
    (end,) = await notes.ends()
    assert (end.outcome, end.code, end.progress) == (Outcome.FAILED, "bad_record", None)
    assert notes.of("attempt_began") == []


async def test_a_breaker_is_heard_of_when_it_changes(room: Room) -> None:
    notes = Notes()
    route = puppet_route()
    route["endpoints"][0]["breaker"] = {"failures": 1}
    settings = settings_of(routes={"echo": route}, max_attempts=1)
    engine = await room.engine(settings, observers=[notes])
    client = await room.client(settings)
    await client.enqueue("hello", model="echo")
    puppet_of(engine).failure = WorkerUnavailable("gone")
    (await puppet_of(engine).next_call()).fail(WorkerUnavailable("gone"))
    await notes.ends()
    await until(lambda: bool(notes.of("breaker_changed")))
    changes = notes.of("breaker_changed")
    assert [(one.endpoint, one.state) for one in changes][:1] == [("echo.0", "open")]


class Follower(Observer):
    """Follows each attempt through its stages."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def attempt_began(self, seen: observations.AttemptBegan) -> None:
        seen.progress.watcher = self

    def stage_began(self, stage: str) -> None:
        self.heard.append(f"{stage} began")

    def stage_ended(self, stage: str, error: BaseException | None) -> None:
        self.heard.append(f"{stage} ended" + (f" with {type(error).__name__}" if error else ""))

    def attempt_ended(self, seen: observations.EndedAttempt) -> None: ...


async def test_who_follows_an_attempt_hears_of_its_stages(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Picky:
        name = "picky"

        async def run(self, context: Any) -> None:
            raise ValueError("no")

    install(monkeypatch, "own_stages", Picky=Picky)
    follower = Follower()
    stages = ["assemble", "inference", "own_stages:Picky", "post", "stream"]
    settings = settings_of(routes={"echo": puppet_route(stages=stages)}, max_attempts=1)
    engine = await room.engine(settings, observers=[follower])
    client = await room.client(settings)
    await client.enqueue("hello", model="echo")
    (await puppet_of(engine).next_call()).finish("hi")
    await until(lambda: len(follower.heard) >= 4)
    assert follower.heard == [
        "inference began",
        "inference ended",
        "picky began",
        "picky ended with ValueError",
    ]


async def test_an_observer_that_fails_stops_neither_the_job_nor_the_others(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Observer):
        def attempt_began(self, seen: observations.AttemptBegan) -> None:
            raise KeyError("oh")

    notes = Notes()
    engine = await room.engine(observers=[Broken(), notes])
    client = await room.client()
    with caplog.at_level(logging.ERROR):
        job = await client.enqueue("hello", model="echo")
        (await puppet_of(engine).next_call()).finish("hi")
        assert (await job.result(timeout_s=SOON_S)).text == "hi"
        await notes.ends()
    assert len(notes.of("attempt_began")) == 1
    assert "an observer failed on AttemptBegan" in caplog.text


async def test_what_nobody_wants_to_hear_is_not_made(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **fields: Any) -> None:
        raise AssertionError("it was made")

    for module in ("scheduler.engine.engine", "scheduler.engine.attempt", "scheduler.routing.endpoint"):
        for kind in (
            "Claimed",
            "AttemptBegan",
            "Written",
            "RoundTrip",
            "CallBegan",
            "Flushed",
        ):
            monkeypatch.setattr(f"{module}.{kind}", refuse, raising=False)
    monkeypatch.setattr("scheduler.batching.batcher.Flush", refuse)
    engine = await room.engine()
    client = await room.client()
    job = await client.enqueue("hello", model="echo")
    (await puppet_of(engine).next_call()).finish("hi")
    assert (await job.result(timeout_s=SOON_S)).text == "hi"
