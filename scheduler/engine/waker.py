"""Waits for a wake token, which announces work in a lane."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import suppress

from scheduler.engine.calls import ScriptCalls
from scheduler.engine.service import end
from scheduler.logs import traced
from scheduler.queue.queue import PromptQueue

logger = logging.getLogger(__name__)

BLOCK_S = 5.0
"""How long one BLPOP blocks. A cancelled one can swallow a wake token, so it ends by itself soon enough."""


class Waker:
    """One wait for work at a time, in a task of its own; `on_wake` is called when it ends.

    `lanes` are those of the current wait, each for work of any priority or (True) for urgent work alone.
    """

    def __init__(self, queue: PromptQueue, calls: ScriptCalls, on_wake: Callable[[], None]) -> None:
        self._queue = queue
        self._calls = calls
        self._on_wake = on_wake
        self._task: asyncio.Task[None] | None = None
        self.lanes: frozenset[tuple[str, bool]] = frozenset()

    @property
    def waits(self) -> bool:
        """Whether it waits for a token now."""
        return self._task is not None and not self._task.done()

    def covers(self, lanes: frozenset[tuple[str, bool]]) -> bool:
        """Whether the current wait announces work in all these lanes."""
        return self.waits and lanes <= self.lanes

    def take(self) -> bool:
        """Whether a wait has ended, and perhaps taken a token. Says so once."""
        if self._task is None or not self._task.done():
            return False
        self._task = None
        return True

    def start(self, lanes: frozenset[tuple[str, bool]]) -> None:
        """Wait for work in these lanes."""
        self.lanes = lanes
        self._task = asyncio.create_task(self._wait(lanes), name="wake")
        self._task.add_done_callback(self._woken)

    async def stop(self) -> None:
        """End the wait. It may have taken a token by then; safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            await end(task)

    async def _wait(self, lanes: Collection[tuple[str, bool]]) -> None:
        urgent = sorted(lane for lane, urgent_only in lanes if urgent_only)
        others = sorted(lane for lane, urgent_only in lanes if not urgent_only)
        # Redis times the wait by its host's clock, which may be set back meanwhile.
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * BLOCK_S):
                await self._calls.until_done(
                    lambda: self._queue.wait_for_work(others, BLOCK_S, urgent_lanes=urgent)
                )

    def _woken(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            logger.error("waiting for work failed", exc_info=traced(error, logger))
        self._on_wake()
