"""The waits between tries."""

from itertools import islice

import pytest

from scheduler.backoff import backoff


def test_waits_double_up_to_the_longest() -> None:
    waits = list(islice(backoff(first_s=0.1, longest_s=0.5, chance=lambda: 1.0), 5))
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])


def test_chance_cuts_a_wait_by_up_to_a_half() -> None:
    assert next(backoff(first_s=0.1, chance=lambda: 0.0)) == pytest.approx(0.05)
    assert all(0.5 <= wait <= 1.0 for wait in islice(backoff(first_s=1.0), 20))
