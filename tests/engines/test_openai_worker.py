"""The OpenAI worker against the real servers that speak its protocol."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.engines.test_llama_cpp_worker import requests_processing
from tests.engines.test_vllm_worker import running
from workers.base import EndpointConfig, Generation, GenerationWorker
from workers.contract import GenerationContract, collect
from workers.openai import OpenAIWorker

if TYPE_CHECKING:
    from tests.engines.conftest import LlamaServer, VllmServer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]


def make_worker(base_url: str, **options: Any) -> OpenAIWorker:
    return OpenAIWorker(EndpointConfig("openai", base_url, model="tiny", options=options))


class _Contract(GenerationContract):
    stop_within_s = 3.0
    endless_tokens = 3900  # fits the context of both

    @pytest.fixture
    def silent_worker(self, silent_url: str) -> GenerationWorker:
        return OpenAIWorker(EndpointConfig("openai", silent_url, timeout_s=0.5))

    @pytest.fixture
    def unreachable_worker(self) -> GenerationWorker:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return make_worker(f"http://127.0.0.1:{port}")


class TestOpenAIWorkerOnLlamaServer(_Contract):
    @pytest.fixture
    async def worker(self, llama_server: LlamaServer) -> AsyncIterator[GenerationWorker]:
        self.server = llama_server
        worker = make_worker(llama_server.base_url)
        yield worker
        await worker.aclose()

    def refused(self) -> Generation:
        return self.generation(params={"temperature": "hot"})

    async def generating(self, worker: GenerationWorker) -> int:
        return await requests_processing(self.server)


class TestOpenAIWorkerOnVllm(_Contract):
    @pytest.fixture
    async def worker(self, vllm_server: VllmServer) -> AsyncIterator[GenerationWorker]:
        self.server = vllm_server
        worker = make_worker(vllm_server.base_url)
        yield worker
        await worker.aclose()

    def refused(self) -> Generation:
        return self.generation(params={"temperature": -1})

    async def generating(self, worker: GenerationWorker) -> int:
        return await running(self.server)


class TestLegacyCompletionsOnVllm(TestOpenAIWorkerOnVllm):
    """Plain prompts as they are."""

    @pytest.fixture
    async def worker(self, vllm_server: VllmServer) -> AsyncIterator[GenerationWorker]:
        self.server = vllm_server
        worker = make_worker(vllm_server.base_url, completions=True)
        yield worker
        await worker.aclose()


async def test_usage_of_a_chat_is_the_servers(llama_server: LlamaServer) -> None:
    worker = make_worker(llama_server.base_url)
    one = Generation("tiny", messages=({"role": "user", "content": "hello"},), params={"max_tokens": 6})
    (answer,) = await collect(worker, [one])
    assert answer.completed.usage.output_tokens == 6
    assert answer.completed.usage.input_tokens
    assert answer.completed.finish_reason == "length"
    await worker.aclose()
