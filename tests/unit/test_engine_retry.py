import pytest

from scheduler.engine.retry import Bounds, GiveUp, Retry, RetryPolicy, bounds_of
from scheduler.settings import load_settings
from workers.errors import RequestRejected, WorkerOverloaded, WorkerTimeout, WorkerUnavailable


def test_back_off_doubles_up_to_the_cap() -> None:
    policy = RetryPolicy(base_s=1, cap_s=5, chance=lambda: 1.0)
    delays = [policy.decide(failures, 100, WorkerTimeout("slow")) for failures in range(5)]
    assert delays == [Retry(1), Retry(2), Retry(4), Retry(5), Retry(5)]


def test_jitter_takes_the_whole_range() -> None:
    policy = RetryPolicy(base_s=1, cap_s=5, chance=lambda: 0.0)
    assert policy.decide(3, 100, WorkerTimeout("slow")) == Retry(0.0)


@pytest.mark.parametrize(("failures", "expected"), [(0, Retry), (1, Retry), (2, GiveUp)])
def test_the_last_attempt_is_the_last(failures: int, expected: type) -> None:
    assert isinstance(RetryPolicy().decide(failures, 3, WorkerTimeout("slow")), expected)


def test_a_rejected_request_is_not_tried_again() -> None:
    assert RetryPolicy().decide(0, 3, RequestRejected("no")) == GiveUp()


def test_a_wait_that_the_back_end_asked_for_costs_no_failure() -> None:
    error = WorkerOverloaded("busy", retry_after_s=7)
    assert RetryPolicy().decide(2, 3, error) == Retry(7, counts=False)


def test_an_unknown_error_is_tried_again() -> None:
    assert isinstance(RetryPolicy().decide(0, 3, RuntimeError("?")), Retry)


def test_a_back_end_that_asks_for_no_wait_is_not_asked_again_at_once() -> None:
    error = WorkerOverloaded("busy", retry_after_s=0)
    assert RetryPolicy(base_s=0.5).decide(0, 3, error) == Retry(0.5, counts=False)


@pytest.mark.parametrize("asked", [float("inf"), 1e12])
def test_a_back_end_cannot_put_a_job_off_for_ever(asked: float) -> None:
    assert RetryPolicy().decide(0, 3, WorkerOverloaded("busy", retry_after_s=asked)) == Retry(
        3600, counts=False
    )


@pytest.mark.parametrize("asked", [float("nan"), -1.0])
def test_a_wait_that_makes_no_sense_counts_as_none(asked: float) -> None:
    policy = RetryPolicy(base_s=1, chance=lambda: 1.0)
    assert policy.decide(0, 3, WorkerUnavailable("down", retry_after_s=asked)) == Retry(1.0)


@pytest.mark.parametrize("failures", [0, 2, 100])
def test_overload_without_a_word_of_when_is_no_failure_of_the_job(failures: int) -> None:
    policy = RetryPolicy(base_s=1, chance=lambda: 0.5)
    assert policy.decide(failures, 3, WorkerOverloaded("busy")) == Retry(1.5, counts=False)


BUSY = WorkerOverloaded("busy", retry_after_s=7)


@pytest.mark.parametrize(("waits", "expected"), [(0, Retry), (4, Retry), (5, GiveUp), (6, GiveUp)])
def test_a_job_waits_at_no_cost_as_often_as_it_may(waits: int, expected: type) -> None:
    decision = RetryPolicy().decide(0, 3, BUSY, waits=waits, max_waits=5)
    assert isinstance(decision, expected)


def test_the_end_of_waiting_is_told_from_other_ends() -> None:
    assert RetryPolicy().decide(0, 3, BUSY, waits=0, max_waits=0) == GiveUp(waited_out=True)
    assert RetryPolicy().decide(2, 3, WorkerTimeout("slow"), waits=9, max_waits=0) == GiveUp()


def test_waits_do_not_use_up_attempts() -> None:
    assert isinstance(RetryPolicy().decide(0, 3, WorkerTimeout("slow"), waits=9, max_waits=9), Retry)


def test_a_route_has_its_own_bounds_or_those_of_the_queue() -> None:
    echo = [{"backend": "echo"}]
    routes = {"own": {"endpoints": echo, "max_attempts": 2, "max_waits": 0}, "other": {"endpoints": echo}}
    bounds = bounds_of(load_settings(environ={}, routes=routes, max_attempts=5, max_waits=7))
    assert bounds == {"own": Bounds(2, 0), "other": Bounds(5, 7)}


def test_back_off_stays_at_its_cap_however_many_failures_there_were() -> None:
    policy = RetryPolicy(base_s=1, cap_s=5, chance=lambda: 1.0)
    assert policy.decide(5000, 10_000, WorkerTimeout("slow")) == Retry(5)
