"""Reports on the queue. Moments are in milliseconds since the epoch, by Redis' clock."""

from __future__ import annotations

from pydantic import Field

from scheduler.model import DedupMode, Frozen, JobState
from scheduler.queue.worker_report import WorkerReport


class LaneStatus(Frozen):
    """The jobs of one route that wait."""

    name: str
    """The name of the route, and of its lane."""
    waiting: int
    """Jobs that are ready to run."""
    by_priority: dict[int, int] = Field(default_factory=dict)
    """Those jobs by priority, the most urgent first; only levels in use."""
    delayed: int = 0
    """Jobs that are not due yet."""
    held: int = 0
    """Jobs whose tenants are over their limits."""
    suspects: int = 0
    """Of the waiting jobs, those that have lost their worker process twice."""
    paused: bool = False
    """Whether nothing is claimed from the lane."""
    oldest_s: float | None = None
    """How long the oldest waiting job has been ready to run; None without one."""
    max_waiting: int | None = None
    """The lane's own bound; None: the queue's bound alone."""
    mean_s: float | None = None
    """How long a job occupies a place in a worker process; None while none has ended."""
    work_s: float = 0.0
    """How long one place would need for all waiting jobs, at 1 s each without `mean_s`; 0 while paused."""


class LimitedTenant(Frozen):
    """A tenant over its limit, with held jobs in a lane."""

    tenant: str
    """The tenant."""
    lane: str
    """The lane from which its jobs are held."""
    held: int
    """How many jobs are held."""
    next_in_s: float
    """When the next may begin; 0: once the jobs that were released before have been claimed."""


class EndpointStatus(Frozen):
    """An endpoint, as all worker processes that use it report it together."""

    name: str
    """The route and the number of the endpoint in it, such as `chat.0`."""
    backend: str
    """The kind of model worker."""
    workers: int
    """Worker processes that use it."""
    in_flight: int
    """Prompts in flight."""
    limit: int
    """The most prompts in flight at this moment."""
    max_in_flight: int | None = None
    """The most prompts in flight ever; None if it is not known."""
    reserved: int = 0
    """Slots that are reserved for priorities 8 and 9."""
    breakers: dict[str, int] = Field(default_factory=dict)
    """Worker processes by the state of their breaker: closed, open, half_open."""
    usable_in_s: float = 0.0
    """While no process may use it, for a pause or an open breaker: when the first tries again; else 0."""
    permit_in_s: float = 0.0
    """While its rate limit is used up: when the next prompt may begin, as of the last renewal; else 0."""
    last_error: str = ""
    """The latest error of a call."""


class QueueStatus(Frozen):
    """The state of a queue at one moment."""

    queue: str
    """The name of the queue."""
    at_ms: int
    """The moment."""
    waiting: int
    """Jobs that are ready to run."""
    delayed: int
    """Jobs that are not due yet."""
    held: int = 0
    """Jobs whose tenants are over their limits."""
    running: int
    """Jobs that worker processes have leased."""
    dead: int
    """Failed jobs that are kept."""
    finished: int
    """Other ended jobs that are kept."""
    garbage: int
    """Entries that were put aside because their records cannot be read."""
    workers: int
    """Live worker processes."""
    max_waiting: int
    """The bound of waiting, delayed and held jobs."""
    when_full: str
    """What happens at the bound: `reject`, `shed` or `block`."""
    aging_s: float
    """A waiting job below priority 8 gains one level in this time; 0: strict priorities."""
    ended_per_s: float | None = None
    """Jobs ended a second over the last minute; None while no worker process measures it."""
    totals: dict[str, int] = Field(default_factory=dict)
    """Counts since the queue began: enqueued, joined, done and so on."""
    lanes: list[LaneStatus] = Field(default_factory=list)
    """The lanes, by name."""
    limited: list[LimitedTenant] = Field(default_factory=list)
    """Tenants over their limits, in the order in which their jobs are released."""
    endpoints: list[EndpointStatus] = Field(default_factory=list)
    """The endpoints, by name."""


class RedisMemory(Frozen):
    """The memory of the Redis server."""

    used_bytes: int
    """Memory in use."""
    max_bytes: int | None = None
    """Its maxmemory; None without one."""


class DedupKey(Frozen):
    """A dedup key in use."""

    tenant: str
    """The tenant whose key it is."""
    hash: str
    """The hash of the user's key, which is not stored."""
    job_id: str
    """The job that owns it."""
    state: JobState | None = None
    """The state of that job; None if its record has gone."""
    model: str | None = None
    """The route of that job."""
    mode: DedupMode | None = None
    """The dedup mode of that job."""
    joined: int = 0
    """Callers that joined the job."""
    hits: int = 0
    """Callers that got its finished answer."""
    expires_in_s: float | None = None
    """Time left of a finished answer's window; None while the key lives as long as its job."""


class WorkerInfo(WorkerReport):
    """A live worker process: its latest report, and what Redis knows of it."""

    id: str
    """Its unique name."""
    leader: bool = False
    """Whether it does the queue's maintenance."""
