"""The vLLM worker against a scripted server, for what the real one cannot be made to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from tests.contracts.openai_server import OpenAIServer
from tests.contracts.vllm_scheduler import SchedulingServer, scheduling
from tests.contracts.wire import (
    DONE,
    FakeServer,
    Request,
    answer,
    error_of,
    event,
    listening,
    outputs_of,
    stream,
    unused_url,
)
from tests.patience import SOON_S
from workers import (
    Completed,
    ContextOverflow,
    EndpointConfig,
    Generation,
    GenerationWorker,
    Load,
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
    WorkerUnavailable,
)
from workers.contract import GenerationContract, collect, start
from workers.vllm import NO_PRIORITIES, NO_TOOLS, VllmWorker

PROMPT = Generation("tiny", prompt="hello")
CHAT = Generation("tiny", messages=({"role": "user", "content": "hello"},))
METRICS = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny"} 2.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 1.0
vllm:num_requests_waiting{engine="1",model_name="tiny"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 1.0
"""


@pytest.fixture(autouse=True)
def _trials_have_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.vllm_priority.TRIAL_TIMEOUT_S", SOON_S)


def make(server: FakeServer, **config: Any) -> VllmWorker:
    return VllmWorker(EndpointConfig("vllm", server.base_url, **config))


def text(index: int, said: str, finish_reason: str | None = None, *tokens: int) -> dict[str, Any]:
    choice = {"index": index, "text": said, "finish_reason": finish_reason}
    usage = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=False))
    return {"model": "tiny", "choices": [choice], "usage": usage}


class TestVllmWorker(GenerationContract):
    @pytest.fixture
    async def worker(self) -> AsyncIterator[GenerationWorker]:
        async with listening(OpenAIServer()) as self.server:
            worker = make(self.server)
            yield worker
            await worker.aclose()

    @pytest.fixture
    def unreachable_worker(self) -> GenerationWorker:
        return VllmWorker(EndpointConfig("vllm", unused_url()))

    @pytest.fixture
    def silent_worker(self, silent_url: str) -> GenerationWorker:
        return VllmWorker(EndpointConfig("vllm", silent_url, timeout_s=0.5))

    def refused(self) -> Generation:
        return self.generation(params={"temperature": "hot"})

    async def generating(self, worker: GenerationWorker) -> int:
        return self.server.generating


async def test_interleaved_members_are_told_apart(server: FakeServer, worker: VllmWorker) -> None:
    server.script = stream(
        text(1, "b", None, 4, 1),
        text(0, "a", None, 2, 1),
        text(1, "", "stop", 4, 2),
        text(0, "A", "length", 2, 2),
        {"choices": [], "usage": {"prompt_tokens": 6, "completion_tokens": 4}},
        DONE,
    )
    assert await outputs_of(worker, PROMPT, PROMPT) == [
        Piece(1, "b"),
        Piece(0, "a"),
        Completed(1, "stop", TokenUsage(4, 2), "tiny"),
        Piece(0, "A"),
        Completed(0, "length", TokenUsage(2, 2), "tiny"),
    ]


def said(index: int, text: str, *ids: list[int]) -> dict[str, Any]:
    """A choice of an answer that is not streamed; `ids` are those of its prompt's and its own tokens."""
    choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": "stop"}
    return choice | dict(zip(("prompt_token_ids", "token_ids"), ids, strict=False))


def short(prompt: str) -> Generation:
    return Generation(
        "tiny", prompt=prompt, params={"max_tokens": 64}, stream=False, request_id=f"job-{prompt}"
    )


async def test_short_answers_that_are_wanted_whole_are_not_streamed(
    server: FakeServer, worker: VllmWorker
) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 3}
    choices = [said(1, "B", [1, 2, 3], [4]), said(0, "A", [1, 2], [3, 4])]
    server.script = answer(200, {"model": "tiny", "choices": choices, "usage": usage})
    assert await outputs_of(worker, short("a"), short("b")) == [
        Piece(1, "B"),
        Completed(1, "stop", TokenUsage(3, 1), "tiny"),
        Piece(0, "A"),
        Completed(0, "stop", TokenUsage(2, 2), "tiny"),
    ]
    assert server.bodies[0]["stream"] is False
    assert server.bodies[0]["return_token_ids"] is True
    assert "stream_options" not in server.bodies[0]
    assert "x-request-id: job-a" in server.headers[0]


async def test_a_short_answer_alone_has_the_usage_that_the_server_says(
    server: FakeServer, worker: VllmWorker
) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 3}
    server.script = answer(200, {"model": "tiny", "choices": [said(0, "A")], "usage": usage})
    assert await outputs_of(worker, short("a")) == [
        Piece(0, "A"),
        Completed(0, "stop", TokenUsage(5, 3), "tiny"),
    ]
    assert "return_token_ids" not in server.bodies[0]


async def test_a_server_without_token_ids_leaves_the_counts_of_short_lists_unknown(
    server: FakeServer, worker: VllmWorker
) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 3}
    server.script = answer(200, {"model": "tiny", "choices": [said(0, "A"), said(1, "B")], "usage": usage})
    ends = [
        output for output in await outputs_of(worker, short("a"), short("b")) if isinstance(output, Completed)
    ]
    assert [end.usage for end in ends] == [TokenUsage(), TokenUsage()]


async def test_field_that_a_proxy_refuses_is_left_out_from_then_on(
    server: FakeServer, worker: VllmWorker
) -> None:
    choices = [said(0, "A"), said(1, "B")]

    async def strict(writer: asyncio.StreamWriter) -> None:
        refused = "return_token_ids" in server.bodies[-1]
        body = {"detail": "return_token_ids: extra fields not permitted"} if refused else {"choices": choices}
        await answer(422 if refused else 200, body)(writer)

    server.script = strict
    for _ in range(2):
        assert len(await outputs_of(worker, short("a"), short("b"))) == 4
    assert ["return_token_ids" in body for body in server.bodies] == [True, False, False]


async def test_stream_options_are_not_sent_by_option(server: FakeServer) -> None:
    server.script = stream(text(0, "a", "stop"), text(1, "b", "stop"), DONE)
    worker = make(server, options={"stream_options": False})
    await outputs_of(worker, PROMPT, PROMPT)
    assert "stream_options" not in server.bodies[0]
    await worker.aclose()


async def test_short_answer_needs_no_finish_reason(server: FakeServer, worker: VllmWorker) -> None:
    server.script = answer(200, {"choices": [{"index": 0, "text": "A"}]})
    assert await outputs_of(worker, short("a")) == [Piece(0, "A"), Completed(0, "unknown")]


async def test_error_with_a_good_status_keeps_its_words(server: FakeServer, worker: VllmWorker) -> None:
    server.script = answer(200, {"error": {"message": "oh no", "code": 400}})
    caught = await error_of(worker, short("a"))
    assert type(caught) is RequestRejected
    assert "oh no" in str(caught)


@pytest.mark.parametrize("body", [b"[]", b"5", b"{}", b'{"choices": [{"index": 7, "text": "x"}]}'])
@pytest.mark.parametrize("count", [1, 2])
async def test_whole_answer_that_is_none_is_a_protocol_error(
    server: FakeServer, worker: VllmWorker, body: bytes, count: int
) -> None:
    server.script = answer(200, body)
    with pytest.raises(WorkerProtocolError):
        await outputs_of(worker, *[short("a"), short("b")][:count])


async def test_list_request_has_what_was_asked(server: FakeServer, worker: VllmWorker) -> None:
    server.script = stream(text(0, "", "stop"), text(1, "", "stop"), DONE)
    extra = {"structured_outputs": {"choice": ["yes", "no"]}, "ignore_eos": True}
    batch = [
        Generation(
            "tiny",
            prompt=prompt,
            params={"max_tokens": 7, "repetition_penalty": 1.1},
            extra_body=extra,
            priority=priority,
            request_id=f"job-{prompt}",
        )
        for prompt, priority in (("a", 3), ("b", 8))
    ]
    await outputs_of(worker, *batch)
    assert server.paths == ["/v1/completions"]
    assert "x-request-id: job-a" in server.headers[0]
    assert server.bodies == [
        {
            "model": "tiny",
            "prompt": ["a", "b"],
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "priority": -3,
            "max_tokens": 7,
            "repetition_penalty": 1.1,
            "structured_outputs": {"choice": ["yes", "no"]},
            "ignore_eos": True,
        }
    ]


async def test_chat_request_has_tools_and_response_format(server: FakeServer, worker: VllmWorker) -> None:
    server.script = stream({"choices": [{"delta": {}, "finish_reason": "stop"}]}, DONE)
    tools = ({"type": "function", "function": {"name": "f"}},)
    chat = Generation(
        "tiny",
        messages=CHAT.messages,
        tools=tools,
        tool_choice="required",
        response_format={"type": "json_object"},
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
        priority=1,
    )
    await outputs_of(worker, chat)
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "tools": list(tools),
            "tool_choice": "required",
            "response_format": {"type": "json_object"},
            "chat_template_kwargs": {"enable_thinking": False},
            "priority": 4,
        }
    ]


async def test_more_urgent_prompts_have_lower_numbers_and_normal_is_zero(
    server: FakeServer, worker: VllmWorker
) -> None:
    server.script = stream(text(0, "", "stop"), DONE)
    for priority in range(10):
        await outputs_of(worker, Generation("tiny", prompt="a", priority=priority))
    assert [body["priority"] for body in server.bodies] == [5, 4, 3, 2, 1, 0, -1, -2, -3, -4]


async def test_priority_is_left_out_by_option(server: FakeServer) -> None:
    server.script = stream(text(0, "", "stop"), DONE)
    worker = make(server, options={"priority": False})
    await outputs_of(worker, PROMPT)
    assert "priority" not in server.bodies[0]
    assert not worker.capabilities.priority
    await worker.aclose()


async def test_json_schema_of_a_plain_prompt_is_passed_on(server: FakeServer, worker: VllmWorker) -> None:
    server.script = stream(text(0, "{}", "stop"), DONE)
    response_format = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    await outputs_of(worker, Generation("tiny", prompt="a", response_format=response_format))
    assert server.bodies[0]["response_format"] == response_format


async def test_single_prompts_usage_has_its_cached_tokens(server: FakeServer, worker: VllmWorker) -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 3}}
    server.script = stream(text(0, "a", "length"), {"choices": [], "usage": usage}, DONE)
    (got,) = await collect(worker, [PROMPT])
    assert got.completed.usage == TokenUsage(4, 1, 3)


@pytest.mark.parametrize("name", ["priority", "prompt", "stream_options"])
async def test_extra_body_may_not_replace_what_the_request_is(worker: VllmWorker, name: str) -> None:
    error = await error_of(worker, Generation("tiny", prompt="a", extra_body={name: 1}))
    assert type(error) is RequestRejected
    assert f"extra_body.{name}" in str(error)


async def test_tools_for_a_plain_prompt_are_refused(worker: VllmWorker) -> None:
    error = await error_of(worker, Generation("tiny", prompt="a", tools=({"type": "function"},)))
    assert "give messages" in str(error)


async def test_aborted_member_fails_alone_and_may_be_tried_again(
    server: FakeServer, worker: VllmWorker
) -> None:
    server.script = stream(text(1, "b"), text(1, "", "abort"), text(0, "a", "stop", 2, 1), DONE)
    piece, failed, *rest = await outputs_of(worker, PROMPT, PROMPT)
    assert piece == Piece(1, "b")
    assert isinstance(failed, MemberFailed)
    assert failed.member == 1
    assert type(failed.error) is WorkerUnavailable
    assert rest == [Piece(0, "a"), Completed(0, "stop", TokenUsage(2, 1), "tiny")]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"message": "Internal server error", "type": "InternalServerError", "code": 500}, WorkerFailed),
        ({"message": "please retry", "type": "ServiceUnavailableError", "code": 503}, WorkerOverloaded),
        ({"message": "bad", "type": "BadRequestError", "param": None, "code": 400}, RequestRejected),
    ],
)
async def test_error_inside_the_stream_fails_the_members_without_an_end(
    server: FakeServer, worker: VllmWorker, error: dict[str, Any], expected: type[WorkerError]
) -> None:
    server.script = stream(text(1, "b", "stop"), text(0, "a"), {"error": error}, DONE)
    caught = await error_of(worker, PROMPT, PROMPT)
    assert type(caught) is expected
    assert error["message"] in str(caught)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            503,
            {
                "error": {
                    "message": "The engine is currently busy",
                    "type": "Service Unavailable",
                    "code": 503,
                }
            },
            WorkerOverloaded,
        ),
        (
            400,
            {"error": {"message": "This model's maximum context length is 1024 tokens.", "code": 400}},
            ContextOverflow,
        ),
        (
            400,
            {"error": {"message": "is longer than the maximum model length of 9", "code": 400}},
            ContextOverflow,
        ),
        (400, {"error": {"message": "temperature must be non-negative", "code": 400}}, RequestRejected),
        (404, {"error": {"message": "The model `x` does not exist.", "code": 404}}, ModelNotFound),
        (401, {"error": "Unauthorized"}, WorkerAuthError),
        (500, {"error": {"message": "EngineDeadError", "code": 500}}, WorkerFailed),
    ],
)
async def test_status_and_words_decide_the_error(
    server: FakeServer, worker: VllmWorker, status: int, body: dict[str, Any], expected: type[WorkerError]
) -> None:
    server.script = answer(status, body)
    assert type(await error_of(worker, PROMPT)) is expected


@pytest.mark.parametrize("end", [True, False])
async def test_stream_that_ends_before_its_members_is_a_protocol_error(
    server: FakeServer, worker: VllmWorker, end: bool
) -> None:
    server.script = stream(text(1, "b", "stop"), text(0, "a"), end=end)
    caught = await error_of(worker, PROMPT, PROMPT)
    assert type(caught) is WorkerProtocolError
    assert caught.retryable


@pytest.mark.parametrize("index", [2, -1, "0", None, []])
async def test_index_that_is_no_member_is_a_protocol_error(
    server: FakeServer, worker: VllmWorker, index: Any
) -> None:
    server.script = stream(text(index, "a"), DONE)
    assert type(await error_of(worker, PROMPT, PROMPT)) is WorkerProtocolError


async def test_member_that_speaks_after_its_end_is_a_protocol_error(
    server: FakeServer, worker: VllmWorker
) -> None:
    server.script = stream(text(0, "a", "stop"), text(0, "more"), DONE)
    assert type(await error_of(worker, PROMPT, PROMPT)) is WorkerProtocolError


async def test_members_split_over_reads_are_put_together(server: FakeServer, worker: VllmWorker) -> None:
    wire = event(text(1, "🌱", "stop")) + event(text(0, "grün", "stop")) + DONE
    server.script = stream(*(wire[at : at + 1] for at in range(len(wire))))
    first, second = await collect(worker, [PROMPT, PROMPT])
    assert (first.text, second.text) == ("grün", "🌱")


async def test_load_is_summed_over_the_engines(server: FakeServer, worker: VllmWorker) -> None:
    server.script = answer(200, METRICS)
    assert await worker.load() == Load(running=5, waiting=1)


@pytest.mark.parametrize("reply", [answer(404, {}), answer(200, b"# nothing here\n"), answer(200, b"\xff")])
async def test_load_without_such_metrics_is_unknown(
    server: FakeServer, worker: VllmWorker, reply: Any
) -> None:
    server.script = reply
    assert await worker.load() is None


async def test_key_comes_from_the_environment_and_is_in_no_message(server: FakeServer) -> None:
    server.script = answer(401, {"error": "Unauthorized: sk-secret"})
    config = EndpointConfig("vllm", f"{server.base_url}/v1/", environ={"VLLM_API_KEY": "sk-secret"})
    worker = VllmWorker(config)
    caught = await error_of(worker, PROMPT)
    assert type(caught) is WorkerAuthError
    assert "sk-secret" not in str(caught)
    assert "authorization: bearer sk-secret" in server.headers[0]
    await worker.aclose()


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({}, "base_url"),
        ({"base_url": "http://host", "options": {"priorities": False}}, "did you mean priority"),
        ({"base_url": "http://host", "options": {"priority": 1}}, "options.priority"),
    ],
)
def test_wrong_configuration_is_named(config: dict[str, Any], named: str) -> None:
    with pytest.raises(WorkerConfigError, match=named):
        VllmWorker(EndpointConfig("vllm", **config))


class InformingServer(FakeServer):
    """Says of itself what `info` is; without it, it has no such page."""

    info: Any = None

    async def respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
        replies = {
            "/health": answer(200, b""),
            "/v1/models": answer(200, {"data": [{"id": "tiny"}]}),
            "/server_info?config_format=json": answer(200, self.info) if self.info else answer(404, {}),
        }
        await replies.get(request.path, answer(404, {}))(writer)


@pytest.mark.parametrize(
    ("info", "warnings"),
    [
        ({"vllm_config": {"scheduler_config": {"policy": "fcfs"}}}, (NO_PRIORITIES,)),
        ({"vllm_config": {"scheduler_config": {"policy": "priority"}}}, ()),
        ({"vllm_config": "model='tiny', …"}, ()),
        (None, ()),
    ],
)
async def test_health_warns_of_a_server_that_says_it_knows_no_priorities(
    info: Any, warnings: tuple[str, ...]
) -> None:
    async with listening(InformingServer()) as server:
        server.info = info
        worker = make(server)
        health = await worker.health()
        assert health.ready
        assert health.models == ("tiny",)
        assert health.warnings == warnings
        await worker.aclose()


@pytest.mark.parametrize(
    ("status", "said", "advice"),
    [
        (400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser', (NO_TOOLS,)),
        (400, "Got priority 1 but Priority scheduling is not enabled.", (NO_PRIORITIES,)),
        (400, "something else", ()),
        (500, "--enable-auto-tool-choice", ()),
        (200, "", ()),
    ],
)
async def test_advice_tells_of_a_server_that_refuses_tools_or_priorities(
    status: int, said: str, advice: tuple[str, ...]
) -> None:
    async with listening(FakeServer()) as server:
        server.script = answer(status, {"message": said} if status >= 400 else {"choices": []})
        worker = VllmWorker(EndpointConfig("vllm", server.base_url, model="m"))
        assert await worker.advice() == advice
        assert server.bodies[0]["max_tokens"] == 1
        await worker.aclose()


@pytest.mark.parametrize("priorities", [True, False])
async def test_health_finds_out_by_a_trial_whether_urgent_prompts_overtake(priorities: bool) -> None:
    async with scheduling(SchedulingServer(slots=8, priorities=priorities)) as server:
        worker = make(server)
        assert (await worker.health()).warnings == (() if priorities else (NO_PRIORITIES,))
        asked = server.asked
        assert asked
        assert (await worker.health()).warnings == (() if priorities else (NO_PRIORITIES,))
        assert server.asked == asked, "it knows already"
        await worker.aclose()


async def test_trial_takes_a_larger_crowd_where_nobody_has_to_wait() -> None:
    async with scheduling(SchedulingServer(slots=40, priorities=False)) as server:
        worker = make(server)
        assert (await worker.health()).warnings == (NO_PRIORITIES,)
        assert max(body.get("n", 1) for body in server.bodies if body) == 1024
        await worker.aclose()


async def test_trial_leaves_a_server_alone_that_has_work() -> None:
    async with scheduling(SchedulingServer(slots=8, priorities=False)) as server:
        worker = make(server)
        async with aclosing(
            start(worker, [Generation("tiny", prompt="a", params={"max_tokens": 10**6})])
        ) as work:
            await anext(work)
            assert (await worker.health()).warnings == ()
            assert server.asked == 1
        await worker.aclose()


@pytest.mark.parametrize("option", ["priority", "try_priority"])
async def test_trial_is_left_out_by_option(option: str) -> None:
    async with scheduling(SchedulingServer(slots=8, priorities=False)) as server:
        worker = make(server, options={option: False})
        assert (await worker.health()).warnings == ()
        assert server.asked == 0
        await worker.aclose()


async def test_trial_that_takes_too_long_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.vllm_priority.TRIAL_TIMEOUT_S", 0.01)
    async with scheduling(SchedulingServer(slots=1, priorities=False)) as server:
        worker = make(server)
        health = await worker.health()
        assert health.ready
        assert health.warnings == ()
        await worker.aclose()


async def test_dead_engine_is_not_ready(server: FakeServer, worker: VllmWorker) -> None:
    server.script = answer(503, b"")
    health = await worker.health()
    assert not health.ready
    assert "503" in health.detail
