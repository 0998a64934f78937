"""The Anthropic worker against a scripted server, for what no real one here can be made to do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from tests.contracts.wire import FakeServer, answer, error_of, listening, outputs_of, stream
from workers import (
    Completed,
    ContextOverflow,
    EndpointConfig,
    Generation,
    Piece,
    RequestRejected,
    TokenUsage,
    WorkerAuthError,
    WorkerConfigError,
    WorkerError,
    WorkerOverloaded,
    WorkerProtocolError,
    WorkerUnavailable,
)
from workers.anthropic import AnthropicWorker

PROMPT = Generation("claude", prompt="Why?")
TOOL = {"type": "function", "function": {"name": "sky", "description": "d", "parameters": {"type": "object"}}}


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with listening(FakeServer()) as fake:
        yield fake


@pytest.fixture
async def worker(server: FakeServer) -> AsyncIterator[AnthropicWorker]:
    worker = make(server)
    yield worker
    await worker.aclose()


def make(server: FakeServer, **config: Any) -> AnthropicWorker:
    return AnthropicWorker(EndpointConfig("anthropic", server.base_url, **config))


def said(*events: dict[str, Any], reason: str | None = "end_turn", end: bool = True) -> list[dict[str, Any]]:
    usage = {"input_tokens": 5, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2}
    start = {
        "type": "message_start",
        "message": {"model": "claude-1", "usage": {**usage, "output_tokens": 1}},
    }
    stop = {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 7}}
    last: list[dict[str, Any]] = [stop, {"type": "message_stop"}] if end else []
    return [start, {"type": "ping"}, *events, *last]


def block(index: int, kind: str, **content: Any) -> dict[str, Any]:
    content_block = {"type": kind, **content}
    return {"type": "content_block_start", "index": index, "content_block": content_block}


def delta(index: int, kind: str, **content: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **content}}


async def test_answer_is_put_together_with_thinking_tools_and_usage(
    server: FakeServer, worker: AnthropicWorker
) -> None:
    server.script = stream(
        *said(
            block(0, "thinking", thinking=""),
            delta(0, "thinking_delta", thinking="Hm."),
            delta(0, "signature_delta", signature="x"),
            {"type": "content_block_stop", "index": 0},
            block(1, "text", text=""),
            delta(1, "text_delta", text="Ray"),
            delta(1, "text_delta", text="leigh"),
            block(2, "tool_use", id="t1", name="sky", input={}),
            delta(2, "input_json_delta", partial_json=""),
            delta(2, "input_json_delta", partial_json='{"a":'),
            delta(2, "input_json_delta", partial_json="1}"),
            block(3, "tool_use", id="t2", name="sea", input={"b": 2}),
            {"type": "something_new", "index": 9},
            reason="tool_use",
        )
    )
    usage = TokenUsage(input_tokens=10, output_tokens=7, cached_tokens=3)
    first = {"index": 0, "id": "t1", "type": "function", "function": {"name": "sky", "arguments": ""}}
    other = {"index": 1, "id": "t2", "type": "function", "function": {"name": "sea", "arguments": '{"b":2}'}}
    assert await outputs_of(worker, PROMPT) == [
        Piece(0, reasoning="Hm."),
        Piece(0, "Ray"),
        Piece(0, "leigh"),
        Piece(0, tool_calls=(first,)),
        Piece(0, tool_calls=({"index": 0, "function": {"arguments": '{"a":'}},)),
        Piece(0, tool_calls=({"index": 0, "function": {"arguments": "1}"}},)),
        Piece(0, tool_calls=(other,)),
        Completed(0, "tool_calls", usage, "claude-1"),
    ]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        (None, "stop"),
    ],
)
async def test_finish_reasons_are_openais(
    server: FakeServer, worker: AnthropicWorker, theirs: str | None, ours: str
) -> None:
    server.script = stream(*said(reason=theirs))
    (end,) = await outputs_of(worker, PROMPT)
    assert isinstance(end, Completed)
    assert end.finish_reason == ours


async def test_chat_is_translated(server: FakeServer, worker: AnthropicWorker) -> None:
    server.script = stream(*said())
    call = {"id": "t1", "type": "function", "function": {"name": "sky", "arguments": '{"a": 1}'}}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    link = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    chat = Generation(
        "claude",
        messages=(
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Look"}, picture, link]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "t1", "content": "blue"},
            {"role": "user", "content": "And now?"},
        ),
        params={"max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "stop": "END"},
        tools=(TOOL,),
        tool_choice="required",
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
        extra_body={"service_tier": "auto"},
    )
    await outputs_of(worker, chat)
    assert server.paths == ["/v1/messages"]
    assert "anthropic-version: 2023-06-01" in server.headers[0]
    assert server.bodies[0] == {
        "model": "claude",
        "stream": True,
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"},
                    },
                    {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t1", "name": "sky", "input": {"a": 1}}],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "content": [{"type": "text", "text": "blue"}],
                    },
                    {"type": "text", "text": "And now?"},
                ],
            },
        ],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "stop_sequences": ["END"],
        "tools": [{"name": "sky", "description": "d", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any"},
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        "service_tier": "auto",
    }


@pytest.mark.parametrize(
    ("choice", "theirs"),
    [
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ({"type": "function", "function": {"name": "sky"}}, {"type": "tool", "name": "sky"}),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            {"type": "auto", "disable_parallel_tool_use": True},
        ),
    ],
)
async def test_tool_choice_is_translated(
    server: FakeServer, worker: AnthropicWorker, choice: Any, theirs: dict[str, Any]
) -> None:
    server.script = stream(*said())
    await outputs_of(worker, Generation("claude", prompt="a", tools=(TOOL,), tool_choice=choice))
    assert server.bodies[0]["tool_choice"] == theirs


async def test_plain_prompt_is_the_users_message_with_a_limit(server: FakeServer) -> None:
    server.script = stream(*said())
    worker = make(server, model="own", options={"max_tokens": 77, "beta": "x-1"}, api_key="secret")
    await outputs_of(worker, PROMPT)
    assert server.bodies == [
        {
            "model": "own",
            "max_tokens": 77,
            "stream": True,
            "messages": [{"role": "user", "content": "Why?"}],
        }
    ]
    assert "x-api-key: secret" in server.headers[0]
    assert "anthropic-beta: x-1" in server.headers[0]
    await worker.aclose()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"params": {"seed": 1}}, "params.seed"),
        ({"extra_body": {"system": "x"}}, "extra_body.system"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function.name"),
        ({"tools": ({"type": "function", "function": {}},)}, "tools.0.function.name"),
    ],
)
async def test_what_the_api_does_not_have_is_refused_by_name(
    worker: AnthropicWorker, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(RequestRejected) as caught:
        await outputs_of(worker, Generation("claude", prompt="a", **changes))
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user", "content": 5}, "messages.0.content"),
        ({"role": "user", "content": ["x"]}, "messages.0.content.0"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.0.content.0.image_url.url"),
        ({"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]}, "messages.0.tool_calls"),
        ({"role": "system", "content": "alone"}, "messages"),
    ],
)
async def test_message_that_cannot_be_translated_is_refused_by_name(
    worker: AnthropicWorker, message: dict[str, Any], field: str
) -> None:
    with pytest.raises(RequestRejected) as caught:
        await outputs_of(worker, Generation("claude", messages=(message,)))
    assert str(caught.value).startswith(f"{field}: ")


def refusal(status: int, kind: str, words: str, *headers: str) -> Any:
    return answer(status, {"type": "error", "error": {"type": kind, "message": words}}, *headers)


@pytest.mark.parametrize(
    ("script", "error", "wait_s"),
    [
        (refusal(529, "overloaded_error", "Overloaded"), WorkerOverloaded, None),
        (refusal(429, "rate_limit_error", "Slow down", "retry-after: 7"), WorkerOverloaded, 7.0),
        (refusal(401, "authentication_error", "invalid x-api-key"), WorkerAuthError, None),
        (refusal(403, "permission_error", "no"), WorkerAuthError, None),
        (refusal(400, "invalid_request_error", "prompt is too long: 9 > 8"), ContextOverflow, None),
        (refusal(413, "request_too_large", "too large"), ContextOverflow, None),
        (refusal(400, "invalid_request_error", "temperature: no"), RequestRejected, None),
        (refusal(404, "not_found_error", "model: x"), RequestRejected, None),
        (refusal(500, "api_error", "oops"), WorkerUnavailable, None),
    ],
)
async def test_refusals_have_their_classes(
    server: FakeServer, worker: AnthropicWorker, script: Any, error: type[WorkerError], wait_s: float | None
) -> None:
    server.script = script
    caught = await error_of(worker, PROMPT)
    assert type(caught) is error
    assert caught.retry_after_s == wait_s


async def test_overload_inside_the_stream_is_an_overload(server: FakeServer, worker: AnthropicWorker) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    server.script = stream(*said(delta(0, "text_delta", text="half"), error, end=False))
    assert type(await error_of(worker, PROMPT)) is WorkerOverloaded


@pytest.mark.parametrize(
    "events",
    [
        said(delta(0, "text_delta", text="half"), end=False),
        said(delta(0, "text_delta", text=5)),
        said(delta(4, "input_json_delta", partial_json="{}")),
        said({"type": "content_block_delta"}),
        [{"no": "type"}],
        [],
    ],
)
async def test_stream_that_is_cut_or_malformed_is_a_protocol_error(
    server: FakeServer, worker: AnthropicWorker, events: list[dict[str, Any]]
) -> None:
    server.script = stream(*events)
    assert type(await error_of(worker, PROMPT)) is WorkerProtocolError


async def test_whole_answer_comes_in_one_piece(server: FakeServer, worker: AnthropicWorker) -> None:
    server.script = stream(*said(delta(0, "text_delta", text="Ray"), delta(0, "text_delta", text="leigh")))
    piece, _ = await outputs_of(worker, Generation("claude", prompt="a", stream=False))
    assert piece == Piece(0, "Rayleigh")


# Keys and addresses


def test_anthropic_itself_needs_a_key() -> None:
    with pytest.raises(WorkerConfigError, match="ANTHROPIC_API_KEY"):
        AnthropicWorker(EndpointConfig("anthropic"))


async def test_key_and_address_come_from_the_variables_of_the_sdk(server: FakeServer) -> None:
    server.script = stream(*said())
    environ = {"ANTHROPIC_BASE_URL": f"{server.base_url}/v1", "ANTHROPIC_AUTH_TOKEN": "token"}
    worker = AnthropicWorker(EndpointConfig("anthropic", environ=environ))
    await outputs_of(worker, PROMPT)
    assert server.paths == ["/v1/messages"]
    assert "authorization: bearer token" in server.headers[0]
    await worker.aclose()


async def test_anthropics_key_is_not_given_to_others(server: FakeServer) -> None:
    server.script = stream(*said())
    worker = make(server, environ={"ANTHROPIC_API_KEY": "sk-ant"})
    await outputs_of(worker, PROMPT)
    assert "sk-ant" not in server.headers[0]
    await worker.aclose()


async def test_health_tells_models_or_why_not(server: FakeServer, worker: AnthropicWorker) -> None:
    server.script = answer(200, {"data": [{"id": "claude-1"}]})
    assert (await worker.health()).models == ("claude-1",)
    server.script = answer(404, orjson.dumps({}))
    assert (await worker.health()).ready
    server.script = refusal(401, "authentication_error", "invalid x-api-key")
    health = await worker.health()
    assert not health.ready
    assert "invalid x-api-key" in health.detail
