"""The OpenAI worker against a scripted server, for what no real one here can be made to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, ClassVar

import pytest

from tests.contracts.openai_server import OpenAIServer
from tests.contracts.openai_wire import CHAT, PROMPT, delta, make
from tests.contracts.wire import (
    DONE,
    FakeServer,
    answer,
    error_of,
    event,
    listening,
    outputs_of,
    stream,
    unused_url,
    write_chunk,
)
from workers import (
    Completed,
    ContextOverflow,
    EndpointConfig,
    Generation,
    GenerationWorker,
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
    WorkerUnavailable,
)
from workers.contract import GenerationContract, collect
from workers.openai import OpenAIWorker

KEY = {"OPENAI_API_KEY": "sk-secret"}


def text(index: int, said: object, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "text": said, "finish_reason": finish_reason}
    return {"model": "gpt-1", "choices": [choice], **more}


class TestOpenAIWorker(GenerationContract):
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    async def worker(self) -> AsyncIterator[GenerationWorker]:
        async with listening(OpenAIServer()) as self.server:
            worker = make(self.server, options=self.options)
            yield worker
            await worker.aclose()

    @pytest.fixture
    def unreachable_worker(self) -> GenerationWorker:
        return OpenAIWorker(EndpointConfig("openai", unused_url()))

    @pytest.fixture
    def silent_worker(self, silent_url: str) -> GenerationWorker:
        return OpenAIWorker(EndpointConfig("openai", silent_url, timeout_s=0.5))

    def refused(self) -> Generation:
        return self.generation(params={"temperature": "hot"})

    async def generating(self, worker: GenerationWorker) -> int:
        return self.server.generating


class TestOpenAIWorkerWithCompletions(TestOpenAIWorker):
    options: ClassVar[dict[str, Any]] = {"completions": True}


# What is asked


async def test_chat_request_has_what_was_asked(server: FakeServer, worker: OpenAIWorker) -> None:
    server.script = stream(delta("stop"), DONE)
    tools = ({"type": "function", "function": {"name": "f"}},)
    chat = Generation(
        "gpt",
        messages=CHAT.messages,
        params={"max_tokens": 7, "temperature": 0.5},
        tools=tools,
        tool_choice={"type": "function", "function": {"name": "f"}},
        response_format={"type": "json_object"},
        extra_body={"reasoning_effort": "low"},
        request_id="job-1",
        stream=False,
    )
    await outputs_of(worker, chat)
    assert server.paths == ["/v1/chat/completions"]
    assert "x-client-request-id: job-1" in server.headers[0]
    assert server.bodies == [
        {
            "model": "gpt",
            "messages": [{"role": "user", "content": "hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "tools": list(tools),
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "response_format": {"type": "json_object"},
            "max_tokens": 7,
            "temperature": 0.5,
            "reasoning_effort": "low",
        }
    ]


async def test_what_is_anthropics_alone_stays_out_of_messages(
    server: FakeServer, worker: OpenAIWorker
) -> None:
    server.script = stream(delta("stop", content="ok"), DONE)
    failed = {"role": "tool", "tool_call_id": "t1", "content": "no"}
    marked = {**failed, "is_error": True, "cache_control": {"type": "ephemeral"}}
    asked = {"role": "user", "content": "hello"}
    await outputs_of(worker, Generation("gpt", messages=(asked, marked)))
    assert server.bodies[0]["messages"] == [asked, failed]


async def test_plain_prompt_is_a_chat_with_one_message(server: FakeServer, worker: OpenAIWorker) -> None:
    server.script = stream(delta(content="hi"), delta("stop"), DONE)
    assert await outputs_of(worker, PROMPT) == [Piece(0, "hi"), Completed(0, "stop", model="gpt-1")]
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "hello"}]


async def test_plain_prompt_is_a_legacy_completion_by_option(server: FakeServer) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    server.script = stream(text(0, "a"), text(0, "b", "length"), {"choices": [], "usage": usage}, DONE)
    worker = make(server, options={"completions": True})
    prompt = Generation("gpt", prompt="hello", params={"max_tokens": 2})
    assert await outputs_of(worker, prompt) == [
        Piece(0, "a"),
        Piece(0, "b"),
        Completed(0, "length", TokenUsage(1, 2), "gpt-1"),
    ]
    assert server.paths == ["/v1/completions"]
    assert server.bodies == [
        {
            "model": "gpt",
            "prompt": "hello",
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 2,
        }
    ]
    await worker.aclose()


async def test_list_of_prompts_is_one_call_by_option(server: FakeServer) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    sum_of_all = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 9}}
    server.script = stream(
        text(1, "b", "stop", usage=usage), text(0, "a"), text(0, "", "stop"), sum_of_all, DONE
    )
    worker = make(server, options={"completions": True, "lists": True})
    assert worker.capabilities.lists
    assert await outputs_of(worker, PROMPT, PROMPT) == [
        Piece(1, "b"),
        Completed(1, "stop", TokenUsage(1, 2), "gpt-1"),
        Piece(0, "a"),
        Completed(0, "stop", TokenUsage(), "gpt-1"),
    ]
    assert server.bodies[0]["prompt"] == ["hello", "hello"]
    await worker.aclose()


async def test_tools_for_a_legacy_completion_are_refused(server: FakeServer) -> None:
    worker = make(server, options={"completions": True})
    error = await error_of(worker, Generation("gpt", prompt="a", tools=({"type": "function"},)))
    assert "give messages" in str(error)
    await worker.aclose()


async def test_two_chats_in_one_call_are_a_programming_error(worker: OpenAIWorker) -> None:
    with pytest.raises(ValueError, match="one chat in a call"):
        worker.generate([CHAT, CHAT])


@pytest.mark.parametrize("name", ["model", "messages", "stream", "stream_options"])
async def test_extra_body_may_not_replace_what_the_request_is(worker: OpenAIWorker, name: str) -> None:
    error = await error_of(worker, Generation("gpt", prompt="a", extra_body={name: False}))
    assert type(error) is RequestRejected
    assert f"extra_body.{name}" in str(error)


@pytest.mark.parametrize("request_id", ["", "line\nend", "ümlaut", "x" * 513])
async def test_request_id_that_can_stand_in_no_header_is_left_out(
    server: FakeServer, worker: OpenAIWorker, request_id: str
) -> None:
    server.script = stream(delta("stop"), DONE)
    await outputs_of(worker, Generation("gpt", prompt="a", request_id=request_id))
    assert "x-client-request-id" not in server.headers[0]


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
async def test_base_url_works_with_and_without_v1(server: FakeServer, path: str) -> None:
    server.script = answer(200, {"data": [{"id": "gpt"}]})
    worker = OpenAIWorker(EndpointConfig("openai", server.base_url + path))
    assert (await worker.health()).models == ("gpt",)
    assert server.paths == ["/v1/models"]
    await worker.aclose()


async def test_base_url_with_a_path_is_taken_as_it_is(server: FakeServer) -> None:
    server.script = answer(200, {"data": []})
    worker = OpenAIWorker(EndpointConfig("openai", server.base_url + "/v1beta/openai/"))
    assert (await worker.health()).ready
    assert server.paths == ["/v1beta/openai/models"]
    await worker.aclose()


async def test_key_and_account_come_from_the_sdks_variables(server: FakeServer) -> None:
    server.script = stream(delta("stop"), DONE)
    environ = {
        **KEY,
        "OPENAI_ORG_ID": "org-1",
        "OPENAI_PROJECT_ID": "proj-1",
        "OPENAI_BASE_URL": f"{server.base_url}/v1",
    }
    worker = OpenAIWorker(EndpointConfig("openai", environ=environ))
    await outputs_of(worker, CHAT)
    head = server.headers[0]
    assert "authorization: bearer sk-secret" in head
    assert "openai-organization: org-1" in head
    assert "openai-project: proj-1" in head
    await worker.aclose()


async def test_settings_go_before_the_environment(server: FakeServer) -> None:
    server.script = stream(delta("stop"), DONE)
    environ = {**KEY, "OPENAI_ORG_ID": "org-1", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
    worker = make(
        server, api_key="sk-mine", environ=environ, options={"organization": "org-2", "project": "proj-2"}
    )
    await outputs_of(worker, CHAT)
    head = server.headers[0]
    assert "authorization: bearer sk-mine" in head
    assert "openai-organization: org-2" in head
    assert "openai-project: proj-2" in head
    await worker.aclose()


# What comes back


async def test_reasoning_text_tool_calls_and_usage_come_in_one_shape(
    server: FakeServer, worker: OpenAIWorker
) -> None:
    opening = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "f", "arguments": ""}}
    rest = {"index": 0, "function": {"arguments": "{}"}}
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    server.script = stream(
        {"choices": [], "prompt_filter_results": []},
        delta(role="assistant", content=""),
        delta(reasoning="h"),
        delta(reasoning_content="m"),
        delta(content="ok"),
        {"object": "chat.completion.something_new"},
        delta(tool_calls=[opening]),
        delta(tool_calls=[rest]),
        delta("tool_calls"),
        {"model": "gpt-1", "choices": [], "usage": usage},
        DONE,
    )
    assert await outputs_of(worker, CHAT) == [
        Piece(0, reasoning="h"),
        Piece(0, reasoning="m"),
        Piece(0, "ok"),
        Piece(0, tool_calls=(opening,)),
        Piece(0, tool_calls=(rest,)),
        Completed(0, "tool_calls", TokenUsage(9, 4, 8, 3), "gpt-1"),
    ]


@pytest.mark.parametrize(
    ("content", "reason", "expected"),
    [
        ({}, "stop", "stop"),
        ({}, "length", "length"),
        ({}, "model_length", "length"),
        ({}, "content_filter", "content_filter"),
        ({}, "function_call", "tool_calls"),
        ({}, "something_new", "unknown"),
        ({"tool_calls": [{"index": 0}]}, "stop", "tool_calls"),
        ({"tool_calls": [{"index": 0}]}, "length", "length"),
        ({"refusal": "I cannot."}, "stop", "content_filter"),
    ],
)
async def test_finish_reasons_come_in_one_shape(
    server: FakeServer, worker: OpenAIWorker, content: dict[str, Any], reason: str, expected: str
) -> None:
    server.script = stream(delta(**content), delta(reason), DONE)
    assert (await outputs_of(worker, CHAT))[-1].finish_reason == expected


async def test_refusal_is_text(server: FakeServer, worker: OpenAIWorker) -> None:
    server.script = stream(delta(refusal="I can"), delta(refusal="not."), delta("stop"), DONE)
    (got,) = await collect(worker, [CHAT])
    assert got.text == "I cannot."


@pytest.mark.parametrize("reason", ["abort", "error", "insufficient_system_resource"])
async def test_answer_that_the_engine_gave_up_is_a_retryable_failure(
    server: FakeServer, worker: OpenAIWorker, reason: str
) -> None:
    server.script = stream(delta(content="a"), delta(reason), DONE)
    failed = (await outputs_of(worker, CHAT))[-1]
    assert isinstance(failed, MemberFailed)
    assert type(failed.error) is WorkerUnavailable
    assert reason in str(failed.error)


async def test_character_split_over_reads_is_put_together(server: FakeServer, worker: OpenAIWorker) -> None:
    wire = event(delta(content="grün 🌱")) + event(delta("stop")) + DONE
    server.script = stream(*(wire[at : at + 1] for at in range(len(wire))))
    (got,) = await collect(worker, [CHAT])
    assert got.text == "grün 🌱"


# What goes wrong


@pytest.mark.parametrize(
    ("headers", "low_s", "high_s"),
    [
        (["Retry-After: 7"], 7, 7),
        (["Retry-After: 7", "retry-after-ms: 1500"], 1.5, 1.5),
        (
            [f"Retry-After: {format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True)}"],
            80_000,
            86_400,
        ),
    ],
    ids=["seconds", "milliseconds", "date"],
)
async def test_rate_limit_is_overloaded_and_its_wait_is_kept(
    server: FakeServer, worker: OpenAIWorker, headers: list[str], low_s: float, high_s: float
) -> None:
    message = "Rate limit reached for gpt in organization org-1 on tokens per min (TPM)"
    error = {"message": message, "type": "tokens", "param": None, "code": "rate_limit_exceeded"}
    server.script = answer(429, {"error": error}, *headers)
    caught = await error_of(worker, CHAT)
    assert type(caught) is WorkerOverloaded
    assert message in str(caught)
    assert caught.retry_after_s is not None
    assert low_s <= caught.retry_after_s <= high_s


async def test_used_up_quota_is_final_although_it_is_a_429(server: FakeServer, worker: OpenAIWorker) -> None:
    message = "You exceeded your current quota, please check your plan and billing details."
    error = {"message": message, "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}
    server.script = answer(429, {"error": error})
    caught = await error_of(worker, CHAT)
    assert type(caught) is WorkerAuthError
    assert message in str(caught)
    assert "api_key_env" not in str(caught)


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (400, {"code": "context_length_exceeded", "message": "too long"}, ContextOverflow),
        (400, {"type": "invalid_request_error", "message": "no"}, RequestRejected),
        (400, {"code": "content_policy_violation", "message": "no"}, RequestRejected),
        (401, {"type": "invalid_request_error", "code": "invalid_api_key", "message": "no"}, WorkerAuthError),
        (402, {"message": "Insufficient Balance"}, WorkerAuthError),
        (403, {"code": "unsupported_country_region_territory", "message": "no"}, WorkerAuthError),
        (404, {"code": "model_not_found", "message": "no such model"}, ModelNotFound),
        (409, {"message": "lock"}, WorkerUnavailable),
        (500, {"type": "server_error", "message": "oops"}, WorkerFailed),
        (503, {"type": "server_error", "message": "overloaded"}, WorkerOverloaded),
    ],
)
async def test_status_and_kind_decide_the_error(
    server: FakeServer,
    worker: OpenAIWorker,
    status: int,
    error: dict[str, Any],
    expected: type[WorkerError],
) -> None:
    server.script = answer(status, {"error": error})
    caught = await error_of(worker, CHAT)
    assert type(caught) is expected
    assert error["message"] in str(caught)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"type": "server_error", "message": "The server had an error"}, WorkerFailed),
        ({"type": "requests", "code": "rate_limit_exceeded", "message": "slow down"}, WorkerOverloaded),
        ({"type": "invalid_request_error", "message": "no"}, RequestRejected),
        ({"code": 429, "message": "upstream is busy"}, WorkerOverloaded),
        ({"code": "context_length_exceeded", "message": "too long"}, ContextOverflow),
    ],
)
async def test_error_inside_the_stream_is_classed_by_its_kind(
    server: FakeServer, worker: OpenAIWorker, error: dict[str, Any], expected: type[WorkerError]
) -> None:
    server.script = stream(delta(content="a"), {"error": error}, DONE)
    caught = await error_of(worker, CHAT)
    assert type(caught) is expected
    assert error["message"] in str(caught)


@pytest.mark.parametrize("end", [True, False])
async def test_stream_without_a_finish_reason_is_a_retryable_protocol_error(
    server: FakeServer, worker: OpenAIWorker, end: bool
) -> None:
    server.script = stream(delta(content="a"), end=end)
    caught = await error_of(worker, CHAT)
    assert type(caught) is WorkerProtocolError
    assert caught.retryable


@pytest.mark.parametrize(
    "garbage",
    [
        b"data: {not json\n\n",
        {"choices": 5},
        {"choices": [{}]},
        {"choices": [{"delta": {}, "finish_reason": []}]},
        {"choices": [], "usage": 5},
        delta(content=True),
        delta(refusal=True),
        delta(tool_calls=["f"]),
    ],
)
async def test_garbage_in_a_chat_is_a_protocol_error(
    server: FakeServer, worker: OpenAIWorker, garbage: Any
) -> None:
    server.script = stream(garbage, DONE)
    assert type(await error_of(worker, CHAT)) is WorkerProtocolError


@pytest.mark.parametrize(
    "garbage",
    [{"choices": 5}, {"choices": [{}]}, text(1, "a"), text(0, True), {"choices": [{"index": []}]}],
)
async def test_garbage_in_a_completion_is_a_protocol_error(server: FakeServer, garbage: Any) -> None:
    server.script = stream(garbage, DONE)
    worker = make(server, options={"completions": True})
    assert type(await error_of(worker, PROMPT)) is WorkerProtocolError
    await worker.aclose()


async def test_slow_drip_of_empty_deltas_is_no_first_token(server: FakeServer) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        await stream(end=False)(writer)
        while True:
            write_chunk(writer, delta(role="assistant", content=""))
            await writer.drain()
            await asyncio.sleep(0.005)

    server.script = drip
    worker = make(server, first_token_timeout_s=0.2)
    caught = await error_of(worker, CHAT)
    assert type(caught) is WorkerTimeout
    assert "first_token_timeout_s = 0.2" in str(caught)
    await worker.aclose()


async def test_key_is_in_no_message(server: FakeServer) -> None:
    server.script = answer(401, {"error": {"message": "Incorrect API key provided: sk-secret."}})
    worker = make(server, environ=KEY)
    caught = await error_of(worker, CHAT)
    assert type(caught) is WorkerAuthError
    assert "sk-secret" not in str(caught)
    health = await worker.health()
    assert not health.ready
    assert "sk-secret" not in health.detail
    await worker.aclose()


async def test_server_without_a_list_of_models_is_ready(server: FakeServer, worker: OpenAIWorker) -> None:
    server.script = answer(404, {"detail": "Not Found"})
    health = await worker.health()
    assert health.ready
    assert health.models == ()


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({}, "OPENAI_API_KEY"),
        ({"base_url": "https://api.openai.com"}, "OPENAI_API_KEY"),
        ({"base_url": "https://eu.api.openai.com/v1"}, "OPENAI_API_KEY"),
        ({"environ": {"OPENAI_BASE_URL": "nonsense"}}, "base_url"),
        ({"environ": {"OPENAI_API_KEY": "sk-secret\n"}}, "api_key"),
        ({"environ": KEY, "options": {"completion": True}}, "did you mean completions"),
        ({"environ": KEY, "options": {"completions": "yes"}}, "options.completions"),
        ({"environ": KEY, "options": {"lists": True}}, "options.lists"),
        ({"environ": KEY, "options": {"project": 7}}, "options.project"),
    ],
)
def test_wrong_configuration_is_named_and_no_secret_shown(config: dict[str, Any], named: str) -> None:
    with pytest.raises(WorkerConfigError, match=named) as caught:
        OpenAIWorker(EndpointConfig("openai", **config))
    assert "sk-secret" not in str(caught.value)
