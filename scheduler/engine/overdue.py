"""The attempts whose deadlines have passed by this process' clock."""

from __future__ import annotations

import asyncio


class Overdue:
    """Collects tokens of attempts until somebody takes them."""

    def __init__(self) -> None:
        self._tokens: set[int] = set()
        self._added = asyncio.Event()

    def add(self, token: int) -> None:
        """The deadline of the attempt with this token has passed."""
        self._tokens.add(token)
        self._added.set()

    async def take(self) -> tuple[int, ...]:
        """All tokens since the last call, once there are some."""
        await self._added.wait()
        self._added.clear()
        tokens = tuple(self._tokens)
        self._tokens.clear()
        return tokens
