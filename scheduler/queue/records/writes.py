"""What a worker process writes about the jobs that it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from scheduler.model import JobState


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
