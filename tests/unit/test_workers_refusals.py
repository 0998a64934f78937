"""Errors of servers, in a response or inside an answer, in the forms of many servers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from workers.refusals import Refusal, read_refusal, refusal_in_answer, refusal_of, retry_after_s

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        ({"error": {"message": "no", "code": "400", "type": "None"}}, Refusal(400, "", "no")),
        ({"error": {"message": "no", "code": 429, "type": "busy"}}, Refusal(429, "busy", "no")),
        ({"error": {"message": "no", "code": "model_not_found"}}, Refusal(404, "model_not_found", "no")),
        ({"error": {"message": "no", "status": "INVALID_ARGUMENT"}}, Refusal(400, "INVALID_ARGUMENT", "no")),
        ({"error": {"message": "no", "type": "NotFoundError"}}, Refusal(404, "NotFoundError", "no")),
        ({"error": {"message": "no", "code": 20012}}, Refusal(500, "20012", "no")),
        ({"error": {"message": "no", "code": True}}, Refusal(500, "", "no")),
        ({"error": {"message": "no", "code": "9" * 5000}}, Refusal(500, "9" * 500, "no")),
        ({"error": {"message": ["no"]}}, Refusal(500, "", "['no']")),
        ({"error": "no", "error_type": "overloaded"}, Refusal(503, "overloaded", "no")),
        ({"error": "Bad Request", "message": "no", "statusCode": 400}, Refusal(400, "Bad Request", "no")),
        ({"error": "Too Many Requests", "detail": "no"}, Refusal(429, "Too Many Requests", "no")),
        ({"error": {"message": "no", "http_status_code": 422}}, Refusal(422, "", "no")),
        ({"type": "about:blank", "title": "Bad", "status": 400, "detail": "no"}, Refusal(400, "", "no")),
        ({"status": 503, "error": "no"}, Refusal(503, "", "no")),
        ({"error": ["no", "never"]}, Refusal(500, "", "no, never")),
        ([{"error": {"message": "no"}}, {}], Refusal(500, "", "no")),
        ({"errors": [{"code": 403, "message": "no"}]}, Refusal(403, "", "no")),
        ({"error": {"error": {"error": "no"}}}, Refusal(500, "", "no")),
        ({"type": "error", "error": {"type": "overloaded_error"}}, Refusal(503, "overloaded_error", "")),
        ({"detail": "no"}, Refusal(500, "", "no")),
        ("no", Refusal(500, "", "no")),
        (None, Refusal(500)),
        ([], Refusal(500)),
        ({}, Refusal(500)),
    ],
)
def test_status_kind_and_words_are_found(answer: Any, refusal: Refusal) -> None:
    assert refusal_of(answer) == refusal


def test_words_that_are_nested_without_end_are_none() -> None:
    words: Any = "no"
    for _ in range(5000):
        words = [words]
    assert refusal_of({"error": {"message": words, "code": 400}}) == Refusal(400)


def test_error_in_an_error_without_end_is_read_in_the_end() -> None:
    answer: Any = "no"
    for _ in range(500):
        answer = {"error": answer}
    assert refusal_of(answer).status == 500


@pytest.mark.parametrize(
    "answer",
    [
        {"error": None},
        {"error": ""},
        {"error": {}},
        {"error": {"code": "", "message": "", "param": None}},
        {"choices": []},
        [{}],
        [],
        [1, 2],
        None,
        "text",
    ],
)
def test_answer_without_an_error_has_no_refusal(answer: Any) -> None:
    assert refusal_in_answer(answer) is None


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after": "5"}, 5.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "Thu, 01 Jan 2026 12:01:30 GMT"}, 90.0),
        ({"retry-after": "Thu, 01 Jan 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "Thu, 01 Jan 2026 12:01:30 -0000"}, 90.0),
        ({"retry-after-ms": "250", "retry-after": "5"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "5"}, 5.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 99 Jan 2026 12:01:30 GMT"}, None),
    ],
)
def test_wait_is_read_in_all_its_forms(headers: dict[str, str], wait_s: float | None) -> None:
    assert retry_after_s(headers, now=NOW) == wait_s


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (
            b'{"error": {"code": 400, "type": "invalid_request_error", "message": "no"}}',
            "invalid_request_error",
            "no",
        ),
        (
            b'{"error": {"code": "context_length_exceeded", "type": "t", "message": "no"}}',
            "context_length_exceeded",
            "no",
        ),
        (b'{"error": "no"}', "", "no"),
        (b'{"message": "no"}', "", "no"),
        (b'{"detail": "no"}', "", "no"),
        (b'{"detail": [{"loc": ["body"]}]}', "", "[{'loc': ['body']}]"),
        (b"plain words", "", "plain words"),
        (b"<html>page</html>", "", ""),
        (b"[1]", "", ""),
        (b"", "", ""),
        (b"\xff\xfe", "", "\ufffd\ufffd"),
    ],
)
def test_words_of_a_refusal_are_found(body: bytes, kind: str, words: str) -> None:
    assert read_refusal(400, {}, body, now=NOW) == Refusal(400, kind, words)


def test_status_of_the_response_counts_and_not_that_in_its_body() -> None:
    assert read_refusal(429, {}, b'{"error": {"code": 500}}', now=NOW).status == 429


def test_words_are_bounded() -> None:
    assert len(read_refusal(400, {}, b"x" * 10_000, now=NOW).words) == 500
