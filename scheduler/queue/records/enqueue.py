"""A job on its way into the queue, and what becomes of it there."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.model import DedupMode


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A prompt on its way into the queue. `job_id` doubles as the ticket of the caller who made it.

    `payload` is the request as JSON. `dedup_hash` and `content_hash` are set together, or not at all.
    """

    job_id: str
    lane: str
    priority: int
    tenant: str
    payload: bytes
    dedup_hash: str | None = None
    content_hash: str | None = None
    dedup: DedupMode = DedupMode.UNTIL_FINISHED
    deadline_ms: int | None = None
    delay_ms: int | None = None
    max_attempts: int | None = None
    result_ttl_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Reuse:
    """A finished answer that serves again, now for the `hits`-th time, `age_ms` after it was made."""

    hits: int
    age_ms: int


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The caller has a ticket of `job_id`; or, with `reuse`, that job is done and its answer serves again."""

    job_id: str
    deduplicated: bool = False
    reuse: Reuse | None = None


@dataclass(frozen=True, slots=True)
class Conflict:
    """The dedup key names `job_id`, which has other content."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Full:
    """No room: `waiting` jobs of at most `max_waiting`, in the lane if `lane` is set, else in the queue."""

    waiting: int
    max_waiting: int
    lane: str | None
    retry_after_ms: int
    when_full: str


EnqueueOutcome = Enqueued | Conflict | Full
