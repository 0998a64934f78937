"""The maintenance of the queue, by whichever process holds the lock."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from scheduler.engine.context import EngineContext, EngineService
from scheduler.observations import Ticked
from scheduler.queue.records import TickReport


class MaintenanceLoop(EngineService):
    """Calls `tick` whenever it is due. `leads`: this process holds the lock and does the maintenance.

    It calls `on_data_lost` where Redis has lost the queue's data.
    """

    def __init__(self, context: EngineContext, *, on_data_lost: Callable[[], None]) -> None:
        super().__init__("tick", context)
        self._on_data_lost = on_data_lost
        self._lease_ms = context.serving.lease_ms
        self._lock_ms = min(2000, max(500, self._lease_ms // 4))
        self._known_tick_ms: int | None = None  # the queue's time at a tick
        self._told_at: float | None = None  # when this process was told it, by `_boottime_s`
        self.leads = False

    async def run(self) -> None:
        """Tick for ever."""
        while True:
            report = await self._tick()
            if report.in_doubt:
                report = await self._tick(is_sure=True)
            self.leads = report.leader
            if report.data_lost:
                self._on_data_lost()
            if (observe := self._observers.ticked) is not None:
                observe(Ticked(report))
            # Processes that wait for the lock spread out: fifty idle ones must not ask all at once.
            spread_ms = 0.0 if report.leader else random.random() * self._lock_ms
            await asyncio.sleep((max(report.next_ms, 1) + spread_ms) / 1000)

    async def _tick(self, *, is_sure: bool = False) -> TickReport:
        outage = self._calls.outage

        def tick() -> Awaitable[TickReport]:
            silent_s = None if self._told_at is None else _boottime_s() - self._told_at
            call = self._queue.tick(
                self._worker,
                lease_ms=self._lease_ms,
                lock_ms=self._lock_ms,
                silent_ms=None if silent_s is None else round(silent_s * 1000),
                known_tick_ms=self._known_tick_ms,
                is_sure=is_sure,
                away_ms=outage.untold_ms,
            )
            return self._calls.timed("tick", call)

        report = await self._calls.until_done(tick)
        outage.told()
        if report.tick_ms is not None:
            self._known_tick_ms, self._told_at = report.tick_ms, _boottime_s()
        return report


def _boottime_s() -> float:
    """A clock that nobody sets and that runs while the machine sleeps, as Redis' does."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
