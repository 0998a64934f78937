"""The llama.cpp worker against a real llama-server."""

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
from workers.contract import GenerationContract, collect, start
from workers.errors import ContextOverflow, RequestRejected, WorkerAuthError, WorkerTimeout
from workers.llama_cpp import NO_PREFIX_CACHE, LlamaCppWorker

if TYPE_CHECKING:
    from tests.engines.conftest import LlamaServer, StartServer

pytestmark = pytest.mark.engine

USER_MESSAGE = ({"role": "user", "content": "hello"},)


def make_worker(server: LlamaServer, **config: Any) -> LlamaCppWorker:
    return LlamaCppWorker(EndpointConfig("llama_cpp", server.base_url, **config))


async def requests_processing(server: LlamaServer) -> int:
    async with httpx.AsyncClient(base_url=server.base_url, trust_env=False) as client:
        metrics = (await client.get("/metrics")).text
    found = re.search(r"^llamacpp:requests_processing (\d+)", metrics, re.MULTILINE)
    assert found, "llama-server has no such metric any more"
    return int(found[1])


@pytest.fixture
async def worker(llama_server: LlamaServer) -> AsyncIterator[LlamaCppWorker]:
    worker = make_worker(llama_server)
    yield worker
    await worker.aclose()


class TestLlamaCppWorker(GenerationContract):
    # Filling a context takes the tiny model some ten seconds: an end within three is a cancellation.
    stop_within_s = 3.0

    @pytest.fixture
    async def worker(self, llama_server: LlamaServer) -> AsyncIterator[GenerationWorker]:
        self.server = llama_server
        worker = make_worker(llama_server)
        yield worker
        await worker.aclose()

    @pytest.fixture
    def unreachable_worker(self) -> GenerationWorker:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return LlamaCppWorker(EndpointConfig("llama_cpp", f"http://127.0.0.1:{port}"))

    @pytest.fixture
    def silent_worker(self, silent_url: str) -> GenerationWorker:
        return LlamaCppWorker(EndpointConfig("llama_cpp", silent_url, timeout_s=0.5))

    def refused(self) -> Generation:
        return self.generation(params={"temperature": "hot"})

    async def generating(self, worker: GenerationWorker) -> int:
        return await requests_processing(self.server)


async def test_list_of_uneven_prompts_reports_what_each_one_cost(worker: LlamaCppWorker) -> None:
    prompts = ["a", "b" * 40, "c" * 200]
    for stream in (True, False):
        batch = [
            Generation("tiny", prompt=prompt, params={"max_tokens": 5}, stream=stream) for prompt in prompts
        ]
        usages = [answer.completed.usage for answer in await collect(worker, batch)]
        assert [usage.input_tokens for usage in usages] == [1, 40, 200]
        assert [usage.output_tokens for usage in usages] == [5, 5, 5]
        assert all(usage.cached_tokens is not None for usage in usages)


async def test_model_is_named_as_the_server_names_it(worker: LlamaCppWorker) -> None:
    (answer,) = await collect(worker, [Generation("some-route", prompt="a", params={"max_tokens": 1})])
    assert answer.completed.model == "tiny"


async def test_stop_text_ends_the_answer_with_reason_stop(worker: LlamaCppWorker) -> None:
    sampling = {"temperature": 0.0, "max_tokens": 8}
    (whole,) = await collect(worker, [Generation("tiny", prompt="stop here", params=sampling)])
    stop = next(character for character in whole.text[1:] if character.isascii())
    (cut,) = await collect(
        worker, [Generation("tiny", prompt="stop here", params={**sampling, "stop": stop})]
    )
    assert cut.completed.finish_reason == "stop"
    assert stop not in cut.text


@pytest.mark.parametrize("stream", [True, False])
async def test_context_overflow_is_named_and_fails_the_whole_list(
    worker: LlamaCppWorker, stream: bool
) -> None:
    too_long = "x" * 40_000
    batch = [
        Generation("tiny", prompt=prompt, params={"max_tokens": 2}, stream=stream)
        for prompt in ("a", too_long)
    ]
    with pytest.raises(ContextOverflow, match="exceeds the available context size"):
        await collect(worker, batch)


@pytest.mark.parametrize("stream", [True, False])
async def test_json_schema_of_a_plain_prompt_shapes_the_answer(worker: LlamaCppWorker, stream: bool) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    generation = Generation(
        "tiny",
        prompt="is it?",
        params={"max_tokens": 200, "seed": 1},
        response_format=response_format,
        stream=stream,
    )
    (answer,) = await collect(worker, [generation])
    if (
        answer.completed.finish_reason == "stop"
    ):  # a model of random weights may play with white space for long
        assert isinstance(orjson.loads(answer.text)["ok"], bool)
    else:
        assert answer.text.lstrip().startswith("{")


@pytest.mark.parametrize("stream", [True, False])
async def test_tools_are_taken_by_the_server(worker: LlamaCppWorker, stream: bool) -> None:
    tool = {
        "type": "function",
        "function": {"name": "switch", "parameters": {"type": "object", "properties": {}}},
    }
    generation = Generation(
        "tiny",
        messages=USER_MESSAGE,
        params={"max_tokens": 3},
        tools=(tool,),
        tool_choice="auto",
        stream=stream,
    )
    (answer,) = await collect(worker, [generation])
    assert answer.completed.usage.output_tokens == 3


async def test_extra_body_reaches_the_engine(worker: LlamaCppWorker) -> None:
    generation = Generation(
        "tiny", prompt="a", params={"max_tokens": 50}, extra_body={"grammar": 'root ::= "yes"'}
    )
    (answer,) = await collect(worker, [generation])
    assert answer.text == "yes"
    assert answer.completed.finish_reason == "stop"


async def test_capacity_is_the_number_of_slots(worker: LlamaCppWorker, llama_server: LlamaServer) -> None:
    assert await worker.capacity() == llama_server.slots


async def test_health_names_the_model(worker: LlamaCppWorker) -> None:
    assert (await worker.health()).models == ("tiny",)


async def test_base_url_may_end_with_v1(llama_server: LlamaServer) -> None:
    worker = LlamaCppWorker(EndpointConfig("llama_cpp", f"{llama_server.base_url}/v1/"))
    assert (await worker.health()).ready
    await worker.aclose()


@pytest.mark.parametrize("chat", [True, False])
async def test_cancelled_call_that_is_not_streamed_stops_the_back_end(
    worker: LlamaCppWorker, llama_server: LlamaServer, chat: bool
) -> None:
    endless = Generation(
        "tiny",
        prompt=None if chat else "again",
        messages=USER_MESSAGE if chat else None,
        params={"max_tokens": 1_000_000},
        stream=False,
    )
    reader = asyncio.create_task(collect(worker, [endless]))
    while not await requests_processing(llama_server):
        await asyncio.sleep(0.01)
    reader.cancel()
    await asyncio.wait([reader])
    async with asyncio.timeout(3):
        while await requests_processing(llama_server):
            await asyncio.sleep(0.02)


async def test_call_that_takes_too_long_is_timed_out_and_stopped(llama_server: LlamaServer) -> None:
    worker = make_worker(llama_server, total_timeout_s=0.2)
    with pytest.raises(WorkerTimeout, match=r"no end within total_timeout_s = 0\.2"):
        await collect(worker, [Generation("tiny", prompt="again", params={"max_tokens": 1_000_000})])
    async with asyncio.timeout(3):
        while await requests_processing(llama_server):
            await asyncio.sleep(0.02)
    await worker.aclose()


async def test_calls_in_quick_succession_never_meet_a_closed_connection(worker: LlamaCppWorker) -> None:
    for _ in range(30):
        await collect(worker, [Generation("tiny", prompt="a", params={"max_tokens": 1})])
        await collect(worker, [Generation("tiny", messages=USER_MESSAGE, params={"max_tokens": 1})])


async def test_server_with_a_key_takes_it_and_refuses_others(start_llama_server: StartServer) -> None:
    server = start_llama_server("--api-key", "right-key", slots=1, slot_tokens=1024)
    generation = Generation("tiny", prompt="a", params={"max_tokens": 1})
    with_key = make_worker(server, api_key="right-key")
    await collect(with_key, [generation])
    assert (await with_key.health()).ready
    assert await with_key.capacity() == 1
    await with_key.aclose()
    for key in ("wrong-key", None):
        without = make_worker(server, api_key=key)
        with pytest.raises(WorkerAuthError) as caught:
            await collect(without, [generation])
        assert "wrong-key" not in str(caught.value)
        health = await without.health()
        assert not health.ready
        assert "401" in health.detail
        await without.aclose()


async def test_more_calls_than_slots_all_end(worker: LlamaCppWorker, llama_server: LlamaServer) -> None:
    generation = Generation("tiny", prompt="a", params={"max_tokens": 4})
    answers = await asyncio.gather(*(collect(worker, [generation]) for _ in range(3 * llama_server.slots)))
    assert all(answer.completed.usage.output_tokens == 4 for (answer,) in answers)


async def test_two_chats_in_one_call_are_a_programming_error(worker: LlamaCppWorker) -> None:
    chat = Generation("tiny", messages=USER_MESSAGE)
    with pytest.raises(ValueError, match="one chat in a call"):
        worker.generate([chat, chat])


async def test_tools_for_a_plain_prompt_are_refused(worker: LlamaCppWorker) -> None:
    with pytest.raises(RequestRejected, match="give messages"):
        await anext(start(worker, [Generation("tiny", prompt="a", tools=({"type": "function"},))]))


async def test_advice_tells_of_a_server_without_its_prompt_cache(start_llama_server: StartServer) -> None:
    for flags, advice in (((), ()), (("--cache-ram", "0"), (NO_PREFIX_CACHE,))):
        worker = make_worker(start_llama_server(*flags, slots=2, slot_tokens=2048))
        assert await worker.advice() == advice
        await worker.aclose()
