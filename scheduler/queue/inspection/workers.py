"""Reads the live worker processes, as each last described itself."""

from __future__ import annotations

from scheduler.queue.inspection.clock import ask_clock, clock_us
from scheduler.queue.queue import PromptQueue
from scheduler.queue.reports import WorkerInfo
from scheduler.queue.worker_report import decode_report


async def read_workers(queue: PromptQueue) -> list[WorkerInfo]:
    """Read the live worker processes, by id. Two round trips."""
    async with queue.redis.pipeline(transaction=False) as pipe:
        ask_clock(pipe, queue.keys)
        pipe.zrange(queue.keys.fixed("workers"), 0, -1, withscores=True)
        pipe.get(queue.keys.fixed("leader"))
        *clock, listed, leader = await pipe.execute()
    now_ms = clock_us(*clock) / 1000
    ids = sorted(name.decode() for name, gone_at_ms in listed if gone_at_ms > now_ms)
    if not ids:
        return []
    described = await queue.redis.mget([queue.keys.of("worker", one) for one in ids])
    return [
        _worker_info(one, about, leads=leader == one.encode())
        for one, about in zip(ids, described, strict=True)
    ]


def _worker_info(worker: str, stored: bytes | None, *, leads: bool) -> WorkerInfo:
    report = decode_report(stored)
    return WorkerInfo(**dict(report), id=worker, leader=leads)
