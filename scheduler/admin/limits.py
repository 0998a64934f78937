"""Operations on rate limits."""

from __future__ import annotations

from scheduler.errors import InvalidRequest
from scheduler.queue import PromptQueue
from scheduler.queue.inspection.status import read_status


async def forgive_tenant(queue: PromptQueue, tenant: str) -> bool:
    """Reset a tenant's use of its rate limits. Returns whether it had used any."""
    return await queue.forgive(f"t:{tenant}")


async def forgive_endpoint(queue: PromptQueue, endpoint: str) -> bool:
    """Reset an endpoint's use of its rate limits, and end a pause that it asked for. Returns as above.

    Raises:
        InvalidRequest: no live worker process has such an endpoint.
    """
    known = [one.name for one in (await read_status(queue)).endpoints]
    if endpoint not in known:
        there_are = f"there are: {', '.join(known)}" if known else "no live worker process serves any"
        raise InvalidRequest(
            f"endpoint: no {endpoint!r} in queue {queue.name!r}; {there_are}", field="endpoint"
        )
    return await queue.forgive(f"e:{endpoint}")
