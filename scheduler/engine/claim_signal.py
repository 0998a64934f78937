"""How the rest of a worker process tells the claimer that claiming may be worthwhile again."""

from __future__ import annotations

import asyncio


class ClaimSignal:
    """Wakes the claimer. `look`: there may be work that no wake token announces, so it has to ask Redis."""

    __slots__ = ("changed", "look")

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.look = True

    def notify(self) -> None:
        """Room may have changed."""
        self.changed.set()

    def look_again(self) -> None:
        """Ask Redis for work even if no wake token has come."""
        self.look = True
        self.changed.set()
