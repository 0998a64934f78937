"""The spans of jobs from the client's enqueue to the end, all in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from scheduler import (
    AsyncClient,
    DedupConflict,
    Job,
    JobCancelled,
    JobExpired,
    JobFailed,
    PromptRequest,
    QueueFull,
    Settings,
)
from scheduler.engine import Engine
from scheduler.engine import attempts as attempts_module
from scheduler.queue.queue import PromptQueue
from scheduler.stages.base import PromptContext
from scheduler.telemetry.attempt_spans import AttemptSpans
from scheduler.telemetry.bound import TraceBound
from scheduler.telemetry.traces import Traces
from tests.contracts.queue_driver import new_job
from tests.integration.engine_room import (
    Room,
    install,
    puppet_of,
    puppet_route,
    room_with,
    settings_of,
    until,
)
from tests.integration.trace_room import Spans, context_of, keep_spans, links_of, outcome_of, unsampled
from tests.patience import SOON_S
from workers.errors import WorkerUnavailable

MARKER = "unspeakable"
PROCESS, SEND = "process default", "send default"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    return keep_spans(monkeypatch)


@pytest.fixture
async def room(monkeypatch: pytest.MonkeyPatch, spans: Spans) -> AsyncIterator[Room]:
    async with room_with(monkeypatch) as room:
        yield room


def traced(**values: Any) -> Settings:
    return settings_of(traces=True, retry_base_s=0.0, **values)


async def start(room: Room, **values: Any) -> tuple[Engine, AsyncClient, Traces]:
    traces = Traces("default")
    settings = traced(**values)
    return await room.engine(settings, observers=[traces]), await room.client(settings), traces


async def at_rest(engine: Engine) -> None:
    await until(lambda: not engine.attempts)


async def stored(queue: PromptQueue, job_id: str) -> dict[str, Any]:
    request: dict[str, Any] = orjson.loads(await queue.request(job_id) or b"null")
    return request


# One job


async def test_a_job_is_one_trace_from_the_callers_span_to_the_last_stage(room: Room, spans: Spans) -> None:
    engine, client, _ = await start(room)
    with trace.get_tracer("application").start_as_current_span("application"):
        job = await client.enqueue("one", priority=7, tenant="acme", params={"max_tokens": 9, "stop": "."})
    call = await puppet_of(engine).next_call()
    call.say("an ")
    call.finish("answer")
    await job.result(timeout_s=SOON_S)
    await at_rest(engine)
    assert {(span.name, spans.parent_of(span)) for span in spans.all} == {
        ("application", None),
        (SEND, "application"),
        (PROCESS, SEND),
        ("queue wait", PROCESS),
        ("stage inference", PROCESS),
        ("text_completion echo", "stage inference"),
        ("stage post", PROCESS),
        ("stage stream", PROCESS),
    }
    assert len({span.context.trace_id for span in spans.all if span.context}) == 1
    process, wait, sent = spans.one(PROCESS), spans.one("queue wait"), spans.one(SEND)
    assert (sent.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert links_of(process) == {context_of(sent)}
    assert wait.end_time == process.start_time
    assert process.attributes == {
        "messaging.system": "prompt_scheduler",
        "messaging.destination.name": "default",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.id": job.id,
        "prompt_scheduler.lane": "echo",
        "prompt_scheduler.priority": 7,
        "prompt_scheduler.tenant": "acme",
        "prompt_scheduler.attempt": 1,
        "prompt_scheduler.endpoint": "echo.0",
        "prompt_scheduler.outcome": "done",
    }
    assert [event.name for event in process.events] == ["prompt_scheduler.written"]
    spans.assert_none_is_open()


async def test_the_span_of_a_call_follows_the_conventions_for_generative_ai(room: Room, spans: Spans) -> None:
    endpoint = {"backend": "puppet", "base_url": "http://user:secret@engine:8000/v1?key=secret"}
    engine, client, _ = await start(room, routes={"echo": {"endpoints": [{**endpoint, "model": "tiny"}]}})
    job = await client.enqueue(
        messages=[{"role": "user", "content": "hello"}],
        params={"max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["a", "b"]},
        response_format={"type": "json_object"},
    )
    (await puppet_of(engine).next_call()).finish("answer")
    await job.result(timeout_s=SOON_S)
    await at_rest(engine)
    call = spans.one("chat tiny")
    assert call.kind is SpanKind.CLIENT
    attributes: dict[str, Any] = dict(call.attributes or {})
    assert attributes.pop("gen_ai.response.time_to_first_chunk") >= 0
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "puppet",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 3,
        "gen_ai.request.stop_sequences": ("a", "b"),
        "gen_ai.output.type": "json",
        "gen_ai.response.finish_reasons": ("stop",),
        "server.address": "engine",
        "server.port": 8000,
        "prompt_scheduler.endpoint": "echo.0",
    }
    assert [event.name for event in call.events] == ["prompt_scheduler.first_token"]
    assert "secret" not in spans.text()


async def test_what_users_stages_and_model_workers_trace_is_below_their_stage_and_call(
    room: Room, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lookup:
        name = "lookup"

        async def run(self, context: PromptContext) -> None:
            with trace.get_tracer("user").start_as_current_span("search"):
                await asyncio.sleep(0)

    install(monkeypatch, "user_stages", Lookup=Lookup)
    stages = ["user_stages:Lookup", "inference", "stream"]
    engine, client, _ = await start(room, routes={"echo": puppet_route(stages=stages)})
    puppet = puppet_of(engine)
    generate = puppet.generate

    async def traced_generate(batch: Any) -> Any:
        with trace.get_tracer("httpx").start_as_current_span("POST"):
            pass
        async for output in generate(batch):
            yield output

    monkeypatch.setattr(puppet, "generate", traced_generate)
    with unsampled():
        quiet = await client.enqueue("two")
    job = await client.enqueue("one")
    for _ in range(2):
        (await puppet.next_call()).finish("answer")
    await asyncio.gather(job.result(timeout_s=SOON_S), quiet.result(timeout_s=SOON_S))
    await at_rest(engine)
    assert spans.parent_of(spans.one("search")) == "stage lookup"
    assert spans.parent_of(spans.one("POST")) == "text_completion echo"


async def test_a_job_without_a_trace_begins_one(room: Room, spans: Spans) -> None:
    engine, _, _ = await start(room)
    client = await room.client(settings_of())
    job = await client.enqueue("one")
    assert "traceparent" not in await stored(client.queue, job.id)
    (await puppet_of(engine).next_call()).finish("answer")
    await job.result(timeout_s=SOON_S)
    await at_rest(engine)
    assert spans.one(PROCESS).parent is None
    assert spans.one(PROCESS).links == ()


@pytest.mark.parametrize("garbage", ["", "00", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", 7, "x" * 5000])
async def test_a_traceparent_that_is_none_stops_nobody(room: Room, spans: Spans, garbage: Any) -> None:
    engine, client, _ = await start(room)
    payload = orjson.dumps({"prompt": "one", "traceparent": garbage, "tracestate": garbage})
    await client.queue.enqueue([new_job("a", lane="echo", payload=payload)])
    (await puppet_of(engine).next_call()).finish("answer")
    assert (await client.job("a").result(timeout_s=SOON_S)).text == "answer"


async def test_the_tracestate_travels_too(room: Room, spans: Spans) -> None:
    engine, client, _ = await start(room)
    state = trace.TraceState([("vendor", "value")])
    context = trace.SpanContext(
        0xABC, 0xDEF, is_remote=True, trace_flags=trace.TraceFlags(1), trace_state=state
    )
    with trace.use_span(trace.NonRecordingSpan(context)):
        job = await client.enqueue("one")
    assert (await stored(client.queue, job.id))["tracestate"] == "vendor=value"
    (await puppet_of(engine).next_call()).finish("answer")
    await job.result(timeout_s=SOON_S)
    await at_rest(engine)
    process = spans.one(PROCESS).context
    assert process is not None
    assert process.trace_state.get("vendor") == "value"


async def test_an_unsampled_job_makes_no_span_and_is_not_watched(
    room: Room, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchers: list[object] = []

    class Look:
        name = "look"

        async def run(self, context: PromptContext) -> None:
            watchers.append(context.watcher)

    install(monkeypatch, "user_stages", Look=Look)
    stages = ["user_stages:Look", "inference", "stream"]
    engine, client, traces = await start(room, routes={"echo": puppet_route(stages=stages)})
    with unsampled():
        job = await client.enqueue("one")
    assert (await stored(client.queue, job.id))["traceparent"].endswith("-00")
    (await puppet_of(engine).next_call()).finish("answer")
    await job.result(timeout_s=SOON_S)
    await at_rest(engine)
    assert spans.begun == []
    assert watchers == [None]
    assert not traces._live
    assert not traces._calls


async def test_a_job_beyond_the_bound_has_no_span_in_the_worker_at_all(room: Room, spans: Spans) -> None:
    engine, client, traces = await start(room)
    traces._bound = TraceBound(1e-6)
    for text in ("one", "two"):
        job = await client.enqueue(text)
        (await puppet_of(engine).next_call()).finish("answer")
        await job.result(timeout_s=SOON_S)
    await at_rest(engine)
    names = [span.name for span in spans.all]
    assert (names.count(SEND), names.count(PROCESS)) == (2, 1)
    assert len(names) == len(set(names)) + 1


# How attempts end


async def test_a_retried_job_has_two_attempts_below_one_send(room: Room, spans: Spans) -> None:
    engine, client, traces = await start(room)
    job = await client.enqueue("one")
    (await puppet_of(engine).next_call()).fail(WorkerUnavailable(f"no {MARKER}"))
    (await puppet_of(engine).next_call()).finish("answer")
    await job.result(timeout_s=SOON_S)
    await at_rest(engine)
    first, second = spans.named(PROCESS)
    assert outcome_of(first) == ("retried", "ERROR", "worker_unavailable")
    assert outcome_of(second) == ("done", "UNSET", None)
    assert [(span.attributes or {})["prompt_scheduler.attempt"] for span in (first, second)] == [1, 2]
    assert {spans.parent_of(span) for span in (first, second)} == {SEND}
    failed, done = spans.named("text_completion echo")
    assert outcome_of(failed) == (None, "ERROR", "worker_unavailable")
    assert outcome_of(done) == (None, "UNSET", None)
    assert MARKER not in spans.text()
    spans.assert_none_is_open()
    assert not traces._live
    assert not traces._calls


async def test_a_failed_job_says_its_code_and_nothing_else(
    room: Room, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        name = "broken"

        async def run(self, context: PromptContext) -> None:
            raise ValueError(f"cannot take {context.prompt}")

    install(monkeypatch, "user_stages", Broken=Broken)
    stages = ["user_stages:Broken", "inference", "stream"]
    engine, client, _ = await start(room, max_attempts=1, routes={"echo": puppet_route(stages=stages)})
    job = await client.enqueue(MARKER)
    with pytest.raises(JobFailed):
        await job.result(timeout_s=SOON_S)
    await at_rest(engine)
    assert outcome_of(spans.one(PROCESS)) == ("failed", "ERROR", "internal_error")
    assert outcome_of(spans.one("stage broken")) == (None, "ERROR", "ValueError")
    assert MARKER not in spans.text()


async def test_an_expired_job_ends_its_call_and_its_stage(room: Room, spans: Spans) -> None:
    engine, client, _ = await start(room)
    job = await client.enqueue("one", deadline_s=1.5)
    await puppet_of(engine).next_call()
    with pytest.raises(JobExpired):
        await job.result(timeout_s=SOON_S)
    await at_rest(engine)
    assert outcome_of(spans.one(PROCESS)) == ("expired", "ERROR", "expired")
    assert outcome_of(spans.one("text_completion echo")) == (None, "ERROR", "cancelled")
    spans.assert_none_is_open()


async def test_a_cancelled_job_is_lost_and_no_error(room: Room, spans: Spans) -> None:
    engine, client, _ = await start(room)
    job = await client.enqueue("one")
    await puppet_of(engine).next_call()
    await job.cancel()
    with pytest.raises(JobCancelled):
        await job.result(timeout_s=SOON_S)
    await at_rest(engine)
    assert outcome_of(spans.one(PROCESS)) == ("lost", "UNSET", None)
    assert spans.one(PROCESS).events == ()
    spans.assert_none_is_open()


async def test_a_job_that_is_given_back_ends_with_that(room: Room, spans: Spans) -> None:
    engine, client, _ = await start(room)
    await client.enqueue("one")
    await puppet_of(engine).next_call()
    await engine.stop(drain_s=0)
    assert outcome_of(spans.one(PROCESS)) == ("given_back", "UNSET", None)
    spans.assert_none_is_open()


async def test_a_job_whose_stage_does_not_let_go_ends_with_the_process(
    room: Room, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_module, "LET_GO_S", 0.05)
    let_go = asyncio.Event()

    class Deaf:
        name = "deaf"

        async def run(self, context: PromptContext) -> None:
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue

    install(monkeypatch, "user_stages", Deaf=Deaf)
    stages = ["user_stages:Deaf", "inference", "stream"]
    engine, client, traces = await start(room, routes={"echo": puppet_route(stages=stages)})
    await client.enqueue("one")
    await until(lambda: len(spans.begun) > 3)
    (attempt,) = engine.attempts
    await engine.stop(drain_s=0)
    assert outcome_of(spans.one(PROCESS)) == ("lost", "UNSET", None)
    spans.assert_none_is_open()
    assert not traces._live
    let_go.set()
    assert attempt.task is not None
    await asyncio.wait([attempt.task])
    spans.assert_none_is_open()


async def test_an_endpoint_that_fails_is_a_call_of_its_own(room: Room, spans: Spans) -> None:
    endpoints = [{"backend": "puppet", "base_url": f"http://{name}"} for name in ("a", "b")]
    engine, client, _ = await start(room, routes={"echo": {"endpoints": endpoints}})
    job = await client.enqueue("one")
    puppets: list[Any] = [endpoint.worker for endpoint in engine.routes["echo"].endpoints]
    waits = [asyncio.create_task(puppet.next_call()) for puppet in puppets]
    done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    done.pop().result().fail(WorkerUnavailable("away"))
    (await next(wait for wait in waits if not wait.done())).finish("answer")
    await job.result(timeout_s=SOON_S)
    await at_rest(engine)
    failed, good = spans.named("text_completion echo")
    assert outcome_of(failed) == (None, "ERROR", "worker_unavailable")
    assert outcome_of(good) == (None, "UNSET", None)
    assert failed.end_time is not None
    assert good.start_time is not None
    assert failed.end_time <= good.start_time
    assert outcome_of(spans.one("stage inference")) == (None, "UNSET", None)


async def test_an_error_of_spans_ends_no_job(
    room: Room, spans: Spans, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: AttemptSpans) -> int:
        raise RuntimeError("no clock")

    monkeypatch.setattr(AttemptSpans, "_now", broken)
    engine, client, _ = await start(room)
    job = await client.enqueue("one")
    (await puppet_of(engine).next_call()).finish("answer")
    assert (await job.result(timeout_s=SOON_S)).text == "answer"
    await at_rest(engine)
    assert "AttemptSpans.stage_began failed" in caplog.text


# Batches


async def test_a_batch_and_its_members_are_linked_and_the_unsampled_left_out(
    room: Room, spans: Spans
) -> None:
    routes = {"echo": {"endpoints": [{"backend": "echo", "base_url": "http://engine:1"}]}}
    settings = traced(routes=routes)
    client = await room.client(settings)
    jobs = [await client.enqueue("one two"), await client.enqueue("three")]
    with unsampled():
        jobs.append(await client.enqueue("four"))
    traces = Traces("default")
    engine = await room.engine(settings, observers=[traces])
    for job in jobs:
        await job.result(timeout_s=SOON_S)
    await at_rest(engine)
    batch, members = spans.one("batch echo.0"), spans.named("text_completion echo")
    assert len(members) == 2
    assert (batch.attributes or {})["prompt_scheduler.batch.size"] == 3
    assert links_of(batch) == {context_of(member) for member in members}
    assert [links_of(member) for member in members] == [{context_of(batch)}] * 2
    assert spans.parent_of(batch) == "stage inference"
    assert batch.parent == members[0].parent
    assert [spans.parent_of(member) for member in members] == ["stage inference"] * 2
    assert [(member.attributes or {})["gen_ai.usage.output_tokens"] for member in members] == [2, 1]
    assert len({span.context.trace_id for span in spans.named(PROCESS) if span.context}) == 2
    spans.assert_none_is_open()
    assert not traces._calls


async def test_a_call_without_a_trace_is_not_made_in_that_of_another(
    room: Room, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, client, _ = await start(
        room, routes={"echo": puppet_route(max_in_flight=2, batch={"max_size": 1})}
    )
    endpoint = engine.routes["echo"].endpoints[0]
    puppet = puppet_of(engine)
    seen: list[bool] = []
    generate = puppet.generate

    async def looking(batch: Any) -> Any:
        seen.append(trace.get_current_span().get_span_context().trace_flags.sampled)
        async for output in generate(batch):
            yield output

    monkeypatch.setattr(puppet, "generate", looking)
    job = await client.enqueue("one")
    call = await puppet.next_call()
    endpoint.window.limit = 1  # the next waits in the batcher until the first makes room
    with unsampled():
        other = await client.enqueue("two")
    await until(lambda: endpoint.batcher.gathered == 1)
    call.finish("answer")
    (await puppet.next_call()).finish("answer")
    await asyncio.gather(job.result(timeout_s=SOON_S), other.result(timeout_s=SOON_S))
    assert seen == [True, False]


# Text


async def test_no_text_of_prompts_answers_and_keys_is_in_any_span(room: Room, spans: Spans) -> None:
    engine, client, _ = await start(room)
    job = await client.enqueue(
        messages=[{"role": "system", "content": f"system {MARKER}"}, {"role": "user", "content": MARKER}],
        dedup_key=f"key {MARKER}",
        metadata={"about": MARKER},
        session=f"session {MARKER}",
    )
    (await puppet_of(engine).next_call()).finish(f"answer {MARKER}")
    await job.result(timeout_s=SOON_S)
    await at_rest(engine)
    assert "process" in spans.text()
    assert MARKER not in spans.text()


@pytest.mark.parametrize("value", ["true", "SPAN_ONLY"])
async def test_text_is_shown_to_those_who_ask_and_as_the_caller_gets_it(
    room: Room, spans: Spans, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", value)
    engine, client, _ = await start(room, routes={"echo": puppet_route(post={"redact": ["email"]})})
    job = await client.enqueue("who?", dedup_key=MARKER)
    (await puppet_of(engine).next_call()).finish("ask me@example.com")
    result = await job.result(timeout_s=SOON_S)
    await at_rest(engine)
    attributes = spans.one("text_completion echo").attributes or {}
    assert orjson.loads(str(attributes["gen_ai.input.messages"])) == [
        {"role": "user", "parts": [{"type": "text", "content": "who?"}]}
    ]
    assert orjson.loads(str(attributes["gen_ai.output.messages"])) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": result.text}],
            "finish_reason": "stop",
        }
    ]
    assert "example.com" not in spans.text()
    assert MARKER not in spans.text()
    spans.assert_none_is_open()


# The client


async def test_many_requests_are_one_send_whose_context_all_jobs_have(room: Room, spans: Spans) -> None:
    client = await room.client(traced())
    requests = [PromptRequest(prompt=f"{n}", dedup_key="same" if n < 2 else None) for n in range(3)]
    jobs = await client.enqueue_many([*requests, PromptRequest(prompt="x", dedup_key="same")])
    sent = spans.one(SEND)
    assert sent.kind is SpanKind.PRODUCER
    assert (sent.attributes or {})["messaging.batch.message_count"] == 4
    assert (sent.attributes or {})["prompt_scheduler.jobs.refused"] == 3 - 1
    assert outcome_of(sent) == (None, "ERROR", "dedup_conflict")
    good = [job.id for job in jobs if isinstance(job, Job)]
    parents = {(await stored(client.queue, job_id))["traceparent"].split("-")[2] for job_id in good}
    assert parents == {f"{context_of(sent):016x}"}


async def test_a_refused_enqueue_is_an_error_without_words(room: Room, spans: Spans) -> None:
    client = await room.client(traced(max_waiting=1))
    engine = await room.engine(traced(max_waiting=1), start=False)
    await engine.published.publish()
    await client.enqueue(MARKER, dedup_key="key")
    with pytest.raises(DedupConflict):
        await client.enqueue(f"other {MARKER}", dedup_key="key")
    with pytest.raises(QueueFull):
        await client.enqueue(f"more {MARKER}")
    _, conflict, full = spans.named(SEND)
    assert outcome_of(conflict) == (None, "ERROR", "dedup_conflict")
    assert outcome_of(full) == (None, "ERROR", "queue_full")
    assert all(span.events == () for span in spans.all)
    assert MARKER not in spans.text()


async def test_a_duplicate_is_one_with_traces_and_without(room: Room, spans: Spans) -> None:
    plain, client = await room.client(settings_of()), await room.client(traced())
    first = await plain.enqueue("one", dedup_key="auto")
    second = await client.enqueue("one", dedup_key="auto")
    third = await client.enqueue("one", dedup_key="auto")
    assert first.id == second.id == third.id
    sent = spans.named(SEND)[-1].attributes or {}
    assert sent["prompt_scheduler.job.deduplicated"] is True
    assert sent["prompt_scheduler.job.reused"] is False
    assert sent["messaging.message.id"] == first.id


async def test_other_kinds_of_work_have_calls_of_their_own_name(
    room: Room, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    echo = [{"backend": "echo", "model": "m"}]
    kinds = {"v": {"kind": "embedding", "endpoints": echo}, "r": {"kind": "rerank", "endpoints": echo}}
    engine, client, _ = await start(room, routes=kinds)
    await client.embed(["one", "two"], timeout_s=SOON_S)
    await client.rerank("where", ["here"], timeout_s=SOON_S)
    await at_rest(engine)
    calls = {span.name: dict(span.attributes or {}) for span in spans.all if " m" in span.name}
    assert sorted(calls) == ["embeddings m", "rerank m"]
    assert calls["embeddings m"]["gen_ai.operation.name"] == "embeddings"
    assert calls["embeddings m"]["gen_ai.usage.input_tokens"] == 2
    parts = orjson.loads(str(calls["rerank m"]["gen_ai.input.messages"]))[0]["parts"]
    assert [part["content"] for part in parts] == ["where", "here"]
