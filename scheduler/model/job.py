"""The record of a job."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from scheduler.model.field import Frozen
from scheduler.model.request import DEFAULT_TENANT, DedupMode


class JobState(StrEnum):
    """Where a job is. The last five are ends: a job in one of them changes no more."""

    WAITING = "waiting"
    DELAYED = "delayed"
    HELD = "held"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    SHED = "shed"

    @property
    def ended(self) -> bool:
        """Whether the job has come to an end."""
        return self in _ENDED


_ENDED = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED, JobState.SHED})


class JobError(Frozen):
    """Why a job, or one attempt of it, went wrong: a stable code and words for people."""

    code: str
    message: str


class HistoryEntry(Frozen):
    """One thing that happened to a job. `at_ms`: milliseconds since the epoch, by Redis' clock.

    What happened `count` times in a row is one entry: it tells of the last time, and `first_at_ms` when the
    first one was.
    """

    at_ms: int
    what: str
    worker: str | None = None
    attempt: int | None = None
    detail: str | None = None
    count: int = 1
    first_at_ms: int | None = None


class JobInfo(Frozen):
    """A job's record. Times are milliseconds since the epoch, by Redis' clock; None where there is none.

    `position` is the number of jobs of its lane that would be claimed before it, while it waits; `place` says
    in words why it is there.
    """

    id: str
    state: JobState
    model: str
    priority: int
    tenant: str = DEFAULT_TENANT
    position: int | None = None
    place: str | None = None
    attempts: int = 0
    failures: int = 0
    lost_leases: int = 0
    max_attempts: int | None = None
    tickets: int = 1
    joined: int = 0
    hits: int = 0
    dedup: DedupMode | None = None
    worker: str | None = None
    error: JobError | None = None
    reason: str | None = None
    enqueued_at_ms: int
    due_at_ms: int | None = None
    deadline_at_ms: int | None = None
    started_at_ms: int | None = None
    ended_at_ms: int | None = None
    history: list[HistoryEntry] = Field(default_factory=list)
