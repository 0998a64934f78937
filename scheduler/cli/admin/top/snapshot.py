"""One look at a queue, of a bounded cost; and what two of them tell."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

from scheduler.model import JobInfo, JobState
from scheduler.queue import PromptQueue
from scheduler.queue.inspection.jobs import latest_jobs
from scheduler.queue.inspection.memory import read_memory
from scheduler.queue.inspection.status import read_status
from scheduler.queue.inspection.workers import read_workers
from scheduler.queue.reports import QueueStatus, RedisMemory, WorkerInfo

RUNNING_READ = 100
DONE_READ = 100
DEAD_READ = 20
RECENT_MS = 60_000

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Waits:
    """How long some jobs waited for their start, from their enqueue; a wished delay is a part of it."""

    jobs: int
    median_s: float
    longest_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How a queue stands at one moment. `taken_at_s` is of the monotonic clock of this process.

    The waits are those of jobs that started within the last minute, some 200 at most, by lane and by level.
    `dead` are the latest failed jobs.
    """

    taken_at_s: float
    status: QueueStatus
    workers: list[WorkerInfo] = field(default_factory=list)
    waits_by_lane: dict[str, Waits] = field(default_factory=dict)
    waits_by_priority: dict[int, Waits] = field(default_factory=dict)
    dead: list[JobInfo] = field(default_factory=list)
    memory: RedisMemory | None = None


async def take_snapshot(queue: PromptQueue) -> Snapshot:
    """Ask how the queue stands: eight round trips, and those that `read_status` has on top."""
    workers = await read_workers(queue)
    status = await read_status(queue, workers=workers)
    taken_at_s = time.monotonic()
    jobs = await latest_jobs(
        queue, {JobState.RUNNING: RUNNING_READ, JobState.DONE: DONE_READ, JobState.FAILED: DEAD_READ}
    )
    started = [*jobs[JobState.RUNNING], *jobs[JobState.DONE]]
    return Snapshot(
        taken_at_s=taken_at_s,
        status=status,
        workers=workers,
        waits_by_lane=waits(((job.model, job) for job in started), status.at_ms),
        waits_by_priority=waits(((job.priority, job) for job in started), status.at_ms),
        dead=jobs[JobState.FAILED],
        memory=await read_memory(queue.redis),
    )


def waits(jobs: Iterable[tuple[Key, JobInfo]], now_ms: int) -> dict[Key, Waits]:
    """How long those waited that started lately, and for the first time, by the key that each comes with."""
    waited: defaultdict[Key, list[float]] = defaultdict(list)
    for key, job in jobs:
        # What a later attempt waited for was also the one before it.
        if job.started_at_ms is not None and job.attempts == 1 and job.started_at_ms > now_ms - RECENT_MS:
            waited[key].append(max(0, job.started_at_ms - job.enqueued_at_ms) / 1000)
    return {key: Waits(len(all_s), median(all_s), max(all_s)) for key, all_s in waited.items()}


def rates(before: Snapshot, after: Snapshot) -> dict[str, float] | None:
    """What was counted between two looks, a second, by the name that `QueueStatus.totals` has for it.

    Measured with this process's own clock, which no correction sets back. None where nothing can be said: no
    time has passed, or the counts began anew, as after the loss of Redis' data.
    """
    passed_s = after.taken_at_s - before.taken_at_s
    grown = _growth(before.status.totals, after.status.totals)
    if passed_s <= 0 or any(more < 0 for more in grown.values()):
        return None
    return {name: more / passed_s for name, more in grown.items()}


def _growth(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    return {name: after.get(name, 0) - before.get(name, 0) for name in {**before, **after}}
