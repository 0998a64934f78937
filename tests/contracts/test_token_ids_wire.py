"""Prompts as token ids: to the plain completions that take them, and with words where there are none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contracts.wire import FakeServer, error_of, listening, outputs_of, stream
from workers import EndpointConfig, Generation, GenerationWorker, UnsupportedParameter
from workers.anthropic import AnthropicWorker
from workers.llama_cpp import LlamaCppWorker
from workers.openai import OpenAIWorker
from workers.vllm import VllmWorker

IDS = Generation("m", token_ids=(5, 1, 5))


def made(backend: type[Any], server: FakeServer, **options: Any) -> GenerationWorker:
    worker: GenerationWorker = backend(EndpointConfig("any", server.base_url, api_key="k", options=options))
    return worker


@pytest.mark.parametrize(
    ("backend", "options"),
    [(OpenAIWorker, {"completions": True}), (VllmWorker, {}), (LlamaCppWorker, {})],
)
async def test_token_ids_are_the_prompt(backend: type[Any], options: dict[str, Any]) -> None:
    async with listening(FakeServer()) as server:
        worker = made(backend, server, **options)
        server.script = stream({"error": {"message": "enough"}})
        with pytest.raises(Exception, match="enough"):
            await outputs_of(worker, IDS)
        assert server.bodies[0]["prompt"] == [5, 1, 5]
        await worker.aclose()


@pytest.mark.parametrize("backend", [OpenAIWorker, AnthropicWorker])
async def test_what_speaks_chats_alone_refuses_token_ids(backend: type[Any]) -> None:
    async with listening(FakeServer()) as server:
        worker = made(backend, server)
        error = await error_of(worker, IDS)
        assert isinstance(error, UnsupportedParameter)
        assert str(error).startswith("prompt: ")
        assert not server.requests
        await worker.aclose()
