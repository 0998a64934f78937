"""The payload of a job: what is written is strict, what is read is liberal."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from scheduler.errors import BadRecord, InvalidRequest, UnknownKind
from scheduler.model import EmbeddingRequest, PromptRequest, RerankRequest
from scheduler.payload import (
    FREE_FORM_FIELDS,
    NOT_CONTENT_FIELDS,
    REQUEST_FIELDS,
    TRACE_FIELDS,
    decode,
    encode,
    kind_of,
    parse_request,
    payload_of,
    peek,
    request_type,
)

FULL: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}],
    "params": {"seed": 1},
    "tools": [{"type": "function", "function": {"name": "add"}}],
    "tool_choice": "auto",
    "response_format": {"type": "json_object"},
    "extra_body": {"a": 1},
    "metadata": {"b": 2},
    "session": "s",
    "stream": False,
    "max_waits": 3,
}
EMBEDDING = {"kind": "embedding", "input": ["a", "b"], "dimensions": 8}
RERANK = {"kind": "rerank", "query": "q", "documents": ["a"], "top_n": 1, "return_documents": True}
TRACE = b'{"traceparent":"00-1-2-01"}'


def test_a_payload_has_every_field_that_the_request_was_given() -> None:
    assert decode(encode(payload_of(PromptRequest.parse(**FULL)))) == FULL


def test_other_kinds_say_which_they_are() -> None:
    embedding = EmbeddingRequest.parse(input=["a", "b"], dimensions=8, model="vectors", priority=7)
    rerank = RerankRequest.parse(query="q", documents=["a"], top_n=1, return_documents=True)
    assert decode(encode(payload_of(embedding))) == EMBEDDING
    assert decode(encode(payload_of(rerank))) == RERANK
    assert (request_type(EMBEDDING), request_type(RERANK)) == (EmbeddingRequest, RerankRequest)
    assert request_type({"prompt": "hello"}) is PromptRequest


@pytest.mark.parametrize(
    "payload",
    [
        {"kind": "embedding"},
        {"kind": "embedding", "input": []},
        {"kind": "embedding", "input": "text"},
        {"kind": "embedding", "input": [7]},
        {"kind": "rerank", "query": "q"},
        {"kind": "rerank", "query": 7, "documents": ["a"]},
        {"kind": "rerank", "query": "q", "documents": []},
        {"kind": "rerank", "query": "q", "documents": [7]},
    ],
)
def test_a_payload_of_another_kind_that_is_not_whole_is_a_bad_record(payload: dict[str, Any]) -> None:
    with pytest.raises(BadRecord):
        decode(orjson.dumps(payload))


def test_fields_say_of_which_kind_they_are() -> None:
    assert parse_request({"prompt": "hello"}) == PromptRequest(prompt="hello")
    assert parse_request({"kind": "embedding", "input": "a"}) == EmbeddingRequest(input=["a"])
    for kind in ("film", 7, ["embedding"]):
        with pytest.raises(InvalidRequest, match="kind: give one of generate, embedding, rerank"):
            parse_request({"kind": kind, "input": "a"})


def test_defaults_are_left_out() -> None:
    request = PromptRequest.parse(prompt="hello", stream=True, params={}, session=None, priority=7)
    assert encode(payload_of(request)) == b'{"prompt":"hello"}'


def test_a_trace_goes_beside_the_fields_of_the_request() -> None:
    data = encode(payload_of(PromptRequest.parse(prompt="hello")), trace=TRACE)
    assert decode(data) == {"prompt": "hello", "traceparent": "00-1-2-01"}


def test_the_field_sets_agree_with_each_other_and_with_the_request() -> None:
    kinds = (PromptRequest, EmbeddingRequest, RerankRequest)
    assert set().union(*(kind.model_fields for kind in kinds)) >= REQUEST_FIELDS
    assert {*FREE_FORM_FIELDS, *NOT_CONTENT_FIELDS, *FULL, "prompt"} <= REQUEST_FIELDS
    assert {*EMBEDDING, *RERANK} - {"kind"} <= REQUEST_FIELDS
    assert not REQUEST_FIELDS & (TRACE_FIELDS | {"kind"})


@pytest.mark.parametrize(
    "payload",
    [
        {"prompt": "hello", "kind": "generate"},
        {"prompt": "hello", "kind": None},
        {"prompt": "hello", "of_a_newer_version": [1]},
    ],
)
def test_what_a_newer_client_may_add_is_read(payload: dict[str, Any]) -> None:
    assert decode(orjson.dumps(payload)) == payload


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"null",
        b'["prompt"]',
        b"{}",
        b'{"prompt":7}',
        b'{"prompt":"x","messages":[]}',
        b'{"prompt":"x","params":[]}',
    ],
)
def test_what_is_not_a_payload_is_a_bad_record(data: bytes) -> None:
    with pytest.raises(BadRecord) as refused:
        decode(data)
    assert (refused.value.code, refused.value.retryable) == ("bad_record", False)


@pytest.mark.parametrize("kind", ["film", "", 7, {"of": "it"}])
def test_an_unknown_kind_is_an_error_of_its_own(kind: object) -> None:
    payload = {"kind": kind, "input": ["text"]}
    with pytest.raises(UnknownKind, match="which this version does not do") as refused:
        decode(orjson.dumps(payload))
    assert (refused.value.code, refused.value.retryable) == ("unknown_kind", False)
    with pytest.raises(UnknownKind):
        kind_of(payload)


@pytest.mark.parametrize("data", [None, b"", b"\xff", b"null", b"[]", b'"text"'])
def test_peek_gives_nothing_for_what_is_gone_or_damaged(data: bytes | None) -> None:
    assert peek(data) is None


def test_peek_shows_any_object_as_it_is_stored() -> None:
    assert peek(b'{"kind":"embedding","input":[]}') == {"kind": "embedding", "input": []}
