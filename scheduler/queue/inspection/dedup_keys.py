"""Reads dedup keys: which are in use, and by which job."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scheduler.model import DEFAULT_TENANT, DedupMode
from scheduler.queue.dedup import dedup_hash
from scheduler.queue.inspection.job_records import PAGE, values_of
from scheduler.queue.job_info import FIELDS, make_job_info
from scheduler.queue.queue import PromptQueue
from scheduler.queue.reports import DedupKey

_HASH = re.compile(r"[A-Za-z0-9_-]{20}")


async def list_dedup_keys(
    queue: PromptQueue, *, tenant: str | None = None, limit: int = 100
) -> list[DedupKey]:
    """List at most `limit` of the dedup keys in use, in no order. Walks all keys of the server, in steps."""
    found: list[DedupKey] = []
    pattern = queue.keys.dedup(tenant or DEFAULT_TENANT, "*")
    cursor = 0
    while True:
        cursor, names = await queue.redis.scan(cursor, match=pattern, count=1000)
        split = [queue.keys.split_dedup(name.decode()) for name in names]
        wanted = [one for one in split if tenant in (None, one[0])]
        for start in range(0, len(wanted), PAGE):
            found += await _read(queue, wanted[start : start + PAGE])
            if len(found) >= limit:
                return found[:limit]
        if cursor == 0:
            return found


async def read_dedup_key(queue: PromptQueue, key: str, *, tenant: str = DEFAULT_TENANT) -> DedupKey | None:
    """Read a dedup key, given as the user gave it or by its hash; None if it is free. Two round trips."""
    return next(iter(await _read(queue, [(tenant, one) for one in hashes_of(key)])), None)


def hashes_of(key: str) -> Iterator[str]:
    """The hashes that a key given by a person may stand for: its own, and itself if it looks like one."""
    yield dedup_hash(key)
    if _HASH.fullmatch(key):
        yield key


@dataclass(frozen=True, slots=True)
class OwnedKey:
    """A dedup key as Redis has it. `left_ms` is negative without an expiry."""

    tenant: str
    hash: str
    job_id: str
    left_ms: int


async def describe_dedup_keys(queue: PromptQueue, owned: Sequence[OwnedKey]) -> list[DedupKey]:
    """Add what the records of their jobs say. One round trip."""
    if not owned:
        return []
    async with queue.redis.pipeline(transaction=False) as pipe:
        for one in owned:
            pipe.hmget(queue.keys.of("record", one.job_id), FIELDS)
        records = await pipe.execute(raise_on_error=False)
    return [_describe(one, values_of(values)) for one, values in zip(owned, records, strict=True)]


async def _read(queue: PromptQueue, names: Sequence[tuple[str, str]]) -> list[DedupKey]:
    if not names:
        return []
    async with queue.redis.pipeline(transaction=False) as pipe:
        for tenant, hashed in names:
            pipe.get(queue.keys.dedup(tenant, hashed))
            pipe.pttl(queue.keys.dedup(tenant, hashed))
        replies = iter(await pipe.execute())
    owned = [
        OwnedKey(tenant, hashed, owner.decode("utf-8", "replace"), left_ms)
        for (tenant, hashed), owner, left_ms in zip(names, replies, replies, strict=False)
        if owner is not None
    ]
    return await describe_dedup_keys(queue, owned)


def _describe(key: OwnedKey, values: Sequence[bytes | None]) -> DedupKey:
    described = DedupKey(
        tenant=key.tenant,
        hash=key.hash,
        job_id=key.job_id,
        expires_in_s=key.left_ms / 1000 if key.left_ms >= 0 else None,
    )
    owner = make_job_info(key.job_id, values[: len(FIELDS)], tickets=0)
    if owner is None:
        return described
    return described.model_copy(
        update={
            "state": owner.state,
            "model": owner.model,
            "mode": owner.dedup or DedupMode.UNTIL_FINISHED,
            "joined": owner.joined,
            "hits": owner.hits,
        }
    )
