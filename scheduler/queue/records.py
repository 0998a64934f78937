"""What goes into and comes out of the queue's scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from scheduler.model import DedupMode, JobState

# What comes and goes with every job is a named tuple: it costs a third of a frozen dataclass.

Cursor = tuple[int, int]
"""`(token, seq)` of the last event seen; `(0, 0)` before the first."""

START: Cursor = (0, 0)


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
class Offer:
    """An endpoint that may take jobs: `room` more than the `outstanding` prompts that it has.

    `kept` of those places are for priorities 8 and 9.
    """

    endpoint: str
    room: int
    kept: int = 0
    outstanding: int = 0
    weight: float = 1.0


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


class ClaimedJob(NamedTuple):
    """One attempt of one job, leased to this process. `token` fences every write about it.

    `remaining_ms` is the time to the deadline at the moment of the claim, None without one; `waited_ms` the
    time since the job became ready to run. `endpoint` is the one whose permit it has, "" where the
    claim named no endpoints. `suspect`: it may have killed the worker processes that ran it before. `waits`
    counts its attempts that were given back at no cost.
    """

    id: str
    token: int
    attempt: int
    failures: int
    max_attempts: int | None
    priority: int
    lane: str
    tenant: str
    waited_ms: int
    remaining_ms: int | None
    result_ttl_ms: int | None
    payload: bytes
    endpoint: str = ""
    suspect: bool = False
    waits: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """What one claim brought. `more`: claimable work was left behind; `more_urgent`: of priority 8 or 9.

    `without_permit` has the lanes whose work was left because the endpoints that it could go to have no
    permit. They do not count as `more`, and nobody is woken for them.
    """

    jobs: tuple[ClaimedJob, ...]
    more: bool
    more_urgent: bool = False
    without_permit: Mapping[str, WithoutPermit] = field(default_factory=dict)

    def and_then(self, other: Claim) -> Claim:
        """Both as one."""
        return Claim(
            self.jobs + other.jobs,
            more=self.more or other.more,
            more_urgent=self.more_urgent or other.more_urgent,
            without_permit={**self.without_permit, **other.without_permit},
        )


NOTHING_CLAIMED = Claim((), more=False)


@dataclass(frozen=True, slots=True)
class WithoutPermit:
    """Endpoints that have used up their rate limits, and in how many ms one of them has a permit."""

    endpoints: tuple[str, ...]
    wait_ms: int


class Publication(NamedTuple):
    """Events of one attempt, with consecutive `seq` from `first_seq`, each a whole JSON object."""

    job_id: str
    token: int
    first_seq: int
    events: tuple[bytes, ...]


class Ending(NamedTuple):
    """The end of a job: events that are left, their `seq` consecutive from `first_seq`; and the terminal one.

    The JSON of the terminal event is `head + value + b"}"`; `value` is its result (done), its error (failed),
    or nothing. `used_tokens` takes the place of what limits reckoned with for this attempt; None: nobody
    knows.
    """

    job_id: str
    token: int
    state: JobState
    first_seq: int
    events: tuple[bytes, ...]
    head: bytes
    value: bytes = b""
    reason: str = ""
    result_ttl_ms: int = 3_600_000
    used_tokens: int | None = None


class Return(NamedTuple):
    """A running job goes back: after a failure (`counts`), or given back at its own place.

    `event` is the `retrying` event. `delay_ms` 0 means at once. `used_tokens` as for an `Ending`.
    """

    job_id: str
    token: int
    event: bytes
    counts: bool
    delay_ms: int = 0
    error: bytes = b""
    used_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class WriteOutcome:
    """Which writes were refused because the job is not this token's any more: `(job_id, token)`."""

    refused: frozenset[tuple[str, int]] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Replay:
    """A job's state and its events after a cursor, in one read.

    When the job has ended and `more` is false, the last of `events` is the terminal event, made from the
    record where the stream has gone, unless the cursor is at or past it. `last` is the newest event there is.
    """

    state: JobState
    events: tuple[bytes, ...]
    last: Cursor
    more: bool = False


@dataclass(frozen=True, slots=True)
class TickReport:
    """What maintenance did, and when it is wanted again. `leader`: this process holds the lock.

    `in_doubt`: it did nothing, for Redis' clock may have jumped.
    """

    leader: bool
    next_ms: int
    promoted: int = 0
    reaped: int = 0
    expired: int = 0
    released: int = 0
    rearmed: int = 0
    forgotten: int = 0
    in_doubt: bool = False
