"""Several answers with log probabilities, and conversations that go back as they came, on both engines.

The models have random weights: what they say means nothing, and they call tools because the request says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import pytest

from scheduler import AsyncClient, Delta
from tests.acceptance.conftest import StartWorker, start_worker  # noqa: F401  a fixture
from tests.patience import SOON_S

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]  # whoever is first waits for the server

BACKENDS = ("llama_cpp", "vllm")
WAIT_S = max(60.0, SOON_S)
NAMES = {"type": "string", "enum": ["sky", "sea"]}
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at something.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"at": NAMES},
            "required": ["at"],
            "additionalProperties": False,
        },
    },
}

# At vLLM as many calls come as the dice fall, several at once. llama-server lets a model talk before it calls
# a tool, and one of random weights does not come to an end: these calls stand in the place of its own.
MOST_TOKENS = {"vllm": 1500, "llama_cpp": 16}
CALLS = [
    {"id": f"call_{at}", "type": "function", "function": {"name": "look", "arguments": f'{{"at":"{at}"}}'}}
    for at in ("sky", "sea")
]


@pytest.fixture
def serving(
    request: pytest.FixtureRequest,
    valkey_url: str,
    start_worker: StartWorker,  # noqa: F811  the fixture, by its name
) -> Callable[[str], str]:
    """A worker process with a route on the server of a back end; its Redis URL."""

    def serve(backend: str) -> str:
        server = request.getfixturevalue("llama_server" if backend == "llama_cpp" else "vllm_server")
        endpoint = f'backend = "{backend}"\nmodel = "tiny"\nbase_url = "{server.base_url}"'
        start_worker(valkey_url, toml=f"[[routes.chat.endpoints]]\n{endpoint}")
        return valkey_url

    return serve


@pytest.mark.parametrize("backend", BACKENDS)
async def test_four_answers_come_each_with_its_index_text_end_and_log_probabilities(
    backend: str, serving: Callable[[str], str]
) -> None:
    async with AsyncClient(await asyncio.to_thread(serving, backend)) as client:
        job = await client.enqueue(
            messages=[{"role": "user", "content": "Name a colour."}],
            params={
                "n": 4,
                "logprobs": True,
                "top_logprobs": 2,
                "max_tokens": 6,
                "temperature": 1.0,
                "seed": 1,
            },
        )
        texts: dict[int, str] = {}
        async for event in job.events():
            if isinstance(event, Delta):
                texts[event.index] = texts.get(event.index, "") + event.text
        result = await job.result(timeout_s=WAIT_S)
    assert [choice.index for choice in result.choices] == [0, 1, 2, 3]
    assert {choice.index: choice.text for choice in result.choices if choice.text} == {
        index: text for index, text in texts.items() if text
    }
    assert result.text == result.choices[0].text
    for choice in result.choices:
        assert choice.finish_reason in {"stop", "length"}
        assert choice.logprobs is not None
        tokens = choice.logprobs["content"]
        assert 1 <= len(tokens) <= 6
        assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in tokens)
    assert result.usage.output_tokens is not None
    assert 4 <= result.usage.output_tokens <= 4 * 6, "that of all answers"


@pytest.mark.parametrize("backend", BACKENDS)
async def test_five_turns_with_tools_go_back_as_they_came(
    backend: str, serving: Callable[[str], str]
) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What colour are sky and sea?"}]
    async with AsyncClient(await asyncio.to_thread(serving, backend)) as client:
        for turn in range(5):
            calls = turn % 2 == 0
            result = await client.run(
                messages=messages,
                tools=[LOOK],
                tool_choice="required" if calls else "none",
                params={"max_tokens": MOST_TOKENS[backend] if calls else 8, "temperature": 1.0, "seed": 2},
                timeout_s=WAIT_S,
            )
            message = result.message
            if calls and backend == "llama_cpp" and not result.tool_calls:
                message = {**message, "content": None, "tool_calls": CALLS}
            messages.append(message)
            messages += answers_to(message) if calls else [{"role": "user", "content": "And now?"}]
    assert [message["role"] for message in messages].count("assistant") == 5


def answers_to(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results of the calls of a message, of which there is at least one."""
    assert message["tool_calls"]
    for call in message["tool_calls"]:
        assert call["function"]["name"] == "look"
        assert orjson.loads(call["function"]["arguments"])["at"] in NAMES["enum"]
    return [{"role": "tool", "tool_call_id": call["id"], "content": "blue"} for call in message["tool_calls"]]
