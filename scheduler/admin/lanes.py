"""Operations on whole lanes."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from scheduler.errors import InvalidRequest
from scheduler.queue import PromptQueue
from scheduler.queue.inspection.status import read_status

PURGE_CHUNK = 500
DELAYED_CHUNK = 50


async def known_lanes(queue: PromptQueue, lane: str | None = None) -> list[str]:
    """Every lane of the queue; only `lane` if it is given.

    Raises:
        InvalidRequest: there is no such lane.
    """
    lanes = [one.name for one in (await read_status(queue)).lanes]
    if lane is None:
        return lanes
    if lane not in lanes:
        there_are = f"there are: {', '.join(lanes)}" if lanes else "nothing has been enqueued yet"
        raise InvalidRequest(f"lane: no {lane!r} in queue {queue.name!r}; {there_are}", field="lane")
    return [lane]


async def purge(queue: PromptQueue, lane: str, priority: int | None = None) -> AsyncGenerator[int, None]:
    """Cancel the waiting jobs of a lane, all or those of one priority. Yields the count of each chunk.

    Jobs that are enqueued meanwhile may be cancelled as well; it ends once it has found the lane empty.
    """
    while purged := await queue.purge(lane, priority, chunk=PURGE_CHUNK):
        yield purged


async def purge_delayed(
    queue: PromptQueue, lane: str, priority: int | None = None
) -> AsyncGenerator[int, None]:
    """Cancel the delayed jobs of a lane, all or those of one priority. Yields the count of each chunk."""
    start: int | None = 0
    while start is not None:
        start, purged = await queue.purge_delayed(lane, priority, start=start, chunk=DELAYED_CHUNK)
        yield purged
