"""A bound on the number of traces: spans cost much beside a short prompt, and half a trace is useless."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

SAY_EVERY_S = 60.0


class TraceBound:
    """Lets `per_s` jobs a second have spans, up to a second's worth at once. Jobs beyond that get none.

    Source: the token bucket of RFC 2697, with one rate.
    """

    def __init__(self, per_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._clock = clock
        self._left = self._most = max(1.0, per_s)
        self._filled_at = self._said_at = clock()
        self._left_out = 0

    def passes(self) -> bool:
        """Take one from the bound; False if there is none left."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._filled_at) * self._per_s)
        self._filled_at = now
        if self._left >= 1.0:
            self._left -= 1.0
            return True
        self._left_out += 1
        if self._left_out == 1 or now - self._said_at >= SAY_EVERY_S:
            self._say(now)
        return False

    def refund(self) -> None:
        """Give one back that was not sampled after all."""
        self._left += 1.0

    def _say(self, now: float) -> None:
        self._said_at = now
        logger.warning(
            "more than traces_per_s = %g sampled jobs a second; %d had no spans so far: sample fewer of them",
            self._per_s,
            self._left_out,
        )
