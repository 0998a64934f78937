"""The llama.cpp worker against a scripted server, for what the real one cannot be made to do."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from tests.contracts.wire import (
    DONE,
    FakeServer,
    answer,
    error_of,
    event,
    outputs_of,
    stream,
    write_chunk,
)
from tests.patience import SOON_S
from workers import (
    Completed,
    ContextOverflow,
    EndpointConfig,
    Generation,
    Load,
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
    calls,
)
from workers.contract import collect, start
from workers.event_stream import MAX_BODY_BYTES
from workers.llama_cpp import NO_PREFIX_CACHE, NO_TOOLS, LlamaCppWorker

PROMPT = Generation("tiny", prompt="hello")
CHAT = Generation("tiny", messages=({"role": "user", "content": "hello"},))
LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}


def make(server: FakeServer, **config: Any) -> LlamaCppWorker:
    return LlamaCppWorker(EndpointConfig("llama_cpp", server.base_url, **config))


def token(member: int, text: str) -> dict[str, Any]:
    return {"index": member, "content": text, "stop": False}


def last(member: int, stop_type: str = "limit", **more: Any) -> dict[str, Any]:
    counts = {"tokens_predicted": 2, "tokens_evaluated": 1 + member, "timings/cache_n": member}
    return {
        "index": member,
        "content": "",
        "stop": True,
        "stop_type": stop_type,
        "model": "m",
        **counts,
        **more,
    }


def delta(finish_reason: str | None = None, **content: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": 0, "delta": content, "finish_reason": finish_reason}]}


async def test_interleaved_members_are_told_apart(server: FakeServer, worker: LlamaCppWorker) -> None:
    server.script = stream(
        b"data: null\n\n", token(1, "b"), token(0, "a"), last(1, "eos"), token(0, "A"), b": ping\n\n", last(0)
    )
    assert await outputs_of(worker, PROMPT, PROMPT) == [
        Piece(1, "b"),
        Piece(0, "a"),
        Completed(1, "stop", TokenUsage(2, 2, 1), "m", "eos"),
        Piece(0, "A"),
        Completed(0, "length", TokenUsage(1, 2, 0), "m", "limit"),
    ]


@pytest.mark.parametrize(
    ("stop_type", "reason"), [("eos", "stop"), ("word", "stop"), ("limit", "length"), ("none", "unknown")]
)
async def test_kind_of_stop_becomes_the_finish_reason(
    server: FakeServer, worker: LlamaCppWorker, stop_type: str, reason: str
) -> None:
    server.script = stream(token(0, "a"), last(0, stop_type))
    assert (await outputs_of(worker, PROMPT))[-1].finish_reason == reason


async def test_what_is_not_quite_json_or_lies_costs_no_answer(
    server: FakeServer, worker: LlamaCppWorker
) -> None:
    lies = last(0, tokens_predicted=-1, tokens_evaluated=10**12, model=5)
    server.script = stream(event(token(0, "a?b")).replace(b"?", b"\xff"), b"data:\n\n", event(lies)[:-2])
    assert await outputs_of(worker, PROMPT) == [
        Piece(0, "a\ufffdb"),
        Completed(0, "length", TokenUsage(cached_tokens=0), raw_finish_reason="limit"),
    ]


async def test_a_tool_that_is_chosen_by_name_is_the_only_one_and_must_be_called(
    server: FakeServer, worker: LlamaCppWorker
) -> None:
    tools = tuple({"type": "function", "function": {"name": name}} for name in ("sky", "sea"))
    server.script = stream(delta("stop", content="x"), DONE)
    chat = Generation("tiny", messages=CHAT.messages, tools=tools, tool_choice={"function": {"name": "sea"}})
    await outputs_of(worker, chat)
    assert (server.bodies[0]["tools"], server.bodies[0]["tool_choice"]) == ([tools[1]], "required")
    for choice in ({"function": {"name": "sun"}}, {"type": "function"}):
        error = await error_of(worker, replace(chat, tool_choice=choice))
        assert isinstance(error, RequestRejected)
        assert "tool_choice.function.name" in str(error)


@pytest.mark.parametrize(
    ("props", "advice"),
    [
        ({"chat_template_caps": {"supports_tools": False}}, (NO_TOOLS,)),
        ({"chat_template_caps": {"supports_tools": True}}, ()),
        ({"chat_template_caps": None}, ()),
        ([], ()),
    ],
)
async def test_advice_tells_of_a_template_without_tools(
    server: FakeServer, worker: LlamaCppWorker, props: Any, advice: tuple[str, ...]
) -> None:
    server.script = answer(200, props)
    assert await worker.advice() == advice
    server.script = answer(500, {})
    assert await worker.advice() == ()


@pytest.mark.parametrize(
    ("slots", "last", "advice"),
    [
        ([False, False], {"tokens_evaluated": 20, "timings": {"cache_n": 19}}, ()),
        ([False, False], {"tokens_evaluated": 20, "timings": {"cache_n": 1}}, (NO_PREFIX_CACHE,)),
        ([False, False], {"tokens_evaluated": 20, "timings": {}}, ()),
        ([False, False], [], ()),
        ([False, True], {"tokens_evaluated": 20, "timings": {"cache_n": 0}}, ()),
    ],
)
async def test_advice_tells_of_a_server_that_forgets_a_prompt_when_another_one_came(
    server: FakeServer, worker: LlamaCppWorker, slots: list[bool], last: Any, advice: tuple[str, ...]
) -> None:
    async def script(writer: asyncio.StreamWriter) -> None:
        shown = [{"is_processing": busy} for busy in slots]
        said = {"/props": {}, "/slots": shown, "/completion": last}
        await answer(200, said[server.paths[-1]])(writer)

    server.script = script
    assert await worker.advice() == advice
    asked = [request.path for request in server.requests].count("/completion")
    assert asked == (0 if any(slots) else 3)  # a busy server is left alone


async def test_reasoning_effort_is_for_the_template(server: FakeServer, worker: LlamaCppWorker) -> None:
    server.script = stream(delta("stop", content="x"), DONE)
    await outputs_of(
        worker,
        Generation(
            "tiny",
            messages=CHAT.messages,
            params={"reasoning_effort": "low"},
            extra_body={"chat_template_kwargs": {"a": 1}},
        ),
    )
    assert server.bodies[0]["chat_template_kwargs"] == {"reasoning_effort": "low", "a": 1}
    assert "reasoning_effort" not in server.bodies[0]


async def test_request_has_what_was_asked_under_the_engines_names(
    server: FakeServer, worker: LlamaCppWorker
) -> None:
    server.script = stream(last(0), last(1))
    params = {"max_tokens": 700, "repetition_penalty": 1.1, "stop": ["x"]}
    extra = {"id_slot": 3}
    batch = [Generation("tiny", prompt=text, params=params, extra_body=extra, stream=False) for text in "ab"]
    await outputs_of(worker, *batch)
    assert server.paths == ["/completion"]
    assert "connection: close" in server.headers[0]
    body = server.bodies[0]
    assert body.pop("response_fields")
    assert body == {
        "prompt": ["a", "b"],
        "stream": True,
        "model": "tiny",
        "n_predict": 700,
        "repeat_penalty": 1.1,
        "stop": ["x"],
        "id_slot": 3,
    }


@pytest.mark.parametrize("count", [1, 2])
async def test_short_answers_that_are_wanted_whole_are_not_streamed(
    server: FakeServer, worker: LlamaCppWorker, count: int
) -> None:
    said = [{**last(member), "content": f"answer {member}"} for member in range(count)]
    server.script = answer(200, said if count > 1 else said[0])
    batch = [
        Generation("tiny", prompt=text, params={"max_tokens": 64}, stream=False) for text in "ab"[:count]
    ]
    outputs = await outputs_of(worker, *batch)
    assert server.bodies[0]["stream"] is False
    assert [output.text for output in outputs if isinstance(output, Piece)] == [
        f"answer {member}" for member in range(count)
    ]
    assert [output.member for output in outputs if isinstance(output, Completed)] == list(range(count))


@pytest.mark.parametrize("said", [b"[]", b"5", b'[{"index": 7}]', b"{}"])
async def test_whole_answer_that_is_none_is_a_protocol_error(
    server: FakeServer, worker: LlamaCppWorker, said: bytes
) -> None:
    server.script = answer(200, said)
    short = Generation("tiny", prompt="a", params={"max_tokens": 1}, stream=False)
    assert type(await error_of(worker, short)) is WorkerProtocolError


async def test_chat_request_has_tools_and_asks_for_usage(server: FakeServer, worker: LlamaCppWorker) -> None:
    server.script = stream(delta("stop"), b"data: [DONE]\n\n")
    tools = ({"type": "function", "function": {"name": "f"}},)
    chat = Generation(
        "tiny",
        messages=CHAT.messages,
        params={"max_tokens": 7},
        tools=tools,
        tool_choice="required",
        response_format={"type": "json_object"},
    )
    await outputs_of(worker, chat)
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies == [
        {
            "messages": [{"role": "user", "content": "hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "tools": list(tools),
            "tool_choice": "required",
            "response_format": {"type": "json_object"},
            "model": "tiny",
            "max_tokens": 7,
        }
    ]


async def test_answer_wanted_whole_comes_in_one_piece_a_member(
    server: FakeServer, worker: LlamaCppWorker
) -> None:
    server.script = stream(token(1, "b"), token(0, "a"), last(1), token(0, "A"), last(0))
    whole = Generation("tiny", prompt="hello", stream=False)
    outputs = await outputs_of(worker, whole, whole)
    assert [output for output in outputs if isinstance(output, Piece)] == [Piece(1, "b"), Piece(0, "aA")]


@pytest.mark.parametrize("wanted", ["stream", "whole"])
async def test_chat_brings_reasoning_text_tool_calls_and_usage(
    server: FakeServer, worker: LlamaCppWorker, wanted: str
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
        delta(role="assistant", content=None),
        delta(reasoning_content="hm"),
        delta(content="ok"),
        delta(tool_calls=[opening]),
        delta(tool_calls=[rest]),
        delta("tool_calls"),
        {"choices": [], "usage": usage},
        b"data: [DONE]\n\n",
    )
    chat = Generation("tiny", messages=CHAT.messages, stream=wanted == "stream")
    *pieces, end = await outputs_of(worker, chat)
    if wanted == "stream":
        assert pieces == [
            Piece(0, reasoning="hm"),
            Piece(0, "ok"),
            Piece(0, tool_calls=(opening,)),
            Piece(0, tool_calls=(rest,)),
        ]
    else:
        assert pieces == [Piece(0, "ok", "hm", (opening, rest))]
    assert end == Completed(0, "tool_calls", TokenUsage(9, 4, 8, 3), "m")


async def test_loading_model_is_unavailable_and_not_overloaded(
    server: FakeServer, worker: LlamaCppWorker
) -> None:
    server.script = answer(503, LOADING)
    error = await error_of(worker, PROMPT)
    assert type(error) is WorkerUnavailable
    assert "Loading model" in str(error)
    health = await worker.health()
    assert not health.ready
    assert "Loading model" in health.detail
    assert await worker.capacity() is None


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_busy_server_is_overloaded_and_its_wait_is_kept(
    server: FakeServer, worker: LlamaCppWorker, status: int
) -> None:
    server.script = answer(status, {"error": {"message": "queue is full"}}, "Retry-After: 7")
    error = await error_of(worker, PROMPT)
    assert type(error) is WorkerOverloaded
    assert error.retry_after_s == 7
    assert "queue is full" in str(error)


async def test_wait_can_be_a_date(server: FakeServer, worker: LlamaCppWorker) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    server.script = answer(429, {}, f"Retry-After: {date}")
    wait_s = (await error_of(worker, PROMPT)).retry_after_s
    assert wait_s is not None
    assert 50 < wait_s <= 60


async def test_wait_can_be_in_milliseconds(server: FakeServer, worker: LlamaCppWorker) -> None:
    server.script = answer(429, {}, "Retry-After: 2", "retry-after-ms: 1500")
    assert (await error_of(worker, PROMPT)).retry_after_s == 1.5


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (400, {"type": "exceed_context_size_error", "message": "too long"}, ContextOverflow),
        (400, {"type": "invalid_request_error", "message": "no"}, RequestRejected),
        (404, {"message": "no such model"}, ModelNotFound),
        (401, {"message": "Invalid API Key"}, WorkerAuthError),
        (403, {"message": "not yours"}, WorkerAuthError),
        (408, {"message": "slow"}, WorkerTimeout),
        (500, {"type": "server_error", "message": "Compute error."}, WorkerFailed),
        (500, {"type": "server_error", "message": "Context size has been exceeded."}, WorkerOverloaded),
        (501, {"type": "not_supported_error", "message": "no vision"}, RequestRejected),
        (302, {}, WorkerProtocolError),
    ],
)
async def test_status_decides_the_error_and_the_engines_words_are_kept(
    server: FakeServer,
    worker: LlamaCppWorker,
    status: int,
    error: dict[str, Any],
    expected: type[WorkerError],
) -> None:
    server.script = answer(status, {"error": error} if error else {})
    caught = await error_of(worker, PROMPT)
    assert type(caught) is expected
    assert error.get("message", "") in str(caught)


@pytest.mark.parametrize(
    "words",
    [
        "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        "Failed to parse messages: Missing tool call name: {}",
        "Failed to parse messages: [json.exception.type_error.302] type must be string, but is number",
        'Failed to parse tools: Unsupported tool type: {"type":"custom"}; tools = []',
        "Failed to parse tool call arguments as JSON: [json.exception.parse_error.101] parse error at line 1",
        "Cannot use both json_schema and grammar",
        "[json.exception.out_of_range.403] key 'name' not found",
    ],
)
@pytest.mark.parametrize("generation", [PROMPT, CHAT])
async def test_mistake_in_a_request_is_one_although_the_status_is_500(
    server: FakeServer, worker: LlamaCppWorker, generation: Generation, words: str
) -> None:
    server.script = answer(500, {"error": {"code": 500, "message": words, "type": "server_error"}})
    caught = await error_of(worker, generation)
    assert type(caught) is RequestRejected
    assert words in str(caught)


async def test_error_inside_the_stream_fails_the_batch(server: FakeServer, worker: LlamaCppWorker) -> None:
    error = {"code": 500, "message": "Compute error.", "type": "server_error"}
    server.script = stream(token(0, "a"), last(0), token(1, "b"), {"error": error})
    caught = await error_of(worker, PROMPT, PROMPT)
    assert type(caught) is WorkerFailed
    assert "Compute error." in str(caught)


@pytest.mark.parametrize("generation", [PROMPT, CHAT])
@pytest.mark.parametrize("end", [True, False])
async def test_stream_that_ends_before_its_members_is_a_protocol_error(
    server: FakeServer, worker: LlamaCppWorker, generation: Generation, end: bool
) -> None:
    server.script = stream(delta(content="a") if generation is CHAT else token(0, "a"), end=end)
    assert type(await error_of(worker, generation)) is WorkerProtocolError


@pytest.mark.parametrize(
    "garbage",
    [
        b"data: {not json\n\n",
        b"data: [1, 2]\n\n",
        b'data: {"index": 9, "content": "", "stop": false}\n\n',
        b'data: {"index": 0, "content": 5, "stop": false}\n\n',
        b'data: {"index": [], "content": "", "stop": false}\n\n',
        b'data: {"hello": "world"}\n\n',
    ],
)
async def test_garbage_in_the_stream_is_a_protocol_error(
    server: FakeServer, worker: LlamaCppWorker, garbage: bytes
) -> None:
    server.script = stream(garbage)
    assert type(await error_of(worker, PROMPT)) is WorkerProtocolError


@pytest.mark.parametrize(
    "garbage", [{"choices": 5}, {"choices": [{}]}, {"choices": [{"delta": {"content": 5}}]}]
)
async def test_garbage_in_a_chat_is_a_protocol_error(
    server: FakeServer, worker: LlamaCppWorker, garbage: dict[str, Any]
) -> None:
    server.script = stream(garbage)
    assert type(await error_of(worker, CHAT)) is WorkerProtocolError


async def test_member_that_speaks_after_its_end_is_a_protocol_error(
    server: FakeServer, worker: LlamaCppWorker
) -> None:
    server.script = stream(last(0), token(0, "more"))
    assert type(await error_of(worker, PROMPT, PROMPT)) is WorkerProtocolError


async def test_web_page_instead_of_a_stream_is_a_protocol_error(
    server: FakeServer, worker: LlamaCppWorker
) -> None:
    server.script = stream(b"<html>", content_type="text/html")
    error = await error_of(worker, PROMPT)
    assert type(error) is WorkerProtocolError
    assert "text/html" in str(error)


async def test_page_of_a_proxy_stays_out_of_the_message(server: FakeServer, worker: LlamaCppWorker) -> None:
    server.script = answer(502, b"<html><body>Bad Gateway</body></html>")
    error = await error_of(worker, PROMPT)
    assert type(error) is WorkerUnavailable
    assert "<html>" not in str(error)


async def test_answer_in_an_encoding_that_cannot_be_read_is_refused(
    server: FakeServer, worker: LlamaCppWorker
) -> None:
    server.script = answer(200, b"", "Content-Encoding: br", "Content-Type: text/event-stream")
    assert "compressed by br" in str(await error_of(worker, PROMPT))


async def test_slow_drip_of_single_bytes_is_put_together(server: FakeServer, worker: LlamaCppWorker) -> None:
    wire = event(token(0, "grün 🌱")) + event(last(0))
    server.script = stream(*(wire[at : at + 1] for at in range(len(wire))))
    (got,) = await collect(worker, [PROMPT])
    assert got.text == "grün 🌱"


async def test_endless_line_is_cut_off(server: FakeServer, worker: LlamaCppWorker) -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        await stream(b"data: ", end=False)(writer)
        while True:
            write_chunk(writer, b"x" * 65_536)
            await writer.drain()

    server.script = endless
    error = await error_of(worker, PROMPT)
    assert type(error) is WorkerProtocolError
    assert "bytes" in str(error)


async def test_endless_error_keeps_its_status(server: FakeServer, worker: LlamaCppWorker) -> None:
    server.script = answer(400, b"x" * 1_000_000)
    error = await error_of(worker, PROMPT)
    assert type(error) is RequestRejected
    assert len(str(error)) < 1000


async def test_endless_answer_to_a_probe_is_cut_off(server: FakeServer, worker: LlamaCppWorker) -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b" " * 262_144)
            await writer.drain()

    server.script = endless
    assert f"more than {MAX_BODY_BYTES:,} bytes" in (await worker.health()).detail


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 banana\r\n\r\n"])
async def test_server_that_hangs_up_or_talks_nonsense_is_unavailable(
    server: FakeServer, worker: LlamaCppWorker, head: bytes
) -> None:
    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(head)

    server.script = script
    assert type(await error_of(worker, PROMPT)) is WorkerUnavailable


def worker_with(server: FakeServer, **limits: Any) -> LlamaCppWorker:
    return make(server, **limits)


@pytest.mark.parametrize("generation", [PROMPT, CHAT])
async def test_pings_and_empty_deltas_are_no_first_token(server: FakeServer, generation: Generation) -> None:
    async def ping(writer: asyncio.StreamWriter) -> None:
        await stream(b"data: null\n\n", end=False)(writer)
        while True:
            write_chunk(writer, b": ping\n\n")
            write_chunk(writer, token(0, "") if generation is PROMPT else delta(role="assistant"))
            await writer.drain()
            await asyncio.sleep(0.005)

    server.script = ping
    worker = worker_with(server, first_token_timeout_s=0.5)
    error = await error_of(worker, generation)
    assert type(error) is WorkerTimeout
    assert "first_token_timeout_s = 0.5" in str(error)
    await asyncio.wait_for(server.client_left.wait(), SOON_S)
    await worker.aclose()


async def pauses(server: FakeServer, *, before_s: float) -> None:
    """Say one token, the next after a while, and then nothing more."""

    async def pause(writer: asyncio.StreamWriter) -> None:
        await stream(token(0, "a"), end=False)(writer)
        await asyncio.sleep(before_s)
        write_chunk(writer, token(0, "b"))
        await server.client_left.wait()

    server.script = pause


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"idle_timeout_s": 1.0}, "no more tokens within idle_timeout_s = 1"),
        ({"timeout_s": 1.0}, "no more tokens within timeout_s = 1"),
        ({"total_timeout_s": 1.0}, "no end within total_timeout_s = 1"),
        ({"idle_timeout_s": 1.0, "timeout_s": 2, "total_timeout_s": 9}, "idle_timeout_s = 1"),
    ],
)
async def test_token_that_does_not_follow_is_waited_for_so_long(
    server: FakeServer, limits: dict[str, float], said: str
) -> None:
    await pauses(server, before_s=0.5)
    worker = worker_with(server, first_token_timeout_s=0.4, **limits)
    seen: list[Any] = []
    outputs = start(worker, [PROMPT])
    seen += [await anext(outputs), await anext(outputs)]
    with pytest.raises(WorkerTimeout, match=re.escape(said)):
        await anext(outputs)
    assert seen == [Piece(0, "a"), Piece(0, "b")], "the limit of the first token holds for that alone"
    await asyncio.wait_for(server.client_left.wait(), SOON_S)
    await worker.aclose()


@pytest.mark.parametrize("wanted", ["stream", "whole"])
async def test_answer_that_flows_may_take_longer_than_any_of_its_waits(
    server: FakeServer, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "SIGN_OF_LIFE_S", 0.2)

    async def drip(writer: asyncio.StreamWriter) -> None:
        await stream(token(0, "a"), end=False)(writer)
        for _ in range(60):
            await asyncio.sleep(0.02)
            write_chunk(writer, token(0, "b"))
            await writer.drain()
        write_chunk(writer, last(0))

    server.script = drip
    worker = worker_with(server, timeout_s=1, idle_timeout_s=1)
    outputs = await outputs_of(worker, Generation("tiny", prompt="hello", stream=wanted == "stream"))
    *pieces, end = outputs
    assert "".join(piece.text for piece in pieces if isinstance(piece, Piece)) == "a" + "b" * 60
    assert isinstance(end, Completed)
    assert len(pieces) > 1, "there are signs of life"
    assert wanted == "stream" or len(pieces) < 30
    await worker.aclose()


async def test_whole_answer_of_a_server_that_does_not_stream_is_waited_for_so_long(
    server: FakeServer,
) -> None:
    async def silence(writer: asyncio.StreamWriter) -> None:
        await server.client_left.wait()

    server.script = silence
    worker = worker_with(server, timeout_s=0.2)
    generation = Generation("tiny", prompt="hello", stream=False, params={"max_tokens": 4})
    with pytest.raises(WorkerTimeout, match=r"no answer within timeout_s = 0\.2"):
        await outputs_of(worker, generation)
    await worker.aclose()


async def test_server_that_never_answers_is_timed_out(server: FakeServer) -> None:
    async def silence(writer: asyncio.StreamWriter) -> None:
        await server.client_left.wait()

    server.script = silence
    worker = worker_with(server, first_token_timeout_s=0.05)
    assert type(await error_of(worker, PROMPT)) is WorkerTimeout
    await worker.aclose()


@pytest.mark.parametrize("wanted", ["stream", "whole"])
@pytest.mark.parametrize("when", ["before the answer", "during it"])
async def test_cancelling_hangs_up_at_once(
    server: FakeServer, worker: LlamaCppWorker, wanted: str, when: str
) -> None:
    asked = asyncio.Event()

    async def never_end(writer: asyncio.StreamWriter) -> None:
        if when == "during it":
            await stream(token(0, "a"), end=False)(writer)
        asked.set()
        await server.client_left.wait()

    server.script = never_end
    generation = Generation("tiny", prompt="hello", stream=wanted == "stream")
    reader = asyncio.create_task(outputs_of(worker, generation))
    await asyncio.wait_for(asked.wait(), SOON_S)
    reader.cancel()
    await asyncio.wait_for(server.client_left.wait(), SOON_S)
    assert (await asyncio.gather(reader, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def test_closing_the_iterator_hangs_up_at_once(server: FakeServer, worker: LlamaCppWorker) -> None:
    async def never_end(writer: asyncio.StreamWriter) -> None:
        await stream(token(0, "a"), end=False)(writer)
        await server.client_left.wait()

    server.script = never_end
    outputs = start(worker, [PROMPT])
    assert await anext(outputs) == Piece(0, "a")
    await outputs.aclose()
    await asyncio.wait_for(server.client_left.wait(), SOON_S)


async def test_time_out_does_not_strike_a_slow_reader(server: FakeServer) -> None:
    server.script = stream(token(0, "a"), last(0))
    worker = worker_with(server, first_token_timeout_s=0.5, timeout_s=0.5)
    outputs = start(worker, [PROMPT])
    await anext(outputs)
    await asyncio.sleep(0.6)  # the reader's own time, past the worker's limit
    await outputs.aclose()
    await worker.aclose()


async def test_load_is_what_the_metrics_say(server: FakeServer, worker: LlamaCppWorker) -> None:
    server.script = answer(200, b"llamacpp:requests_processing 3\nllamacpp:requests_deferred 2\n")
    assert await worker.load() == Load(running=3, waiting=2)
    assert server.paths == ["/metrics"]


async def test_load_of_a_server_without_metrics_is_unknown(
    server: FakeServer, worker: LlamaCppWorker
) -> None:
    server.script = answer(501, {"error": {"type": "not_supported_error", "message": "start with --metrics"}})
    assert await worker.load() is None


async def test_key_goes_into_the_header_and_into_no_message(server: FakeServer) -> None:
    server.script = answer(401, {"error": {"message": "Incorrect API key: sk-secret"}})
    worker = make(server, api_key="sk-secret")
    error = await error_of(worker, PROMPT)
    assert type(error) is WorkerAuthError
    assert "sk-secret" not in str(error)
    assert "api_key_env" in str(error)
    assert "authorization: bearer sk-secret" in server.headers[0]
    await worker.aclose()


async def test_endpoints_model_name_wins_over_the_routes(server: FakeServer) -> None:
    server.script = stream(last(0))
    worker = LlamaCppWorker(EndpointConfig("llama_cpp", f"{server.base_url}/", model="theirs"))
    await outputs_of(worker, PROMPT)
    assert server.bodies[0]["model"] == "theirs"
    await worker.aclose()


@pytest.mark.parametrize("name", ["stream", "prompt", "model"])
async def test_extra_body_may_not_replace_what_the_request_is(
    server: FakeServer, worker: LlamaCppWorker, name: str
) -> None:
    error = await error_of(worker, Generation("tiny", prompt="a", extra_body={name: False}))
    assert type(error) is RequestRejected
    assert f"extra_body.{name}" in str(error)
    assert server.paths == []


async def test_several_answers_to_one_prompt_are_refused(worker: LlamaCppWorker) -> None:
    assert "extra_body.n" in str(await error_of(worker, Generation("tiny", prompt="a", extra_body={"n": 2})))


async def test_request_that_is_no_json_is_refused(worker: LlamaCppWorker) -> None:
    error = await error_of(worker, Generation("tiny", prompt="a", extra_body={"x": 2**70}))
    assert type(error) is RequestRejected


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"base_url": ""}, "base_url"),
        ({"base_url": "127.0.0.1:8080"}, "base_url"),
        ({"base_url": "ftp://host"}, "base_url"),
        ({"base_url": "http://user:sk-secret@host"}, "base_url"),
        ({"base_url": "http://host/?key=1"}, "base_url"),
        ({"base_url": "http://host", "api_key": "sk-secret\n"}, "api_key"),
        ({"base_url": "http://host", "options": {"slots": 4}}, "options.slots"),
    ],
)
def test_wrong_configuration_is_named_and_no_secret_shown(config: dict[str, Any], named: str) -> None:
    with pytest.raises(WorkerConfigError, match=named) as caught:
        LlamaCppWorker(EndpointConfig("llama_cpp", **config))
    assert "sk-secret" not in str(caught.value)
