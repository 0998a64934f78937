"""Reads the records of jobs, many in a round trip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

from redis.exceptions import ResponseError

from scheduler.model import JobInfo
from scheduler.queue.job_info import FIELDS, make_job_info
from scheduler.queue.queue import PromptQueue

PAGE = 200
"""Records in a round trip."""


async def read_infos(
    queue: PromptQueue, job_ids: Sequence[str], positions: Iterable[int | None] = repeat(None)
) -> list[JobInfo | None]:
    """Each job without its history; None for one without a record. One round trip."""
    if not job_ids:
        return []
    async with queue.redis.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hmget(queue.keys.of("record", job_id), FIELDS)
            pipe.scard(queue.keys.of("tickets", job_id))
        replies = iter(await pipe.execute(raise_on_error=False))
    return [
        make_job_info(job_id, values_of(values)[: len(FIELDS)], tickets=count_of(tickets), position=position)
        for job_id, position, values, tickets in zip(job_ids, positions, replies, replies, strict=False)
    ]


def values_of(reply: Any) -> list[bytes | None]:
    """The fields of a record from a reply to HMGET; each None if the key holds another type."""
    if isinstance(reply, ResponseError):
        if not str(reply).startswith("WRONGTYPE"):
            raise reply
        return [None] * (len(FIELDS) + 1)
    return list(reply)


def count_of(reply: Any) -> int:
    """The number in a reply; 0 if the reply is an error."""
    return reply if isinstance(reply, int) else 0
