"""HTTP clients of one connection each, as many as there are calls.

One client with a pool of them would do, but httpcore looks at all connections of a pool for each request, at
the idle ones with a system call and all others each: with 256 of them a request takes 15 ms of CPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import httpx


class Lanes:
    """Lends clients that `make` makes; the one used last goes first.

    A client that has been idle for `idle_s` by `clock` is closed when another comes back.
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
        """A client that nobody else uses meanwhile. It is closed, and not lent again, after an exception.

        httpcore can lose count of a connection whose request is cancelled: its pool takes it for busy ever
        after, and the next request would wait for it in vain.
        """
        client = self._idle.pop()[1] if self._idle else self._make()
        try:
            yield client
        except BaseException:
            await client.aclose()
            raise
        self._idle.append((self._clock(), client))
        await (self.aclose() if self._closed else self._close_the_longest_idle())

    async def aclose(self) -> None:
        """Close all clients, those in use when they come back. Safe to call twice."""
        self._closed = True
        while self._idle:
            await self._idle.pop()[1].aclose()

    async def _close_the_longest_idle(self) -> None:
        if self._clock() - self._idle[0][0] > self._idle_s:
            await self._idle.popleft()[1].aclose()
