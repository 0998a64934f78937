"""How many prompts this process lets an endpoint hold. Pure: the clock is passed in."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable

DECREASE = 0.5
"""What remains after the endpoint has said that it is asked too much."""

CROWDED_DECREASE = 0.9
"""What remains after the engine has been seen with a queue of its own: a nudge, for it is short by then."""


class AdaptiveLimit:
    """A number of prompts, at least 1 and at most a ceiling, that finds out what an endpoint bears.

    A window of successes makes it twice as large until the endpoint has had too much for the first time, and
    from then on larger by one; too much makes it half as large.

    Source: D.-M. Chiu, R. Jain, "Analysis of the increase and decrease algorithms for congestion avoidance",
    1989; the beginning is the slow start of V. Jacobson, "Congestion avoidance and control", 1988.
    """

    __slots__ = ("_ceiling", "_clock", "_decreased_at", "_value")

    def __init__(
        self, ceiling: int, *, start: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ceiling = max(1, ceiling)
        self._value = float(min(self._ceiling, max(1, start or ceiling)))
        self._clock = clock
        self._decreased_at = -math.inf

    @property
    def value(self) -> int:
        """The limit now."""
        return int(self._value)

    @property
    def ceiling(self) -> int:
        """What the limit does not exceed."""
        return self._ceiling

    @ceiling.setter
    def ceiling(self, ceiling: int) -> None:
        at_ceiling = self._value >= self._ceiling
        self._ceiling = max(1, ceiling)
        self._value = float(self._ceiling) if at_ceiling else min(self._value, float(self._ceiling))

    def succeeded(self, prompts: int, *, full: bool) -> None:
        """A call went well. Only while the window was `full` does that say that more would go well."""
        if full:
            found_out = self._decreased_at > -math.inf
            self._value = min(
                float(self._ceiling), self._value + (prompts / self._value if found_out else prompts)
            )

    def overloaded(self, began_at: float) -> None:
        """A call that began at `began_at` was too much; one from before the last decrease is no news."""
        if began_at >= self._decreased_at:
            self._decrease(DECREASE)

    def crowded(self) -> None:
        """The engine has prompts waiting inside, where no priority and no cancelling reaches them."""
        self._decrease(CROWDED_DECREASE)

    def _decrease(self, factor: float) -> None:
        self._decreased_at = self._clock()
        self._value = max(1.0, self._value * factor)


def share_of(total: int, *, processes: int, place: int, name: str = "") -> int:
    """The part of `total` that is for the process at `place` (from 0) among `processes`.

    The parts add up to `total`, so some may be 0. Who gets what is left over is turned by `name`, so that the
    same processes do not get it of every endpoint.
    """
    whole, rest = divmod(total, processes)
    return whole + ((place + zlib.crc32(name.encode())) % processes < rest)
