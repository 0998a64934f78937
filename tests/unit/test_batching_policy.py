from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.batching.policy import (
    LONG_GENERATION_TOKENS,
    BatchPolicy,
    Cut,
    Due,
    FlushReason,
    ration,
    share_key,
    trim,
)
from workers.base import Capabilities, Generation

LISTS = Capabilities(lists=True)
NEVER = Due(float("inf"), FlushReason.AGE)


def generation(**fields: Any) -> Generation:
    return Generation(**{"model": "m", "prompt": "hello", **fields})


def test_prompts_that_differ_in_prompt_priority_and_id_only_share_a_call() -> None:
    first = generation(prompt="a", priority=7, request_id="1", params={"seed": 1, "stop": ["x"]})
    second = generation(prompt="b", priority=0, request_id="2", params={"stop": ["x"], "seed": 1})

    assert share_key(first, LISTS) == share_key(second, LISTS) is not None


@pytest.mark.parametrize(
    "other",
    [
        {"model": "other"},
        {"stream": False},
        {"params": {"temperature": 0.5}},
        {"params": {"temperature": 1}},
        {"params": {"temperature": True}},
        {"extra_body": {"temperature": 1.0}},
    ],
)
def test_prompts_that_the_engine_can_tell_apart_do_not_share_a_call(other: dict[str, Any]) -> None:
    plain = generation(params={"temperature": 1.0})

    assert share_key(plain, LISTS) != share_key(
        generation(**{"params": {"temperature": 1.0}, **other}), LISTS
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": None, "messages": ({"role": "user", "content": "hi"},)},
        {"tools": ({"type": "function"},)},
        {"tool_choice": "auto"},
        {"response_format": {"type": "json_object"}},
        {"params": {"max_tokens": LONG_GENERATION_TOKENS + 1}},
        {"extra_body": {"n": 2}},
        {"extra_body": {"best_of": 2}},
        {"extra_body": {"use_beam_search": True}},
        {"extra_body": {"id_slot": 0}},
        {"extra_body": {"grammar": object()}},
    ],
)
def test_what_a_list_cannot_carry_has_a_call_of_its_own(fields: dict[str, Any]) -> None:
    assert share_key(generation(**fields), LISTS) is None


def test_no_lists_no_sharing() -> None:
    assert share_key(generation(), Capabilities(lists=False)) is None


def test_generation_of_the_threshold_length_still_shares() -> None:
    assert share_key(generation(params={"max_tokens": LONG_GENERATION_TOKENS}), LISTS) is not None


def test_member_is_due_at_its_age_when_its_deadline_is_far() -> None:
    policy = BatchPolicy(max_wait_ms=5)

    assert policy.due(100.0, None) == Due(100.005, FlushReason.AGE)
    assert policy.due(100.0, 101.0) == Due(100.005, FlushReason.AGE)


def test_gathering_takes_at_most_a_tenth_of_the_time_to_the_deadline() -> None:
    due = BatchPolicy(max_wait_ms=500).due(100.0, 101.0)

    assert due.at == pytest.approx(100.1)
    assert due.reason is FlushReason.DEADLINE


def test_member_past_its_deadline_is_due_at_once() -> None:
    assert BatchPolicy(max_wait_ms=5).due(100.0, 90.0) == Due(100.0, FlushReason.DEADLINE)


def cuts(policy: BatchPolicy, tokens: list[int], **state: Any) -> list[Cut]:
    return policy.cuts(tokens, **{"due": NEVER, "now": 0.0, "idle": False, "draining": False, **state})


def test_group_waits_while_it_is_neither_full_nor_due() -> None:
    assert cuts(BatchPolicy(max_size=4, max_tokens=100), [10, 10, 10]) == []


def test_group_goes_when_it_reaches_the_size_and_the_rest_stays() -> None:
    assert cuts(BatchPolicy(max_size=2), [1, 1, 1, 1, 1]) == [
        Cut(2, FlushReason.SIZE),
        Cut(2, FlushReason.SIZE),
    ]


def test_group_goes_before_its_token_sum_would_pass_the_limit() -> None:
    assert cuts(BatchPolicy(max_tokens=100), [60, 60, 60]) == [
        Cut(1, FlushReason.TOKENS),
        Cut(1, FlushReason.TOKENS),
    ]


def test_group_goes_when_its_token_sum_is_exactly_the_limit() -> None:
    assert cuts(BatchPolicy(max_tokens=100), [60, 40]) == [Cut(2, FlushReason.TOKENS)]


def test_prompt_above_the_token_limit_goes_alone() -> None:
    assert cuts(BatchPolicy(max_tokens=100), [500]) == [Cut(1, FlushReason.TOKENS)]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"idle": True}, FlushReason.IDLE),
        ({"due": Due(1.0, FlushReason.AGE), "now": 1.0}, FlushReason.AGE),
        ({"due": Due(1.0, FlushReason.DEADLINE), "now": 1.0, "idle": True}, FlushReason.DEADLINE),
        ({"draining": True, "idle": True}, FlushReason.DRAIN),
    ],
)
def test_what_is_left_over_goes_for_its_reason(state: dict[str, Any], reason: FlushReason) -> None:
    assert cuts(BatchPolicy(max_size=2), [1, 1, 1], **state) == [Cut(2, FlushReason.SIZE), Cut(1, reason)]


def test_group_stays_until_the_very_moment_that_it_is_due() -> None:
    due = Due(1.0, FlushReason.AGE)

    assert cuts(BatchPolicy(), [1], due=due, now=0.999) == []
    assert cuts(BatchPolicy(), [1], due=due, now=1.0) == [Cut(1, FlushReason.AGE)]


def test_short_room_goes_to_the_most_urgent_of_all_groups() -> None:
    mixed = [(-9, 3), (-1, 1), (-1, 2)]
    normal = [(-5, 4), (-5, 5)]

    assert ration([mixed, normal], 1) == [1, 0]
    assert ration([mixed, normal], 3) == [1, 2]
    assert ration([mixed, normal], 4) == [2, 2]


def test_the_last_places_are_rationed_to_the_urgent() -> None:
    urgent, normal = [(-9, 5), (-8, 1)], [(-7, 0), (-5, 2)]
    assert ration([normal, urgent], 3, kept=1) == [0, 2]
    assert ration([normal, urgent], 4, kept=1) == [1, 2]
    assert ration([normal], 2, kept=2) == [0]
    assert ration([urgent], 1, kept=2) == [1]


def test_urgent_prompts_share_no_call_with_others() -> None:
    keys = {share_key(generation(priority=priority), LISTS) for priority in range(10)}
    assert len(keys) == 2
    assert share_key(generation(priority=8), LISTS) == share_key(generation(priority=9), LISTS)


def test_trim_makes_the_last_call_smaller() -> None:
    wanted = [Cut(2, FlushReason.SIZE), Cut(2, FlushReason.SIZE), Cut(1, FlushReason.IDLE)]

    assert trim(wanted, 3) == [Cut(2, FlushReason.SIZE), Cut(1, FlushReason.SIZE)]
    assert trim(wanted, 0) == []


@pytest.mark.parametrize("bad", [{"max_size": 0}, {"max_wait_ms": -1}, {"max_tokens": 0}])
def test_policy_that_could_never_flush_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="max_size"):
        BatchPolicy(**bad)


@given(
    tokens=st.lists(st.integers(0, 50), max_size=40),
    max_size=st.integers(1, 8),
    max_tokens=st.integers(1, 100),
    idle=st.booleans(),
)
def test_cuts_keep_both_bounds_and_leave_nothing_when_idle(
    tokens: list[int], max_size: int, max_tokens: int, idle: bool
) -> None:
    sizes = [cut.size for cut in cuts(BatchPolicy(max_size, 5.0, max_tokens), tokens, idle=idle)]

    rest = tokens
    for size in sizes:
        call, rest = rest[:size], rest[size:]
        assert 1 <= size <= max_size
        assert size == 1 or sum(call) <= max_tokens
    if idle:
        assert rest == []
    else:
        assert len(rest) < max_size
        assert sum(rest) < max_tokens


def test_a_deadline_is_the_reason_only_where_it_comes_first() -> None:
    policy = BatchPolicy(max_wait_ms=100)
    assert policy.due(0.0, 1.0) == Due(0.1, FlushReason.AGE)
    assert policy.due(0.0, 0.9).reason is FlushReason.DEADLINE
