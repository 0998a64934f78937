"""Waiting for Redis: every loop of the engine does it in the same way and says so once."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from scheduler.connection import AWAY

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Patience:
    """Repeats calls while Redis is away. Shared by the loops of a process: one log line a change of state."""

    def __init__(self) -> None:
        self._away = False

    async def until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make the call until it goes through. The call must bear being made twice."""
        delay_s = 0.05
        while True:
            try:
                reply = await call()
            except AWAY as error:
                self._went(error)
                await asyncio.sleep(delay_s * (0.5 + random.random() / 2))
                delay_s = min(1.0, delay_s * 2)
            else:
                self._came()
                return reply

    def _went(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            logger.warning(
                "Redis is away (%s); what runs goes on, and so will the rest", type(error).__name__
            )

    def _came(self) -> None:
        if self._away:
            self._away = False
            logger.info("Redis is back")
