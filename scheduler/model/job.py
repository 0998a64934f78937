"""The record of a job."""

from __future__ import annotations

from enum import StrEnum

from pydantic import ConfigDict, Field

from scheduler.model.field import Frozen
from scheduler.model.job_request import DEFAULT_TENANT, DedupMode


class JobState(StrEnum):
    """Where a job is. A job in one of the last five states has ended, and does not change any more."""

    WAITING = "waiting"
    """Ready to be claimed."""
    DELAYED = "delayed"
    """Waits for `delay_s`, or for a retry."""
    HELD = "held"
    """Waits because its tenant is over its limit."""
    RUNNING = "running"
    """A worker process has claimed it."""
    DONE = "done"
    """Ended, with a result."""
    FAILED = "failed"
    """Ended: it failed for good."""
    CANCELLED = "cancelled"
    """Ended: all its callers cancelled it, or one forced it."""
    EXPIRED = "expired"
    """Ended: its deadline passed."""
    SHED = "shed"
    """Ended: it gave up its place to a more urgent job."""

    @property
    def ended(self) -> bool:
        """Whether this state is an end."""
        return self in _ENDED


_ENDED = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED, JobState.SHED})


class JobError(Frozen):
    """Why a job, or one attempt of it, failed.

    The last four fields are the engine's own error; None where it answered with none, or did not say.
    """

    model_config = ConfigDict(extra="ignore")

    code: str
    """A stable code, such as `worker_timeout`."""
    message: str
    """What happened, for people."""
    status: int | None = None
    """The HTTP status, of the engine's response or as its error gives it."""
    type: str | None = None
    """The kind of error, such as `invalid_request_error`."""
    param: str | None = None
    """The field of the request that is at fault."""
    engine_code: str | None = None
    """The engine's code, such as `context_length_exceeded`."""


class HistoryEntry(Frozen):
    """Something that happened to a job, once or several times in a row.

    Times are milliseconds since the epoch, by Redis' clock.
    """

    at_ms: int
    """When it happened, the last time."""
    what: str
    """`enqueued`, `claimed`, `retried` and so on; for an end, the state."""
    worker: str | None = None
    """The worker process in which it happened."""
    attempt: int | None = None
    """The attempt in which it happened, from 1."""
    detail: str | None = None
    """Why, in words."""
    count: int = 1
    """How many times in a row it happened."""
    first_at_ms: int | None = None
    """When it happened the first of `count` times."""


class JobInfo(Frozen):
    """A job's record. Times are milliseconds since the epoch, by Redis' clock; None if there is none."""

    id: str
    """The id of the job."""
    state: JobState
    """Where the job is."""
    model: str
    """The route."""
    priority: int
    """0 to 9; higher is more urgent."""
    tenant: str = DEFAULT_TENANT
    """The tenant that enqueued it."""
    position: int | None = None
    """Jobs of its lane that would be claimed before it, while it waits."""
    place: str | None = None
    """Why it is at that position, in words."""
    attempts: int = 0
    """Times it has been claimed."""
    failures: int = 0
    """Attempts that failed."""
    lost_leases: int = 0
    """Attempts whose worker process went away."""
    max_attempts: int | None = None
    """Failures after which it has failed for good; None: the queue's setting."""
    tickets: int = 1
    """Callers that wait for it; it is cancelled with the last ticket."""
    joined: int = 0
    """Duplicates that joined it."""
    hits: int = 0
    """Duplicates that got its finished answer."""
    dedup: DedupMode | None = None
    """Its dedup mode; None without a dedup key."""
    worker: str | None = None
    """The worker process that claimed it last."""
    error: JobError | None = None
    """Why it failed, or why its last attempt did."""
    reason: str | None = None
    """Why it was cancelled, expired or shed."""
    enqueued_at_ms: int
    """When it was enqueued."""
    due_at_ms: int | None = None
    """When its delay ends."""
    deadline_at_ms: int | None = None
    """When it expires."""
    started_at_ms: int | None = None
    """When it was last claimed."""
    ended_at_ms: int | None = None
    """When it ended."""
    history: list[HistoryEntry] = Field(default_factory=list)
    """What happened to it, in order; empty in lists."""
