"""The Anthropic worker against the real servers that speak its protocol."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from tests.engines.test_llama_cpp_worker import requests_processing
from tests.engines.test_vllm_worker import running
from workers.anthropic import AnthropicWorker
from workers.base import EndpointConfig, Generation, GenerationWorker
from workers.contract import GenerationContract

if TYPE_CHECKING:
    from tests.engines.conftest import LlamaServer, VllmServer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]


def make_worker(base_url: str) -> AnthropicWorker:
    return AnthropicWorker(EndpointConfig("anthropic", base_url, model="tiny"))


class _Contract(GenerationContract):
    stop_within_s = 3.0
    endless_tokens = 3900  # fits the context of both
    sampling: ClassVar[dict[str, Any]] = {"temperature": 0.0}  # it knows no seed

    @pytest.fixture
    def silent_worker(self, silent_url: str) -> GenerationWorker:
        return AnthropicWorker(EndpointConfig("anthropic", silent_url, timeout_s=0.5))

    @pytest.fixture
    def unreachable_worker(self) -> GenerationWorker:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return make_worker(f"http://127.0.0.1:{port}")

    def refused(self) -> Generation:
        return self.generation(params={"temperature": "hot"})


class TestAnthropicWorkerOnLlamaServer(_Contract):
    @pytest.fixture
    async def worker(self, llama_server: LlamaServer) -> AsyncIterator[GenerationWorker]:
        self.server = llama_server
        worker = make_worker(llama_server.base_url)
        yield worker
        await worker.aclose()

    async def generating(self, worker: GenerationWorker) -> int:
        return await requests_processing(self.server)


class TestAnthropicWorkerOnVllm(_Contract):
    @pytest.fixture
    async def worker(self, vllm_server: VllmServer) -> AsyncIterator[GenerationWorker]:
        self.server = vllm_server
        worker = make_worker(vllm_server.base_url)
        yield worker
        await worker.aclose()

    async def generating(self, worker: GenerationWorker) -> int:
        return await running(self.server)
