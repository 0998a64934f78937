from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.routing import Breaker, BreakerState
from scheduler.routing.breaker import SUSPECT_AGAIN_S
from scheduler.settings import BreakerSettings
from tests.unit.scripted_endpoint import Clock

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


class Bench:
    """A breaker on a clock that stands still, the states that it was in, and how often it was suspected."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.states: list[BreakerState] = []
        self.suspicions = 0
        self.breaker = Breaker(
            BreakerSettings(**settings),
            clock=self.clock,
            on_change=self.states.append,
            on_suspicion=self._suspected,
        )

    def calls(self, outcomes: str, *, every_s: float = 0.0) -> None:
        """Calls one after the other: `.` went well, `x` failed."""
        for outcome in outcomes:
            self.breaker.record(self.breaker.begin(), ok=outcome == ".")
            self.clock.now += every_s

    def open_for_s(self) -> float:
        assert self.breaker.state is OPEN
        return self.breaker.probe_at - self.clock.now

    def half_open(self) -> None:
        if self.breaker.state is CLOSED:
            self.breaker.trip()
        self.breaker.probed(ready=True)
        assert self.breaker.state is HALF_OPEN

    def _suspected(self) -> None:
        self.suspicions += 1


# Suspicion


@pytest.mark.parametrize(
    ("outcomes", "suspected"),
    [("xx", False), ("xxx", True), ("xx.xx", False), ("xx.xxx", True), ("....", False)],
)
def test_failures_in_a_row_make_it_suspected_and_prompts_still_go(outcomes: str, suspected: bool) -> None:
    bench = Bench(failures=3)
    bench.calls(outcomes)
    assert bench.breaker.suspected is suspected
    assert bench.suspicions == suspected
    assert bench.breaker.state is CLOSED
    assert bench.breaker.admits


@pytest.mark.parametrize(
    ("outcomes", "suspected"),
    [
        ("x.x.x.x.x", False),  # too few to tell
        ("x.x.x.x.x.", False),  # a call that went well is no reason
        (".x.x.x.x.x", True),
        (".x.x.x...x", False),
    ],
)
def test_too_large_a_part_of_enough_calls_that_fails_makes_it_suspected(
    outcomes: str, suspected: bool
) -> None:
    bench = Bench(failures=100, failure_rate=0.5, min_calls=10)
    bench.calls(outcomes)
    assert bench.breaker.suspected is suspected


def test_calls_of_long_ago_count_no_more() -> None:
    bench = Bench(failures=100, failure_rate=0.5, min_calls=4, window_s=10)
    bench.calls("xxx", every_s=1)
    bench.clock.now += 10
    bench.calls("...x")
    assert not bench.breaker.suspected
    bench.calls("xx")
    assert bench.breaker.suspected


def test_rate_counts_the_calls_that_are_in_the_window_and_no_others() -> None:
    bench = Bench(failures=100, failure_rate=1.0, min_calls=3, window_s=10)
    bench.calls(".", every_s=9)
    bench.calls("xxx")
    assert not bench.breaker.suspected, "the good call is 9 s old"
    bench.clock.now += 2
    bench.calls("x")
    assert bench.breaker.suspected


def test_one_that_fails_the_check_opens() -> None:
    bench = Bench(failures=1, open_s=2)
    bench.calls("x")
    bench.breaker.checked(well=False)
    assert bench.states == [OPEN]
    assert not bench.breaker.suspected
    assert bench.open_for_s() == 2


def test_one_that_passes_the_check_stays_closed_with_a_clean_slate() -> None:
    bench = Bench(failures=2, failure_rate=1.0, min_calls=3)
    bench.calls("xx")
    bench.breaker.checked(well=True)
    assert bench.states == []
    assert not bench.breaker.suspected
    bench.clock.now += SUSPECT_AGAIN_S
    bench.calls("x")
    assert not bench.breaker.suspected
    bench.calls("x")
    assert bench.breaker.suspected


def test_requests_that_fail_all_the_time_have_a_well_endpoint_checked_only_so_often() -> None:
    bench = Bench(failures=1)
    for _ in range(100):
        bench.calls("xxx", every_s=SUSPECT_AGAIN_S / 30)
        bench.breaker.checked(well=True)
    assert 5 <= bench.suspicions <= 11


def test_a_check_is_asked_for_once_at_a_time() -> None:
    bench = Bench(failures=1)
    bench.calls("xxxx")
    bench.breaker.suspect()
    assert bench.suspicions == 1


def test_what_one_call_has_shown_can_be_reason_enough() -> None:
    bench = Bench(failures=100)
    bench.breaker.suspect()
    assert bench.breaker.suspected
    bench.breaker.checked(well=False)
    bench.breaker.suspect()
    assert (bench.breaker.state, bench.suspicions) == (OPEN, 1)


def test_a_check_that_nobody_asked_for_changes_nothing() -> None:
    bench = Bench()
    for well in (True, False):
        bench.breaker.checked(well=well)
    assert bench.states == []


def test_it_is_tripped_only_while_it_is_closed() -> None:
    bench = Bench()
    for _ in range(2):
        bench.breaker.trip()
    assert bench.states == [OPEN]
    bench.half_open()
    bench.breaker.trip()
    assert bench.breaker.state is HALF_OPEN


# Open


def test_neither_open_nor_half_open_it_admits_anybody() -> None:
    bench = Bench()
    bench.breaker.trip()
    assert not bench.breaker.admits
    bench.half_open()
    assert not bench.breaker.admits


def test_back_end_that_is_not_ready_is_asked_again_after_the_same_time() -> None:
    bench = Bench(open_s=2)
    bench.breaker.trip()
    for _ in range(3):
        bench.clock.now = bench.breaker.probe_at
        bench.breaker.probed(ready=False)
        assert bench.open_for_s() == 2


@pytest.mark.parametrize("ready", [True, False])
def test_answer_that_comes_when_it_is_not_open_changes_nothing(ready: bool) -> None:
    bench = Bench()
    bench.breaker.probed(ready=ready)
    assert (bench.breaker.state, bench.breaker.probe_at) == (CLOSED, 0.0)


# Half open


def test_check_that_succeeds_closes_it_with_a_clean_slate() -> None:
    bench = Bench(failures=3)
    bench.calls("xx")
    bench.half_open()
    bench.breaker.checked(well=True)
    assert bench.states == [OPEN, HALF_OPEN, CLOSED]
    bench.calls("xx")
    assert not bench.breaker.suspected


def test_each_check_that_fails_opens_it_for_twice_as_long_up_to_the_longest() -> None:
    bench = Bench(failures=1, open_s=2, max_open_s=10)
    bench.breaker.trip()
    waits = []
    for _ in range(5):
        waits.append(bench.open_for_s())
        bench.half_open()
        bench.breaker.checked(well=False)
    assert waits == [2, 4, 8, 10, 10]

    bench.half_open()
    bench.breaker.checked(well=True)
    bench.breaker.trip()
    assert bench.open_for_s() == 2, "once it was well it starts again"


def test_longest_time_is_never_below_the_first() -> None:
    bench = Bench(open_s=5, max_open_s=1)
    bench.breaker.trip()
    assert bench.open_for_s() == 5
    bench.half_open()
    bench.breaker.checked(well=False)
    assert bench.open_for_s() == 5


def test_it_may_fail_for_ever() -> None:
    bench = Bench(open_s=1, max_open_s=60)
    bench.breaker.trip()
    for _ in range(2000):
        bench.half_open()
        bench.breaker.checked(well=False)
    assert bench.open_for_s() == 60


# What began before the state changed


@pytest.mark.parametrize("ok", [True, False])
def test_call_from_before_says_nothing_about_an_endpoint_that_is_not_closed(ok: bool) -> None:
    bench = Bench(failures=1)
    old = bench.breaker.begin()
    bench.breaker.trip()
    bench.breaker.record(old, ok=ok)
    assert bench.breaker.state is OPEN
    bench.half_open()
    bench.breaker.record(old, ok=ok)
    assert bench.breaker.state is HALF_OPEN


def test_failures_from_before_are_not_held_against_what_has_recovered() -> None:
    bench = Bench(failures=2)
    old = [bench.breaker.begin() for _ in range(50)]
    bench.half_open()
    bench.breaker.checked(well=True)
    for call in old:
        bench.breaker.record(call, ok=False)
    assert not bench.breaker.suspected


# Whatever happens


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["begin", "good", "bad", "ready", "not_ready", "well", "ill", "suspect", "trip", "wait"]
        ),
        st.integers(0, 7),
    ),
    max_size=80,
)


@given(steps=STEPS, failures=st.integers(1, 4))
def test_no_call_opens_it_and_there_is_a_way_back_from_everywhere(
    steps: list[tuple[str, int]], failures: int
) -> None:
    bench = Bench(failures=failures, min_calls=3)
    breaker = bench.breaker
    held: list[int] = []
    for step, number in steps:
        before = breaker.state
        if step == "begin" and breaker.admits:
            held.append(breaker.begin())
        elif step in {"good", "bad"} and held:
            breaker.record(held.pop(number % len(held)), ok=step == "good")
            assert breaker.state is before, "the outcome of a user's prompt is no more than a reason to check"
        elif step in {"ready", "not_ready"}:
            breaker.probed(ready=step == "ready")
        elif step in {"well", "ill"}:
            breaker.checked(well=step == "well")
        elif step == "suspect":
            breaker.suspect()
        elif step == "trip":
            breaker.trip()
        elif step == "wait":
            bench.clock.now += number
        assert breaker.admits is (breaker.state is CLOSED)
        assert not (breaker.suspected and breaker.state is not CLOSED)

    if breaker.state is OPEN:
        breaker.probed(ready=True)
    breaker.checked(well=True)
    assert breaker.state is CLOSED
    assert not breaker.suspected
    legal = {(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, OPEN), (HALF_OPEN, CLOSED)}
    assert set(zip([CLOSED, *bench.states], bench.states, strict=False)) <= legal


def test_an_outcome_counts_to_the_end_of_the_window() -> None:
    settings = {"failures": 100, "failure_rate": 1.0, "min_calls": 2, "window_s": 10}
    for between_s, suspicions in ((10, 1), (10.5, 0)):
        bench = Bench(**settings)
        bench.calls("x", every_s=between_s)
        bench.calls("x")
        assert bench.suspicions == suspicions
