from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from scheduler.batching import BatchPolicy
from scheduler.routing import Endpoint, choose_endpoint
from scheduler.settings import EndpointSettings
from scheduler.stages.base import PromptContext
from scheduler.stages.inference import InferenceStage, generation_of, prompt_tokens
from scheduler.stages.tokens import estimate_tokens
from workers.base import Capabilities, Completed, Generation, Health, Output, Piece, TokenUsage
from workers.errors import WorkerOverloaded


class Worker:
    """Answers every prompt with the same outputs, and then, if `hangs`, stays silent."""

    def __init__(self, *outputs: Output, failure: Exception | None = None, hangs: bool = False) -> None:
        self.capabilities = Capabilities(lists=True)
        self.batches: list[list[Generation]] = []
        self.closed = asyncio.Event()
        self._outputs = outputs
        self._failure = failure
        self._hangs = hangs

    async def generate(self, batch: Sequence[Generation]) -> AsyncIterator[Output]:
        self.batches.append(list(batch))
        try:
            for output in self._outputs:
                yield output
            if self._failure:
                raise self._failure
            if self._hangs:
                await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def health(self) -> Health:
        return Health(ready=True)

    async def capacity(self) -> int | None:
        return None

    async def load(self) -> None:
        return None

    async def aclose(self) -> None:
        return None


def endpoint(
    name: str = "one",
    *,
    worker: Worker | None = None,
    limit: int = 8,
    weight: float = 1.0,
    **settings: Any,
) -> Endpoint:
    return Endpoint(
        name=name,
        model="served",
        settings=EndpointSettings(backend="scripted", weight=weight, **settings),
        worker=worker or Worker(),
        batch=BatchPolicy(),
        max_in_flight=limit,
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
    prompt = context()

    with pytest.raises(WorkerOverloaded, match="full"):
        await InferenceStage([endpoint(worker=worker)]).run(prompt)
    assert prompt.endpoint == "one"
    assert prompt.completed is None


async def test_filter_that_has_seen_enough_ends_the_answer_and_the_call() -> None:
    class StopAtBang:
        def feed(self, text: str) -> str:
            prompt.stopped = "!" in text
            return text

        def flush(self) -> str:
            return ""

    prompt = context()
    prompt.filters.append(StopAtBang())
    worker = Worker(Piece(0, "one"), Piece(0, "two!"), Piece(0, "three"), hangs=True)
    one = endpoint(worker=worker)
    await asyncio.wait_for(InferenceStage([one]).run(prompt), 5)
    await asyncio.wait_for(worker.closed.wait(), 5)

    assert prompt.texts == ["one", "two!"]
    assert prompt.completed == Completed(0, "stop")
    await one.batcher.drain()
    assert one.outstanding == 0


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
    await asyncio.wait_for(first.wait(), 5)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert worker.closed.is_set()
    assert one.outstanding == 0


# Which endpoint


def test_least_outstanding_work_is_chosen_and_of_equals_the_first() -> None:
    first, second = endpoint("first"), endpoint("second")
    assert choose_endpoint([first, second]) is first

    first.window.acquire(1)
    assert choose_endpoint([first, second]) is second


def test_work_is_spread_by_weight() -> None:
    light, heavy = endpoint("light", weight=1), endpoint("heavy", weight=3)
    chosen = []
    for _ in range(8):
        one = choose_endpoint([light, heavy])
        one.window.acquire(1)
        chosen.append(one.name)

    assert (chosen.count("light"), chosen.count("heavy")) == (2, 6)


def test_endpoint_with_room_comes_before_one_without() -> None:
    small, large = endpoint("small", limit=1, weight=100), endpoint("large", limit=64)
    small.window.acquire(1)
    large.window.acquire(32)

    assert choose_endpoint([small, large]) is large


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


def test_stage_without_endpoints_is_refused() -> None:
    with pytest.raises(ValueError, match="endpoints"):
        InferenceStage([])
