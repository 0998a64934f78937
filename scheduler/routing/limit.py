"""Limits how many prompts this process lets an endpoint hold. Pure: the clock is passed in."""

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
    """Adapts the number of prompts to what an endpoint can take, up to `ceiling`, which may be set.

    It starts at `start`, or else at the ceiling. Each full window of successes doubles it until the first
    overload, and adds one from then on. An overload halves it. Once it has reached the ceiling it follows it.
    A lower ceiling does not make it forget what the endpoint can take.

    Source: D.-M. Chiu, R. Jain, "Analysis of the increase and decrease algorithms for congestion avoidance",
    1989; the beginning is the slow start of V. Jacobson, "Congestion avoidance and control", 1988.
    """

    __slots__ = ("_bears", "_clock", "_decreased_at", "ceiling")

    def __init__(
        self, ceiling: int, *, start: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ceiling = ceiling
        self._bears = math.inf if start is None else float(max(1, start))  # inf: as much as the ceiling
        self._clock = clock
        self._decreased_at = -math.inf

    @property
    def value(self) -> int:
        """The limit now."""
        return int(min(self._bears, self.ceiling))

    def succeeded(self, prompts: int, *, full: bool) -> None:
        """A call succeeded. That shows room for more only if the window was `full`."""
        if full and self._bears < self.ceiling:
            found_out = self._decreased_at > -math.inf
            self._bears += prompts / self._bears if found_out else prompts
            if self._bears >= self.ceiling:
                self._bears = math.inf

    def overloaded(self, began_at: float) -> None:
        """A call that began at `began_at` was too much. Calls from before the last decrease are ignored."""
        if began_at >= self._decreased_at:
            self._decrease(DECREASE)

    def crowded(self) -> None:
        """The engine queues prompts inside, where neither priorities nor cancelling reach them."""
        self._decrease(CROWDED_DECREASE)

    def _decrease(self, factor: float) -> None:
        self._decreased_at = self._clock()
        self._bears = max(1.0, min(self._bears, self.ceiling) * factor)


def share_of(total: int, *, processes: int, index: int, name: str = "") -> int:
    """The part of `total` for process number `index`, from 0, among `processes`.

    The parts add up to `total`, so some may be 0. `name` decides which processes get the remainder, so that
    endpoints differ in that.
    """
    whole, rest = divmod(total, processes)
    return whole + ((index + zlib.crc32(name.encode())) % processes < rest)
