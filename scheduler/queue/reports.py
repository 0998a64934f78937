"""What an inspection of the queue reports. Times are milliseconds since the epoch, by Redis' clock."""

from __future__ import annotations

from pydantic import Field

from scheduler.model import DedupMode, Frozen, JobState
from scheduler.queue.worker_report import WorkerReport


class LaneStatus(Frozen):
    """The waiting jobs of one route. `oldest_s`: how long the oldest has been ready to run, None without one.

    `held` are those whose tenants have used what they may; `suspects`, some of the waiting, have lost their
    worker process twice. `by_priority` has the levels in use, the most urgent first. `max_waiting` is the
    lane's own bound. `mean_s` is how long a job keeps a place in a worker process, None while none has ended;
    `work_s` how long one place would need for all that wait, with a second a job while nobody knows better;
    nothing while the lane is paused.
    """

    name: str
    waiting: int
    by_priority: dict[int, int] = Field(default_factory=dict)
    delayed: int = 0
    held: int = 0
    suspects: int = 0
    paused: bool = False
    oldest_s: float | None = None
    max_waiting: int | None = None
    mean_s: float | None = None
    work_s: float = 0.0


class LimitedTenant(Frozen):
    """A tenant that has used what it may: its jobs that are held in a lane, and when the next may begin.

    `next_in_s` 0: as soon as those that were let go before it have been claimed.
    """

    tenant: str
    lane: str
    held: int
    next_in_s: float


class EndpointStatus(Frozen):
    """An endpoint, as the worker processes that use it say together.

    `limit` is what they let it hold at this moment, `max_in_flight` what they never exceed; None where nobody
    has said. `reserved` of those places are for priorities 8 and 9. `breakers` counts worker processes by the
    state of their breaker: closed, open, half_open. `usable_in_s`: while all of them leave it alone, for its
    breaker or at its own wish, when the first looks again; else 0. `permit_in_s`: while its rate limit lets
    nobody begin, when it lets the next one, as far as it was known at the last renewal of leases; else 0.
    """

    name: str
    backend: str
    workers: int
    in_flight: int
    limit: int
    max_in_flight: int | None = None
    reserved: int = 0
    breakers: dict[str, int] = Field(default_factory=dict)
    usable_in_s: float = 0.0
    permit_in_s: float = 0.0
    last_error: str = ""


class QueueStatus(Frozen):
    """How a queue stands, all of it at one moment.

    `dead` are the failed jobs that are kept, `finished` the other ended ones that are kept, `garbage` members
    that were put aside for want of a record. `ended_per_s` is the rate over the last minute; None
    while no worker process measures it. `totals` count since the queue began: enqueued, joined, done, ….
    """

    queue: str
    at_ms: int
    waiting: int
    delayed: int
    held: int = 0
    running: int
    dead: int
    finished: int
    garbage: int
    workers: int
    max_waiting: int
    when_full: str
    aging_s: float
    ended_per_s: float | None = None
    totals: dict[str, int] = Field(default_factory=dict)
    lanes: list[LaneStatus] = Field(default_factory=list)
    limited: list[LimitedTenant] = Field(default_factory=list)
    endpoints: list[EndpointStatus] = Field(default_factory=list)


class RedisMemory(Frozen):
    """What the server uses; `max_bytes` is its maxmemory, None without one."""

    used_bytes: int
    max_bytes: int | None = None


class DedupKey(Frozen):
    """A dedup key in use: the job that owns it, how many callers have joined that job,
    and how many have got its finished answer.

    `hash` stands for the user's key, which is not stored. `expires_in_s` is the time left of a finished
    answer's window; None while the key lives as long as its job. `state` is None where the record has gone.
    """

    tenant: str
    hash: str
    job_id: str
    state: JobState | None = None
    model: str | None = None
    mode: DedupMode | None = None
    joined: int = 0
    hits: int = 0
    expires_in_s: float | None = None


class WorkerInfo(WorkerReport):
    """A live worker process: its latest report, and what Redis knows of it."""

    id: str
    """Its unique name."""
    leader: bool = False
    """Whether it does the queue's maintenance."""
