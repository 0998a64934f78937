"""What results need of the queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from scheduler.queue.records import START, Cursor, Ending, Publication, Replay, Return, WriteOutcome


class WritePort(Protocol):
    """Where the writer writes. Sending the same again does no harm."""

    async def write(
        self,
        *,
        publications: Sequence[Publication] = (),
        returns: Sequence[Return] = (),
        endings: Sequence[Ending] = (),
    ) -> WriteOutcome:
        """Publish events, give jobs back and end jobs, in that order, in one round trip."""
        ...


class ReplayPort(Protocol):
    """Where a reader reads what was."""

    async def replay(self, job_id: str, after: Cursor = START) -> Replay | None:
        """A job's state and its events after a cursor; None for an unknown job."""
        ...

    def channel(self, job_id: str) -> str:
        """The pub/sub channel of a job."""
        ...
