"""Reads what was for many readers at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeAlias

from scheduler.queue.records import START, Cursor, Replay

REPLAY_CHUNK = 64

ReadMany: TypeAlias = Callable[[Sequence[tuple[str, Cursor]]], Awaitable[Sequence[Replay | Exception | None]]]


class _Wanted(NamedTuple):
    job_id: str
    after: Cursor
    reply: asyncio.Future[Replay | None]


class Replays:
    """Replays that are asked for within a turn of the event loop share round trips.

    `read_many` reads those of at most `REPLAY_CHUNK` jobs; what it raises is every one's error.
    `channel` tells the pub/sub channel of a job.
    """

    def __init__(self, read_many: ReadMany, channel: Callable[[str], str]) -> None:
        self._read_many = read_many
        self.channel = channel
        self._wanted: list[_Wanted] = []
        self._reading: set[asyncio.Task[None]] = set()

    async def replay(self, job_id: str, after: Cursor = START) -> Replay | None:
        """A job's state and its events after a cursor; None for an unknown job."""
        loop = asyncio.get_running_loop()
        if not self._wanted:
            loop.call_soon(self._begin)
        reply: asyncio.Future[Replay | None] = loop.create_future()
        self._wanted.append(_Wanted(job_id, after, reply))
        return await reply

    def _begin(self) -> None:
        wanted, self._wanted = self._wanted, []
        for start in range(0, len(wanted), REPLAY_CHUNK):
            task = asyncio.create_task(self._read(wanted[start : start + REPLAY_CHUNK]), name="replays")
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)

    async def _read(self, wanted: Sequence[_Wanted]) -> None:
        found: Sequence[Replay | Exception | None]
        try:
            found = await self._read_many([(one.job_id, one.after) for one in wanted])
        except Exception as error:
            found = [error] * len(wanted)
        for one, replay in zip(wanted, found, strict=True):
            if one.reply.done():
                continue  # its reader has gone
            if isinstance(replay, Exception):
                one.reply.set_exception(replay)
            else:
                one.reply.set_result(replay)
