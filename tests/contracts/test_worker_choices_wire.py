"""Several choices, log probabilities and what else engines say, on scripted wires of their form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.contracts.wire import DONE, FakeServer, answer, error_of, outputs_of, stream
from workers import (
    ChoiceEnd,
    Completed,
    EndpointConfig,
    Generation,
    GenerationWorker,
    MemberFailed,
    Piece,
    RequestRejected,
    TokenUsage,
    WorkerProtocolError,
)
from workers.llama_cpp import LlamaCppWorker
from workers.openai import OpenAIWorker
from workers.vllm import VllmWorker

HELLO = ({"role": "user", "content": "hello"},)
FOUR = Generation("m", messages=HELLO, extra_body={"n": 4, "logprobs": True})
COMPLETION = Generation("m", prompt="hello", extra_body={"n": 2, "logprobs": 1})
Make = Callable[[EndpointConfig], GenerationWorker]


def openai(config: EndpointConfig) -> GenerationWorker:
    return OpenAIWorker(config)


def openai_completions(config: EndpointConfig) -> GenerationWorker:
    return OpenAIWorker(EndpointConfig("openai", config.base_url, options={"completions": True}))


def vllm(config: EndpointConfig) -> GenerationWorker:
    return VllmWorker(config)


def llama_cpp(config: EndpointConfig) -> GenerationWorker:
    return LlamaCppWorker(config)


@pytest.fixture
async def worker(server: FakeServer, make: Make) -> Any:
    worker = make(EndpointConfig("any", server.base_url))
    yield worker
    await worker.aclose()


def logprobs(token: str) -> dict[str, Any]:
    return {"content": [{"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []}]}


def chunk(*choices: dict[str, Any], **fields: Any) -> dict[str, Any]:
    head = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 5, "model": "m-1"}
    return {**head, "system_fingerprint": "fp_1", "choices": list(choices), **fields}


def said(index: int, token: str, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    delta = {"content": token} if token else {}
    return {
        "index": index,
        "delta": delta,
        "logprobs": logprobs(token) if token else None,
        "finish_reason": reason,
        **fields,
    }


@pytest.mark.parametrize("make", [openai, vllm, llama_cpp])
async def test_choices_that_come_in_turns_are_told_apart(
    server: FakeServer, worker: GenerationWorker
) -> None:
    server.script = stream(
        chunk({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}),
        *(chunk(said(index, f"{index}")) for index in (2, 0, 3, 1)),
        chunk(said(1, "!"), said(0, "?")),
        chunk(said(0, "", "stop"), said(3, "", "length")),
        chunk(said(1, "", "tool_calls", content_filter_results={"hate": {"filtered": False}})),
        chunk(said(2, "", "eos")),
        chunk(usage={"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}, service_tier="flex"),
        DONE,
    )
    *pieces, end = await outputs_of(worker, FOUR)
    assert pieces == [
        *(
            Piece(0, f"{index}", choice=index, extra={"logprobs": logprobs(f"{index}")})
            for index in (2, 0, 3, 1)
        ),
        Piece(0, "!", choice=1, extra={"logprobs": logprobs("!")}),
        Piece(0, "?", choice=0, extra={"logprobs": logprobs("?")}),
    ]
    assert end == Completed(
        0,
        "stop",
        TokenUsage(3, 6),
        "m-1",
        extra={"id": "chatcmpl-7", "created": 5, "system_fingerprint": "fp_1", "service_tier": "flex"},
        choices=(
            ChoiceEnd(0, "stop"),
            ChoiceEnd(1, "tool_calls", extra={"content_filter_results": {"hate": {"filtered": False}}}),
            ChoiceEnd(2, "stop", "eos"),
            ChoiceEnd(3, "length"),
        ),
    )
    assert (server.bodies[0]["n"], server.bodies[0]["logprobs"]) == (4, True)


@pytest.mark.parametrize("make", [openai_completions, vllm])
async def test_plain_completions_have_choices_too(server: FakeServer, worker: GenerationWorker) -> None:
    def part(index: int, text: str, reason: str | None = None) -> dict[str, Any]:
        told = {"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": [{}], "text_offset": [0]}
        return {"index": index, "text": text, "logprobs": told if text else None, "finish_reason": reason}

    server.script = stream(
        chunk(part(1, "b")),
        chunk(part(0, "a")),
        chunk(part(0, "", "stop")),
        chunk(part(1, "", "length")),
        DONE,
    )
    first, second, end = await outputs_of(worker, COMPLETION)
    assert (first.text, first.choice, second.text, second.choice) == ("b", 1, "a", 0)
    assert first.extra is not None
    assert first.extra["logprobs"]["tokens"] == ["b"]
    assert [(one.choice, one.finish_reason) for one in end.choices] == [(0, "stop"), (1, "length")]


@pytest.mark.parametrize("make", [openai, vllm, llama_cpp])
async def test_answer_in_one_piece_has_its_choices(server: FakeServer, worker: GenerationWorker) -> None:
    def whole(index: int, text: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {"index": index, "message": message, "logprobs": logprobs(text), "finish_reason": "stop"}

    server.script = answer(200, chunk(*(whole(index, f"{index}") for index in range(4))))
    *pieces, end = await outputs_of(worker, FOUR)
    assert [(piece.choice, piece.text) for piece in pieces] == [(index, f"{index}") for index in range(4)]
    assert len(end.choices) == 4


@pytest.mark.parametrize("make", [openai])
async def test_an_answer_without_all_of_its_choices_is_cut_off(
    server: FakeServer, worker: GenerationWorker
) -> None:
    server.script = stream(chunk(said(0, "a", "stop")), end=False)
    assert isinstance(await error_of(worker, FOUR), WorkerProtocolError)
    server.script = stream(chunk(said(0, "a", "stop")), DONE)
    *_, end = await outputs_of(worker, FOUR)
    assert end.choices == (ChoiceEnd(0, "stop"),), "the server knows no n, and says that it is done"


@pytest.mark.parametrize("make", [openai])
@pytest.mark.parametrize("index", [4, -1, "1", 2**40])
async def test_a_choice_that_nobody_asked_for_is_malformed(
    server: FakeServer, worker: GenerationWorker, index: Any
) -> None:
    server.script = stream(chunk(said(index, "a")), DONE)
    assert isinstance(await error_of(worker, FOUR), WorkerProtocolError)


@pytest.mark.parametrize("make", [openai, vllm, llama_cpp])
@pytest.mark.parametrize("count", [0, 129, "2", True, 2.0])
async def test_a_number_of_choices_that_is_none_is_refused_before_the_call(
    server: FakeServer, worker: GenerationWorker, count: Any
) -> None:
    error = await error_of(worker, Generation("m", messages=HELLO, extra_body={"n": count}))
    assert isinstance(error, RequestRejected)
    assert "n: give a whole number from 1 to 128" in str(error)
    assert server.requests == []


@pytest.mark.parametrize("make", [openai])
async def test_a_choice_that_the_engine_gave_up_fails_the_answer(
    server: FakeServer, worker: GenerationWorker
) -> None:
    server.script = stream(
        *(chunk(said(index, "a", "stop" if index else "error")) for index in range(4)), DONE
    )
    *_, end = await outputs_of(worker, FOUR)
    assert isinstance(end, MemberFailed)


@pytest.mark.parametrize("make", [openai])
async def test_what_has_no_name_comes_with_the_piece_and_with_the_end(
    server: FakeServer, worker: GenerationWorker
) -> None:
    link = {"type": "url_citation", "url_citation": {"url": "https://example.org"}}
    server.script = stream(
        chunk({"index": 0, "delta": {"role": "assistant", "content": "see", "annotations": [link]}}),
        chunk({"index": 0, "delta": {"audio": {"id": "a1", "data": "AAAA", "transcript": "se"}}}),
        chunk(
            {"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": 7},
            provider="P",
            obfuscation="x",
        ),
        chunk(prompt_filter_results=[{"prompt_index": 0}]),
        DONE,
        headers=("x-request-id: req_9", "X-RateLimit-Remaining-Tokens: 12"),
    )
    cited, audio, end = await outputs_of(worker, Generation("m", messages=HELLO))
    assert cited == Piece(0, "see", extra={"annotations": [link]})
    assert audio == Piece(0, extra={"audio": {"id": "a1", "data": "AAAA", "transcript": "se"}})
    assert end.extra == {
        "id": "chatcmpl-7",
        "created": 5,
        "system_fingerprint": "fp_1",
        "provider": "P",
        "stop_reason": 7,
        "prompt_filter_results": [{"prompt_index": 0}],
        "request_id": "req_9",
        "rate_limits": {"x-ratelimit-remaining-tokens": "12"},
    }


@pytest.mark.parametrize("make", [openai])
async def test_a_refusal_is_text_and_says_that_it_is_one(
    server: FakeServer, worker: GenerationWorker
) -> None:
    refusing = chunk({"index": 0, "delta": {"refusal": "I cannot."}, "finish_reason": "stop"})
    server.script = stream(refusing, DONE)
    piece, end = await outputs_of(worker, Generation("m", messages=HELLO))
    assert piece == Piece(0, "I cannot.", extra={"refusal": "I cannot."})
    assert (end.finish_reason, end.raw_finish_reason) == ("content_filter", "stop")


@pytest.mark.parametrize("make", [openai])
async def test_usage_has_every_detail(server: FakeServer, worker: GenerationWorker) -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 8,
        "total_tokens": 17,
        "cost": 0.25,
        "is_byok": True,
        "prompt_tokens_details": {
            "cached_tokens": 4,
            "cache_write_tokens": 3,
            "audio_tokens": 2,
            "video_tokens": 1,
        },
        "completion_tokens_details": {
            "reasoning_tokens": 5,
            "audio_tokens": 6,
            "accepted_prediction_tokens": 7,
        },
    }
    server.script = stream(chunk(said(0, "a", "stop")), chunk(usage=usage), DONE)
    *_, end = await outputs_of(worker, Generation("m", messages=HELLO))
    assert end.usage == TokenUsage(
        9,
        8,
        4,
        5,
        cache_write_tokens=3,
        input_audio_tokens=2,
        output_audio_tokens=6,
        cost=0.25,
        extra={
            "is_byok": True,
            "prompt_tokens_details": {"video_tokens": 1},
            "completion_tokens_details": {"accepted_prediction_tokens": 7},
        },
    )


@pytest.mark.parametrize("make", [openai])
async def test_an_error_has_the_engines_own_status_type_code_and_parameter(
    server: FakeServer, worker: GenerationWorker
) -> None:
    said = {"message": "no", "type": "invalid_request_error", "param": "messages[0]", "code": "bad_value"}
    server.script = answer(400, {"error": said})
    refused = await error_of(worker, Generation("m", messages=HELLO))
    assert refused.engine_error is not None
    assert refused.engine_error.status == 400
    assert (refused.engine_error.type, refused.engine_error.param) == ("invalid_request_error", "messages[0]")
    assert refused.engine_error.code == "bad_value"
    server.script = stream(chunk(said_nothing := {"index": 0, "delta": {}}), {"error": {**said, "code": 529}})
    assert said_nothing["index"] == 0
    broken = await error_of(worker, Generation("m", messages=HELLO))
    assert broken.engine_error is not None
    assert (broken.engine_error.status, broken.engine_error.code) == (529, "529")
