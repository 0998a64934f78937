"""Operations on dedup keys."""

from __future__ import annotations

from scheduler.model import DEFAULT_TENANT
from scheduler.queue import PromptQueue
from scheduler.queue.inspection.dedup_keys import OwnedKey, describe_dedup_keys, hashes_of
from scheduler.queue.reports import DedupKey


async def release_dedup_key(queue: PromptQueue, key: str, *, tenant: str = DEFAULT_TENANT) -> DedupKey | None:
    """Release a dedup key, given as its user gave it or by its hash: the next prompt with it is new work.

    The job that owned it is unaffected. Returns the key as it was; None if it was free.
    """
    for hashed in hashes_of(key):
        if (released := await queue.release(tenant, hashed)) is not None:
            return (await describe_dedup_keys(queue, [OwnedKey(tenant, hashed, *released)]))[0]
    return None
