"""Requests and chunks of OpenAI's form, for the tests of its adapter."""

from __future__ import annotations

from typing import Any

from tests.contracts.wire import FakeServer
from workers import EndpointConfig, Generation
from workers.openai import OpenAIWorker

CHAT = Generation("gpt", messages=({"role": "user", "content": "hello"},))
PROMPT = Generation("gpt", prompt="hello")


def make(server: FakeServer, **config: Any) -> OpenAIWorker:
    return OpenAIWorker(EndpointConfig("openai", server.base_url, **config))


def delta(finish_reason: Any = None, **content: Any) -> dict[str, Any]:
    return {"model": "gpt-1", "choices": [{"index": 0, "delta": content, "finish_reason": finish_reason}]}
