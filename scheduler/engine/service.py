"""The background services of a worker process: classes with the same `start()` and `stop()`."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod

from scheduler.logs import traced

logger = logging.getLogger(__name__)

RESTART_S = 1.0
"""The wait before a failed service starts again."""


class Service(ABC):
    """Runs `run()` in a task until stopped, and again after an unexpected error.

    `start()` and `stop()` are safe to call twice.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the task."""
        if self._task is None:
            self._task = asyncio.create_task(self._supervise(), name=self.name)

    async def stop(self) -> None:
        """Cancel the task and wait until it has ended."""
        task, self._task = self._task, None
        if task is not None:
            await end(task)

    @abstractmethod
    async def run(self) -> None:
        """Do the service's work; return when there is none left."""

    async def _supervise(self) -> None:
        while True:
            try:
                return await self.run()
            except Exception as error:
                logger.error("service %r failed; it starts again", self.name, exc_info=traced(error, logger))
                await asyncio.sleep(RESTART_S)


async def end(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
