"""The OpenAI worker against what servers, gateways and proxies send that is not quite OpenAI's."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import orjson
import pytest

from tests.contracts.openai_wire import CHAT, PROMPT, delta, make
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
    write_chunk,
)
from tests.patience import SOON_S
from workers import (
    Completed,
    ContextOverflow,
    Generation,
    MemberFailed,
    Piece,
    RequestRejected,
    TokenUsage,
    WorkerAuthError,
    WorkerError,
    WorkerFailed,
    WorkerOverloaded,
    WorkerProtocolError,
)
from workers.openai import OpenAIWorker

USAGE = {"prompt_tokens": 3, "completion_tokens": 2}
COUNTS = TokenUsage(3, 2)


@pytest.fixture
async def completing(server: FakeServer) -> AsyncIterator[OpenAIWorker]:
    worker = make(server, options={"completions": True, "lists": True})
    yield worker
    await worker.aclose()


def choice(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-1", "choices": [{"index": 0, **fields}]}


STOP = delta("stop")
OK = delta(content="ok")


async def end_of(worker: OpenAIWorker, generation: Generation = CHAT) -> tuple[str, Completed]:
    """The text of an answer and its end."""
    *pieces, end = await outputs_of(worker, generation)
    assert isinstance(end, Completed)
    return "".join(piece.text for piece in pieces), end


# Chunks


@pytest.mark.parametrize(
    "odd",
    [
        choice(finish_reason=None, content_filter_results={"hate": {"filtered": False}}),
        choice(delta=None, finish_reason=None),
        choice(delta={}),
        {"choices": None},
        {"choices": []},
        {"choices": [None]},
        {"choices": [], "usage": None},
        {"model": "gpt-1"},
        {},
        delta(role="assistant", content=None, tool_calls=None, refusal=None),
        delta("", content=""),
        delta("null", content=""),
        {"error": None, **delta(content="")},
        {"error": {"code": "", "message": "", "param": None}, **delta(content="")},
        b"data:\n\n",
        b"event: ping\ndata: \n\n",
        b": comment\n\n",
        b"data: null\n\n",
        b'data: ""\n\n',
        b"data: [HEARTBEAT]\n\n",
        b"data: ping\n\n",
        b"retry: 3000\n\n",
    ],
)
async def test_chunk_that_says_nothing_harms_no_answer(
    server: FakeServer, worker: OpenAIWorker, odd: Any
) -> None:
    server.script = stream(odd, OK, odd, STOP, odd, DONE)
    assert await end_of(worker) == ("ok", Completed(0, "stop", model="gpt-1"))


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ([{"type": "text", "text": "ok"}], "ok", ""),
        ([{"type": "text", "text": "o"}, {"type": "text", "text": "k"}], "ok", ""),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}], "", "hm"),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "ok"}], "ok", "hm"),
        ([{"type": "output_text", "text": "ok"}, {"type": "reference", "reference_ids": [1]}], "ok", ""),
        (["o", "k"], "ok", ""),
        ({"type": "text", "text": "ok"}, "ok", ""),
        (7, "7", ""),
    ],
)
async def test_content_may_come_in_parts(
    server: FakeServer, worker: OpenAIWorker, content: Any, text: str, reasoning: str
) -> None:
    server.script = stream(delta(content=content), STOP, DONE)
    assert await outputs_of(worker, CHAT) == [
        Piece(0, text, reasoning),
        Completed(0, "stop", model="gpt-1"),
    ]


async def test_reasoning_under_two_names_is_taken_once(server: FakeServer, worker: OpenAIWorker) -> None:
    server.script = stream(delta(reasoning="hm", reasoning_content="hm", content=None), OK, STOP, DONE)
    assert (await outputs_of(worker, CHAT))[0] == Piece(0, reasoning="hm")


async def test_whole_message_after_its_pieces_is_not_said_twice(
    server: FakeServer, worker: OpenAIWorker
) -> None:
    whole = choice(message={"role": "assistant", "content": "ok"}, finish_reason="stop")
    server.script = stream(OK, whole, DONE)
    assert (await end_of(worker))[0] == "ok"


async def test_text_after_the_finish_reason_is_part_of_the_answer(
    server: FakeServer, worker: OpenAIWorker
) -> None:
    server.script = stream(delta("stop", content="a"), delta("stop", content="b"), DONE)
    assert (await end_of(worker))[0] == "ab"


@pytest.mark.parametrize("late", ["", None])
async def test_completion_may_have_a_chunk_after_its_finish(
    server: FakeServer, completing: OpenAIWorker, late: Any
) -> None:
    done = choice(text="ok", finish_reason="stop")
    server.script = stream(done, {**choice(text=late, finish_reason="stop"), "usage": USAGE}, DONE)
    assert await end_of(completing, PROMPT) == ("ok", Completed(0, "stop", COUNTS, "gpt-1"))


async def test_completion_needs_no_index_where_there_is_one_prompt(
    server: FakeServer, completing: OpenAIWorker
) -> None:
    server.script = stream({"choices": [{"text": "ok"}]}, {"choices": [{"finish_reason": "stop"}]}, DONE)
    assert (await end_of(completing, PROMPT))[0] == "ok"


async def test_prompts_of_a_list_that_have_ended_say_nothing_more(
    server: FakeServer, completing: OpenAIWorker
) -> None:
    def said(index: Any, text: str, reason: str | None = None) -> dict[str, Any]:
        return {"choices": [{"index": index, "text": text, "finish_reason": reason}]}

    server.script = stream(
        said(0, "a", "stop"), said(0, "", "stop"), said("1", "b"), said(1, "", "LENGTH"), DONE
    )
    assert [end for end in await outputs_of(completing, PROMPT, PROMPT) if isinstance(end, Completed)] == [
        Completed(0, "stop"),
        Completed(1, "length", raw_finish_reason="LENGTH"),
    ]


# Usage


@pytest.mark.parametrize(
    "chunks",
    [
        [STOP, {"choices": [], "usage": USAGE}],
        [choice(delta={}, finish_reason="stop", usage=USAGE)],
        [STOP, choice(delta={}, usage=USAGE)],
        [{**STOP, "usage": None}, {"usage": USAGE}],
        [{**STOP, "x_groq": {"id": "r", "usage": USAGE}}],
        [STOP, {"choices": [], "x_groq": {"usage": USAGE}}],
        [{**STOP, "usage": USAGE}, {"choices": [], "usage": None}],
        [{**STOP, "usage": USAGE}, {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}],
        [{**STOP, "usage": {"prompt_tokens": 0, "completion_tokens": 0}}, {"choices": [], "usage": USAGE}],
        [{**OK, "usage": {"prompt_tokens": 3, "completion_tokens": 1}}, {**STOP, "usage": USAGE}],
        [{**STOP, "usage": {"prompt_tokens": 3}}, {"choices": [], "usage": {"completion_tokens": 2}}],
        [{**STOP, "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2}}],
        [{**STOP, "usage": {"input_tokens": 3, "output_tokens": 2}}],
        [{**STOP, "usage": {"prompt_tokens": 3.0, "completion_tokens": 2}}],
        [STOP, {"choices": [], "usage": 5}, {"choices": [], "usage": USAGE}, {"choices": [], "usage": []}],
    ],
)
async def test_usage_is_found_wherever_it_comes(
    server: FakeServer, worker: OpenAIWorker, chunks: list[Any]
) -> None:
    server.script = stream(OK, *chunks, DONE)
    end = (await end_of(worker))[1]
    assert end._replace(extra=None) == Completed(0, "stop", COUNTS, "gpt-1")


@pytest.mark.parametrize(
    "details",
    [
        {"prompt_tokens_details": {"cached_tokens": 1}},
        {"prompt_tokens_details": None, "prompt_cache_hit_tokens": 1},
        {"cached_tokens": 1},
    ],
)
async def test_cached_tokens_have_several_names(
    server: FakeServer, worker: OpenAIWorker, details: dict[str, Any]
) -> None:
    server.script = stream({**STOP, "usage": {**USAGE, **details}}, DONE)
    assert (await end_of(worker))[1].usage == TokenUsage(3, 2, 1)


@pytest.mark.parametrize("count", [-1, True, 2**64, 1_000_000_000, "3", 0.5, [3], {"n": 3}, None])
@pytest.mark.parametrize("as_completion", [False, True])
async def test_absurd_count_is_none(server: FakeServer, count: Any, as_completion: bool) -> None:
    usage = {
        "prompt_tokens": count,
        "completion_tokens": count,
        "prompt_tokens_details": {"cached_tokens": count},
        "completion_tokens_details": count,
    }
    written = orjson.dumps(usage) if count != 2**64 else str(usage).replace("'", '"').encode()
    chunk = orjson.dumps(choice(delta={}, text="", finish_reason="stop"))
    server.script = stream(b"data: " + chunk[:-1] + b',"usage":' + written + b"}\n\n", DONE)
    worker = make(server, options={"completions": as_completion})
    assert (await end_of(worker, PROMPT))[1].usage._replace(extra=None) == TokenUsage()
    await worker.aclose()


@pytest.mark.parametrize("model", [5, None, [], {"name": "m"}, ""])
async def test_model_that_is_no_name_is_none(server: FakeServer, worker: OpenAIWorker, model: Any) -> None:
    server.script = stream({**STOP, "model": model}, DONE)
    assert (await end_of(worker))[1].model is None


# Errors


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"error": {"message": "oh no", "type": "None", "param": "None", "code": "400"}}, RequestRejected),
        ({"error": {"message": "oh no", "code": 401}}, WorkerAuthError),
        ({"error": {"message": "oh no", "code": "429"}}, WorkerOverloaded),
        ({"error": {"message": "oh no", "status": "RESOURCE_EXHAUSTED"}}, WorkerOverloaded),
        ({"error": {"message": "oh no", "type": "BadRequestError"}}, RequestRejected),
        ({"error": {"message": "oh no", "type": "authentication_error"}}, WorkerAuthError),
        ({"error": {"message": "oh no", "code": "context_length_exceeded"}}, ContextOverflow),
        ({"error": "oh no", "error_type": "overloaded"}, WorkerOverloaded),
        ({"error": "oh no"}, WorkerFailed),
        ({"error": ["oh no"]}, WorkerFailed),
        ({"error": True, "message": "oh no", "status_code": 400}, RequestRejected),
        ({"error": {"error": {"message": "oh no", "code": 400}}}, RequestRejected),
        ([{"error": {"message": "oh no", "code": 400, "status": "INVALID_ARGUMENT"}}], RequestRejected),
        ({"object": "error", "message": "oh no", "type": "BadRequestError", "code": 400}, RequestRejected),
        ({"success": False, "errors": [{"code": 7003, "message": "oh no"}]}, WorkerFailed),
        ({"code": 20012, "message": "oh no", "data": None}, WorkerFailed),
        ({"base_resp": {"status_code": 1004, "status_msg": "oh no"}}, WorkerFailed),
        ({"choices": [], "x_groq": {"id": "r", "error": "oh no"}}, WorkerFailed),
        ({"detail": "oh no"}, WorkerFailed),
        (choice(delta={}, finish_reason="error", error={"code": 429, "message": "oh no"}), WorkerOverloaded),
    ],
)
@pytest.mark.parametrize("how", ["stream", "middle", "document"])
async def test_error_with_a_good_status_keeps_its_code_and_words(
    server: FakeServer, worker: OpenAIWorker, error: Any, expected: type[WorkerError], how: str
) -> None:
    scripts = {
        "stream": stream(error, DONE),
        "middle": stream(OK, error, DONE),
        "document": answer(200, error, "Content-Type: application/json"),
    }
    server.script = scripts[how]
    caught = await error_of(worker, CHAT)
    assert type(caught) is expected
    assert "oh no" in str(caught)


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (b'event: error\ndata: {"message": "oh no", "code": 400}\n\n', RequestRejected),
        (b'event:error\ndata: {"error": {"message": "oh no", "code": 400}}\n\n', RequestRejected),
        (b"event: error\ndata: oh no\n\n", WorkerFailed),
        (b'error: {"code": 400, "message": "oh no"}\n\n', RequestRejected),
        (b'{"error": {"code": 400, "message": "oh no"}}\n\n', RequestRejected),
        (b'data: {"error": {"code": 400, "message": "oh no"}}', RequestRejected),
    ],
)
@pytest.mark.parametrize("before", [b"", event(OK)])
async def test_error_is_heard_however_the_stream_brings_it(
    server: FakeServer, worker: OpenAIWorker, wire: bytes, expected: type[WorkerError], before: bytes
) -> None:
    server.script = stream(before + wire) if before else stream(wire)
    caught = await error_of(worker, CHAT)
    assert type(caught) is expected
    assert "oh no" in str(caught)


async def test_servers_own_name_of_an_error_stays_beside_its_words(
    server: FakeServer, worker: OpenAIWorker
) -> None:
    server.script = answer(400, {"error": {"message": "oh no", "code": "unsupported_value", "type": "t"}})
    assert "oh no (unsupported_value)" in str(await error_of(worker, CHAT))


@pytest.mark.parametrize("event_name", [b"", b"event: error\n"])
async def test_refusal_in_the_form_of_a_stream_is_read(
    server: FakeServer, worker: OpenAIWorker, event_name: bytes
) -> None:
    wire = event_name + event({"error": {"message": "oh no", "code": "unsupported_value"}})
    server.script = answer(400, wire, "Content-Type: text/event-stream")
    caught = await error_of(worker, CHAT)
    assert type(caught) is RequestRejected
    assert str(caught).endswith("answered 400: oh no (unsupported_value)")


@pytest.mark.parametrize("late", [{"error": {"message": "logging failed", "code": 500}}, b"data: {not\n\n"])
@pytest.mark.parametrize("at_once", [False, True])
async def test_error_after_the_answer_harms_it_not(
    server: FakeServer, worker: OpenAIWorker, late: Any, at_once: bool
) -> None:
    chunks = [late if isinstance(late, bytes) else event(late)]
    chunks = [event(OK), event(STOP), *chunks]
    server.script = stream(b"".join(chunks)) if at_once else stream(*chunks)
    assert (await end_of(worker))[0] == "ok"


async def test_what_came_before_an_error_in_one_read_is_heard(
    server: FakeServer, completing: OpenAIWorker
) -> None:
    first = {"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]}
    wire = event(first) + event({"error": {"message": "oh no", "code": 400}})

    async def stay(writer: asyncio.StreamWriter) -> None:
        await stream(wire, end=False)(writer)
        await server.requests[0].left.wait()

    server.script = stay
    async with asyncio.timeout(SOON_S), aclosing(completing.generate([PROMPT, PROMPT])) as outputs:
        assert [await anext(outputs), await anext(outputs)] == [Piece(0, "a"), Completed(0, "stop")]
        with pytest.raises(RequestRejected, match="oh no"):
            await anext(outputs)


# How it comes


@pytest.mark.parametrize(
    "content_type",
    [
        "Text/Event-Stream; charset=UTF-8",
        "text/plain; charset=utf-8",
        "application/octet-stream",
        "application/json",
        "text/html",
        "",
    ],
)
async def test_event_stream_is_known_by_what_it_holds(
    server: FakeServer, worker: OpenAIWorker, content_type: str
) -> None:
    server.script = stream(OK, STOP, DONE, content_type=content_type)
    assert (await end_of(worker))[0] == "ok"


@pytest.mark.parametrize("status", [200, 201, 202])
@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream", "text/plain"])
@pytest.mark.parametrize("before", [b"", b"\n \n", b"\xef\xbb\xbf"])
async def test_whole_answer_in_place_of_a_stream_is_an_answer(
    server: FakeServer, worker: OpenAIWorker, status: int, content_type: str, before: bytes
) -> None:
    message = {"role": "assistant", "content": "ok", "reasoning_content": "hm"}
    body = {**choice(message=message, finish_reason="stop"), "usage": USAGE}
    server.script = answer(status, before + orjson.dumps(body), f"Content-Type: {content_type}")
    assert await outputs_of(worker, CHAT) == [
        Piece(0, "ok", "hm"),
        Completed(0, "stop", COUNTS, "gpt-1"),
    ]


async def test_whole_answer_without_a_finish_reason_ends_for_an_unknown_one(
    server: FakeServer, worker: OpenAIWorker
) -> None:
    server.script = answer(200, choice(message={"content": "ok"}))
    assert await end_of(worker) == ("ok", Completed(0, "unknown"))
    server.script = answer(200, choice(message={"content": ""}))
    assert type(await error_of(worker, CHAT)) is WorkerProtocolError


async def test_whole_answer_may_be_written_over_several_lines(
    server: FakeServer, worker: OpenAIWorker
) -> None:
    body = choice(message={"content": "ok"}, finish_reason="stop")
    server.script = answer(200, orjson.dumps(body, option=orjson.OPT_INDENT_2))
    assert (await end_of(worker))[0] == "ok"


async def test_whole_completion_in_place_of_a_stream_is_an_answer(
    server: FakeServer, completing: OpenAIWorker
) -> None:
    server.script = answer(200, {**choice(text="ok", finish_reason="length"), "usage": USAGE})
    assert await end_of(completing, PROMPT) == ("ok", Completed(0, "length", COUNTS, "gpt-1"))


@pytest.mark.parametrize("key", ["delta", "message"])
async def test_legacy_completion_in_the_form_of_a_chat_is_an_answer(
    server: FakeServer, completing: OpenAIWorker, key: str
) -> None:
    server.script = stream(choice(**{key: {"content": "ok"}}), choice(finish_reason="stop"), DONE)
    assert (await end_of(completing, PROMPT))[0] == "ok"


async def test_lines_of_json_are_events(server: FakeServer, worker: OpenAIWorker) -> None:
    server.script = answer(200, b"\n".join(orjson.dumps(chunk) for chunk in [OK, STOP]))
    assert (await end_of(worker))[0] == "ok"


async def test_lines_of_json_are_events_as_they_come(server: FakeServer, worker: OpenAIWorker) -> None:
    heard = asyncio.Event()

    async def slowly(writer: asyncio.StreamWriter) -> None:
        lines = [orjson.dumps(delta(content=said)) for said in "ab"]
        await stream(lines[0], b"\n", lines[1][:5], lines[1][5:] + b"\n", end=False)(writer)
        await heard.wait()
        write_chunk(writer, orjson.dumps(STOP))
        writer.write(b"0\r\n\r\n")

    server.script = slowly
    async with asyncio.timeout(SOON_S), aclosing(worker.generate([CHAT])) as outputs:
        assert [await anext(outputs), await anext(outputs)] == [Piece(0, "a"), Piece(0, "b")]
        heard.set()
        assert await anext(outputs) == Completed(0, "stop", model="gpt-1")


@pytest.mark.parametrize("cut", [0, 9])
async def test_whole_answer_whose_connection_stays_open_ends_after_a_short_grace(
    server: FakeServer, cut: int
) -> None:
    whole = orjson.dumps(choice(message={"content": "ok"}, finish_reason="stop"))
    parts = [part for part in (whole[:cut], whole[cut:]) if part]

    async def stay(writer: asyncio.StreamWriter) -> None:
        await stream(*parts, end=False, content_type="application/json")(writer)
        await server.requests[0].left.wait()

    server.script = stay
    worker = make(server, timeout_s=1000)
    async with asyncio.timeout(SOON_S):
        assert (await end_of(worker))[0] == "ok"
    await worker.aclose()


async def test_whole_answer_that_is_cut_off_is_none(server: FakeServer, worker: OpenAIWorker) -> None:
    server.script = answer(200, b'{"choices": [{"message": {"content": "ok"')
    assert type(await error_of(worker, CHAT)) is WorkerProtocolError


async def test_whole_answer_is_bounded(server: FakeServer, worker: OpenAIWorker) -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        await stream(b"{", end=False)(writer)
        while True:
            write_chunk(writer, b" " * 262_144)
            await writer.drain()

    server.script = endless
    assert "more than 16,777,216 bytes" in str(await error_of(worker, CHAT))


@pytest.mark.parametrize("name", ["none", "identity", "", "utf-8", "NONE"])
async def test_content_encoding_that_is_none_is_ignored(
    server: FakeServer, worker: OpenAIWorker, name: str
) -> None:
    wire = event(OK) + event(STOP) + DONE
    server.script = answer(200, wire, f"Content-Encoding: {name}")
    assert (await end_of(worker))[0] == "ok"


@pytest.mark.parametrize(
    ("name", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)]
)
async def test_compressed_answer_is_read(
    server: FakeServer, worker: OpenAIWorker, name: str, compress: Any
) -> None:
    server.script = answer(200, compress(event(OK) + event(STOP) + DONE), f"Content-Encoding: {name}")
    assert (await end_of(worker))[0] == "ok"
    server.script = answer(400, compress(b'{"error": "oh no"}'), f"Content-Encoding: {name}")
    assert "oh no" in str(await error_of(worker, CHAT))


@pytest.mark.parametrize(
    "wire",
    [
        (event(OK) + event(STOP) + event({"error": "oh no"})).replace(b"\n\n", b"\n"),
        event(OK) + event(STOP).rstrip(b"\n"),
        event(OK) + event(STOP)[:-1],
        event(OK) + event(STOP) + b"data: [DONE]",
        event(OK) + event(STOP) + b"data: [DONE] \r\n\r\n",
        event(OK) + event(STOP) + DONE + DONE,
        event(OK) + event(STOP) + DONE + event(delta(content="more")),
        (event(OK) + event(STOP) + DONE).replace(b"\n", b"\r"),
        (event(OK) + event(STOP) + DONE).replace(b"\n", b"\r\n"),
        (event(OK) + event(STOP) + DONE).replace(b"\n\n", b"\n"),
        (event(OK) + event(STOP) + DONE).replace(b"data: ", b"data:"),
        b"\xef\xbb\xbf" + event(OK) + event(STOP) + DONE,
        b"\n\n\n" + event(OK) + event(STOP) + DONE,
    ],
)
async def test_events_may_be_separated_carelessly(
    server: FakeServer, worker: OpenAIWorker, wire: bytes
) -> None:
    server.script = stream(wire)
    assert await end_of(worker) == ("ok", Completed(0, "stop", model="gpt-1"))


async def test_bytes_that_are_no_utf8_are_replaced(server: FakeServer, worker: OpenAIWorker) -> None:
    server.script = stream(event(delta(content="a?b")).replace(b"?", b"\xff"), STOP, DONE)
    assert (await end_of(worker))[0] == "a\ufffdb"


async def test_numbers_that_json_has_not_are_read(server: FakeServer, worker: OpenAIWorker) -> None:
    wire = event({**OK, "logprobs": [0, 1]}).replace(b"[0,1]", b"[NaN,-Infinity]")
    server.script = stream(wire, STOP, DONE)
    assert (await end_of(worker))[0] == "ok"


def escaped(content: str, place: str = "content") -> bytes:
    """A chunk with text as it stands in JSON, escapes and all."""
    return event(delta(**{place: "?"})).replace(b'"?"', b'"' + content.encode() + b'"')


async def test_halves_of_a_character_are_joined(server: FakeServer, worker: OpenAIWorker) -> None:
    server.script = stream(
        escaped("a\\ud83d"), escaped(""), escaped("\\ude00b"), escaped("\\ud83d\\ude00"), STOP, DONE
    )
    pieces = await outputs_of(worker, CHAT)
    assert [piece.text for piece in pieces[:-1]] == ["a", "😀b", "😀"]


@pytest.mark.parametrize("place", ["content", "reasoning_content"])
async def test_half_a_character_that_stays_alone_is_replaced(
    server: FakeServer, worker: OpenAIWorker, place: str
) -> None:
    server.script = stream(
        escaped("a\\ude00", place), escaped("\\ud83d", place), escaped("x\\ud83d", place), STOP, DONE
    )
    *pieces, _ = await outputs_of(worker, CHAT)
    assert "".join(piece.text + piece.reasoning for piece in pieces) == "a\ufffd\ufffdx\ufffd"


async def test_half_a_character_in_a_whole_answer_is_replaced(
    server: FakeServer, worker: OpenAIWorker
) -> None:
    whole = orjson.dumps(choice(message={"content": "a?"}, finish_reason="stop"))
    server.script = answer(200, whole.replace(b"a?", b"a\\ud83d"))
    assert (await end_of(worker))[0] == "a\ufffd"


# Ends


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("STOP", "stop"),
        ("eos", "stop"),
        ("eos_token", "stop"),
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("FinishReason.STOP", "stop"),
        ("FINISH_REASON_MAX_TOKENS", "length"),
        ("MAX_TOKENS", "length"),
        ("max_tokens", "length"),
        ("MaxTokens", "length"),
        ("pause_turn", "length"),
        ({"type": "length"}, "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("refusal", "content_filter"),
        ("tool_use", "tool_calls"),
        ("OTHER", "unknown"),
        (1, "unknown"),
    ],
)
@pytest.mark.parametrize("as_completion", [False, True])
async def test_finish_reasons_of_other_vocabularies_keep_their_sense(
    server: FakeServer, said: Any, reason: str, as_completion: bool
) -> None:
    server.script = stream(choice(text="ok", delta={"content": "ok"}, finish_reason=said), DONE)
    worker = make(server, options={"completions": as_completion})
    assert (await end_of(worker, PROMPT))[1].finish_reason == reason
    await worker.aclose()


@pytest.mark.parametrize(
    ("reasons", "reason"),
    [
        (["length", "stop"], "length"),
        (["stop", "length"], "length"),
        (["tool_calls", "stop"], "tool_calls"),
        (["stop", "stop"], "stop"),
        (["stop", "something_new"], "stop"),
        (["something_new", "stop"], "stop"),
    ],
)
async def test_a_mere_stop_takes_no_other_reason_back(
    server: FakeServer, worker: OpenAIWorker, reasons: list[str], reason: str
) -> None:
    server.script = stream(OK, *(delta(said) for said in reasons), DONE)
    assert (await end_of(worker))[1].finish_reason == reason


@pytest.mark.parametrize("as_completion", [False, True])
async def test_finish_reason_in_every_chunk_is_not_the_end(server: FakeServer, as_completion: bool) -> None:
    chunks = [choice(text=said, delta={"content": said}, finish_reason="stop") for said in "abc"]
    worker = make(server, options={"completions": as_completion})
    server.script = stream(*chunks, DONE)
    assert await end_of(worker, PROMPT) == ("abc", Completed(0, "stop", model="gpt-1"))
    server.script = stream(*chunks, end=False)
    assert type(await error_of(worker, PROMPT)) is WorkerProtocolError
    await worker.aclose()


@pytest.mark.parametrize("said", ["network_error", "ERROR", "cancelled", "MALFORMED_FUNCTION_CALL"])
async def test_answer_that_was_given_up_is_none_in_any_vocabulary(
    server: FakeServer, worker: OpenAIWorker, said: str
) -> None:
    server.script = stream(OK, delta(said), DONE)
    failed = (await outputs_of(worker, CHAT))[-1]
    assert isinstance(failed, MemberFailed)
    assert said in str(failed.error)


@pytest.mark.parametrize("done", [DONE, b"data: [DONE]", b"data:[DONE]\n"])
async def test_end_without_a_finish_reason_is_one_and_its_reason_unknown(
    server: FakeServer, worker: OpenAIWorker, done: bytes
) -> None:
    server.script = stream(OK, delta(content=""), done)
    assert (await end_of(worker))[0] == "ok"
    assert (await end_of(worker))[1].finish_reason == "unknown"


async def test_completions_without_finish_reasons_end_where_the_server_says_so(
    server: FakeServer, completing: OpenAIWorker
) -> None:
    server.script = stream(choice(text="ok"), DONE)
    assert await end_of(completing, PROMPT) == ("ok", Completed(0, "unknown"))
    server.script = stream(choice(text="ok"), {"choices": [{"index": 1, "text": "b"}]}, DONE)
    ends = [end for end in await outputs_of(completing, PROMPT, PROMPT) if isinstance(end, Completed)]
    assert ends == [Completed(0, "unknown"), Completed(1, "unknown")]


async def test_end_without_any_text_is_cut_off(
    server: FakeServer, worker: OpenAIWorker, completing: OpenAIWorker
) -> None:
    server.script = stream(delta(role="assistant", content=""), DONE)
    assert type(await error_of(worker, CHAT)) is WorkerProtocolError
    server.script = stream(choice(text=""), DONE)
    assert type(await error_of(completing, PROMPT)) is WorkerProtocolError
    server.script = stream(choice(text="ok"), DONE)
    assert type(await error_of(completing, PROMPT, PROMPT)) is WorkerProtocolError


@pytest.mark.parametrize("late", [[], [{"choices": [], "usage": USAGE}], [event({"usage": USAGE})[:-1]]])
async def test_answer_whose_connection_stays_open_ends_after_a_short_grace(
    server: FakeServer, late: list[Any]
) -> None:
    async def stay(writer: asyncio.StreamWriter) -> None:
        await stream(OK, STOP, *late, end=False)(writer)
        while not server.requests[0].left.is_set():
            write_chunk(writer, b": heartbeat\n\n")
            await writer.drain()
            await asyncio.sleep(0.05)

    server.script = stay
    worker = make(server, timeout_s=1000)
    async with asyncio.timeout(SOON_S):
        assert await end_of(worker) == (
            "ok",
            Completed(0, "stop", COUNTS if late else TokenUsage(), "gpt-1"),
        )
    await worker.aclose()


@pytest.mark.parametrize("late", [b"", b'data: {"choices'])
async def test_connection_that_breaks_after_the_answer_costs_nothing(
    server: FakeServer, worker: OpenAIWorker, late: bytes
) -> None:
    server.script = stream(OK, event(STOP) + late, end=False)
    assert (await end_of(worker))[0] == "ok"


async def test_last_event_of_a_broken_connection_counts(server: FakeServer, worker: OpenAIWorker) -> None:
    server.script = stream(OK, event(STOP).rstrip(b"\n"), end=False)
    assert (await end_of(worker))[0] == "ok"


async def test_done_counts_however_the_connection_ends(server: FakeServer, worker: OpenAIWorker) -> None:
    server.script = stream(OK, b"data: [DONE]", end=False)
    assert (await end_of(worker))[1].finish_reason == "unknown"


@pytest.mark.parametrize("late", [b"", event(OK)[:-9]])
async def test_answer_that_is_cut_off_is_no_answer(
    server: FakeServer, worker: OpenAIWorker, late: bytes
) -> None:
    server.script = stream(event(OK) + late)
    assert type(await error_of(worker, CHAT)) is WorkerProtocolError


# Tool calls: how fragments are put together is tried in test_workers_tool_calls.py


def called(*fragments: dict[str, Any]) -> dict[str, Any]:
    return delta(tool_calls=list(fragments))


async def test_call_without_arguments_has_empty_ones_when_it_ends(
    server: FakeServer, worker: OpenAIWorker
) -> None:
    server.script = stream(called({"index": 0, "id": "a", "function": {"name": "f"}}), STOP, DONE)
    *_, last, end = await outputs_of(worker, CHAT)
    assert last == Piece(0, tool_calls=({"index": 0, "function": {"arguments": "{}"}},))
    assert end.finish_reason == "tool_calls"


async def test_call_that_was_cut_off_gets_no_arguments(server: FakeServer, worker: OpenAIWorker) -> None:
    server.script = stream(called({"index": 0, "id": "a", "function": {"name": "f"}}), delta("length"), DONE)
    piece, end = await outputs_of(worker, CHAT)
    assert piece.tool_calls[0]["function"]["arguments"] == ""
    assert end.finish_reason == "length"


async def test_legacy_function_call_is_a_tool_call(server: FakeServer, worker: OpenAIWorker) -> None:
    server.script = stream(
        delta(function_call={"name": "f", "arguments": ""}),
        delta(function_call={"arguments": '{"x":1}'}),
        delta("function_call"),
        DONE,
    )
    *pieces, end = await outputs_of(worker, CHAT)
    assert [piece.tool_calls[0]["function"] for piece in pieces] == [
        {"name": "f", "arguments": ""},
        {"arguments": '{"x":1}'},
    ]
    assert end.finish_reason == "tool_calls"


async def test_list_of_no_calls_is_no_call(server: FakeServer, worker: OpenAIWorker) -> None:
    server.script = stream(delta(content="ok", tool_calls=[None]), STOP, DONE)
    assert (await end_of(worker))[1].finish_reason == "stop"


async def test_calls_that_end_without_a_finish_reason_are_calls(
    server: FakeServer, worker: OpenAIWorker
) -> None:
    server.script = stream(called({"index": 0, "function": {"name": "f", "arguments": "{}"}}), DONE)
    assert (await outputs_of(worker, CHAT))[-1].finish_reason == "tool_calls"


# Fields that a server refuses


class StrictServer(FakeServer):
    """Refuses one field in words of its own, unless it is `tolerant`."""

    def __init__(self, field: str, status: int, refusal: Any) -> None:
        super().__init__()
        self.field, self.status, self.refusal = field, status, refusal

    async def respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if request.body is None:
            await answer(200, {"data": []})(writer)
        elif self.field not in request.body:
            await stream(OK, STOP, DONE)(writer)
        elif self.status == 200:
            await stream(self.refusal, DONE)(writer)
        else:
            await answer(self.status, self.refusal)(writer)


@pytest.mark.parametrize(
    ("status", "refusal"),
    [
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"]}]}),
        (400, {"error": {"message": "Unrecognized request argument supplied: stream_options"}}),
        (500, {"error": "create() got an unexpected keyword argument 'stream_options'"}),
        (200, {"error": {"message": "stream_options is not supported", "code": 400}}),
    ],
)
async def test_refused_stream_options_are_left_out_from_then_on(status: int, refusal: Any) -> None:
    async with listening(StrictServer("stream_options", status, refusal)) as server:
        worker = make(server)
        assert not (await worker.health()).warnings
        for _ in range(2):
            assert (await end_of(worker))[0] == "ok"
        assert ["stream_options" in body for body in server.bodies if body] == [True, False, False]
        assert "stream_options" in (await worker.health()).warnings[0]
        await worker.aclose()


async def test_field_that_the_user_set_is_never_left_out() -> None:
    refusal = {"error": {"message": "temperature is not supported with stream_options"}}
    async with listening(StrictServer("temperature", 400, refusal)) as server:
        worker = make(server)
        hot = Generation("gpt", prompt="a", params={"temperature": 1.0})
        assert type(await error_of(worker, hot)) is RequestRejected
        assert (await end_of(worker))[0] == "ok"
        assert "stream_options" in server.bodies[-1], "it was not at fault"
        await worker.aclose()


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        (
            "max_tokens",
            "max_completion_tokens",
            "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        ),
        ("max_completion_tokens", "max_tokens", "Unrecognized request argument: max_completion_tokens"),
    ],
)
async def test_limit_of_tokens_gets_the_name_that_the_server_knows(name: str, other: str, words: str) -> None:
    async with listening(StrictServer(name, 400, {"error": {"message": words}})) as server:
        worker = make(server)
        for _ in range(2):
            limited = Generation("gpt", prompt="a", extra_body={name: 7})
            assert (await end_of(worker, limited))[0] == "ok"
        assert [body.get(other) for body in server.bodies] == [None, 7, 7]
        assert not (await worker.health()).warnings
        await worker.aclose()


async def test_limit_of_tokens_that_is_too_large_is_refused_once(server: FakeServer) -> None:
    words = "'max_tokens' or 'max_completion_tokens' is too large"
    server.script = answer(400, {"error": {"message": words}})
    worker = make(server)
    prompt = Generation("gpt", prompt="a", params={"max_tokens": 7})
    assert type(await error_of(worker, prompt)) is RequestRejected
    assert len(server.bodies) == 1
    await worker.aclose()


async def test_stream_options_are_not_sent_by_option(server: FakeServer) -> None:
    server.script = stream(OK, STOP, DONE)
    worker = make(server, options={"stream_options": False})
    await outputs_of(worker, CHAT)
    assert "stream_options" not in server.bodies[0]
    await worker.aclose()
