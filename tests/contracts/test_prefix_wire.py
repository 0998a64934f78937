"""What a conversation has said goes out in the same bytes, turn after turn: prompt caches compare them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import orjson
import pytest

from scheduler.model import PromptRequest
from scheduler.payload import decode, encode, payload_of
from tests.contracts.wire import FakeServer, listening, outputs_of, stream
from workers import EndpointConfig, Generation, GenerationWorker
from workers.anthropic import AnthropicWorker
from workers.llama_cpp import LlamaCppWorker
from workers.openai import OpenAIWorker
from workers.vllm import VllmWorker

# Keys in no order that anything would sort them into, numbers that have several spellings, escapes.
TOOL = {
    "type": "function",
    "function": {
        "parameters": {"type": "object", "properties": {"z": {"enum": [1.0, 1e3, "é/\u2028"]}, "a": {}}},
        "name": "look",
    },
}
CALL = {"type": "function", "id": "c1", "function": {"name": "look", "arguments": '{"z" : 1.0,  "a":"/"}'}}
FIRST = [
    {"content": "You are brief.", "role": "system"},
    {"role": "user", "content": [{"text": "Look at ü/\u2028.", "type": "text", "more": {"b": 1, "a": 2}}]},
]
SECOND = [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"tool_call_id": "c1", "role": "tool", "content": "seen"},
]
THIRD = [{"role": "assistant", "content": "Done."}, {"role": "user", "content": "And now?"}]

ADAPTERS: Mapping[str, Callable[[EndpointConfig], GenerationWorker]] = {
    "openai": OpenAIWorker,
    "anthropic": AnthropicWorker,
    "vllm": VllmWorker,
    "llama_cpp": LlamaCppWorker,
}


async def sent(server: FakeServer, worker: GenerationWorker, messages: list[Any]) -> bytes:
    """The body of a request, from what a caller gives, by way of what Redis stores."""
    request = PromptRequest.parse(messages=messages, tools=[TOOL], params={"temperature": 0.5})
    payload = decode(encode(payload_of(request)))
    generation = Generation(
        "m",
        messages=tuple(payload["messages"]),
        tools=tuple(payload["tools"]),
        params=payload["params"],
    )
    server.script = stream({"error": {"message": "enough"}})
    with pytest.raises(Exception, match="enough"):
        await outputs_of(worker, generation)
    return server.requests[-1].content


@pytest.mark.parametrize("backend", ADAPTERS)
async def test_a_later_turn_begins_with_the_bytes_of_the_earlier_ones(backend: str) -> None:
    async with listening(FakeServer()) as server:
        config = EndpointConfig(backend, server.base_url, api_key="k")
        worker = ADAPTERS[backend](config)
        turns = [await sent(server, worker, FIRST + more) for more in ([], SECOND, SECOND + THIRD)]
        await worker.aclose()
    for earlier, later in pairwise(turns):
        for field in ("messages", "system", "tools"):
            said = orjson.dumps(orjson.loads(earlier).get(field, [])).removesuffix(b"]")
            assert said in earlier, "the bytes are those of the wire"
            assert said in later, "what was said has changed"


@pytest.mark.parametrize("backend", ADAPTERS)
async def test_keys_stay_in_the_order_in_which_they_were_written(backend: str) -> None:
    async with listening(FakeServer()) as server:
        worker = ADAPTERS[backend](EndpointConfig(backend, server.base_url, api_key="k"))
        body = await sent(server, worker, FIRST + SECOND)
        await worker.aclose()
    assert b'"text":"Look at \xc3\xbc/\xe2\x80\xa8.","type":"text","more":{"b":1,"a":2}' in body
    assert b'"properties":{"z":{"enum":[1.0,1000.0,' in body
    if backend != "anthropic":  # which takes arguments as objects
        assert rb'"arguments":"{\"z\" : 1.0,  \"a\":\"/\"}"' in body
