"""Weighs an endpoint's failed calls when endpoints are chosen. Pure: the clock is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable

from workers.errors import RequestRejected, WorkerError, WorkerOverloaded

HALF_LIFE_S = 5.0
"""A failed call first weighs as much as one in flight, and half as much after this many seconds."""

REFUSAL_WEIGHT = 0.25
"""The weight of a refused request, which may be at fault itself, or the endpoint refuses all requests."""


class RecentFailures:
    """The weight of recent failures; it halves every `HALF_LIFE_S`, and with each success."""

    __slots__ = ("_as_of", "_clock", "_weight")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._weight, self._as_of = 0.0, 0.0

    @property
    def weight(self) -> float:
        """The weight now, in prompts in flight."""
        return self._weight and self._weight_at(self._clock())

    def record(self, error: WorkerError | None) -> None:
        """A call has ended. An overload does not count: it has a pause of its own."""
        if error is None:
            self._weight = self._weight / 2 if self._weight > 1 else 0.0
        elif not isinstance(error, WorkerOverloaded):
            now = self._clock()
            added = REFUSAL_WEIGHT if isinstance(error, RequestRejected) else 1.0
            self._weight, self._as_of = self._weight_at(now) + added, now

    def clear(self) -> None:
        """Forget all failures."""
        self._weight = 0.0

    def _weight_at(self, now: float) -> float:
        return self._weight * math.pow(0.5, (now - self._as_of) / HALF_LIFE_S)
