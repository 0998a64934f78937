"""Renews the leases of a process while its event loop is blocked, for example by a user's own stage.

A thread pings the loop. While the loop does not answer, the thread renews the leases in its place: the job
keeps running, and no other process starts it a second time.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from redis.exceptions import RedisError

from scheduler.errors import SchedulerError
from scheduler.stages import pipeline

logger = logging.getLogger(__name__)

LOOKS_A_LEASE = 6
BLOCKED_LEASES = 30
"""A blocked event loop keeps its jobs for this many lease times, then counts as hung and loses them."""


class LeaseKeeper:
    """A thread that calls `renew` on its own event loop while the loop that started it is blocked.

    `start()` and `stop()` are safe to call twice.
    """

    def __init__(
        self,
        renew: Callable[[], Coroutine[Any, Any, object]],
        *,
        lease_s: float,
        blocked_leases: float = BLOCKED_LEASES,
    ) -> None:
        self._renew = renew
        self._lease_s = lease_s
        self._look_s = lease_s / LOOKS_A_LEASE
        self._limit_s = lease_s * blocked_leases
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop_thread = 0
        self._asked_at: float | None = None  # None: the loop has answered

    @property
    def blocked(self) -> bool:
        """Whether the loop was pinged and has not answered yet."""
        return self._asked_at is not None

    def start(self) -> None:
        """Start watching. Call it on the event loop."""
        if self._thread is not None:
            return
        self._loop_thread = threading.get_ident()
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._look, args=(loop,), name="leases", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stopped.wait(self._look_s):
            if self._asked_at is None:
                self._ask(loop)
            else:
                self._keep(self._asked_at)

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asked_at = time.monotonic()
        try:
            loop.call_soon_threadsafe(self._answer)
        except RuntimeError:  # the loop is closed
            self._stopped.set()

    def _answer(self) -> None:
        self._asked_at = None

    def _keep(self, blocked_at: float) -> None:
        """Renew the leases until the loop answers or the limit is reached."""
        said = let_go = False
        while self._asked_at == blocked_at and not self._stopped.is_set():
            blocked_s = time.monotonic() - blocked_at
            if not said and blocked_s >= self._lease_s / 2:  # a loop may be late on a busy machine
                said = True
                logger.warning(
                    "the event loop is blocked, at %s: leases are kept for up to %g s; let a stage await, "
                    "or hand its work to asyncio.to_thread",
                    self._where(),
                    self._limit_s,
                )
            if not let_go and blocked_s > self._limit_s:
                let_go = True
                logger.error("the event loop is still blocked, at %s: its jobs go to others", self._where())
            if not let_go:
                self._renew_once()
            self._stopped.wait(self._look_s)

    def _renew_once(self) -> None:
        try:
            asyncio.run(asyncio.wait_for(self._renew(), self._lease_s))
        except (RedisError, SchedulerError, OSError):  # OSError covers TimeoutError; the next try may succeed
            logger.debug("a lease could not be renewed in the loop's place", exc_info=True)

    def _where(self) -> str:
        """The line inside the stage that the loop's thread is running, or else the innermost line."""
        frame = at = sys._current_frames().get(self._loop_thread)
        while at is not None and at.f_back is not None:
            if at.f_back.f_code.co_filename == pipeline.__file__:
                frame = at
            at = at.f_back
        return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "an unknown place"


__all__ = ["BLOCKED_LEASES", "LeaseKeeper"]
