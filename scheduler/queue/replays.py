"""Reads a job's events, its request and its position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from scheduler.model import JobState
from scheduler.queue.part import QueuePart
from scheduler.queue.records import START, Cursor, Replay
from scheduler.queue.scripts import Call

REPLAY_LIMIT = 1000


class Replays(QueuePart):
    """Reads a job's events, its request and its position."""

    async def replay(self, job_id: str, after: Cursor = START, limit: int = REPLAY_LIMIT) -> Replay | None:
        """A job's state and its events after a cursor; None for an unknown job."""
        reply = (await self.replay_many([(job_id, after)], limit))[0]
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def replay_many(
        self, wanted: Sequence[tuple[str, Cursor]], limit: int = REPLAY_LIMIT
    ) -> list[Replay | ResponseError | None]:
        """The same for many jobs, in one round trip; an error stands for a job that cannot be read."""
        calls: list[Call] = [("replay", (job_id, token, seq, limit)) for job_id, (token, seq) in wanted]
        replies = await self._scripts.run_each(calls)
        return [reply if isinstance(reply, ResponseError) else _replay(reply) for reply in replies]

    async def position(self, job_id: str) -> int | None:
        """How many jobs of its lane would be claimed before this one; None if it neither waits nor is held.

        For a held job: how many of its tenant's held jobs in the lane.
        """
        reply = int(await self._scripts.run("position", job_id))
        return reply if reply >= 0 else None

    async def request(self, job_id: str) -> bytes | None:
        """The stored request of a job, JSON; None if it has gone."""
        stored: bytes | None = await self.redis.get(self.keys.of("payload", job_id))
        return stored


def _replay(reply: list[Any]) -> Replay | None:
    if not reply:
        return None
    state, token, seq, more, *events = reply
    if more == 2:  # joined here, because the script would copy it
        *events, head, result = events
        events.append(b"".join((head, result, b"}")))
    return Replay(JobState(state.decode()), tuple(events), (int(token), int(seq)), more=more == 1)
