"""Replays for many readers at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from scheduler.coalescer import Coalescer
from scheduler.queue.records import START, Cursor, Replay

REPLAY_CHUNK = 64

ReadMany: TypeAlias = Callable[[Sequence[tuple[str, Cursor]]], Awaitable[Sequence[Replay | Exception | None]]]


class Replays:
    """Replays requested within one turn of the event loop share round trips.

    `read_many` replays at most `REPLAY_CHUNK` jobs; an error that it raises is raised for all of them.
    `channel` gives the pub/sub channel of a job.
    """

    def __init__(self, read_many: ReadMany, channel: Callable[[str], str]) -> None:
        self._calls: Coalescer[tuple[str, Cursor], Replay | None] = Coalescer(read_many, chunk=REPLAY_CHUNK)
        self.channel = channel

    async def replay(self, job_id: str, after: Cursor = START) -> Replay | None:
        """A job's state, and its events after a cursor; None if the job is unknown."""
        return await self._calls.ask((job_id, after))
