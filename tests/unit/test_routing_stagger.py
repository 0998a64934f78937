from __future__ import annotations

from itertools import pairwise

import pytest

from scheduler.routing.stagger import AT_ONCE, IDLE_AGAIN, Stagger
from tests.unit.scripted_endpoint import Clock

SLOTS, ANSWER_S = 16, 1.6
GAP_S = ANSWER_S / SLOTS


def knowing(clock: Clock, answer_s: float = ANSWER_S) -> Stagger:
    """One that has seen an answer."""
    stagger = Stagger(clock)
    stagger.answered(answer_s)
    return stagger


def fill(stagger: Stagger, clock: Clock, free: int = SLOTS) -> list[float]:
    """Start as many as are free, each as soon as it may; return when they started, in seconds from now."""
    began_at, starts = clock.now, []
    while free:
        prompts = stagger.may_start(free, SLOTS)
        free -= prompts
        starts += [clock.now - began_at] * prompts
        if not (wait_s := stagger.started(prompts, free=free, slots=SLOTS)):
            wait_s = GAP_S / 10
        clock.now += wait_s
    return starts


def test_everything_may_start_until_the_time_of_an_answer_is_known() -> None:
    assert Stagger(Clock()).may_start(SLOTS, SLOTS) == SLOTS


def test_slots_that_come_free_together_are_filled_over_the_time_of_an_answer() -> None:
    starts = fill(knowing(clock := Clock()), clock)
    assert len(starts) == SLOTS
    assert starts.count(starts[0]) == AT_ONCE
    steps = [after - before for before, after in pairwise(starts[AT_ONCE - 1 : -AT_ONCE])]
    assert steps == pytest.approx([GAP_S] * len(steps))
    assert starts[-1] <= ANSWER_S


def test_slots_that_come_free_one_by_one_are_filled_at_once() -> None:
    stagger = knowing(clock := Clock())
    for _ in range(100):
        assert stagger.may_start(1, SLOTS) == 1
        stagger.started(1, free=0, slots=SLOTS)
        clock.now += GAP_S / 3


def test_a_trickle_of_prompts_does_not_wait() -> None:
    stagger = knowing(clock := Clock())
    for _ in range(1000):
        assert stagger.may_start(SLOTS, SLOTS) >= 1
        assert stagger.started(1, free=SLOTS - 1, slots=SLOTS) == 0
        clock.now += 2 * GAP_S
    assert len(set(fill(stagger, clock))) > SLOTS // 2, "and has not spent what spreading may cost"


def test_what_waiting_costs_is_bounded_where_prompts_always_end_together() -> None:
    stagger = knowing(clock := Clock())
    began_at, idle_s = clock.now, 0.0
    for _ in range(50):
        idle_s += sum(fill(stagger, clock))
        clock.now += ANSWER_S
    first = ANSWER_S * SLOTS / 2
    again = IDLE_AGAIN * SLOTS * (clock.now - began_at)
    assert idle_s <= first + again + 4 * SLOTS * GAP_S


def test_the_time_of_an_answer_follows_the_answers() -> None:
    stagger = knowing(clock := Clock(), answer_s=1000.0)
    for _ in range(200):
        stagger.answered(ANSWER_S)
    assert fill(stagger, clock)[-1] <= 1.1 * ANSWER_S


def test_no_slots_is_no_error() -> None:
    assert knowing(Clock()).may_start(0, 0) == 0
