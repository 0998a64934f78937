"""What a failing HTTP response says."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from workers.refusals import Refusal, read_refusal, retry_after_s

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


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
