"""This process's share of what each endpoint may hold, over all the processes that use it."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.queue.queue import PromptQueue
from scheduler.routing import Endpoint

HELD_FOR_LEASES = 1.5
"""A process that has not been heard of for so long has lost its share."""


class Shares:
    """Divides endpoints among the worker processes that use them.

    A share that shrinks does so at once. One that grows does so when the division is still the same the
    next time: by then every other process has heard of it, and together they do not exceed the limit. A
    newcomer among others begins with nothing, unless nobody has said what the limit is.
    """

    def __init__(self, queue: PromptQueue, worker: str, *, lease_ms: int) -> None:
        self._queue = queue
        self._worker = worker
        self._holds_ms = round(lease_ms * HELD_FOR_LEASES)
        self._seen: dict[str, tuple[int, int]] = {}

    async def update(self, endpoints: Sequence[Endpoint]) -> None:
        """Tell the others of these endpoints, and divide them; to be called some three times a lease."""
        shared = [endpoint for endpoint in endpoints if endpoint.shared]
        names = [endpoint.name for endpoint in shared]
        divisions = await self._queue.attend(self._worker, names, holds_ms=self._holds_ms)
        seen, self._seen = self._seen, dict(zip(names, divisions, strict=True))
        for endpoint, division in zip(shared, divisions, strict=True):
            self._divide(endpoint, division, seen.get(endpoint.name))

    async def give_up(self, endpoints: Sequence[Endpoint]) -> None:
        """Leave these endpoints to the others."""
        names = [endpoint.name for endpoint in endpoints if endpoint.shared]
        await self._queue.attend(self._worker, names, holds_ms=0)

    @staticmethod
    def _divide(endpoint: Endpoint, division: tuple[int, int], before: tuple[int, int] | None) -> None:
        processes, place = division
        if processes == 1 or division == before:
            endpoint.divide(processes, place)
        elif before is None and endpoint.max_in_flight is not None:
            endpoint.divide(0, 0)
        elif endpoint.share_among(processes, place) <= endpoint.share:
            endpoint.divide(processes, place)
