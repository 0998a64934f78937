"""Keeps an endpoint ready for urgent prompts while there are any: slots stay free, and starts are spread."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Protocol

from scheduler.batching import Member
from scheduler.routing.endpoint_call import EndpointCall
from scheduler.routing.stagger import Stagger
from scheduler.routing.urgent_load import UrgentLoad, slots_for

LOOK_S = 5.0
"""How often the load is looked at while urgent work is about and none begins or ends, in seconds."""

LOOKS_APART_S = 0.1
"""The least time between two looks, in seconds: with many slots a look takes longer than a call."""


class Holder(Protocol):
    """What holds the prompts: `limit` of them at most, `room` for more, `kept` slots for urgent ones."""

    limit: int

    @property
    def room(self) -> int:
        """How many more prompts could be sent."""
        ...

    @property
    def kept(self) -> int:
        """How many slots are kept free for urgent prompts now."""
        ...


class Headroom:
    """`kept`: how many slots to keep free. `on_change` is called when it changes, or when more may start.

    Until an urgent prompt comes, and once none has come for a while, it is not `active`: nothing is kept, and
    everything may start.
    """

    __slots__ = (
        "_clock",
        "_holder",
        "_look_again",
        "_looked_at",
        "_on_change",
        "_stagger",
        "_turn",
        "_urgent",
        "active",
        "kept",
    )

    def __init__(self, holder: Holder, clock: Callable[[], float], on_change: Callable[[], None]) -> None:
        self.kept = 0
        self.active = False
        self._holder = holder
        self._clock = clock
        self._on_change = on_change
        self._urgent = UrgentLoad(clock)
        self._stagger = Stagger(clock)
        self._looked_at = -math.inf
        self._look_again: asyncio.TimerHandle | None = None
        self._turn: asyncio.TimerHandle | None = None

    def may_start(self, free: int) -> int:
        """How many prompts that are not urgent may start now, where `free` slots are free for them.

        If it is none of them, `on_change` tells when that is over.
        """
        if not self.active:
            return free
        may_start = self._stagger.may_start(free, self._slots)
        if free and not may_start:
            self._wait_for_turn(self._stagger.wait_s)
        return may_start

    def call_began(self, call: EndpointCall, members: Sequence[Member]) -> None:
        """A call begins."""
        if members[0].urgent:  # then all are
            call.urgent = len(members)
            self._urgent.began(call.urgent)
            self._look()
        elif self.active:
            self._others_began(len(members))

    def call_ended(self, call: EndpointCall) -> None:
        """A call has ended, in whatever way."""
        if call.urgent:
            self._urgent.ended(call.urgent)
            self._look()
        elif call.error is None and not call.given_up:
            self._stagger.answered(self._clock() - call.began_at)

    def cancel(self) -> None:
        """Cancel the timers."""
        for timer in (self._look_again, self._turn):
            if timer is not None:
                timer.cancel()
        self._look_again = self._turn = None

    @property
    def _slots(self) -> int:
        """How many slots there are for prompts that are not urgent."""
        return self._holder.limit - self._holder.kept

    def _others_began(self, prompts: int) -> None:
        free = max(0, self._holder.room - self._holder.kept)
        if wait_s := self._stagger.started(prompts, free=free, slots=self._slots):
            self._wait_for_turn(wait_s)

    def _wait_for_turn(self, wait_s: float) -> None:
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_later(wait_s, self._turn_comes)

    def _turn_comes(self) -> None:
        self._turn = None
        self._on_change()

    def _look(self) -> None:
        """Keep as many slots as the load needs now."""
        self.active = self._urgent.lately
        if self.active and self._look_again is None:
            self._look_again = asyncio.get_running_loop().call_later(LOOK_S, self._look_later)
        now = self._clock()
        if self.active and now < self._looked_at + LOOKS_APART_S:
            return
        self._looked_at = now
        kept = slots_for(self._urgent.average, self._holder.limit) if self.active else 0
        if kept != self.kept:
            self.kept = kept
            self._on_change()

    def _look_later(self) -> None:
        self._look_again = None
        self._look()
