"""Operations on rate limits."""

from __future__ import annotations

from scheduler.errors import InvalidRequest
from scheduler.queue import PromptQueue
from scheduler.queue.inspection.status import read_status


async def forgive_tenant(queue: PromptQueue, tenant: str) -> bool:
    """Let a tenant have again all that its limits give. Returns whether it had used some of it."""
    return await queue.forgive(f"t:{tenant}")


async def forgive_endpoint(queue: PromptQueue, endpoint: str) -> bool:
    """The same for an endpoint; and it takes prompts again, if it had asked for a pause.

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
