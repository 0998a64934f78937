"""Calls of the queue's scripts, repeated while Redis is away and timed for observers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from scheduler.engine.patience import Outage, Patience
from scheduler.observations import Observers, RoundTrip
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import Ending, Publication, Return, WriteOutcome

T = TypeVar("T")


class ScriptCalls:
    """Calls scripts for one worker process; all its services wait for Redis here."""

    def __init__(self, patience: Patience, observers: Observers) -> None:
        self._patience = patience
        self._observers = observers

    @property
    def outage(self) -> Outage:
        """What the process knows of Redis' availability."""
        return self._patience.outage

    async def until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat the call until it succeeds. It must be safe to make twice."""
        return await self._patience.until_done(call)

    async def timed(self, script: str, call: Awaitable[T]) -> T:
        """Await a script's reply and report how long it took."""
        observe = self._observers.round_trip
        if observe is None:
            return await call
        began = time.perf_counter()
        reply = await call
        observe(RoundTrip(script, time.perf_counter() - began))
        return reply


class PatientWrites:
    """The queue as the event writer needs it: writes wait for Redis like every other call."""

    def __init__(self, queue: PromptQueue, calls: ScriptCalls) -> None:
        self._queue = queue
        self._calls = calls

    async def write(
        self,
        *,
        publications: Sequence[Publication] = (),
        returns: Sequence[Return] = (),
        endings: Sequence[Ending] = (),
    ) -> WriteOutcome:
        """Write events, retries and ends in one round trip."""

        def write() -> Awaitable[WriteOutcome]:
            call = self._queue.write(publications=publications, returns=returns, endings=endings)
            return self._calls.timed("write", call)

        return await self._calls.until_done(write)
