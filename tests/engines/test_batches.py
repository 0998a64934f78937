"""Batches through a real worker process on both real servers: refused members, cancelled jobs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scheduler import AsyncClient, Delta, JobFailed, PromptRequest
from scheduler.client import Job
from scheduler.queue.inspection.status import read_status
from tests.acceptance.conftest import StartWorker, start_worker  # noqa: F401  a fixture
from tests.conftest import accepted
from tests.engines.test_llama_cpp_worker import requests_processing
from tests.engines.test_vllm_worker import running

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

GOOD, BAD = 200, 10
FREED_WITHIN_S = 2.0


@pytest.fixture(params=["llama_cpp", "vllm"])
def engine(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """A back end by name, and its server."""
    fixture = "llama_server" if request.param == "llama_cpp" else "vllm_server"
    return request.param, request.getfixturevalue(fixture)


@pytest.fixture
def served(engine: tuple[str, Any], valkey_url: str, start_worker: StartWorker) -> str:  # noqa: F811  the fixture, by its name
    """A worker process with the route `chat` on the server; its Redis URL."""
    backend, server = engine
    start_worker(
        valkey_url,
        toml=f"""
            [routes.chat]
            batch = {{ max_size = 16, max_tokens = 1000000 }}
            [[routes.chat.endpoints]]
            backend = "{backend}"
            base_url = "{server.base_url}"
            model = "tiny"
            max_in_flight = 32
        """,
    )
    return valkey_url


async def at_work(engine: tuple[str, Any]) -> int:
    """Prompts in the engine, by its own count."""
    backend, server = engine
    return await (requests_processing(server) if backend == "llama_cpp" else running(server))


async def test_prompts_that_the_engine_refuses_fail_alone_with_its_words(
    engine: tuple[str, Any], served: str
) -> None:
    _, server = engine
    context = getattr(server, "slot_tokens", None) or server.context
    params = {"max_tokens": 8}
    good = [
        PromptRequest(prompt=f"good {n}", model="chat", params=params, max_attempts=1) for n in range(GOOD)
    ]
    bad = PromptRequest(prompt="x y " * context, model="chat", params={"max_tokens": 8})
    requests = [one for n in range(BAD) for one in (*good[n * 20 : n * 20 + 20], bad)]
    async with AsyncClient(served) as client:
        jobs = accepted(await client.enqueue_many(requests))
        outcomes = await asyncio.gather(*(job.result(timeout_s=200) for job in jobs), return_exceptions=True)
        totals = (await read_status(client.queue)).totals
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(outcomes) - len(failed) == GOOD
    assert len(failed) == BAD
    for error in failed:
        assert isinstance(error, JobFailed)
        assert error.reason == "context_overflow"
        assert "context" in str(error)
        assert error.attempts == 1, "what can never succeed is not tried again"
    assert (totals["enqueued"], totals["done"], totals["failed"]) == (GOOD + BAD, GOOD, BAD)


@pytest.mark.parametrize("members", [1, 4])
async def test_cancelled_jobs_stop_costing(engine: tuple[str, Any], served: str, members: int) -> None:
    """A job with a call of its own, and a list whose last member is cancelled."""
    async with AsyncClient(served) as client:
        requests = [
            PromptRequest(
                prompt=f"p {n}",
                model="chat",
                params={"max_tokens": 3900},
                extra_body={"ignore_eos": True},
            )
            for n in range(members)
        ]
        jobs = [job for job in await client.enqueue_many(requests) if isinstance(job, Job)]
        await asyncio.gather(*(first_delta(job) for job in jobs))
        began = asyncio.get_running_loop().time()
        for job in jobs:
            await job.cancel()
        async with asyncio.timeout_at(began + FREED_WITHIN_S):
            while await at_work(engine):
                await asyncio.sleep(0.02)
        totals = (await read_status(client.queue)).totals
    assert totals == {"enqueued": members, "cancelled": members}


async def first_delta(job: Job) -> None:
    async for event in job.events():
        if isinstance(event, Delta):
            return
