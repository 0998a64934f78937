from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.routing import AdaptiveLimit, share_of
from tests.unit.scripted_endpoint import Clock

# Shares


@given(total=st.integers(0, 500), processes=st.integers(1, 200), name=st.text(max_size=12))
def test_shares_add_up_to_the_whole_and_differ_by_one_at_most(total: int, processes: int, name: str) -> None:
    shares = [share_of(total, processes=processes, index=index, name=name) for index in range(processes)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1


def test_what_is_left_over_does_not_go_to_the_same_process_of_every_endpoint() -> None:
    lucky = {
        next(index for index in range(10) if share_of(1, processes=10, index=index, name=f"chat.{at}"))
        for at in range(20)
    }
    assert len(lucky) > 3


# The adaptive limit


def limit_of(ceiling: int, *, start: int | None = None) -> tuple[AdaptiveLimit, Clock]:
    clock = Clock()
    return AdaptiveLimit(ceiling, start=start, clock=clock), clock


def rounds(limit: AdaptiveLimit, count: int) -> list[int]:
    """Windows full of prompts that all go well, and the limit after each."""
    values = []
    for _ in range(count):
        for _ in range(limit.value):
            limit.succeeded(1, full=True)
        values.append(limit.value)
    return values


def test_it_begins_with_its_ceiling_where_that_is_known() -> None:
    limit, _ = limit_of(12)
    assert limit.value == 12
    assert rounds(limit, 2) == [12, 12]


def test_it_doubles_until_the_first_refusal_and_adds_one_from_then_on() -> None:
    limit, clock = limit_of(256, start=8)
    assert rounds(limit, 3) == [16, 32, 64]
    limit.overloaded(clock.now)
    assert limit.value == 32
    assert rounds(limit, 10)[-1] in {41, 42}


def test_list_counts_as_many_prompts_as_it_has() -> None:
    limit, _ = limit_of(256, start=8)
    limit.succeeded(8, full=True)
    assert limit.value == 16


def test_it_does_not_grow_while_there_is_room() -> None:
    limit, clock = limit_of(64, start=4)
    for _ in range(100):
        limit.succeeded(1, full=False)
    assert limit.value == 4
    limit.overloaded(clock.now)
    for _ in range(100):
        limit.succeeded(1, full=False)
    assert limit.value == 2


def test_one_flight_of_refusals_halves_it_once() -> None:
    limit, clock = limit_of(64)
    began_at = clock.now
    clock.now += 1
    for _ in range(64):
        limit.overloaded(began_at)
    assert limit.value == 32

    limit.overloaded(clock.now)
    assert limit.value == 16, "a call that went after the decrease"


def test_it_falls_to_one_and_comes_back_to_the_ceiling() -> None:
    limit, clock = limit_of(6)
    for _ in range(20):
        clock.now += 1
        limit.overloaded(clock.now)
    assert limit.value == 1
    assert rounds(limit, 8)[-1] == 6


def test_queue_in_the_engine_takes_a_little_off_each_time() -> None:
    limit, clock = limit_of(100)
    values = []
    for _ in range(3):
        clock.now += 1
        limit.crowded()
        values.append(limit.value)
    assert values == [90, 81, 72]
    for _ in range(200):
        limit.crowded()
    assert limit.value == 1


@pytest.mark.parametrize("ceilings", [[32], [2, 32], [0, 32], [16, 1, 32]])
def test_at_its_ceiling_it_moves_with_it(ceilings: list[int]) -> None:
    limit, clock = limit_of(8)
    limit.overloaded(clock.now)
    rounds(limit, 10)
    assert limit.value == 8
    for ceiling in ceilings:
        limit.ceiling = ceiling
        assert limit.value == ceiling


def test_lower_ceiling_for_a_while_does_not_make_it_forget_what_the_endpoint_bears() -> None:
    limit, clock = limit_of(32)
    limit.overloaded(clock.now)
    limit.ceiling = 4
    assert rounds(limit, 3) == [4, 4, 4]
    limit.ceiling = 32
    assert limit.value == 16


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("good"), st.integers(1, 40)),
            st.tuples(st.just("overloaded"), st.integers(0, 3)),
            st.tuples(st.just("crowded"), st.just(0)),
            st.tuples(st.just("ceiling"), st.integers(0, 60)),
        ),
        max_size=60,
    ),
    ceiling=st.integers(1, 60),
    start=st.none() | st.integers(1, 60),
)
def test_it_stays_between_one_and_its_ceiling_and_can_always_grow_back(
    steps: list[tuple[str, int]], ceiling: int, start: int | None
) -> None:
    limit, clock = limit_of(ceiling, start=start)
    for step, number in steps:
        clock.now += 1
        if step == "good":
            limit.succeeded(number, full=True)
        elif step == "overloaded":
            limit.overloaded(clock.now - number)
        elif step == "crowded":
            limit.crowded()
        else:
            limit.ceiling = number
        assert min(1, limit.ceiling) <= limit.value <= limit.ceiling
    rounds(limit, 100)
    assert limit.value == limit.ceiling
