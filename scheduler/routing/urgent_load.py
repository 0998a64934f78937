"""How much urgent work an endpoint has, and how many slots that needs. Pure: the clock is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable

LATELY_S = 60.0
"""Urgent work is about for this long after the last urgent prompt has ended, in seconds."""

AVERAGED_S = 30.0
"""The time constant of the average load, in seconds."""

SOONEST_S = 5.0
"""A shorter time than this says little about a load, in seconds."""

MOST_IDLE = 0.05
"""The share of an endpoint's slots that may stand idle, on average, because they are kept."""

SELDOM_ALL_TAKEN = 0.01
"""No further slot is kept once an urgent prompt finds all kept slots taken less often than this."""


class UrgentLoad:
    """The average number of urgent prompts that an endpoint works on, which is their rate times their time.

    The average forgets with `AVERAGED_S`. It begins with the first urgent prompt after a time without any.
    """

    __slots__ = ("_at", "_began_at", "_clock", "_ended_at", "_sum", "running")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.running = 0
        self._began_at = self._at = 0.0
        self._ended_at = -math.inf
        self._sum = 0.0  # the average, before it is corrected for having begun with nothing

    @property
    def lately(self) -> bool:
        """Whether urgent prompts run, or have run lately."""
        return self.running > 0 or self._clock() < self._ended_at + LATELY_S

    @property
    def average(self) -> float:
        """The average number of urgent prompts."""
        self._advance()
        return self._sum / -math.expm1(-max(SOONEST_S, self._at - self._began_at) / AVERAGED_S)

    def began(self, prompts: int) -> None:
        """The endpoint begins to work on urgent prompts."""
        if not self.lately:
            self._sum, self._began_at = 0.0, self._clock()
        self._advance()
        self.running += prompts

    def ended(self, prompts: int) -> None:
        """The endpoint has done with urgent prompts."""
        self._advance()
        self.running -= prompts
        self._ended_at = self._at

    def _advance(self) -> None:
        now = self._clock()
        kept = math.exp((self._at - now) / AVERAGED_S)
        self._sum = self._sum * kept + self.running * (1 - kept)
        self._at = now


def slots_for(load: float, slots: int) -> int:
    """How many of `slots` to keep free for `load` urgent prompts on average.

    As many as they need, at most half, and no more than leave `MOST_IDLE` of all slots idle on average.

    Source: A. K. Erlang, "Solution of some problems in the theory of probabilities of significance in
    automatic telephone exchanges", 1917: how often a number of slots are all taken.
    """
    kept, all_taken = 0, 1.0
    while kept < slots // 2 and all_taken > SELDOM_ALL_TAKEN:
        offered = load * all_taken
        all_taken = offered / (kept + 1 + offered)
        if kept + 1 - load * (1 - all_taken) > MOST_IDLE * slots:
            break
        kept += 1
    return kept
