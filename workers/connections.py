"""HTTP clients of one connection each, as many as there are concurrent calls.

One client with a pool would do, but for each request httpcore goes through every connection of its pool, with
a system call for each idle one: with 256 of them a request takes 15 ms of CPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import httpx


class Connections:
    """Lends clients made by `make`; the most recently used one goes first.

    When a client comes back, the one that has been idle longest is closed if it has been idle for more than
    `idle_s` seconds by `clock`.
    """

    def __init__(
        self, make: Callable[[], httpx.AsyncClient], *, idle_s: float, clock: Callable[[], float]
    ) -> None:
        self._make = make
        self._idle_s = idle_s
        self._clock = clock
        self._idle: deque[tuple[float, httpx.AsyncClient]] = deque()
        self._closed = False

    @asynccontextmanager
    async def one(self) -> AsyncGenerator[httpx.AsyncClient, None]:
        """Lend a client exclusively. After an exception it is closed and not lent again.

        httpcore can lose count of a connection whose request is cancelled: its pool counts it as busy from
        then on, and the next request would wait for it in vain.
        """
        client = self._idle.pop()[1] if self._idle else self._make()
        try:
            yield client
        except BaseException:
            await client.aclose()
            raise
        self._idle.append((self._clock(), client))
        await (self.aclose() if self._closed else self._close_longest_idle())

    async def aclose(self) -> None:
        """Close all clients; those in use are closed when they come back. Safe to call twice."""
        self._closed = True
        while self._idle:
            await self._idle.pop()[1].aclose()

    async def _close_longest_idle(self) -> None:
        if self._clock() - self._idle[0][0] > self._idle_s:
            await self._idle.popleft()[1].aclose()
