"""Errors in the forms of many servers."""

from __future__ import annotations

from typing import Any

import pytest

from workers.refusals import Refusal, refusal_in_answer, refusal_of


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
