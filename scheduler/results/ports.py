"""The ports of results: what they need from the queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from scheduler.queue.records import START, Cursor, Ending, Publication, Replay, Return, WriteOutcome


class WritePort(Protocol):
    """Where the writer writes. Waits while Redis is away, repeating the write: that does no harm."""

    async def write(
        self,
        *,
        publications: Sequence[Publication] = (),
        returns: Sequence[Return] = (),
        endings: Sequence[Ending] = (),
    ) -> WriteOutcome:
        """Publish events, return jobs and end jobs, in that order, in one round trip."""
        ...


class ReplayPort(Protocol):
    """Where a reader reads past events."""

    async def replay(self, job_id: str, after: Cursor = START) -> Replay | None:
        """A job's state, and its events after a cursor; None if the job is unknown."""
        ...

    def channel(self, job_id: str) -> str:
        """The pub/sub channel of a job."""
        ...
