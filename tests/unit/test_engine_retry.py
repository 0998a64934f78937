import pytest

from scheduler.engine.retry import GiveUp, Retry, RetryPolicy
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
