"""From a client through a real worker process to a real llama-server and back."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest

from scheduler import AsyncClient, Delta, Done, Job, JobFailed, PromptRequest
from tests.acceptance.conftest import StartWorker, start_worker  # noqa: F401  a fixture
from tests.conftest import accepted
from tests.engines.conftest import LlamaServer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


def route_to(server: LlamaServer, *settings: str) -> str:
    """The route `chat` on the server; `settings` of its endpoint in TOML."""
    lines = ["[routes.chat]", "[[routes.chat.endpoints]]", 'backend = "llama_cpp"', 'model = "tiny"']
    return "\n".join([*lines, f'base_url = "{server.base_url}"', *settings])


@pytest.fixture
def worker(valkey_url: str, llama_server: LlamaServer, start_worker: StartWorker) -> str:  # noqa: F811  the fixture, by its name
    """A worker process with the route `chat` on the server; its Redis URL."""
    start_worker(valkey_url, toml=route_to(llama_server))
    return valkey_url


async def test_many_prompts_share_calls_and_each_gets_its_own_answer(worker: str) -> None:
    async with AsyncClient(worker) as client:
        requests = [
            PromptRequest(prompt=f"Prompt number {n}", model="chat", params={"max_tokens": 8, "seed": n % 3})
            for n in range(60)
        ]
        jobs = accepted(await client.enqueue_many(requests))
        results = await asyncio.gather(*(job.result(timeout_s=60) for job in jobs))
    assert all(result.usage.output_tokens == 8 for result in results)
    assert all(result.finish_reason == "length" for result in results)
    assert all(result.usage.input_tokens for result in results)
    assert {result.endpoint for result in results} == {"chat.0"}


async def test_a_chat_streams_its_deltas_and_their_sum_is_the_result(worker: str) -> None:
    async with AsyncClient(worker) as client:
        job = await client.enqueue(
            messages=[{"role": "user", "content": "hello"}], model="chat", params={"max_tokens": 24}
        )
        events = [event async for event in job.events()]
    deltas = [event for event in events if isinstance(event, Delta)]
    done = events[-1]
    assert isinstance(done, Done)
    assert len(deltas) >= 1
    assert "".join(delta.text for delta in deltas) == done.result.text
    assert done.result.usage.output_tokens
    assert done.result.timings.first_token_ms is not None


async def test_a_prompt_that_overflows_the_context_fails_alone_with_the_engines_words(
    worker: str, llama_server: LlamaServer
) -> None:
    async with AsyncClient(worker) as client:
        good = [PromptRequest(prompt=f"fine {n}", model="chat", params={"max_tokens": 4}) for n in range(12)]
        bad = PromptRequest(prompt="x y " * llama_server.slot_tokens, model="chat", params={"max_tokens": 4})
        jobs = accepted(await client.enqueue_many([*good[:6], bad, *good[6:]]))
        outcomes = await asyncio.gather(*(job.result(timeout_s=60) for job in jobs), return_exceptions=True)
    failed = outcomes.pop(6)
    assert isinstance(failed, JobFailed)
    assert failed.reason == "context_overflow"
    assert "context" in str(failed)
    assert failed.attempts == 1, "what can never succeed is not tried again"
    assert not [outcome for outcome in outcomes if isinstance(outcome, BaseException)]


async def test_a_critical_prompt_is_answered_while_others_keep_all_other_slots_busy(
    valkey_url: str,
    llama_server: LlamaServer,
    start_worker: StartWorker,  # noqa: F811  the fixture, by its name
) -> None:
    await asyncio.to_thread(start_worker, valkey_url, toml=route_to(llama_server, "reserved = 1"))
    endless = PromptRequest(prompt="go on and on", model="chat", priority=7, params={"max_tokens": 30_000})
    async with AsyncClient(valkey_url) as client:
        bulk = [job for job in await client.enqueue_many([endless] * 6) if isinstance(job, Job)]
        async with asyncio.timeout(20):
            while await _states(bulk) != ["running"] * 3 + ["waiting"] * 3:
                await asyncio.sleep(0.02)
        result = await client.run("now", model="chat", priority=9, params={"max_tokens": 4}, timeout_s=20)
        assert result.usage.output_tokens == 4
        assert await _states(bulk) == ["running"] * 3 + ["waiting"] * 3, "it took nobody's place"
        for job in bulk:
            await job.cancel()


async def _states(jobs: list[Job]) -> list[str]:
    return sorted([(await job.info()).state.value for job in jobs])


async def test_a_cancelled_job_stops_costing(worker: str, llama_server: LlamaServer) -> None:
    async with (
        AsyncClient(worker) as client,
        httpx.AsyncClient(base_url=llama_server.base_url, trust_env=False) as engine,
    ):
        job = await client.enqueue("go on and on", model="chat", params={"max_tokens": 30_000})
        async for event in job.events():
            if isinstance(event, Delta):
                break
        assert await _processing(engine) == 1
        assert await job.cancel()
        async with asyncio.timeout(2):
            while await _processing(engine):
                await asyncio.sleep(0.05)


async def _processing(engine: httpx.AsyncClient) -> int:
    metrics = (await engine.get("/metrics")).text
    found = re.search(r"^llamacpp:requests_processing (\d+)", metrics, re.MULTILINE)
    assert found
    return int(found[1])
