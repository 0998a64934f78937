"""What is believed of an engine's counts."""

from __future__ import annotations

from typing import Any

import pytest

from workers.counts import MAX_TOKENS, token_count


@pytest.mark.parametrize("count", [0, 1, 7.0, MAX_TOKENS])
def test_a_count_that_can_be_right_is_taken(count: Any) -> None:
    assert token_count({"n": count}, "n") == count


@pytest.mark.parametrize(
    "count",
    [None, True, False, -1, MAX_TOKENS + 1, 2**64, 1.5, float("inf"), float("nan"), "7", [7], {}],
)
def test_a_count_that_cannot_be_right_is_none(count: Any) -> None:
    assert token_count({"n": count}, "n") is None


@pytest.mark.parametrize("counts", [None, [], "usage", 5, {}])
def test_counts_of_another_form_hold_none(counts: Any) -> None:
    assert token_count(counts, "n") is None
