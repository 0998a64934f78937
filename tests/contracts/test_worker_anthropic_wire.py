"""The Anthropic worker against a scripted server, for what no real one here can be made to do."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.contracts.wire import DONE, FakeServer, answer, error_of, outputs_of, stream
from workers import (
    Completed,
    ContextOverflow,
    EndpointConfig,
    Generation,
    MemberFailed,
    ModelNotFound,
    Piece,
    RequestRejected,
    TokenUsage,
    WorkerAuthError,
    WorkerConfigError,
    WorkerError,
    WorkerFailed,
    WorkerOverloaded,
    WorkerProtocolError,
    WorkerTimeout,
)
from workers.anthropic import AnthropicWorker
from workers.anthropic_answer import MessageReader

PROMPT = Generation("claude", prompt="Why?")
TOOL = {"type": "function", "function": {"name": "sky", "description": "d", "parameters": {"type": "object"}}}


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
            {"type": "content_block_stop", "index": 3},
            block(4, "tool_use", id="t3", name="air", input={}),
            {"type": "something_new", "index": 9},
            reason="tool_use",
        )
    )
    usage = TokenUsage(input_tokens=10, output_tokens=7, cached_tokens=3, cache_write_tokens=2)
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    first = {"index": 0, "id": "t1", "type": "function", "function": {"name": "sky", "arguments": ""}}
    second = {"index": 1, "id": "t2", "type": "function", "function": {"name": "sea", "arguments": ""}}
    third = {"index": 2, "id": "t3", "type": "function", "function": {"name": "air", "arguments": ""}}
    assert await outputs_of(worker, PROMPT) == [
        Piece(0, reasoning="Hm."),
        Piece(0, extra={"thinking_blocks": [thought]}),
        Piece(0, "Ray"),
        Piece(0, "leigh"),
        Piece(0, tool_calls=(first,)),
        Piece(0, tool_calls=({"index": 0, "function": {"arguments": '{"a":'}},)),
        Piece(0, tool_calls=({"index": 0, "function": {"arguments": "1}"}},)),
        Piece(0, tool_calls=(second,)),
        Piece(0, tool_calls=({"index": 1, "function": {"arguments": '{"b":2}'}},)),
        Piece(0, tool_calls=(third,)),
        Piece(0, tool_calls=({"index": 2, "function": {"arguments": "{}"}},)),
        Completed(0, "tool_calls", usage, "claude-1", "tool_use"),
    ]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("MAX_TOKENS", "length"),
        ("refusal", "content_filter"),
        ("sensitive", "content_filter"),
        ("something_new", "unknown"),
        ({"type": "max_tokens"}, "length"),
        (None, "unknown"),
    ],
)
async def test_finish_reasons_are_openais(
    server: FakeServer, worker: AnthropicWorker, theirs: Any, ours: str
) -> None:
    server.script = stream(*said(reason=theirs))
    (end,) = await outputs_of(worker, PROMPT)
    assert isinstance(end, Completed)
    assert end.finish_reason == ours


async def test_calls_of_tools_end_with_that_reason_whatever_the_server_says(
    server: FakeServer, worker: AnthropicWorker
) -> None:
    server.script = stream(*said(block(0, "tool_use", id="t1", name="sky", input={})))
    *_, end = await outputs_of(worker, PROMPT)
    assert end.finish_reason == "tool_calls"


async def test_a_call_that_was_cut_before_its_arguments_has_none(
    server: FakeServer, worker: AnthropicWorker
) -> None:
    call = block(0, "tool_use", id="t1", name="sky", input={})
    server.script = stream(*said(call, {"type": "content_block_stop", "index": 0}, reason="max_tokens"))
    piece, end = await outputs_of(worker, PROMPT)
    assert piece.tool_calls[0]["function"]["arguments"] == ""
    assert end.finish_reason == "length"


async def test_an_answer_that_the_engine_gave_up_is_a_retryable_failure(
    server: FakeServer, worker: AnthropicWorker
) -> None:
    server.script = stream(*said(delta(0, "text_delta", text="half"), reason="error"))
    *_, end = await outputs_of(worker, PROMPT)
    assert isinstance(end, MemberFailed)
    assert end.error.retryable


async def test_input_that_comes_with_its_block_and_again_in_deltas_counts_once(
    server: FakeServer, worker: AnthropicWorker
) -> None:
    server.script = stream(
        *said(
            block(0, "tool_use", id="t1", name="sky", input={"a": 1}),
            delta(0, "input_json_delta", partial_json='{"a":1}'),
            {"type": "content_block_stop", "index": 0},
        )
    )
    outputs = await outputs_of(worker, PROMPT)
    calls = [call for output in outputs[:-1] for call in output.tool_calls]
    assert "".join(call["function"]["arguments"] for call in calls) == '{"a":1}'


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("server_tool_use", {"id": "s1", "name": "web_search", "input": {}}),
        ("mcp_tool_use", {"id": "m1", "name": "find", "server_name": "x", "input": {}}),
        ("web_search_tool_result", {"tool_use_id": "s1", "content": [{"type": "web_search_result"}]}),
        ("mcp_tool_result", {"tool_use_id": "m1", "is_error": False, "content": [{"text": "found"}]}),
        ("code_execution_tool_result", {"tool_use_id": "s1", "content": {"stdout": "1"}}),
        ("redacted_thinking", {"data": "x"}),
        ("something_new", {"text": {"of": "its own"}}),
    ],
)
async def test_blocks_that_openais_form_does_not_have_are_kept_as_they_came(
    server: FakeServer, worker: AnthropicWorker, kind: str, content: dict[str, Any]
) -> None:
    server.script = stream(
        *said(
            block(0, kind, **content),
            delta(0, "input_json_delta", partial_json='{"query":'),
            delta(0, "something_new_delta", text={"of": "its own"}),
            {"type": "content_block_stop", "index": 0},
            block(1, "text", text=""),
            delta(1, "citations_delta", citation={"url": "https://example.org"}),
            delta(1, "text_delta", text="ok"),
            block(2, "tool_use", id="t1", name="sky", input={}),
            delta(2, "input_json_delta", partial_json="{}"),
        )
    )
    *thoughts, text, call, arguments, kept, _ = await outputs_of(worker, PROMPT)
    assert text == Piece(0, "ok")
    assert len(thoughts) == (kind == "redacted_thinking")
    blocks = kept.extra["content_blocks"]
    assert [block["type"] for block in blocks] == [kind, "text", "tool_use"]
    assert blocks[1] == {"type": "text", "text": "ok", "citations": [{"url": "https://example.org"}]}
    assert blocks[2] == {"type": "tool_use", "id": "t1", "name": "sky", "input": {}}
    assert call.tool_calls[0]["index"] == arguments.tool_calls[0]["index"] == 0


@pytest.mark.parametrize(
    ("first", "last", "usage"),
    [
        ({"input_tokens": 5, "output_tokens": 1}, {"output_tokens": 7}, TokenUsage(5, 7)),
        ({"input_tokens": 0, "output_tokens": 0}, {"input_tokens": 5, "output_tokens": 7}, TokenUsage(5, 7)),
        ({"input_tokens": 5}, {"input_tokens": 0, "output_tokens": 7}, TokenUsage(5, 7)),
        (
            {"input_tokens": 5, "output_tokens": 7},
            {"input_tokens": None, "output_tokens": 0},
            TokenUsage(5, 7),
        ),
        (
            {"input_tokens": 5, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2},
            {"output_tokens": 7, "cache_read_input_tokens": 0, "cache_creation_input_tokens": None},
            TokenUsage(10, 7, 3, cache_write_tokens=2),
        ),
        (
            {"input_tokens": 0},
            {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 7},
            TokenUsage(8, 7, 3),
        ),
        ({"input_tokens": -1, "output_tokens": 2**63}, {"output_tokens": True}, TokenUsage()),
        (None, None, TokenUsage()),
        ([], "many", TokenUsage()),
    ],
)
async def test_counts_that_come_late_or_as_nothing_leave_right_ones_alone(
    server: FakeServer, worker: AnthropicWorker, first: Any, last: Any, usage: TokenUsage
) -> None:
    server.script = stream(
        {"type": "message_start", "message": {"model": "claude-1", "usage": first}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": last},
        {"type": "message_stop"},
    )
    assert await outputs_of(worker, PROMPT) == [Completed(0, "stop", usage, "claude-1", "end_turn")]


async def test_an_answer_that_is_said_to_be_done_needs_no_reason(
    server: FakeServer, worker: AnthropicWorker
) -> None:
    server.script = stream(*said(delta(0, "text_delta", text="ok"), end=False), DONE)
    piece, end = await outputs_of(worker, PROMPT)
    assert (piece.text, end.finish_reason) == ("ok", "unknown")
    server.script = stream(*said(end=False), DONE)
    assert type(await error_of(worker, PROMPT)) is WorkerProtocolError


async def test_an_answer_that_gave_its_reason_needs_no_message_stop(
    server: FakeServer, worker: AnthropicWorker
) -> None:
    text = delta(0, "text_delta", text="ok")
    server.script = stream(*said(block(0, "text", text=""), text)[:-1])
    piece, end = await outputs_of(worker, PROMPT)
    assert (piece.text, end.finish_reason) == ("ok", "stop")


async def test_what_a_compatible_server_leaves_out_is_no_error(
    server: FakeServer, worker: AnthropicWorker
) -> None:
    server.script = stream(
        {"type": "message_start", "message": None},
        {"type": "content_block_delta", "index": 0, "delta": None},
        {"type": "content_block_delta", "index": 0, "delta": {"text": "ok"}},
        {"type": "message_delta", "delta": None},
        {"type": "message_stop"},
    )
    assert await outputs_of(worker, PROMPT) == [Piece(0, "ok"), Completed(0, "unknown")]


def test_a_whole_message_is_read_like_its_stream() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "sky", "input": {"a": 1}}
    content = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "ok"}, call]
    reader = MessageReader()
    outputs = reader.read(
        {
            "type": "message",
            "model": "claude-1",
            "content": content,
            "stop_reason": "tool_use",
            "usage": {"input_tokens": 5, "output_tokens": 7},
        }
    )
    thought = {"type": "thinking", "thinking": "Hm."}
    assert outputs[:3] == (
        Piece(0, reasoning="Hm."),
        Piece(0, extra={"thinking_blocks": [thought]}),
        Piece(0, "ok"),
    )
    assert outputs[4] == Piece(0, tool_calls=({"index": 0, "function": {"arguments": '{"a":1}'}},))
    assert outputs[-1] == Completed(0, "tool_calls", TokenUsage(5, 7), "claude-1", "tool_use")
    assert reader.complete


async def test_turns_and_blocks_without_content_are_left_out(
    server: FakeServer, worker: AnthropicWorker
) -> None:
    server.script = stream(*said())
    empty: Any
    for empty in ("", "  ", None, [], [{"type": "text", "text": ""}]):
        chat = (
            {"role": "system", "content": empty},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": empty},
            {"role": "user", "content": "r"},
        )
        await outputs_of(worker, Generation("claude", messages=chat))
        body = server.bodies[-1]
        assert "system" not in body
        assert body["messages"] == [
            {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]}
        ]


async def test_marks_for_errors_and_the_cache_are_kept(server: FakeServer, worker: AnthropicWorker) -> None:
    server.script = stream(*said())
    mark = {"type": "ephemeral"}
    picture = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}, "cache_control": mark}
    call = {"id": "t1", "type": "function", "function": {"name": "sky", "arguments": {"a": 1}}}
    chat = Generation(
        "claude",
        messages=(
            {"role": "system", "content": [{"type": "text", "text": "Be brief.", "cache_control": mark}]},
            {"role": "user", "content": [{"type": "text", "text": "Look"}, picture]},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "t1", "content": "", "is_error": True, "cache_control": mark},
            {"role": "user", "content": "And now?", "cache_control": mark},
        ),
        tools=({**TOOL, "cache_control": mark}, {"type": "web_search_20250305", "cache_control": mark}),
    )
    await outputs_of(worker, chat)
    body = server.bodies[0]
    assert body["system"] == [{"type": "text", "text": "Be brief.", "cache_control": mark}]
    assert [tool["cache_control"] for tool in body["tools"]] == [mark, mark]
    seen, called, answered = (message["content"] for message in body["messages"])
    assert seen[1]["cache_control"] == mark
    assert called == [{"type": "tool_use", "id": "t1", "name": "sky", "input": {"a": 1}}]
    assert answered == [
        {"type": "tool_result", "tool_use_id": "t1", "is_error": True, "cache_control": mark},
        {"type": "text", "text": "And now?", "cache_control": mark},
    ]


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
        (
            {
                "role": "assistant",
                "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": "[1]"}}],
            },
            "messages.0.tool_calls",
        ),
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
        (refusal(404, "not_found_error", "model: x"), ModelNotFound, None),
        (refusal(500, "api_error", "oops"), WorkerFailed, None),
    ],
)
async def test_refusals_have_their_classes(
    server: FakeServer, worker: AnthropicWorker, script: Any, error: type[WorkerError], wait_s: float | None
) -> None:
    server.script = script
    caught = await error_of(worker, PROMPT)
    assert type(caught) is error
    assert caught.retry_after_s == wait_s


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("overloaded_error", WorkerOverloaded),
        ("rate_limit_error", WorkerOverloaded),
        ("api_error", WorkerFailed),
        ("timeout_error", WorkerTimeout),
        ("authentication_error", WorkerAuthError),
        ("billing_error", WorkerAuthError),
        ("permission_error", WorkerAuthError),
        ("invalid_request_error", RequestRejected),
        ("not_found_error", ModelNotFound),
        ("request_too_large", ContextOverflow),
    ],
)
async def test_error_inside_the_stream_has_the_class_of_its_kind(
    server: FakeServer, worker: AnthropicWorker, kind: str, error: type[WorkerError]
) -> None:
    event = {"type": "error", "error": {"type": kind, "message": "words"}}
    server.script = stream(*said(delta(0, "text_delta", text="half"), event, end=False))
    assert type(await error_of(worker, PROMPT)) is error


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


async def test_error_inside_the_stream_without_an_object_of_its_own_is_one(
    server: FakeServer, worker: AnthropicWorker
) -> None:
    server.script = stream(
        *said(delta(0, "text_delta", text="half"), end=False), {"type": "error", "message": "x"}
    )
    assert "x" in str(await error_of(worker, PROMPT))


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
