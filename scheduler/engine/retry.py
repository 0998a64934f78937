"""Decides whether and when to retry a failed attempt. Pure: randomness is passed in."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from scheduler.settings import Settings
from workers.errors import WorkerError, WorkerOverloaded

MAX_WAIT_S = 3600.0
"""The longest wait a back end can ask for."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a job may use up: `max_attempts` failures, and `max_waits` attempts that do not count as such."""

    max_attempts: int
    max_waits: int


def bounds_of(settings: Settings) -> dict[str, Bounds]:
    """The bounds for each route's jobs: the route's own, or else the queue's."""
    return {
        name: Bounds(
            settings.max_attempts if route.max_attempts is None else route.max_attempts,
            settings.max_waits if route.max_waits is None else route.max_waits,
        )
        for name, route in settings.routes.items()
    }


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after `delay_s`. `counts`: the attempt was a failure, and counts against `max_attempts`.

    If it does not count, the endpoint causes the wait, and the job may spend it in its lane.
    """

    delay_s: float
    counts: bool = True


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not retry: another attempt cannot succeed or, if `waited_out`, the job has used up its waits."""

    waited_out: bool = False


Decision: TypeAlias = Retry | GiveUp


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with full jitter for failures; waits a back end asks for do not count as failures.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    base_s: float = 0.5
    cap_s: float = 30.0
    chance: Callable[[], float] = random.random

    def decide(
        self, failures: int, max_attempts: int, error: Exception, *, waits: int = 0, max_waits: int = 1000
    ) -> Decision:
        """Decide after an attempt ended with `error`; `failures` and `waits` count the attempts before it."""
        if isinstance(error, WorkerError):
            if not error.retryable:
                return GiveUp()
            wait_s = self._wait_s(error)
            if wait_s is not None:
                return Retry(wait_s, counts=False) if waits < max_waits else GiveUp(waited_out=True)
        if failures + 1 >= max_attempts:
            return GiveUp()
        return Retry(self.chance() * min(self.cap_s, self.base_s * 2.0 ** min(failures, 60)))

    def _wait_s(self, error: WorkerError) -> float | None:
        """The wait, if the attempt does not count as a failure; None if it does."""
        if error.retry_after_s is not None and error.retry_after_s >= 0:
            # The back end asked for this wait; but endless retries "at once" would only keep both busy.
            return min(max(error.retry_after_s, self.base_s), MAX_WAIT_S)
        if isinstance(error, WorkerOverloaded):
            # It only said that it is overloaded; its endpoint is unused meanwhile.
            return self.base_s * (1 + self.chance())
        return None
