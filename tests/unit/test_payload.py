"""The payload of a job: what is written is strict, what is read is liberal."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from scheduler.errors import BadRecord, UnknownKind
from scheduler.model import PromptRequest
from scheduler.payload import (
    FREE_FORM_FIELDS,
    NOT_CONTENT_FIELDS,
    REQUEST_FIELDS,
    TRACE_FIELDS,
    check_kind,
    decode,
    encode,
    payload_of,
    peek,
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
TRACE = b'{"traceparent":"00-1-2-01"}'


def test_a_payload_has_every_field_that_the_request_was_given() -> None:
    assert decode(encode(payload_of(PromptRequest.parse(**FULL)))) == FULL


def test_defaults_are_left_out() -> None:
    request = PromptRequest.parse(prompt="hello", stream=True, params={}, session=None, priority=7)
    assert encode(payload_of(request)) == b'{"prompt":"hello"}'


def test_a_trace_goes_beside_the_fields_of_the_request() -> None:
    data = encode(payload_of(PromptRequest.parse(prompt="hello")), trace=TRACE)
    assert decode(data) == {"prompt": "hello", "traceparent": "00-1-2-01"}


def test_the_field_sets_agree_with_each_other_and_with_the_request() -> None:
    assert set(PromptRequest.model_fields) >= REQUEST_FIELDS
    assert {*FREE_FORM_FIELDS, *NOT_CONTENT_FIELDS, *FULL, "prompt"} <= REQUEST_FIELDS
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


@pytest.mark.parametrize("kind", ["embedding", "", 7, {"of": "it"}])
def test_an_unknown_kind_is_an_error_of_its_own(kind: object) -> None:
    payload = {"kind": kind, "input": ["text"]}
    with pytest.raises(UnknownKind, match="which this version does not do") as refused:
        decode(orjson.dumps(payload))
    assert (refused.value.code, refused.value.retryable) == ("unknown_kind", False)
    with pytest.raises(UnknownKind):
        check_kind(payload)


@pytest.mark.parametrize("data", [None, b"", b"\xff", b"null", b"[]", b'"text"'])
def test_peek_gives_nothing_for_what_is_gone_or_damaged(data: bytes | None) -> None:
    assert peek(data) is None


def test_peek_shows_any_object_as_it_is_stored() -> None:
    assert peek(b'{"kind":"embedding","input":[]}') == {"kind": "embedding", "input": []}
