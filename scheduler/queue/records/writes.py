"""What a worker process writes about the jobs that it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from scheduler.model import JobState


class Publication(NamedTuple):
    """Events of one attempt."""

    job_id: str
    """The job."""
    token: int
    """The attempt's."""
    first_seq: int
    """The `seq` of the first event; the others follow one by one."""
    events: tuple[bytes, ...]
    """Each a whole JSON object."""


class Ending(NamedTuple):
    """The end of a job: its last events, and the terminal one.

    The JSON of the terminal event is `head + value + b"}"`.
    """

    job_id: str
    """The job."""
    token: int
    """The attempt's."""
    state: JobState
    """`done`, `failed`, `cancelled` or `expired`."""
    first_seq: int
    """The `seq` of the first event; the others follow one by one."""
    events: tuple[bytes, ...]
    """What is left to publish before the terminal event."""
    head: bytes
    """The terminal event up to its value."""
    value: bytes = b""
    """The result of a job that is done, the error of one that failed, else nothing."""
    reason: str = ""
    """Why it ended."""
    result_ttl_ms: int = 3_600_000
    """How long it is kept."""
    used_tokens: int | None = None
    """What the attempt used, in place of the estimate that rate limits charged; None: unknown."""


class Return(NamedTuple):
    """A running job goes back to its lane: after a failure, or at no cost."""

    job_id: str
    """The job."""
    token: int
    """The attempt's."""
    event: bytes
    """The `retrying` event."""
    counts: bool
    """Whether the attempt counts as a failure."""
    delay_ms: int = 0
    """When it is due again; 0: at once, at its own rank."""
    error: bytes = b""
    """Why, JSON; empty if nothing went wrong."""
    used_tokens: int | None = None
    """As for an `Ending`."""


@dataclass(frozen=True, slots=True)
class WriteOutcome:
    """What became of a batch of writes."""

    refused: frozenset[tuple[str, int]] = field(default_factory=frozenset)
    """`(job_id, token)` of each write that was refused because the job is no longer that token's."""
