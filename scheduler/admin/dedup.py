"""Dedup keys, for operators: let one go."""

from __future__ import annotations

from scheduler.model import DEFAULT_TENANT
from scheduler.queue import PromptQueue
from scheduler.queue.inspection.dedup_keys import OwnedKey, describe_dedup_keys, hashes_of
from scheduler.queue.reports import DedupKey


async def release_dedup_key(queue: PromptQueue, key: str, *, tenant: str = DEFAULT_TENANT) -> DedupKey | None:
    """Free a dedup key, given as the user gave it or by its hash: the next prompt with it is new work.

    The job that owned it keeps running. Returns the key as it was; None if it was free already.
    """
    for hashed in hashes_of(key):
        if (released := await queue.release(tenant, hashed)) is not None:
            return (await describe_dedup_keys(queue, [OwnedKey(tenant, hashed, *released)]))[0]
    return None
