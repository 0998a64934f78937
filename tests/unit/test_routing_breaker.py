from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.routing import Breaker, BreakerState
from scheduler.settings import BreakerSettings
from tests.unit.scripted_endpoint import Clock

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


class Bench:
    """A breaker on a clock that stands still, and the states that it has been in."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.states: list[BreakerState] = []
        self.breaker = Breaker(BreakerSettings(**settings), clock=self.clock, on_change=self.states.append)

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


# Opening


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [("xx", CLOSED), ("xxx", OPEN), ("xx.xx", CLOSED), ("xx.xxx", OPEN), ("....", CLOSED)],
)
def test_it_opens_after_failures_in_a_row(outcomes: str, state: BreakerState) -> None:
    bench = Bench(failures=3)
    bench.calls(outcomes)
    assert bench.breaker.state is state
    assert bench.breaker.admits is (state is CLOSED)


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("x.x.x.x.x", CLOSED),  # too few to tell
        ("x.x.x.x.x.", CLOSED),  # it does not open on a call that went well
        (".x.x.x.x.x", OPEN),
        (".x.x.x...x", CLOSED),
    ],
)
def test_it_opens_when_too_large_a_part_of_enough_calls_fails(outcomes: str, state: BreakerState) -> None:
    bench = Bench(failures=100, failure_rate=0.5, min_calls=10)
    bench.calls(outcomes)
    assert bench.breaker.state is state


def test_calls_of_long_ago_count_no_more() -> None:
    bench = Bench(failures=100, failure_rate=0.5, min_calls=4, window_s=10)
    bench.calls("xxx", every_s=1)
    bench.clock.now += 10
    bench.calls("...x")
    assert bench.breaker.state is CLOSED
    bench.calls("xx")
    assert bench.breaker.state is OPEN


def test_rate_counts_the_calls_that_are_in_the_window_and_no_others() -> None:
    bench = Bench(failures=100, failure_rate=1.0, min_calls=3, window_s=10)
    bench.calls(".", every_s=9)
    bench.calls("xxx")
    assert bench.breaker.state is CLOSED, "the good call is 9 s old"
    bench.clock.now += 2
    bench.calls("x")
    assert bench.breaker.state is OPEN


def test_it_is_tripped_only_while_it_is_closed() -> None:
    bench = Bench()
    for _ in range(2):
        bench.breaker.trip()
    assert bench.states == [OPEN]
    bench.half_open()
    bench.breaker.trip()
    assert bench.breaker.state is HALF_OPEN


# Open


def test_open_it_admits_nobody() -> None:
    bench = Bench()
    bench.breaker.trip()
    assert not bench.breaker.admits
    with pytest.raises(ValueError, match="open admits no prompt"):
        bench.breaker.admit()


def test_back_end_that_is_not_ready_is_asked_again_after_the_same_time() -> None:
    bench = Bench(open_s=2)
    bench.breaker.trip()
    for _ in range(3):
        bench.clock.now = bench.breaker.probe_at
        bench.breaker.probed(ready=False)
        assert bench.open_for_s() == 2


def test_back_end_that_is_ready_is_given_a_probe() -> None:
    bench = Bench()
    bench.breaker.trip()
    bench.breaker.probed(ready=True)
    assert bench.states == [OPEN, HALF_OPEN]
    assert bench.breaker.admits


@pytest.mark.parametrize("ready", [True, False])
def test_answer_that_comes_when_it_is_not_open_changes_nothing(ready: bool) -> None:
    bench = Bench()
    bench.breaker.probed(ready=ready)
    assert (bench.breaker.state, bench.breaker.probe_at) == (CLOSED, 0.0)


# Half open


def test_half_open_it_admits_one_at_a_time() -> None:
    bench = Bench()
    bench.half_open()
    bench.breaker.admit()
    assert not bench.breaker.admits
    with pytest.raises(ValueError, match="half_open admits no prompt"):
        bench.breaker.admit()


def test_probe_without_an_outcome_makes_way_for_another() -> None:
    bench = Bench()
    bench.half_open()
    bench.breaker.release(bench.breaker.admit())
    assert bench.breaker.admits
    assert bench.breaker.state is HALF_OPEN


def test_probe_that_succeeds_closes_it_with_a_clean_slate() -> None:
    bench = Bench(failures=3, failure_rate=1.0, min_calls=3)
    bench.calls("xxx")
    bench.half_open()
    bench.calls(".xx")
    assert bench.breaker.state is CLOSED
    bench.calls("x")
    assert bench.breaker.state is OPEN


def test_each_probe_that_fails_opens_it_for_twice_as_long_up_to_the_longest() -> None:
    bench = Bench(failures=1, open_s=2, max_open_s=10)
    bench.calls("x")
    waits = []
    for _ in range(5):
        waits.append(bench.open_for_s())
        bench.half_open()
        bench.calls("x")
    assert waits == [2, 4, 8, 10, 10]

    bench.half_open()
    bench.calls(".x")
    assert bench.open_for_s() == 2, "once it was well it starts again"


def test_longest_time_is_never_below_the_first() -> None:
    bench = Bench(open_s=5, max_open_s=1)
    bench.breaker.trip()
    assert bench.open_for_s() == 5
    bench.half_open()
    bench.calls("x")
    assert bench.open_for_s() == 5


def test_it_may_fail_for_ever() -> None:
    bench = Bench(open_s=1, max_open_s=60)
    bench.breaker.trip()
    for _ in range(2000):
        bench.half_open()
        bench.calls("x")
    assert bench.open_for_s() == 60


# What began before the state changed


@pytest.mark.parametrize("ok", [True, False])
def test_call_from_before_says_nothing_about_a_half_open_endpoint(ok: bool) -> None:
    bench = Bench(failures=1)
    old = bench.breaker.begin()
    bench.calls("x")
    bench.breaker.record(old, ok=ok)
    assert bench.breaker.state is OPEN
    bench.half_open()
    bench.breaker.record(old, ok=ok)
    assert bench.breaker.state is HALF_OPEN


def test_probe_of_an_earlier_time_is_not_taken_for_the_present_one() -> None:
    bench = Bench()
    bench.half_open()
    first, first_call = bench.breaker.admit(), bench.breaker.begin()
    bench.calls("x")
    bench.half_open()
    bench.breaker.admit()
    bench.breaker.release(first)
    assert not bench.breaker.admits, "the present probe is still out"
    bench.breaker.record(first_call, ok=True)
    assert bench.breaker.state is HALF_OPEN


def test_failures_from_before_do_not_open_what_has_recovered() -> None:
    bench = Bench(failures=2)
    old = [bench.breaker.begin() for _ in range(50)]
    bench.half_open()
    bench.calls(".")
    for call in old:
        bench.breaker.record(call, ok=False)
    assert bench.breaker.state is CLOSED


# Whatever happens


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "good", "bad", "cancel", "ready", "not_ready", "trip", "late", "wait"]),
        st.integers(0, 7),
    ),
    max_size=80,
)


@given(steps=STEPS, failures=st.integers(1, 4))
def test_one_probe_at_a_time_and_a_way_back_from_everywhere(
    steps: list[tuple[str, int]], failures: int
) -> None:
    bench = Bench(failures=failures, min_calls=3)
    breaker = bench.breaker
    held: list[tuple[BreakerState, int, int]] = []  # admitted when, admission, call
    for step, number in steps:
        if step == "admit" and breaker.admits:
            held.append((breaker.state, breaker.admit(), breaker.begin()))
        elif step in {"good", "bad", "cancel"} and held:
            _, admission, call = held.pop(number % len(held))
            if step != "cancel":
                breaker.record(call, ok=step == "good")
            breaker.release(admission)
        elif step in {"ready", "not_ready"}:
            breaker.probed(ready=step == "ready")
        elif step == "trip":
            breaker.trip()
        elif step == "wait":
            bench.clock.now += number
        if breaker.state is HALF_OPEN:
            now = [one for one in held if one[0] is HALF_OPEN and one[2] == breaker.begin()]
            assert len(now) <= 1
            assert breaker.admits is (not now)
        else:
            assert breaker.admits is (breaker.state is CLOSED)

    for _, admission, _ in held:
        breaker.release(admission)
    if breaker.state is OPEN:
        breaker.probed(ready=True)
    breaker.release(breaker.admit())
    bench.calls(".")
    assert breaker.state is CLOSED
    legal = {(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, OPEN), (HALF_OPEN, CLOSED)}
    assert set(zip([CLOSED, *bench.states], bench.states, strict=False)) <= legal
