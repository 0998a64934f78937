"""Time limits of a call, as moments on the event loop's clock."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from workers.base import EndpointConfig


def now() -> float:
    """The time on the clock of the running event loop."""
    return asyncio.get_running_loop().time()


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """A moment on the event loop's clock, and what to say when it has passed."""

    at: float
    """The moment, in seconds on the event loop's clock."""
    message: str
    """What did not happen in time."""

    def or_sooner(self, other: TimeLimit) -> TimeLimit:
        """The earlier of the two."""
        return min(self, other, key=lambda limit: limit.at)


class TimeLimits:
    """The time limits of an endpoint's calls."""

    def __init__(self, config: EndpointConfig) -> None:
        self._whole_s, self._total_s = config.timeout_s, config.total_timeout_s
        self._first_s = config.first_token_timeout_s
        self._idle = min(
            (config.idle_timeout_s, "idle_timeout_s"), (config.timeout_s, "timeout_s"), key=lambda one: one[0]
        )
        self.idle_s = self._idle[0]

    def total(self, began_at: float) -> TimeLimit:
        """The limit of a whole call."""
        if self._total_s is None:
            return NEVER
        return TimeLimit(began_at + self._total_s, f"no end within total_timeout_s = {self._total_s:g}")

    def whole(self, began_at: float) -> TimeLimit:
        """The limit of an answer that is not streamed."""
        limit = TimeLimit(began_at + self._whole_s, f"no answer within timeout_s = {self._whole_s:g}")
        return limit.or_sooner(self.total(began_at))

    def first(self, began_at: float) -> TimeLimit:
        """The limit of the first token."""
        limit = TimeLimit(
            began_at + self._first_s, f"no token within first_token_timeout_s = {self._first_s:g}"
        )
        return limit.or_sooner(self.whole(began_at))

    def idle(self, since: float) -> TimeLimit:
        """The limit of the token after the one that came at `since`."""
        seconds, name = self._idle
        return TimeLimit(since + seconds, f"no more tokens within {name} = {seconds:g}")


NEVER = TimeLimit(math.inf, "")
