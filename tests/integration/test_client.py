"""The client on fakeredis, with a model worker that does what the test says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest

from scheduler import (
    AsyncClient,
    DedupConflict,
    Done,
    InvalidRequest,
    InvalidTransition,
    Job,
    JobCancelled,
    JobFailed,
    JobNotFound,
    JobShed,
    JobState,
    Message,
    NoTicket,
    Priority,
    PromptRequest,
    QueueFull,
    RedisTooOld,
    ResultTimeout,
    SchedulerError,
    UnknownModel,
    coalescer,
)
from scheduler.client import connection, enqueuer
from scheduler.events import decode_event
from scheduler.redis_server.readiness import check_server
from tests.integration.engine_room import Room, puppet_of, puppet_route, settings_of
from tests.patience import SOON_S


@pytest.fixture
async def client(room: Room) -> AsyncClient:
    return await room.client()


# What is refused, and how


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"prompt": ""}, "prompt", "is empty"),
        ({"prompt": " \n "}, "prompt", "is empty"),
        ({"prompt": "x" * 1_000_001}, "prompt", "1,000,001 characters; give at most 1,000,000"),
        ({}, "prompt", "either prompt or messages"),
        ({"prompt": "x", "model": "gpt-7"}, "model", "no route 'gpt-7'; there are: echo"),
        ({"prompt": "x", "priority": 11}, "priority", "give 9 or less"),
        ({"prompt": "x", "priority": True}, "priority", "give a whole number"),
        ({"prompt": "x", "deadline_s": -1}, "deadline_s", "give more than 0"),
        ({"prompt": "x", "deadline_s": timedelta(seconds=-1)}, "deadline_s", "give more than 0"),
        ({"prompt": "x", "deadline_s": math.inf}, "deadline_s", "give 315,360,000 or less"),
        ({"prompt": "x", "delay_s": math.nan}, "delay_s", "give 315,360,000 or less"),
        ({"prompt": "x", "dedup_key": "k" * 10_240}, "dedup_key", "10,240 bytes"),
        ({"prompt": "x", "dedup": "window"}, "dedup", "needs a dedup_key"),
        ({"prompt": "x", "params": {"temperature": math.nan}}, "params.temperature", "finite"),
        ({"prompt": "x", "params": {"temperature": "0.5"}}, "params.temperature", "number"),
        ({"prompt": "x", "params": {"tempreature": 0.5}}, "params.tempreature", "no such field"),
        ({"prompt": "x", "extra_body": {"bias": [0.0, math.nan]}}, "extra_body", "extra_body.bias.1"),
        ({"prompt": "x", "metadata": {"score": -math.inf}}, "metadata", "metadata.score"),
        (
            {"messages": [{"role": "user", "content": [{"type": "x", "at": math.nan}]}]},
            "messages",
            "messages.0.content.0.at",
        ),
        ({"prompt": "half \ud83d"}, "prompt", "not valid UTF-8"),
        ({"prompt": "x", "metadata": {"name": "half \ud83d"}}, "metadata", "UTF-8"),
        ({"prompt": "x", "metadata": {1: "key"}}, "metadata.1", "give text"),
        ({"prompt": "x", "extra_body": {"thing": object()}}, "extra_body", "cannot be written as JSON"),
        ({"prompt": "x", "extra_body": {"n": 2**70}}, "extra_body", "cannot be written as JSON"),
        ({"prompt": "x", "metadata": {"big": "x" * 8_400_000}}, None, "at most 8,388,608"),
        ({"prompt": "x", "tempreature": 1}, "tempreature", "no such field"),
        ({"prompt": "x", "job_id": "two words"}, "job_id", "begin with a letter"),
    ],
)
async def test_a_bad_field_is_refused_by_its_name(
    client: AsyncClient, fields: dict[str, Any], field: str | None, words: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await client.enqueue(**fields)
    assert refused.value.field == field
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert await client.queue.unfinished(["echo"]) == 0


async def test_metadata_that_contains_itself_is_refused(client: AsyncClient) -> None:
    metadata: dict[str, Any] = {}
    metadata["self"] = metadata
    with pytest.raises(InvalidRequest):
        await client.enqueue("x", metadata=metadata)


async def test_a_request_and_fields_together_are_refused(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest, match="not both"):
        await client.enqueue(PromptRequest(prompt="x"), model="echo")


async def test_a_prompt_that_is_given_twice_is_refused(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest, match="prompt: is given twice"):
        await client.enqueue("x", prompt="y")


@pytest.mark.parametrize("requests", [["x"], [PromptRequest(prompt="x"), {"prompt": "y"}], "xyz"])
async def test_many_that_are_no_requests_are_refused_whole(client: AsyncClient, requests: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"requests\.\d: give a PromptRequest, .*not (str|dict)"):
        await client.enqueue_many(requests)
    assert await client.queue.unfinished(["echo"]) == 0


async def test_a_job_is_named_by_text(client: AsyncClient) -> None:
    job: Any = await client.enqueue("x")
    with pytest.raises(InvalidRequest, match="job_id: give the id of a job as text, not Job"):
        client.job(job)


async def test_an_unknown_model_does_not_ask_redis_each_time(client: AsyncClient) -> None:
    read, asked = client.queue.routes, 0

    async def counted() -> dict[str, dict[str, Any]]:
        nonlocal asked
        asked += 1
        return await read()

    client.queue.routes = counted
    outcomes = await client.enqueue_many([PromptRequest(prompt="x", model="gpt-7")] * 200)
    assert all(isinstance(outcome, UnknownModel) for outcome in outcomes)
    assert asked <= 3


async def test_routes_in_redis_that_are_garbage_are_said_to_be_so(client: AsyncClient) -> None:
    await client.queue.redis.hset(client.queue.keys.fixed("routes"), "x", "no json")  # type: ignore[misc]  # redis-py has one type for sync and async
    with pytest.raises(SchedulerError, match="routes in Redis cannot be read"):
        await client.enqueue("x", model="other")


@pytest.mark.parametrize("record", [{"s": "nonsense"}, {"s": "waiting"}, {"x": "y"}])
async def test_a_record_written_by_hand_that_is_garbage_gives_typed_errors(
    client: AsyncClient, record: dict[str, str]
) -> None:
    await client.queue.redis.hset(client.queue.keys.of("record", "made-up"), mapping=record)  # type: ignore[misc]  # redis-py has one type for sync and async
    job = client.job("made-up")
    for call in (job.info, lambda: job.cancel(force=True), lambda: job.set_priority(3)):
        with pytest.raises(JobNotFound):
            await call()


async def test_a_redis_that_is_too_old_is_named(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def info(section: str) -> dict[str, str]:
        return {"redis_version": "6.2.14"}

    monkeypatch.setattr(client.queue.redis, "info", info)
    with pytest.raises(RedisTooOld, match=r"Redis 6\.2\.14 at redis://here is too old"):
        await check_server(client.queue.redis, "redis://here")


async def test_redis_away_is_a_redis_error_for_every_call(room: Room, client: AsyncClient) -> None:
    job = await client.enqueue("x")
    room.server.connected = False
    for call in (
        lambda: client.enqueue("y"),
        job.info,
        job.cancel,
        lambda: job.set_priority(1),
    ):
        with pytest.raises(ConnectionError, match="no Redis answers at redis://localhost"):
            await call()


async def test_an_unconnected_client_says_what_to_do() -> None:
    client = AsyncClient(settings=settings_of(routes={"echo": puppet_route()}))
    with pytest.raises(SchedulerError, match="async with"):
        await client.enqueue("x")
    with pytest.raises(SchedulerError, match="async with"):
        await client.job("x").result()


async def test_a_client_of_another_event_loop_says_so(client: AsyncClient) -> None:
    def elsewhere(call: Callable[[], Coroutine[Any, Any, object]]) -> None:
        asyncio.run(call())

    job = await client.enqueue("x")
    for call in (client.connect, client.aclose, job.info, job.result, lambda: client.enqueue("y")):
        with pytest.raises(SchedulerError, match="another event loop"):
            await asyncio.to_thread(elsewhere, call)
    assert (await job.info()).state is JobState.WAITING


# What is taken


async def test_many_have_one_outcome_each_in_order(client: AsyncClient) -> None:
    requests = [
        PromptRequest(prompt="one"),
        PromptRequest(prompt="two", model="nowhere"),
        PromptRequest(prompt="three", dedup_key="key"),
        PromptRequest(prompt="other", dedup_key="key"),
        PromptRequest(prompt="three", dedup_key="key"),
        PromptRequest(prompt="nan", metadata={"x": math.nan}),
        PromptRequest(prompt="six"),
    ]
    outcomes = await client.enqueue_many(requests)
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [Job, UnknownModel, Job, DedupConflict, Job, InvalidRequest, Job]
    first, conflict, twin = outcomes[2], outcomes[3], outcomes[4]
    assert isinstance(first, Job)
    assert isinstance(conflict, DedupConflict)
    assert isinstance(twin, Job)
    assert conflict.job_id == twin.id == first.id
    assert (first.deduplicated, twin.deduplicated) == (False, True)


async def test_more_than_a_script_takes_go_in_several(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await client.enqueue_many([]) == []
    outcomes = await client.enqueue_many(PromptRequest(prompt=f"p {n}") for n in range(300))
    assert len({outcome.id for outcome in outcomes if isinstance(outcome, Job)}) == 300
    monkeypatch.setattr(coalescer, "MAX_BYTES", 1000)
    sizes: list[int] = []
    enqueue = client.queue.enqueue

    async def counted(jobs: Any) -> Any:
        sizes.append(len(jobs))
        return await enqueue(jobs)

    client.queue.enqueue = counted
    await client.enqueue_many([PromptRequest(prompt="x" * 400) for _ in range(5)])
    assert sizes == [2, 2, 1]


async def test_durations_may_be_timedeltas(client: AsyncClient) -> None:
    job = await client.enqueue("x", deadline_s=timedelta(minutes=2), delay_s=timedelta(milliseconds=1500))
    info = await job.info()
    assert info.state is JobState.DELAYED
    assert info.deadline_at_ms
    assert info.due_at_ms
    assert info.deadline_at_ms - info.due_at_ms == 118_500


async def test_a_job_id_that_exists_returns_that_job(client: AsyncClient) -> None:
    first = await client.enqueue("x", job_id="order-17")
    again = await client.enqueue("x", job_id="order-17")
    assert (first.id, again.id, again.deduplicated) == ("order-17", "order-17", False)
    assert await client.queue.unfinished(["echo"]) == 1


async def test_all_that_a_request_carries_reaches_the_model_worker_unchanged(
    room: Room, client: AsyncClient
) -> None:
    engine = await room.engine()
    messages: list[Message | dict[str, Any]] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hé"}]},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"a": [1, None, 2.5]}}}]
    params = {"max_tokens": 7, "temperature": 0.0, "stop": ["a", "b"], "seed": -3, "logit_bias": {"5": 1.5}}
    await client.enqueue(
        messages=messages,
        priority=Priority.HIGH,
        tools=tools,
        tool_choice={"type": "function", "function": {"name": "f"}},
        response_format={"type": "json_object"},
        extra_body={"top_a": 0.25, "nested": {"x": []}},
        params=params,
        stream=False,
    )
    generation = (await puppet_of(engine).next_call()).generation
    assert generation.model == "echo"
    assert list(generation.messages or ()) == messages
    assert generation.prompt is None
    assert list(generation.tools) == tools
    assert generation.tool_choice == {"type": "function", "function": {"name": "f"}}
    assert generation.response_format == {"type": "json_object"}
    assert generation.extra_body == {"top_a": 0.25, "nested": {"x": []}}
    assert generation.params == params
    assert (generation.priority, generation.stream) == (7, False)


# Duplicates


async def test_a_dedup_key_of_other_content_is_a_conflict_that_names_the_job(client: AsyncClient) -> None:
    first = await client.enqueue("one", dedup_key="k")
    with pytest.raises(DedupConflict, match=rf"dedup_key: .*{first.id}") as conflict:
        await client.enqueue("two", dedup_key="k")
    assert conflict.value.job_id == first.id
    other = await client.enqueue("two", dedup_key="k", tenant="another")
    assert not other.deduplicated


async def test_what_does_not_change_the_answer_does_not_conflict(client: AsyncClient) -> None:
    first = await client.enqueue("one", dedup_key="k", metadata={"a": 1}, session="s1")
    twin = await client.enqueue("one", dedup_key="k", metadata={"a": 2}, session="s2", stream=False)
    assert twin.id == first.id
    with pytest.raises(DedupConflict):
        await client.enqueue("one", dedup_key="k", params={"seed": 1})


async def test_the_key_auto_is_made_from_what_changes_the_answer(client: AsyncClient) -> None:
    first = await client.enqueue("one", dedup_key="auto", metadata={"a": 1})
    assert (await client.enqueue("one", dedup_key="auto", metadata={"a": 2})).id == first.id
    assert (await client.enqueue("two", dedup_key="auto")).id != first.id
    assert (await client.enqueue("one", dedup_key="auto", params={"seed": 1})).id != first.id


async def test_the_key_auto_tells_routes_of_other_settings_apart(room: Room) -> None:
    old = settings_of(routes={"echo": puppet_route(assemble={"system": "be brief"})})
    new = settings_of(routes={"echo": puppet_route(assemble={"system": "be long"})})
    one, two = await room.client(old), await room.client(new)
    assert (await one.enqueue("x", dedup_key="auto")).id != (await two.enqueue("x", dedup_key="auto")).id


async def test_metadata_counts_where_the_route_uses_it(room: Room) -> None:
    pytest.importorskip("jinja2")
    template = "{{ prompt }} for {{ metadata.name }}"
    client = await room.client(settings_of(routes={"echo": puppet_route(assemble={"template": template})}))
    first = await client.enqueue("x", dedup_key="auto", metadata={"name": "Ann"})
    second = await client.enqueue("x", dedup_key="auto", metadata={"name": "Bob"})
    assert first.id != second.id


async def test_the_worker_says_of_its_routes_what_counts(room: Room) -> None:
    await room.engine(settings_of(routes={"remote": puppet_route(assemble={"system": "s"})}))
    client = await room.client()
    job = await client.enqueue("x", model="remote", dedup_key="auto")
    assert (await job.info()).model == "remote"


async def test_a_window_gives_the_finished_answer_and_says_so(room: Room, client: AsyncClient) -> None:
    engine = await room.engine()
    first = await client.enqueue("x", dedup_key="k", dedup="window")
    (await puppet_of(engine).next_call()).finish("once")
    assert not (await first.result(timeout_s=SOON_S)).reused
    again = await client.enqueue("x", dedup_key="k", dedup="window")
    result = await again.result(timeout_s=SOON_S)
    assert (again.id, again.deduplicated, result.reused, result.text) == (first.id, True, True, "once")
    assert (result.hits, result.age_s is not None and 0 <= result.age_s < SOON_S) == (1, True)
    events = [event async for event in again.events()]
    assert isinstance(events[-1], Done)
    assert events[-1].result == result
    assert (await first.result()).hits == 0
    assert (await first.info()).hits == 1
    plain = await client.enqueue("x", dedup_key="k")
    assert plain.id != first.id


async def test_replace_ends_the_waiting_job(client: AsyncClient) -> None:
    first = await client.enqueue("old", dedup_key="k")
    second = await client.enqueue("new", dedup_key="k", dedup="replace")
    assert second.id != first.id
    with pytest.raises(JobCancelled) as cancelled:
        await first.result(timeout_s=SOON_S)
    assert cancelled.value.reason == "replaced"


# Handles


async def test_the_last_ticket_ends_the_job(client: AsyncClient) -> None:
    first = await client.enqueue("x", dedup_key="k")
    second = await client.enqueue("x", dedup_key="k")
    assert not await first.cancel()
    assert (await second.info()).state is JobState.WAITING
    assert await second.cancel()
    assert await second.cancel(), "and again"
    with pytest.raises(JobCancelled):
        await first.result(timeout_s=SOON_S)


async def test_a_handle_by_id_cancels_only_by_force(client: AsyncClient) -> None:
    job = await client.enqueue("x")
    attached = client.job(job.id)
    with pytest.raises(NoTicket, match="force=True"):
        await attached.cancel()
    assert await attached.cancel(force=True)


async def test_an_unknown_job_is_not_found_by_any_call(client: AsyncClient) -> None:
    job = client.job("nobody")
    events = job.events()
    for call in (
        job.result,
        job.info,
        lambda: job.cancel(force=True),
        lambda: job.reschedule(0),
        job.delete,
        lambda: job.set_priority(1),
        lambda: anext(events),
    ):
        with pytest.raises(JobNotFound, match="nobody"):
            await asyncio.wait_for(call(), SOON_S)


@pytest.mark.parametrize("priority", [-1, 10, 5.0, "5", True, None])
async def test_a_priority_that_is_none_is_refused(client: AsyncClient, priority: Any) -> None:
    job = await client.enqueue("x")
    with pytest.raises(InvalidRequest) as refused:
        await job.set_priority(priority)
    assert refused.value.field == "priority"


async def test_priority_changes_while_the_job_lives(client: AsyncClient) -> None:
    job = await client.enqueue("x")
    await job.set_priority(Priority.CRITICAL)
    assert (await job.info()).priority == 9
    await job.cancel()
    with pytest.raises(InvalidTransition, match="cancelled"):
        await job.set_priority(1)


async def test_a_delayed_job_becomes_due_when_it_is_told(room: Room, client: AsyncClient) -> None:
    job = await client.enqueue("x", delay_s=3600)
    await job.reschedule(timedelta(hours=2))
    info = await job.info()
    assert (info.state, info.due_at_ms and info.due_at_ms - info.enqueued_at_ms > 3_600_000) == (
        JobState.DELAYED,
        True,
    )
    await job.reschedule(0)
    await job.reschedule(0)
    engine = await room.engine()
    call = await puppet_of(engine).next_call()
    with pytest.raises(InvalidTransition, match="running"):
        await job.reschedule(0)
    call.finish("now")
    assert (await job.result(timeout_s=SOON_S)).text == "now"
    with pytest.raises(InvalidTransition, match="done"):
        await job.reschedule(5)


@pytest.mark.parametrize("delay_s", [-1, math.nan, math.inf, "1", True, None])
async def test_a_delay_that_is_none_is_refused(client: AsyncClient, delay_s: Any) -> None:
    job = await client.enqueue("x", delay_s=60)
    with pytest.raises(InvalidRequest) as refused:
        await job.reschedule(delay_s)
    assert refused.value.field == "delay_s"


async def test_an_ended_job_is_forgotten_when_it_is_deleted(client: AsyncClient) -> None:
    job = await client.enqueue("x")
    with pytest.raises(InvalidTransition, match="waiting; only ended jobs"):
        await job.delete()
    await job.cancel()
    await job.delete()
    with pytest.raises(JobNotFound):
        await job.info()


async def test_a_reader_goes_on_after_the_event_that_it_names(room: Room, client: AsyncClient) -> None:
    engine = await room.engine()
    job = await client.enqueue("x")
    call = await puppet_of(engine).next_call()
    call.say("one")
    async with aclosing(job.events()) as events:
        seen = [await anext(events) for _ in range(3)]
    call.finish("two")
    await job.result(timeout_s=SOON_S)
    whole = [event async for event in job.events()]
    assert whole[:3] == seen
    for at, event in enumerate(whole):
        assert [later async for later in job.events(after=event.id)] == whole[at + 1 :]


async def test_undecoded_events_are_the_decoded_ones_as_json(room: Room, client: AsyncClient) -> None:
    engine = await room.engine()
    job = await client.enqueue("x")
    call = await puppet_of(engine).next_call()
    call.say("one")
    call.finish("two")
    await job.result(timeout_s=SOON_S)
    events = [event async for event in job.events()]
    raw = [event async for event in job.events_json()]
    assert [decode_event(event.data) for event in raw] == events
    assert [(event.id, event.type) for event in raw] == [(event.id, event.type) for event in events]
    assert [event async for event in job.events_json(after=raw[1].id)] == raw[2:]
    with pytest.raises(InvalidRequest, match="after: give the id of an event"):
        await anext(job.events_json(after="x"))


async def test_undecoded_events_say_that_an_answer_is_reused(room: Room, client: AsyncClient) -> None:
    engine = await room.engine()
    first = await client.enqueue("x", dedup_key="k", dedup="window")
    (await puppet_of(engine).next_call()).finish("once")
    await first.result(timeout_s=SOON_S)
    again = await client.enqueue("x", dedup_key="k", dedup="window")
    events = [decode_event(event.data) async for event in again.events_json()]
    assert events == [event async for event in again.events()]
    assert isinstance(events[-1], Done)
    assert (events[-1].result.reused, events[-1].result.hits) == (True, 1)


async def test_a_reader_that_names_an_event_beyond_all_gets_all(client: AsyncClient) -> None:
    job = await client.enqueue("x")
    await job.cancel()
    assert [event.type async for event in job.events(after="999-1")] == ["queued", "cancelled"]


@pytest.mark.parametrize("after", ["", "7", "7-", "-7", "7-x", "7-1-1", "٣-1", 7, b"7-1", "1" * 40 + "-1"])
async def test_an_event_id_that_is_none_is_refused(client: AsyncClient, after: Any) -> None:
    job = await client.enqueue("x")
    with pytest.raises(InvalidRequest) as refused:
        await anext(job.events(after=after))
    assert refused.value.field == "after"


async def test_a_result_that_is_late_raises_and_cancels_nothing(room: Room, client: AsyncClient) -> None:
    engine = await room.engine()
    job = await client.enqueue("x")
    call = await puppet_of(engine).next_call()
    with pytest.raises(ResultTimeout, match="the job is unaffected"):
        await job.result(timeout_s=0.05)
    assert (await job.info()).state is JobState.RUNNING
    call.finish("still")
    assert (await job.result(timeout_s=SOON_S)).text == "still"


@pytest.mark.parametrize("timeout_s", [timedelta(seconds=1), "1", True, math.nan])
async def test_a_timeout_that_is_no_number_is_refused(client: AsyncClient, timeout_s: Any) -> None:
    with pytest.raises(InvalidRequest, match="timeout_s: give seconds as a number") as caught:
        await client.job("any").result(timeout_s=timeout_s)
    assert caught.value.field == "timeout_s"


async def test_the_id_that_a_joined_caller_gave_finds_the_job(room: Room, client: AsyncClient) -> None:
    engine = await room.engine()
    first = await client.enqueue("a", dedup_key="k")
    call = await puppet_of(engine).next_call()
    await client.enqueue("a", dedup_key="k", job_id="mine")
    assert (await client.job("mine").info()).id == first.id
    await client.job("mine").set_priority(7)
    reading = asyncio.create_task(client.job("mine").result(timeout_s=SOON_S))
    events = asyncio.create_task(_types(client.job("mine")))
    call.finish("answer")
    assert (await reading).text == "answer"
    assert (await events)[-1] == "done"
    found = client.job("mine")
    assert await found.cancel(force=True) is False, "it has ended"
    assert found.id == first.id
    await client.job("mine").delete()
    for job_id in ("mine", first.id):
        with pytest.raises(JobNotFound):
            await client.job(job_id).result(timeout_s=SOON_S)


async def _types(job: Job) -> list[str]:
    return [event.type async for event in job.events()]


async def test_a_joined_caller_cancels_the_job_by_its_own_id(client: AsyncClient) -> None:
    first = await client.enqueue("a", dedup_key="k")
    await client.enqueue("a", dedup_key="k", job_id="mine")
    assert await client.job("mine").cancel(force=True)
    assert (await first.info()).state is JobState.CANCELLED


async def test_run_with_a_timeout_that_is_no_number_enqueues_nothing(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest, match="timeout_s"):
        await client.run("a", timeout_s=math.nan, job_id="j")
    with pytest.raises(JobNotFound):
        await client.job("j").info()


async def test_run_enqueues_and_waits(room: Room, client: AsyncClient) -> None:
    engine = await room.engine()
    running = asyncio.create_task(client.run("x", timeout_s=SOON_S, priority=8))
    call = await puppet_of(engine).next_call()
    assert call.generation.priority == 8
    call.finish("ran")
    assert (await running).text == "ran"


# A full queue


async def full(room: Room, when_full: str, **values: Any) -> AsyncClient:
    settings = settings_of(max_waiting=2, when_full=when_full, **values)
    engine = await room.engine(settings)
    await engine.queue.pause("echo")
    client = await room.client(settings)
    await client.enqueue_many([PromptRequest(prompt="low", priority=1)] * 2)
    return client


async def test_a_full_queue_says_how_full_and_when_to_come_again(room: Room) -> None:
    client = await full(room, "reject")
    with pytest.raises(QueueFull, match="2 of at most 2 jobs are waiting") as refused:
        await client.enqueue("x")
    assert refused.value.retry_after_s > 0


async def test_a_queue_that_sheds_tells_the_victim(room: Room) -> None:
    client = await full(room, "shed")
    with pytest.raises(QueueFull):
        await client.enqueue("no more urgent", priority=1)
    (victim,) = [
        job
        for job in await client.enqueue_many([PromptRequest(prompt="urgent", priority=9)])
        if isinstance(job, Job)
    ]
    assert (await victim.info()).state is JobState.WAITING
    totals = await client.queue.redis.hgetall(client.queue.keys.fixed("meta"))  # type: ignore[misc]  # redis-py has one type for sync and async
    assert totals[b"t:shed"] == b"1"


async def test_who_is_shed_gets_job_shed(room: Room) -> None:
    settings = settings_of(max_waiting=1, when_full="shed")
    engine = await room.engine(settings)
    await engine.queue.pause("echo")
    client = await room.client(settings)
    victim = await client.enqueue("low", priority=1)
    waiting = asyncio.create_task(victim.result(timeout_s=SOON_S))
    await client.enqueue("high", priority=7)
    with pytest.raises(JobShed):
        await waiting


async def test_a_queue_that_blocks_lets_in_when_there_is_room(room: Room) -> None:
    client = await full(room, "block", block_timeout_s=SOON_S)
    blocked = asyncio.create_task(client.enqueue("patient"))
    async with asyncio.timeout(SOON_S):
        while not await client.queue.redis.hexists(client.queue.keys.fixed("meta"), "blocked"):  # type: ignore[misc]  # redis-py has one type for sync and async
            await asyncio.sleep(0)
    assert not blocked.done()
    await client.queue.purge("echo", 1)
    job = await asyncio.wait_for(blocked, SOON_S)
    assert (await job.info()).state is JobState.WAITING


async def test_a_queue_that_blocks_gives_up_in_time(room: Room) -> None:
    client = await full(room, "block", block_timeout_s=0.1)
    callers = [client.enqueue(f"x {n}") for n in range(20)]
    async with asyncio.timeout(SOON_S):
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(outcome, QueueFull) for outcome in outcomes)


async def test_a_redis_that_is_slow_to_end_a_wait_for_room_is_not_taken_for_gone(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await full(room, "block", block_timeout_s=0.1)
    monkeypatch.setattr(enqueuer, "SPACE_WAIT_S", 0.05)
    monkeypatch.setattr(client.queue, "wait_for_space", lambda _: asyncio.sleep(SOON_S))
    with pytest.raises(QueueFull):
        await asyncio.wait_for(client.enqueue("patient"), SOON_S)


# Many readers, and the end of the client


async def test_a_thousand_waits_share_a_few_connections(room: Room, client: AsyncClient) -> None:
    engine = await room.engine()
    job = await client.enqueue("x")
    call = await puppet_of(engine).next_call()
    pool = client.queue.redis.connection_pool
    made = 0
    make: Callable[[], Any] = pool.make_connection

    def counted() -> Any:
        nonlocal made
        made += 1
        return make()

    pool.make_connection = counted
    waits = [asyncio.create_task(job.result(timeout_s=SOON_S)) for _ in range(1000)]
    await asyncio.sleep(0)
    call.finish("for all")
    results = await asyncio.gather(*waits)
    assert {result.text for result in results} == {"for all"}
    assert made <= connection.MAX_COMMANDS + 1


async def test_events_may_be_left_early(room: Room, client: AsyncClient) -> None:
    engine = await room.engine()
    job = await client.enqueue("x")
    call = await puppet_of(engine).next_call()
    call.say("first ")
    async with aclosing(job.events()) as events:
        async for event in events:
            if event.type == "delta":
                break
    call.finish("second")
    assert (await job.result(timeout_s=SOON_S)).text == "first second"


@pytest.mark.parametrize("read", ["events", "result"])
async def test_closing_the_client_ends_who_reads(room: Room, read: str) -> None:
    client = await room.client()
    job = await client.enqueue("never runs")

    async def collect() -> list[str]:
        return [event.type async for event in job.events()]

    reading: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {"events": collect, "result": job.result}
    reader = asyncio.create_task(reading[read]())
    async with asyncio.timeout(SOON_S):
        while not await client.queue.redis.pubsub_channels():
            await asyncio.sleep(0)
    await client.aclose()
    await client.aclose()
    with pytest.raises(SchedulerError, match="not connected, or was closed"):
        await asyncio.wait_for(reader, SOON_S)


async def test_a_client_can_be_connected_again(room: Room, client: AsyncClient) -> None:
    await client.aclose()
    await asyncio.gather(client.connect(), client.connect())
    assert (await (await client.enqueue("x")).info()).state is JobState.WAITING


async def test_a_job_that_failed_says_why_and_after_how_many_attempts(
    room: Room, client: AsyncClient
) -> None:
    from workers.errors import RequestRejected

    engine = await room.engine()
    job = await client.enqueue("x")
    (await puppet_of(engine).next_call()).fail(RequestRejected("the context is too long"))
    with pytest.raises(JobFailed, match="too long") as failed:
        await job.result(timeout_s=SOON_S)
    assert (failed.value.reason, failed.value.attempts) == ("request_rejected", 1)


async def test_one_of_many_that_is_refused_is_refused_alone(client: AsyncClient) -> None:
    await client.enqueue("a", model="echo", dedup_key="k")
    first, second = await asyncio.gather(
        client.enqueue("b", model="echo", dedup_key="k"),
        client.enqueue("c", model="echo"),
        return_exceptions=True,
    )
    assert isinstance(first, DedupConflict)
    assert not isinstance(second, BaseException)


async def test_a_prompt_may_be_token_ids(room: Room) -> None:
    engine = await room.engine()
    client = await room.client()
    job = await client.enqueue([7, 8, 9], model="echo")
    call = await puppet_of(engine).next_call()
    assert (call.generation.prompt, call.generation.token_ids) == (None, [7, 8, 9])
    call.finish("x")
    assert (await job.result(timeout_s=SOON_S)).text == "x"
