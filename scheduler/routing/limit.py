"""How many prompts this process lets an endpoint hold. Pure: the clock is passed in."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable

DECREASE = 0.5
"""The share of the limit that remains after the endpoint reports an overload."""

CROWDED_DECREASE = 0.9
"""The share that remains after the engine was seen with a queue of its own: a nudge."""


class AdaptiveLimit:
    """A number of prompts that finds out what an endpoint bears; at most `ceiling`, which may be set.

    It begins with `start`, else with the ceiling. A window of successes makes it twice as large until the
    endpoint has had too much for the first time, and from then on larger by one; too much makes it half as
    large. Once it has reached the ceiling it moves with it. A lower ceiling does not make it forget what the
    endpoint bears.

    Source: D.-M. Chiu, R. Jain, "Analysis of the increase and decrease algorithms for congestion avoidance",
    1989; the beginning is the slow start of V. Jacobson, "Congestion avoidance and control", 1988.
    """

    __slots__ = ("_bears", "_clock", "_decreased_at", "ceiling")

    def __init__(
        self, ceiling: int, *, start: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ceiling = ceiling
        self._bears = math.inf if start is None else float(max(1, start))  # inf: all that it may get
        self._clock = clock
        self._decreased_at = -math.inf

    @property
    def value(self) -> int:
        """The limit now."""
        return int(min(self._bears, self.ceiling))

    def succeeded(self, prompts: int, *, full: bool) -> None:
        """A call went well. Only while the window was `full` does that say that more would go well."""
        if full and self._bears < self.ceiling:
            found_out = self._decreased_at > -math.inf
            self._bears += prompts / self._bears if found_out else prompts
            if self._bears >= self.ceiling:
                self._bears = math.inf

    def overloaded(self, began_at: float) -> None:
        """A call that began at `began_at` was too much; one from before the last decrease is no news."""
        if began_at >= self._decreased_at:
            self._decrease(DECREASE)

    def crowded(self) -> None:
        """The engine has prompts waiting inside, where no priority and no cancelling reaches them."""
        self._decrease(CROWDED_DECREASE)

    def _decrease(self, factor: float) -> None:
        self._decreased_at = self._clock()
        self._bears = max(1.0, min(self._bears, self.ceiling) * factor)


def share_of(total: int, *, processes: int, index: int, name: str = "") -> int:
    """The part of `total` for the process number `index`, from 0, among `processes`.

    The parts add up to `total`, so some may be 0. `name` decides which processes share the remainder, so that
    it is not the same ones for every endpoint.
    """
    whole, rest = divmod(total, processes)
    return whole + ((index + zlib.crc32(name.encode())) % processes < rest)
