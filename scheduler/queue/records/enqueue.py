"""A job on its way into the queue, and what becomes of it there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from scheduler.model import DedupMode


class NewJob(NamedTuple):
    """A prompt on its way into the queue. Set `dedup_hash` and `content_hash` together, or neither."""

    job_id: str
    """Also the ticket of the caller who made it."""
    lane: str
    """The lane of the model that it asks for."""
    priority: int
    """0 to 9; 9 is the most urgent."""
    tenant: str
    """Whose rate limits it counts against."""
    payload: bytes
    """The request, JSON."""
    dedup_hash: str | None = None
    """The hash of its dedup key; None without one."""
    content_hash: str | None = None
    """The hash of everything that changes the answer."""
    dedup: DedupMode = DedupMode.UNTIL_FINISHED
    """What a duplicate gets."""
    deadline_ms: int | None = None
    """From now on; None: no deadline."""
    delay_ms: int | None = None
    """From now on; None: due at once."""
    max_attempts: int | None = None
    """None: as the queue's settings say."""
    result_ttl_ms: int | None = None
    """How long the job is kept after its end; None: as the queue's settings say."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """A finished answer that serves again."""

    hits: int
    """How often it has been reused, this time included."""
    age_ms: int
    """How long ago it was made."""


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The caller has a ticket of a job; or, with `reuse`, the job is done and its answer serves again."""

    job_id: str
    """The job: a new one, or the one that has the dedup key."""
    deduplicated: bool = False
    """Whether the job was there before."""
    reuse: Reuse | None = None
    """Set if the caller gets a finished answer."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """The dedup key belongs to a job that has other content."""

    job_id: str
    """The job that has the key."""


@dataclass(frozen=True, slots=True)
class Full:
    """The queue or the lane has no room."""

    waiting: int
    """How many jobs wait, in the lane if `lane` is set, else in the queue."""
    max_waiting: int
    """The bound that they have reached."""
    lane: str | None
    """The lane that is full; None: the queue is."""
    retry_after_ms: int
    """When there is likely room again."""
    when_full: str
    """The queue's policy: `reject`, `shed` or `block`."""


EnqueueOutcome = Enqueued | Conflict | Full
