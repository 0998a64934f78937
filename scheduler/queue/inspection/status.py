"""Reads how a queue stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from redis.asyncio.client import Pipeline

from scheduler.queue.endpoint_status import summarize
from scheduler.queue.held import HeldLane, read_held_lanes
from scheduler.queue.inspection.clock import ask_clock, clock_us
from scheduler.queue.inspection.configured import aging_ms, max_waiting, when_full
from scheduler.queue.inspection.lanes import LaneReplies, ask_lanes, lane_status, lanes_from
from scheduler.queue.inspection.workers import read_workers
from scheduler.queue.keys import Keys
from scheduler.queue.pages import names_in
from scheduler.queue.queue import PromptQueue
from scheduler.queue.reports import LaneStatus, LimitedTenant, QueueStatus, WorkerInfo

LANES_AT_ONCE = 50
TOTALS_AT_ONCE = 1000
RATE_FRESH_MS = 60_000


async def read_status(queue: PromptQueue, *, workers: Sequence[WorkerInfo] | None = None) -> QueueStatus:
    """Read how the queue stands; pass the live `workers` if you have them already.

    Five round trips, three with `workers`; more with held jobs or many lanes, which are read in pages.
    """
    held = await read_held_lanes(queue.redis, queue.keys)
    names, paused = await _lane_names(queue)
    counted, lanes = await _read_together(queue, names[:LANES_AT_ONCE])
    lanes += await _read_lanes(queue, names[LANES_AT_ONCE:])
    totals = await _read_totals(queue, counted)
    now_us = clock_us(counted.time, counted.ahead_ms)
    statuses = _lane_statuses(lanes, counted, held=held, paused=paused, now_us=now_us)
    return QueueStatus(
        queue=queue.name,
        at_ms=now_us // 1000,
        waiting=sum(lane.waiting for lane in statuses),
        delayed=counted.delayed,
        held=sum(one.jobs for one in held),
        running=counted.running,
        dead=counted.dead,
        finished=counted.finished,
        garbage=counted.garbage,
        workers=sum(gone_at_ms > now_us / 1000 for _, gone_at_ms in counted.processes),
        max_waiting=max_waiting(counted.conf),
        when_full=when_full(counted.conf),
        aging_s=aging_ms(counted.conf.get(b"aging_ms")) / 1000,
        ended_per_s=_rate(*counted.rate, now_us // 1000),
        totals=totals,
        lanes=statuses,
        limited=[_limited(one, now_us // 1000) for one in held],
        endpoints=summarize(await read_workers(queue) if workers is None else workers),
    )


class _Counted(NamedTuple):
    """The replies to `_ask_counts`, in its order."""

    time: tuple[int, int]
    ahead_ms: bytes | None
    rate: tuple[bytes | None, bytes | None]
    totals: tuple[int, dict[bytes, bytes]]
    conf: dict[bytes, bytes]
    delayed: int
    running: int
    dead: int
    finished: int
    garbage: int
    processes: list[tuple[bytes, float]]


def _ask_counts(pipe: Pipeline, keys: Keys) -> None:
    ask_clock(pipe, keys)
    pipe.hmget(keys.fixed("meta"), ["rate", "sampled"])
    pipe.hscan(keys.fixed("meta"), 0, match="t:*", count=TOTALS_AT_ONCE)
    pipe.hgetall(keys.fixed("conf"))
    for listed in ("delayed", "leases", "dead", "finished"):
        pipe.zcard(keys.fixed(listed))
    pipe.hlen(keys.fixed("garbage"))
    pipe.zrange(keys.fixed("workers"), 0, -1, withscores=True)


async def _read_together(queue: PromptQueue, names: Sequence[str]) -> tuple[_Counted, list[LaneReplies]]:
    """Read the counts and the first lanes in one transaction: they add up."""
    async with queue.redis.pipeline(transaction=True) as pipe:
        _ask_counts(pipe, queue.keys)
        ask_lanes(pipe, queue.keys, names)
        replies = await pipe.execute()
    width = len(_Counted._fields)
    return _Counted(*replies[:width]), lanes_from(replies[width:], names)


async def _lane_names(queue: PromptQueue) -> tuple[list[str], set[bytes]]:
    """All lanes by name, and those of them that are paused."""
    fixed = queue.keys.fixed
    used, paused, routes = await names_in(
        queue.redis, (fixed("lanes"), "set"), (fixed("paused"), "set"), (fixed("routes"), "hash")
    )
    return sorted(name.decode() for name in {*used, *routes, *paused}), paused


async def _read_lanes(queue: PromptQueue, names: Sequence[str]) -> list[LaneReplies]:
    found: list[LaneReplies] = []
    for start in range(0, len(names), LANES_AT_ONCE):
        some = names[start : start + LANES_AT_ONCE]
        async with queue.redis.pipeline(transaction=False) as pipe:
            ask_lanes(pipe, queue.keys, some)
            found += lanes_from(await pipe.execute(), some)
    return found


async def _read_totals(queue: PromptQueue, counted: _Counted) -> dict[str, int]:
    cursor, totals = counted.totals
    while cursor:
        cursor, more = await queue.redis.hscan(
            queue.keys.fixed("meta"), cursor, match="t:*", count=TOTALS_AT_ONCE
        )
        totals |= more
    return {name[2:].decode(): int(count) for name, count in sorted(totals.items())}


def _lane_statuses(
    lanes: Sequence[LaneReplies],
    counted: _Counted,
    *,
    held: Sequence[HeldLane],
    paused: set[bytes],
    now_us: int,
) -> list[LaneStatus]:
    held_in: Counter[str] = Counter()
    for one in held:
        held_in[one.lane] += one.jobs
    return [
        lane_status(
            lane,
            held=held_in[lane.name],
            paused=lane.name.encode() in paused,
            conf=counted.conf,
            now_us=now_us,
        )
        for lane in lanes
    ]


def _limited(held: HeldLane, now_ms: int) -> LimitedTenant:
    return LimitedTenant(
        tenant=held.tenant,
        lane=held.lane,
        held=held.jobs,
        next_in_s=max(0, held.look_at_ms - now_ms) / 1000,
    )


def _rate(rate: bytes | None, sampled_at_ms: bytes | None, now_ms: int) -> float | None:
    if rate is None or now_ms - int(sampled_at_ms or 0) > RATE_FRESH_MS:
        return None
    return float(rate)
