"""Whether and when a failed attempt is made again. Pure: chance is passed in."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from workers.errors import WorkerError, WorkerOverloaded

MAX_WAIT_S = 3600.0
"""The longest wait that a back end can ask for."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after `delay_s`. `counts`: the attempt was a failure, of which there may be only so many."""

    delay_s: float
    counts: bool = True


@dataclass(frozen=True, slots=True)
class GiveUp:
    """There is no use in another attempt."""


Decision: TypeAlias = Retry | GiveUp


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with full jitter.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    base_s: float = 0.5
    cap_s: float = 30.0
    chance: Callable[[], float] = random.random

    def decide(self, failures: int, max_attempts: int, error: Exception) -> Decision:
        """Decide after an attempt failed that `failures` failures had gone before."""
        if isinstance(error, WorkerError):
            if not error.retryable:
                return GiveUp()
            if error.retry_after_s is not None and error.retry_after_s >= 0:
                # The back end asked for this wait: it is no failure of the job. But "at once", again and
                # again, would keep both busy with nothing.
                return Retry(min(max(error.retry_after_s, self.base_s), MAX_WAIT_S), counts=False)
            if isinstance(error, WorkerOverloaded):
                # It said no more than that it has too much to do; its endpoint is left alone meanwhile.
                return Retry(self.base_s * (1 + self.chance()), counts=False)
        if failures + 1 >= max_attempts:
            return GiveUp()
        return Retry(self.chance() * min(self.cap_s, self.base_s * 2.0 ** min(failures, 60)))
