from __future__ import annotations

from math import factorial

import pytest

from scheduler.routing.urgent_load import LATELY_S, MOST_IDLE, UrgentLoad, slots_for
from tests.unit.scripted_endpoint import Clock


def work(load: UrgentLoad, clock: Clock, *, every_s: float, takes_s: float, prompts: int) -> None:
    """Prompts one after the other; each is over before the next begins."""
    for _ in range(prompts):
        load.began(1)
        clock.now += takes_s
        load.ended(1)
        clock.now += every_s - takes_s


@pytest.mark.parametrize(("every_s", "takes_s"), [(1.0, 0.5), (10.0, 1.0), (0.2, 0.19)])
def test_load_is_the_rate_times_the_time(every_s: float, takes_s: float) -> None:
    clock = Clock()
    load = UrgentLoad(clock)
    work(load, clock, every_s=every_s, takes_s=takes_s, prompts=1000)
    assert load.average == pytest.approx(takes_s / every_s, rel=0.2)


def test_prompts_of_one_call_count_each() -> None:
    clock = Clock()
    load = UrgentLoad(clock)
    load.began(4)
    clock.now += 300
    assert load.average == pytest.approx(4, rel=0.01)
    load.ended(3)
    assert load.running == 1


def test_a_load_that_has_just_begun_is_known_soon() -> None:
    clock = Clock()
    load = UrgentLoad(clock)
    work(load, clock, every_s=1.0, takes_s=0.5, prompts=6)
    assert load.average == pytest.approx(0.5, rel=0.1), "and not what an average over minutes would say"


def test_urgent_work_is_about_while_it_runs_and_some_time_after_it() -> None:
    clock = Clock()
    load = UrgentLoad(clock)
    assert not load.lately
    load.began(1)
    clock.now += 10 * LATELY_S
    assert load.lately, "it runs"
    load.ended(1)
    clock.now += LATELY_S - 1
    assert load.lately
    clock.now += 1
    assert not load.lately


def test_what_was_before_a_quiet_time_is_forgotten() -> None:
    clock = Clock()
    load = UrgentLoad(clock)
    load.began(50)
    clock.now += 100
    load.ended(50)
    clock.now += LATELY_S
    work(load, clock, every_s=1.0, takes_s=0.5, prompts=6)
    assert load.average == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    ("load", "slots", "kept"),
    [
        (0.0, 16, 0),
        (0.05, 16, 0),  # a slot would stand idle 95 % of the time: 6 % of the endpoint
        (1.0, 16, 1),
        (0.05, 256, 2),  # there it is next to nothing
        (1.0, 4, 0),
        (6.0, 64, 8),
        (1000.0, 16, 8),
        (1.0, 1, 0),
        (1.0, 0, 0),
    ],
)
def test_as_many_slots_are_kept_as_the_load_needs_and_can_use(load: float, slots: int, kept: int) -> None:
    assert slots_for(load, slots) == kept


def test_kept_slots_stand_idle_no_more_than_they_may() -> None:
    for slots in (2, 8, 16, 100, 300):
        for load in (0.1, 0.5, 1.0, 2.5, 7.0, 40.0):
            kept = slots_for(load, slots)
            assert kept <= slots // 2
            assert kept - load * (1 - all_taken(load, kept)) <= MOST_IDLE * slots + 1e-9


def all_taken(load: float, slots: int) -> float:
    """Erlang's formula, as it is written in books."""
    terms = [load**number / factorial(number) for number in range(slots + 1)]
    return terms[-1] / sum(terms)
