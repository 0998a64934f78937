"""A snapshot of a queue, at a bounded cost, and the rates between two of them."""

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
    """How long some jobs waited, from enqueue to start. A requested delay is included."""

    jobs: int
    """How many jobs."""
    median_s: float
    longest_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a queue at one moment."""

    taken_at_s: float
    """A time of this process' monotonic clock."""
    status: QueueStatus
    workers: list[WorkerInfo] = field(default_factory=list)
    waits_by_lane: dict[str, Waits] = field(default_factory=dict)
    """The waits of jobs that started within the last minute, at most about 200 of them."""
    waits_by_priority: dict[int, Waits] = field(default_factory=dict)
    """The same jobs, by level."""
    dead: list[JobInfo] = field(default_factory=list)
    """The latest dead letters."""
    memory: RedisMemory | None = None
    """None if this user may not ask."""


async def take_snapshot(queue: PromptQueue) -> Snapshot:
    """Read the queue's state: eight round trips, plus further ones of `read_status`."""
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
    """The waits of recent first attempts, grouped by the key that comes with each job."""
    waited: defaultdict[Key, list[float]] = defaultdict(list)
    for key, job in jobs:
        # The wait of a later attempt includes the attempts before it.
        if job.started_at_ms is not None and job.attempts == 1 and job.started_at_ms > now_ms - RECENT_MS:
            waited[key].append(max(0, job.started_at_ms - job.enqueued_at_ms) / 1000)
    return {key: Waits(len(all_s), median(all_s), max(all_s)) for key, all_s in waited.items()}


def rates(before: Snapshot, after: Snapshot) -> dict[str, float] | None:
    """The rates per second between two snapshots, by their names in `QueueStatus.totals`.

    Measured with this process' monotonic clock. None if no time has passed, or if the counts began again,
    as after a loss of Redis' data.
    """
    passed_s = after.taken_at_s - before.taken_at_s
    grown = _growth(before.status.totals, after.status.totals)
    if passed_s <= 0 or any(more < 0 for more in grown.values()):
        return None
    return {name: more / passed_s for name, more in grown.items()}


def _growth(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    return {name: after.get(name, 0) - before.get(name, 0) for name in {**before, **after}}
