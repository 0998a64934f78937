"""The vLLM worker against a real vLLM on the CPU."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from workers.base import EndpointConfig, Generation, GenerationWorker
from workers.calls import SHORT_TOKENS
from workers.contract import GenerationContract, collect, start
from workers.errors import ContextOverflow, RequestRejected
from workers.vllm import VllmWorker

if TYPE_CHECKING:
    from tests.engines.conftest import VllmServer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]  # whoever is first waits for the server

ENDLESS = {"ignore_eos": True}
FREED_WITHIN_S = 2.0


def make_worker(server: VllmServer, **config: Any) -> VllmWorker:
    return VllmWorker(EndpointConfig("vllm", server.base_url, **config))


async def metric(server: VllmServer, name: str) -> int:
    async with httpx.AsyncClient(base_url=server.base_url, trust_env=False, timeout=30) as client:
        metrics = (await client.get("/metrics")).text
    found = re.search(rf"^{name}\{{.*\}} ([0-9.e+]+)", metrics, re.MULTILINE)
    assert found, f"vLLM has no metric {name} any more"
    return round(float(found[1]))


async def running(server: VllmServer) -> int:
    """Prompts that the engine works on, by its own count."""
    return await metric(server, "vllm:num_requests_running")


async def until_idle(server: VllmServer, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while await running(server):
            await asyncio.sleep(0.02)


@pytest.fixture
async def worker(vllm_server: VllmServer) -> AsyncIterator[VllmWorker]:
    worker = make_worker(vllm_server)
    yield worker
    await worker.aclose()


class TestVllmWorker(GenerationContract):
    stop_within_s = 3.0
    endless_tokens = 3900  # of a context of 4,096

    @pytest.fixture
    async def worker(self, vllm_server: VllmServer) -> AsyncIterator[GenerationWorker]:
        self.server = vllm_server
        worker = make_worker(vllm_server)
        yield worker
        await worker.aclose()

    @pytest.fixture
    def unreachable_worker(self) -> GenerationWorker:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return VllmWorker(EndpointConfig("vllm", f"http://127.0.0.1:{port}"))

    @pytest.fixture
    def silent_worker(self, silent_url: str) -> GenerationWorker:
        return VllmWorker(EndpointConfig("vllm", silent_url, timeout_s=0.5))

    def refused(self) -> Generation:
        return self.generation(params={"temperature": -1})

    async def generating(self, worker: GenerationWorker) -> int:
        return await running(self.server)


async def test_list_reports_what_each_member_cost(worker: VllmWorker) -> None:
    texts = ["Why?", "Why is the sky blue?" * 4, "x"]
    for stream in (True, False):
        batch = [
            Generation("tiny", prompt=text, params={"max_tokens": 5}, extra_body=ENDLESS, stream=stream)
            for text in texts
        ]
        usages = [answer.completed.usage for answer in await collect(worker, batch)]
        assert [usage.output_tokens for usage in usages] == [5, 5, 5]
        counts = [usage.input_tokens or 0 for usage in usages]
        assert counts[1] > counts[0] >= counts[2] > 0


async def test_ready_server_with_priorities_gives_no_warning(
    vllm_server: VllmServer, worker: VllmWorker
) -> None:
    await until_idle(vllm_server, 10)
    health = await worker.health()
    assert health.ready, health
    assert health.models == ("tiny",)
    assert health.warnings == ()


async def test_urgent_prompts_overtake_others_inside_a_full_server(
    vllm_server: VllmServer, worker: VllmWorker
) -> None:
    size = 12 * vllm_server.runs

    def generation(priority: int, tokens: int) -> Generation:
        params = {"max_tokens": tokens}
        return Generation(
            "tiny", prompt="x", params=params, extra_body=ENDLESS, priority=priority, stream=False
        )

    async def waiting_behind_an_urgent_one() -> int | None:
        """How many of a crowd still wait once an urgent one is answered; None if it came too late to tell."""
        await until_idle(vllm_server, 10)
        crowd = asyncio.create_task(collect(worker, [generation(1, SHORT_TOKENS)] * size))
        try:
            while not crowd.done():
                if await metric(vllm_server, "vllm:num_requests_waiting") >= size // 2:
                    await collect(worker, [generation(9, 1)])
                    return await metric(vllm_server, "vllm:num_requests_waiting")
            return None
        finally:
            crowd.cancel()
            await asyncio.gather(crowd, return_exceptions=True)

    for _ in range(10):  # with so small a model on a busy machine it is served before the urgent one is taken
        # Where priorities do not count nobody waits any more: the crowd was there before.
        if behind := await waiting_behind_an_urgent_one():
            break
    assert behind, "the urgent prompt was answered after all others"


async def test_too_long_a_prompt_is_a_context_overflow_in_the_engines_words(
    vllm_server: VllmServer, worker: VllmWorker
) -> None:
    long = Generation("tiny", prompt="x y " * vllm_server.context, params={"max_tokens": 4})
    with pytest.raises(ContextOverflow, match="context length"):
        await collect(worker, [long])


async def test_answer_keeps_to_a_json_schema(worker: VllmWorker) -> None:
    schema = {
        "type": "object",
        "properties": {"sky": {"enum": ["blue", "grey"]}},
        "required": ["sky"],
        "additionalProperties": False,
    }
    one = Generation(
        "tiny",
        messages=({"role": "user", "content": "Which colour?"},),
        params={"max_tokens": 100},
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    )
    (answer,) = await collect(worker, [one])
    assert orjson.loads(answer.text)["sky"] in ("blue", "grey")


async def test_field_that_the_engine_does_not_take_is_refused_in_its_words(worker: VllmWorker) -> None:
    one = Generation("tiny", prompt="x", params={"max_tokens": 1, "top_p": 7})
    with pytest.raises(RequestRejected, match="top_p"):
        await collect(worker, [one])


@pytest.mark.parametrize("members", [1, 4])
async def test_call_that_is_given_up_frees_the_engine(
    vllm_server: VllmServer, worker: VllmWorker, members: int
) -> None:
    await until_idle(vllm_server, 10)
    before = await metric(vllm_server, "vllm:generation_tokens_total")
    params = {"max_tokens": 3900}
    batch = [Generation("tiny", prompt=f"p {n}", params=params, extra_body=ENDLESS) for n in range(members)]
    outputs = start(worker, batch)
    await anext(outputs)
    await outputs.aclose()
    await until_idle(vllm_server, FREED_WITHIN_S)
    written = await metric(vllm_server, "vllm:generation_tokens_total") - before
    assert 0 < written < 3900 * members, "it did not write all that was asked for"


async def test_a_server_with_tools_and_priorities_needs_no_advice(worker: VllmWorker) -> None:
    assert await worker.advice() == ()
