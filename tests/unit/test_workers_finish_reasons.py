"""The words of servers for why an answer ended."""

from __future__ import annotations

from typing import Any

import pytest

from workers.finish_reasons import GIVEN_UP, UNKNOWN, finish_reason, later


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
        ("content_filter", "content_filter"),
        ("MAX_TOKENS", "length"),
        ("max-tokens", "length"),
        ("MaxTokens", "length"),
        ("FINISH_REASON_MAX_TOKENS", "length"),
        ("FinishReason.STOP", "stop"),
        ({"type": "length"}, "length"),
        ({"reason": "eos_token"}, "stop"),
        ("abort", GIVEN_UP),
        ("something_new", UNKNOWN),
        ("unstoppable", UNKNOWN),
        (2, UNKNOWN),
        (["stop"], "stop"),
    ],
)
def test_words_are_known_by_their_letters(said: Any, reason: str) -> None:
    assert finish_reason(said) == reason


@pytest.mark.parametrize(
    "said", [None, "", "null", "None", False, 0, [], {}, "FINISH_REASON_UNSPECIFIED", " "]
)
def test_no_reason_is_none(said: Any) -> None:
    assert finish_reason(said) is None


@pytest.mark.parametrize(
    ("reason", "said", "counts"),
    [
        (None, "stop", "stop"),
        (None, GIVEN_UP, GIVEN_UP),
        ("stop", "length", "length"),
        ("length", "stop", "length"),
        ("stop", GIVEN_UP, "stop"),
        (GIVEN_UP, "stop", GIVEN_UP),
        (UNKNOWN, "stop", "stop"),
        ("stop", UNKNOWN, "stop"),
        ("stop", None, "stop"),
        (None, None, None),
    ],
)
def test_of_two_reasons_the_one_that_says_more_counts(
    reason: str | None, said: str | None, counts: str | None
) -> None:
    assert later(reason, said) == counts
