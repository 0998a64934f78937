"""The pauses of an endpoint that has asked for a wait. The clock is passed in."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

MAX_PAUSE_S = 3600.0
"""The longest wait a back end can ask for, in seconds."""

OVERLOAD_PAUSE_S, MAX_OVERLOAD_PAUSE_S = 0.25, 30.0
"""Pauses in seconds of an overloaded back end that names none: the first, which doubles, and the longest."""

EARLY_S = 0.001
"""A timer that fired early is set again for at least this long, in seconds."""


class Pause:
    """The pause of one endpoint. `until` is on the clock; `on_over` is called when it ends."""

    def __init__(self, clock: Callable[[], float], on_over: Callable[[], None]) -> None:
        self._clock = clock
        self._on_over = on_over
        self.until = 0.0
        self._overloads = 0  # in a row, without a wait named by the back end
        self._timer: asyncio.TimerHandle | None = None

    @property
    def lasts(self) -> bool:
        """Whether the endpoint is paused now."""
        return self.until > 0 and self._clock() < self.until

    def begin(self, wait_s: float) -> bool:
        """Pause for `wait_s` from now. Returns whether that extends the pause."""
        wait_s = min(wait_s, MAX_PAUSE_S)
        until = self._clock() + wait_s
        if wait_s <= 0 or until <= self.until:
            return False
        self.until = until
        self.cancel()
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._timer_fired)
        return True

    def end(self) -> bool:
        """End the pause now. Returns whether there was one."""
        if not self.lasts:
            return False
        self.until = 0.0
        self.cancel()
        return True

    def cancel(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def overload_s(self, began_at: float, retry_after_s: float | None) -> float:
        """How long to pause after an overload: as the back end asks, or else longer with each in a row.

        `began_at` is when the refused call began: of those from before the pause, only the first counts.
        """
        if retry_after_s is not None and retry_after_s >= 0:
            return retry_after_s
        if began_at >= self.until:
            self._overloads += 1
        return random.uniform(0.5, 1.0) * min(MAX_OVERLOAD_PAUSE_S, OVERLOAD_PAUSE_S * 2.0**self._overloads)

    def succeeded(self) -> None:
        """A call succeeded: the next overload starts a new row."""
        self._overloads = 0

    def _timer_fired(self) -> None:
        # Timers of a busy event loop may fire some milliseconds early.
        left_s = self.until - self._clock()
        if left_s > 0:
            self._timer = asyncio.get_running_loop().call_later(max(left_s, EARLY_S), self._timer_fired)
            return
        self._timer = None
        self._on_over()
