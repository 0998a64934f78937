"""Spreads the starts of prompts that would end together. Pure: the clock is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable

AT_ONCE = 2
"""How many prompts may start together."""

IDLE_AGAIN = 0.002
"""The share of an endpoint's slots that waiting for a turn may leave idle in the long run."""

FORGETS = 0.1
"""The weight of the latest answer in the average time of an answer."""


class Stagger:
    """Says how many prompts may start now, so that one of `slots` comes free every answer time / slots.

    Prompts that start together and are equally long end together: an urgent prompt that has just missed them
    waits for a whole answer. Spreading them takes a moment in which slots are idle; the `_credit`, in
    slot-seconds, bounds what that costs, if answers are so different that it would happen again and again.
    """

    __slots__ = ("_answer_s", "_clock", "_credit", "_credited_at", "_next_at")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._answer_s = 0.0
        self._next_at = 0.0
        self._credit = 0.0
        self._credited_at: float | None = None

    @property
    def wait_s(self) -> float:
        """The seconds to the next turn."""
        return max(0.0, self._next_at - self._clock())

    def answered(self, took_s: float) -> None:
        """An answer has taken so long."""
        if self._answer_s:
            took_s = self._answer_s + FORGETS * (took_s - self._answer_s)
        self._answer_s = took_s

    def may_start(self, free: int, slots: int) -> int:
        """How many of `free` prompts may start now."""
        gap_s = self._gap_s(slots)
        if free <= AT_ONCE or not gap_s or not self._may_idle(slots):
            return free
        turns = (self._clock() - self._next_at) / gap_s + 1
        return min(free, max(0, min(AT_ONCE, int(turns))))

    def started(self, prompts: int, *, free: int, slots: int) -> float:
        """Prompts have started, and `free` slots are left. Returns the seconds to the next turn."""
        gap_s, now = self._gap_s(slots), self._clock()
        self._next_at = max(self._next_at, now - gap_s * (AT_ONCE - 1)) + prompts * gap_s
        wait_s = self._next_at - now
        if not free or wait_s <= 0:
            return 0.0
        if self._may_idle(slots):
            self._credit -= free * min(wait_s, gap_s)
        return wait_s

    def _gap_s(self, slots: int) -> float:
        return self._answer_s / slots if slots else 0.0

    def _may_idle(self, slots: int) -> bool:
        """Whether slots may wait for a turn now. At first they may, long enough to spread them."""
        now, most = self._clock(), self._answer_s * slots / 2
        since_s = math.inf if self._credited_at is None else now - self._credited_at
        self._credit = min(most, self._credit + IDLE_AGAIN * slots * since_s)
        self._credited_at = now
        return self._credit > 0
