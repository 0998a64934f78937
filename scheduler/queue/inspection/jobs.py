"""Reads one job, or lists of jobs. A list is read page by page: a job that moves meanwhile may be missing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from itertools import islice

from scheduler.model import JobInfo, JobState
from scheduler.queue.inspection.clock import ask_clock, clock_us
from scheduler.queue.inspection.configured import aging_ms
from scheduler.queue.inspection.job_records import PAGE, count_of, read_infos, values_of
from scheduler.queue.inspection.ready_jobs import ready_jobs
from scheduler.queue.job_info import FIELDS, HISTORY, make_job_info
from scheduler.queue.limits import EVERY_TENANT, parse_limit
from scheduler.queue.place import Hold, explain_place
from scheduler.queue.queue import PromptQueue

LIVE = (JobState.RUNNING, JobState.WAITING, JobState.HELD, JobState.DELAYED)

# The sorted set that lists the jobs of a state, and whether its last member comes first.
_LISTED = {
    JobState.RUNNING: ("leases", False),
    JobState.DELAYED: ("delayed", False),
    JobState.FAILED: ("dead", True),
    JobState.DONE: ("finished", True),
    JobState.CANCELLED: ("finished", True),
    JobState.EXPIRED: ("finished", True),
    JobState.SHED: ("finished", True),
}


async def read_job(queue: PromptQueue, job_id: str) -> JobInfo | None:
    """Read a job with its history; None if it has no record.

    One round trip; two for a waiting job, three for a held one.
    """
    async with queue.redis.pipeline(transaction=False) as pipe:
        pipe.hmget(queue.keys.of("record", job_id), [*FIELDS, HISTORY])
        pipe.scard(queue.keys.of("tickets", job_id))
        pipe.hget(queue.keys.fixed("conf"), "aging_ms")
        pipe.smembers(queue.keys.fixed("paused"))
        ask_clock(pipe, queue.keys)
        values, tickets, aging, paused, *clock = await pipe.execute(raise_on_error=False)
    *values, history = values_of(values)
    info = make_job_info(
        job_id,
        values,
        tickets=count_of(tickets),
        position=await queue.position(job_id) if values[0] in (b"waiting", b"held") else None,
        history=history or b"",
    )
    if info is None:
        joined = await queue.joined(job_id)
        return None if joined is None else await read_job(queue, joined)
    place = explain_place(
        info,
        aging_ms=aging_ms(aging),
        paused=info.model.encode() in paused,
        now_ms=clock_us(*clock) // 1000,
        hold=await _read_hold(queue, info) if info.state is JobState.HELD else None,
    )
    return info.model_copy(update={"place": place}) if place else info


async def _read_hold(queue: PromptQueue, info: JobInfo) -> Hold:
    async with queue.redis.pipeline(transaction=False) as pipe:
        pipe.hmget(queue.keys.fixed("limits"), [f"t:{info.tenant}", f"t:{EVERY_TENANT}"])
        pipe.zscore(queue.keys.fixed("limited"), queue.keys.held_lane(info.model, info.tenant))
        limits, look_at_ms = await pipe.execute()
    return Hold(parse_limit(limits[0] or limits[1]), look_at_ms)


async def list_jobs(
    queue: PromptQueue,
    *,
    state: JobState | None = None,
    lane: str | None = None,
    tenant: str | None = None,
    limit: int = 100,
) -> list[JobInfo]:
    """List at most `limit` jobs without their histories; without a state, those that have not ended.

    Waiting and held jobs come in the order of claiming, running ones by the end of their leases, delayed
    ones by when they are due, and of the ended ones the latest first.
    """
    found: list[JobInfo] = []
    for one in LIVE if state is None else (state,):
        async with aclosing(jobs_in_state(queue, one, lane)) as listed:
            async for info in listed:
                if len(found) >= limit:
                    return found
                if tenant in (None, info.tenant) and lane in (None, info.model):
                    found.append(info)
    return found


async def jobs_in_state(
    queue: PromptQueue, state: JobState, lane: str | None = None
) -> AsyncGenerator[JobInfo, None]:
    """All jobs in a state, in the order of `list_jobs`. `lane` narrows down waiting and held jobs alone."""
    if state in (JobState.WAITING, JobState.HELD):
        listed = ready_jobs(queue, state, lane)
    elif state in _LISTED:
        listed = _listed(queue, state)
    else:
        return
    async with aclosing(listed) as infos:
        async for info in infos:
            yield info


async def _listed(queue: PromptQueue, state: JobState) -> AsyncGenerator[JobInfo, None]:
    name, latest_first = _LISTED[state]
    start = 0
    while True:
        ids = await queue.redis.zrange(queue.keys.fixed(name), start, start + PAGE - 1, desc=latest_first)
        for info in await read_infos(queue, [job_id.decode() for job_id in ids]):
            if info is not None and info.state is state:
                yield info
        if len(ids) < PAGE:
            return
        start += PAGE


async def latest_jobs(queue: PromptQueue, limits: Mapping[JobState, int]) -> dict[JobState, list[JobInfo]]:
    """The latest jobs in some states other than waiting and held, the last first, without their histories.

    `limits` says how many to read from each list, however long it is. Running jobs come by the end of their
    leases, failed ones by when they ended, other ended ones by when their records expire; these share a list,
    and those in other states are left out. Two round trips.
    """
    async with queue.redis.pipeline(transaction=False) as pipe:
        for state, limit in limits.items():
            pipe.zrange(queue.keys.fixed(_LISTED[state][0]), 0, limit - 1, desc=True)
        listed = await pipe.execute()
    infos = iter(await read_infos(queue, [job_id.decode() for ids in listed for job_id in ids]))
    return {
        state: [info for info in islice(infos, len(ids)) if info is not None and info.state is state]
        for state, ids in zip(limits, listed, strict=True)
    }
