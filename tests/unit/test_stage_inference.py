from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scheduler.engine.retry import GiveUp, Retry, RetryPolicy
from scheduler.routing import BreakerState, Endpoint
from scheduler.stages.base import PromptContext
from scheduler.stages.inference import InferenceStage, generation_of, prompt_tokens
from scheduler.stages.tokens import estimate_tokens
from tests.patience import SOON_S
from tests.unit.scripted_endpoint import Worker, endpoint, opened
from workers.base import Completed, Generation, Piece, TokenUsage
from workers.errors import (
    AnswerTooLong,
    ContextOverflow,
    ModelNotFound,
    RequestRejected,
    WorkerAuthError,
    WorkerError,
    WorkerFailed,
    WorkerOverloaded,
    WorkerProtocolError,
    WorkerTimeout,
    WorkerUnavailable,
)


def context(**fields: Any) -> PromptContext:
    return PromptContext(
        **{
            "job_id": "job-1",
            "attempt": 1,
            "route": "chat",
            "tenant": "default",
            "priority": 7,
            "prompt": "Why?",
            "messages": None,
            "params": {},
            "request": {},
            **fields,
        }
    )


# What the engine gets


def test_generation_carries_all_that_the_request_says() -> None:
    request = {
        "tools": [{"type": "function"}],
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
        "extra_body": {"grammar": "x"},
        "stream": False,
        "metadata": {"private": True},
    }
    messages = [{"role": "user", "content": "Why?"}]
    made = generation_of(
        context(prompt=None, messages=messages, params={"seed": 1}, request=request),
        endpoint(),
    )

    assert made == Generation(
        model="served",
        messages=({"role": "user", "content": "Why?"},),
        params={"seed": 1},
        tools=({"type": "function"},),
        tool_choice="auto",
        response_format={"type": "json_object"},
        extra_body={"grammar": "x"},
        priority=7,
        stream=False,
        request_id="job-1",
    )


def test_generation_of_a_bare_request_streams() -> None:
    request = {"tools": None, "tool_choice": None, "response_format": None, "extra_body": None}

    assert generation_of(context(request=request), endpoint()) == Generation(
        model="served", prompt="Why?", priority=7, request_id="job-1"
    )


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"prompt": "Why is the sky blue?"}, estimate_tokens("Why is the sky blue?")),
        (
            {
                "prompt": None,
                "messages": [
                    {"role": "user", "content": "Why?"},
                    {"role": "user", "content": [{"type": "text", "text": "x" * 400}]},
                ],
            },
            estimate_tokens("Why?") + estimate_tokens("x" * 400),
        ),
    ],
)
def test_prompt_is_weighed_by_its_text(fields: dict[str, Any], tokens: int) -> None:
    assert prompt_tokens(context(**fields)) == tokens


# What the context gets


async def test_answer_reaches_the_context() -> None:
    usage = TokenUsage(input_tokens=3, output_tokens=2)
    done = Completed(0, "stop", usage, "served")
    one = endpoint(worker=Worker(Piece(0, "Ray"), Piece(0, "leigh"), done))
    times = iter([10.0, 11.0])
    seen: list[str] = []
    prompt = context(sink=lambda piece: seen.append(piece.text))
    stage = InferenceStage([one], clock=lambda: next(times))
    await stage.run(prompt)

    assert stage.name == "inference"
    assert prompt.texts == seen == ["Ray", "leigh"]
    assert prompt.completed == done
    assert prompt.endpoint == "one"
    assert prompt.first_token_at == 10.0


async def test_claim_of_many_jobs_makes_one_call() -> None:
    outputs = [Completed(index, "stop") for index in range(4)]
    worker = Worker(*outputs)
    stage = InferenceStage([endpoint(worker=worker)])
    await asyncio.gather(*(stage.run(context(job_id=f"job-{index}")) for index in range(4)))

    assert [[generation.request_id for generation in batch] for batch in worker.batches] == [
        ["job-0", "job-1", "job-2", "job-3"]
    ]


async def test_failure_of_the_engine_comes_out_and_names_the_endpoint() -> None:
    worker = Worker(Piece(0, "half"), failure=WorkerOverloaded("full", retry_after_s=2.0))
    one, prompt = endpoint(worker=worker), context()

    with pytest.raises(WorkerOverloaded, match="full"):
        await InferenceStage([one]).run(prompt)
    assert prompt.endpoint == "one"
    assert prompt.completed is None
    await one.aclose()


@pytest.mark.parametrize(
    "piece",
    [
        Piece(0, "x" * 11),
        Piece(0, "", "x" * 11),
        Piece(0, "ü" * 6),
        Piece(0, "", "", ({"index": 0, "function": {"name": "f", "arguments": "x" * 10}},)),
    ],
)
async def test_answer_without_end_is_cut_off_and_not_asked_for_again(piece: Piece) -> None:
    worker = Worker(piece, hangs=True)
    one, prompt = endpoint("one", worker=worker, max_output_bytes=10), context()

    with pytest.raises(
        AnswerTooLong, match=r"endpoint one .* 10 bytes: raise its max_output_bytes"
    ) as failed:
        await asyncio.wait_for(InferenceStage([one, endpoint("two")]).run(prompt), SOON_S)
    assert isinstance(RetryPolicy().decide(0, 3, failed.value), GiveUp)
    assert one.breaker.state is BreakerState.CLOSED
    await one.aclose()


async def test_answer_as_long_as_is_allowed_is_whole() -> None:
    worker = Worker(Piece(0, "x" * 5), Piece(0, "ü", "yyy"), Completed(0, "stop"))
    prompt = context()
    await InferenceStage([endpoint(worker=worker, max_output_bytes=10)]).run(prompt)
    assert ("".join(prompt.texts), prompt.reasonings) == ("xxxxxü", ["yyy"])


def stopped_at_bang() -> PromptContext:
    """A prompt with a filter that has seen enough when there is a `!`."""

    class StopAtBang:
        def feed(self, text: str) -> str:
            prompt.stopped = "!" in text
            return text

        def flush(self) -> str:
            return ""

    prompt = context()
    prompt.filters.append(StopAtBang())
    return prompt


async def test_filter_that_has_seen_enough_ends_the_answer_and_the_call() -> None:
    prompt = stopped_at_bang()
    worker = Worker(Piece(0, "one"), Piece(0, "two!"), Piece(0, "three", "and why"), hangs=True)
    one = endpoint(worker=worker)
    await asyncio.wait_for(InferenceStage([one], stopped_s=0).run(prompt), SOON_S)
    await asyncio.wait_for(worker.closed.wait(), SOON_S)

    assert prompt.texts == ["one", "two!"]
    assert prompt.reasonings == []
    assert prompt.completed == Completed(0, "stop")
    await one.batcher.drain()
    assert one.outstanding == 0


async def test_engine_that_ends_soon_after_what_was_enough_says_what_it_has_used() -> None:
    prompt, usage = stopped_at_bang(), TokenUsage(3, 9)
    pieces = [Piece(0, "one!"), *[Piece(0, "more")] * 20]
    one = endpoint(worker=Worker(*pieces, Completed(0, "length", usage, "served-1")))
    await InferenceStage([one], stopped_s=SOON_S).run(prompt)
    assert prompt.texts == ["one!"]
    assert prompt.completed == Completed(0, "stop", usage, "served-1")
    await one.aclose()


async def test_engine_that_fails_after_what_was_enough_takes_nothing_back() -> None:
    prompt = stopped_at_bang()
    one = endpoint(worker=Worker(Piece(0, "one!"), failure=WorkerProtocolError("cut off")))
    await InferenceStage([one]).run(prompt)
    assert prompt.texts == ["one!"]
    assert prompt.completed == Completed(0, "stop")
    await one.aclose()


async def test_filter_that_raises_fails_its_own_job_only() -> None:
    class Broken:
        def feed(self, text: str) -> str:
            raise ZeroDivisionError

        def flush(self) -> str:
            return ""

    worker = Worker(Piece(0, "a"), Piece(1, "b"), Completed(0, "stop"), Completed(1, "stop"))
    stage = InferenceStage([endpoint(worker=worker)])
    bad, good = context(filters=[Broken()]), context()
    outcomes = await asyncio.gather(stage.run(bad), stage.run(good), return_exceptions=True)

    assert isinstance(outcomes[0], ZeroDivisionError)
    assert outcomes[1] is None
    assert good.texts == ["b"]


async def test_cancelled_job_ends_its_call() -> None:
    worker = Worker(Piece(0, "a"), hangs=True)
    one = endpoint(worker=worker)
    first = asyncio.Event()
    running = asyncio.ensure_future(InferenceStage([one]).run(context(sink=lambda _: first.set())))
    await asyncio.wait_for(first.wait(), SOON_S)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert worker.closed.is_set()
    assert one.outstanding == 0


# Which endpoint


async def test_gathered_prompts_count_as_outstanding() -> None:
    first, second = (
        endpoint("first", worker=Worker(hangs=True)),
        endpoint("second", worker=Worker(hangs=True)),
    )
    stage = InferenceStage([first, second])
    jobs = [asyncio.ensure_future(stage.run(context())) for _ in range(4)]
    await asyncio.sleep(0)

    assert (first.outstanding, second.outstanding) == (2, 2)
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)


# Failover


RETRYABLE = [
    WorkerUnavailable("gone"),
    WorkerOverloaded("full", retry_after_s=60.0),
    WorkerTimeout("no token"),
    WorkerProtocolError("cut off"),
]


@pytest.mark.parametrize("error", [*RETRYABLE, WorkerAuthError("no key")])
async def test_endpoint_that_fails_before_its_first_token_is_followed_by_the_next(error: WorkerError) -> None:
    one, two = endpoint("one", worker=Worker(failure=error)), endpoint("two")
    prompt = context()
    await InferenceStage([one, two]).run(prompt)
    assert prompt.endpoint == "two"
    assert prompt.completed == Completed(0, "stop")
    assert (one.outstanding, two.outstanding) == (0, 0)
    await one.aclose()


@pytest.mark.parametrize("error", [RequestRejected("bad"), ContextOverflow("too long")])
async def test_request_that_is_refused_goes_to_no_other_endpoint(error: WorkerError) -> None:
    other = Worker()
    stage = InferenceStage([endpoint("one", worker=Worker(failure=error)), endpoint("two", worker=other)])
    with pytest.raises(type(error)):
        await stage.run(context())
    assert other.batches == []


@pytest.mark.parametrize("error", RETRYABLE)
async def test_answer_that_breaks_off_is_begun_nowhere_else_in_the_same_attempt(error: WorkerError) -> None:
    other = Worker()
    one = endpoint("one", worker=Worker(Piece(0, "half"), failure=error))
    with pytest.raises(type(error)):
        await InferenceStage([one, endpoint("two", worker=other)]).run(context())
    assert other.batches == []
    await one.aclose()


async def test_each_endpoint_is_asked_once_and_the_last_error_comes_out() -> None:
    workers = [Worker(failure=WorkerUnavailable(f"gone {at}")) for at in range(3)]
    endpoints = [endpoint(f"chat.{at}", worker=worker) for at, worker in enumerate(workers)]
    with pytest.raises(WorkerUnavailable, match="gone 2"):
        await InferenceStage(endpoints).run(context())
    assert [len(worker.batches) for worker in workers] == [1, 1, 1]


async def test_a_long_wait_at_one_endpoint_does_not_put_off_another_attempt_at_the_next() -> None:
    failing = endpoint("one", worker=Worker(failure=WorkerUnavailable("gone")))
    busy = endpoint("two", worker=Worker(failure=WorkerOverloaded("busy", retry_after_s=40)))
    with pytest.raises(WorkerUnavailable, match="gone"):
        await InferenceStage([failing, busy]).run(context())
    await busy.aclose()


async def test_a_prompt_waits_for_the_first_endpoint_that_can_be_used_again() -> None:
    paused = endpoint("one")
    busy = endpoint("two", worker=Worker(failure=WorkerOverloaded("busy", retry_after_s=3600)))
    paused.pause(30)
    with pytest.raises(WorkerUnavailable, match="no endpoint") as caught:
        await InferenceStage([paused, busy]).run(context())
    assert caught.value.retry_after_s == pytest.approx(30, abs=1)
    for one in (paused, busy):
        await one.aclose()


async def test_endpoint_that_keeps_failing_is_checked_and_hardly_asked_meanwhile() -> None:
    away = Worker(failure=WorkerUnavailable("gone"))
    one, other = endpoint("one", worker=away, breaker={"failures": 3}), endpoint("two")
    stage = InferenceStage([one, other])
    while not one.breaker.suspected:
        other.window.acquire(1)
        await stage.run(context())
    one.breaker.checked(well=False)
    asked = len(away.batches)
    for _ in range(10):
        await stage.run(context())
    assert len(away.batches) == asked


async def test_prompt_that_fails_inside_two_engines_is_tried_in_no_third() -> None:
    workers = [Worker(failure=WorkerFailed(f"broken {at}")) for at in range(3)]
    endpoints = [endpoint(f"chat.{at}", worker=worker) for at, worker in enumerate(workers)]
    with pytest.raises(WorkerFailed, match="broken 1"):
        await InferenceStage(endpoints).run(context())
    assert [len(worker.batches) for worker in workers] == [1, 1, 0]


async def test_endpoint_that_does_not_serve_the_model_costs_no_attempt_while_another_may() -> None:
    missing = endpoint("missing", worker=Worker(failure=ModelNotFound("no such model")))
    assert await answered_by(InferenceStage([missing, endpoint("two")])) == "two"
    down = opened(endpoint("down", breaker={"open_s": 20}))
    with pytest.raises(WorkerUnavailable, match="no endpoint") as raised:
        await InferenceStage([missing, down]).run(context())
    decision = RetryPolicy().decide(2, 3, raised.value)
    assert isinstance(decision, Retry)
    assert not decision.counts
    with pytest.raises(ModelNotFound):
        await InferenceStage([missing]).run(context())
    assert missing.breaker.suspected, "it is checked at once"


async def test_job_that_is_cancelled_goes_to_no_other_endpoint() -> None:
    first, other = Worker(hangs=True), Worker()
    stage = InferenceStage([endpoint("one", worker=first), endpoint("two", worker=other)])
    running = asyncio.ensure_future(stage.run(context()))
    await first.began.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    assert other.batches == []


async def test_endpoint_that_is_left_alone_while_a_permit_is_asked_for_is_passed_over() -> None:
    one, other = endpoint("one", requests_per_minute=60), endpoint("other")

    async def take_permit(name: str) -> int:
        assert name == "one"
        opened(one)
        return 0

    prompt = context(take_permit=take_permit)
    await InferenceStage([one, other]).run(prompt)
    assert prompt.endpoint == "other"


# Fallbacks


def stage_with(own: list[Endpoint], *fallbacks: list[Endpoint]) -> InferenceStage:
    stage = InferenceStage(own)
    stage.fallbacks = tuple(tuple(group) for group in fallbacks)
    return stage


async def answered_by(stage: InferenceStage, **request: Any) -> str | None:
    prompt = context(request=request)
    await stage.run(prompt)
    return prompt.endpoint


async def test_fallbacks_answer_in_their_order_and_only_while_none_of_its_own_can() -> None:
    own, first, second = endpoint("own"), endpoint("first"), endpoint("second")
    stage = stage_with([own], [first], [second])
    assert await answered_by(stage) == "own"
    opened(own)
    assert await answered_by(stage) == "first"
    opened(first)
    assert await answered_by(stage) == "second"
    own.breaker.probed(ready=True)
    assert await answered_by(stage) == "second", "it is not known to be well yet"
    own.breaker.checked(well=True)
    assert await answered_by(stage) == "own"


async def test_endpoint_of_its_own_that_is_full_goes_before_a_fallback() -> None:
    own, other = endpoint("own", limit=1), endpoint("other")
    own.window.acquire(1)
    stage = stage_with([own], [other])
    running = asyncio.ensure_future(answered_by(stage))
    await asyncio.sleep(0)
    assert own.outstanding == 2
    own.window.release(1)
    assert await running == "own"


async def test_fallback_answers_when_its_own_have_failed_in_this_attempt() -> None:
    own = [endpoint(name, worker=Worker(failure=WorkerUnavailable("gone"))) for name in ("one", "two")]
    assert await answered_by(stage_with(own, [endpoint("other")])) == "other"


async def test_endpoint_that_several_routes_fall_back_on_is_asked_once_an_attempt() -> None:
    away = Worker(failure=WorkerUnavailable("gone"))
    shared = endpoint("shared", worker=away)
    stage = stage_with([opened(endpoint("own"))], [shared], [shared])
    with pytest.raises(WorkerUnavailable, match="gone"):
        await stage.run(context())
    assert len(away.batches) == 1


# Prompts that are gathered for an endpoint that is left alone meanwhile


async def gather_behind_a_full_window(stage: InferenceStage, count: int) -> list[asyncio.Task[None]]:
    (one, *_) = stage.endpoints
    one.window.acquire(one.window.free)
    tasks = [asyncio.ensure_future(stage.run(context())) for _ in range(count)]
    await asyncio.sleep(0)
    assert one.batcher.gathered == count
    return tasks


def leave_alone(one: Endpoint, how: str) -> None:
    if how == "open":
        opened(one)
    else:
        one.pause(60.0)


@pytest.mark.parametrize("how", ["open", "paused"])
async def test_gathered_prompts_go_to_another_endpoint_when_theirs_is_left_alone(how: str) -> None:
    worker = Worker()
    one, other = endpoint("one", worker=worker), endpoint("other", worker=Worker(*[Completed(0, "stop")]))
    stage = stage_with([one], [other])
    tasks = await gather_behind_a_full_window(stage, 1)
    leave_alone(one, how)
    await asyncio.wait_for(asyncio.gather(*tasks), SOON_S)
    assert worker.batches == []
    await one.aclose()


@pytest.mark.parametrize("how", ["open", "paused"])
async def test_gathered_prompts_that_nobody_else_takes_go_back_at_no_cost(how: str) -> None:
    worker = Worker()
    one = endpoint(worker=worker, breaker={"open_s": 60})
    tasks = await gather_behind_a_full_window(InferenceStage([one]), 3)
    leave_alone(one, how)
    errors = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SOON_S)
    for error in errors:
        assert isinstance(error, WorkerUnavailable)
        decision = RetryPolicy().decide(2, 3, error)
        assert isinstance(decision, Retry)
        assert not decision.counts
        assert decision.delay_s == pytest.approx(60, abs=1)
    assert worker.batches == []
    assert one.batcher.gathered == 0
    await one.aclose()


# Nobody left


async def test_prompt_that_nobody_may_be_asked_for_goes_back_at_no_cost() -> None:
    workers = [Worker() for _ in range(3)]
    down, longer, paused = (
        endpoint("down", worker=workers[0], breaker={"open_s": 20}),
        endpoint("longer", worker=workers[1], breaker={"open_s": 50}),
        endpoint("paused", worker=workers[2]),
    )
    opened(down)
    opened(longer)
    paused.pause(40)
    with pytest.raises(WorkerUnavailable, match="no endpoint of route chat can be used now") as raised:
        await stage_with([down, longer], [paused]).run(context())
    assert raised.value.retry_after_s == pytest.approx(20, abs=1)
    assert [worker.batches for worker in workers] == [[], [], []]

    decision = RetryPolicy().decide(2, 3, raised.value)
    assert isinstance(decision, Retry)
    assert not decision.counts
    await paused.aclose()


async def test_final_failure_counts_only_when_no_other_endpoint_may_do_better_later() -> None:
    refuses = endpoint("refuses", worker=Worker(failure=WorkerAuthError("no key")))
    down = endpoint("down", breaker={"open_s": 20})
    stage = InferenceStage([refuses, opened(down)])
    with pytest.raises(WorkerUnavailable, match="no endpoint") as raised:
        await stage.run(context())
    assert raised.value.retry_after_s == pytest.approx(20, abs=1)

    away = endpoint("away", worker=Worker(failure=WorkerUnavailable("gone")))
    for endpoints in ([refuses, away], [away, refuses]):
        with pytest.raises(WorkerUnavailable, match="gone"):
            await InferenceStage(endpoints).run(context())
    with pytest.raises(WorkerAuthError):
        await InferenceStage([refuses]).run(context())


async def test_wait_that_the_only_endpoint_asks_for_costs_nothing() -> None:
    one = endpoint(worker=Worker(failure=WorkerOverloaded("slow down", retry_after_s=60.0)))
    stage = InferenceStage([one])
    for expected in ("slow down", "no endpoint"):
        with pytest.raises(WorkerError, match=expected) as raised:
            await stage.run(context())
        decision = RetryPolicy().decide(2, 3, raised.value)
        assert isinstance(decision, Retry)
        assert not decision.counts
        assert decision.delay_s == pytest.approx(60, abs=1)
    await one.aclose()


def test_stage_without_endpoints_is_refused() -> None:
    with pytest.raises(ValueError, match="endpoints"):
        InferenceStage([])


# Sessions


async def test_prompts_of_a_session_go_to_one_endpoint_and_elsewhere_while_it_is_away() -> None:
    workers = {f"chat.{at}": Worker() for at in range(4)}
    stage = InferenceStage([endpoint(name, worker=worker) for name, worker in workers.items()])
    homes = {session: await answered_by(stage, session=session) for session in "abcdefgh"}
    assert len(set(homes.values())) > 1
    assert {session: await answered_by(stage, session=session) for session in "abcdefgh"} == homes

    away = homes["a"]
    assert away is not None
    workers[away].failure = WorkerUnavailable("gone")
    assert await answered_by(stage, session="a") not in (None, away)
