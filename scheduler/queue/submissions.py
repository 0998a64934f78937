"""What clients send: jobs, and tickets that they give back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from redis.exceptions import OutOfMemoryError

from scheduler.queue.calls import STAGED_BYTES, STAGED_MS, by_bytes
from scheduler.queue.part import QueuePart
from scheduler.queue.records import Conflict, Enqueued, EnqueueOutcome, Full, NewJob, Reuse
from scheduler.queue.scripts import Argument

ENQUEUE_CHUNK = 128
STAGE_AGAIN = 3

CancelReply: TypeAlias = Literal["cancelled", "ticket_returned", "ended", "not_found"]


class Submissions(QueuePart):
    """What clients send: jobs, and tickets that they give back."""

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[EnqueueOutcome]:
        """Enqueue at most `ENQUEUE_CHUNK` jobs; one outcome each, in order.

        Large jobs take more than one call. If one fails, the jobs of the calls before it are in the queue.
        """
        outcomes: list[EnqueueOutcome] = []
        for some in by_bytes(jobs, lambda job: len(job.payload)):
            done = 0
            while done < len(some):
                replies = await self._enqueue(some[done:])
                outcomes += replies
                done += len(replies)
        return outcomes

    async def _enqueue(self, jobs: Sequence[NewJob]) -> list[EnqueueOutcome]:
        """Enqueue jobs in one call. Returns outcomes, of the first ones if those cost enough for a call."""
        staged = {job.job_id: job.payload for job in jobs if len(job.payload) > STAGED_BYTES}
        args: list[Argument] = [len(jobs)]
        for job in jobs:
            row = job._replace(payload=b"") if job.job_id in staged else job
            args += ["" if value is None else value for value in row]
        for _ in range(STAGE_AGAIN):
            for job_id, payload in staged.items():
                await self.redis.set(self.keys.of("staged", job_id), payload, px=STAGED_MS)
            replies = await self._scripts.run("enqueue", *args)
            if replies[0][0] != b"unstaged":
                return [_outcome(reply) for reply in replies]
        raise OutOfMemoryError("Redis dropped a large request before it could be enqueued")

    async def wait_for_space(self, timeout_s: float) -> None:
        """Return when a full queue may have room again, at the latest after `timeout_s`."""
        await self.redis.blpop([self.keys.fixed("space")], timeout=timeout_s)  # type: ignore[misc, arg-type]  # redis-py has one type for sync and async

    async def unfinished(self, lanes: Sequence[str]) -> int:
        """How many jobs of these lanes are waiting, delayed or held; paused lanes count as empty."""
        paused = await self.redis.smembers(self.keys.fixed("paused"))  # type: ignore[misc]  # redis-py has one type for sync and async
        counted = [f"n:{lane}" for lane in lanes if lane.encode() not in paused]
        if not counted:
            return 0
        counts = await self.redis.hmget(self.keys.fixed("meta"), counted)  # type: ignore[misc]  # redis-py has one type for sync and async
        return sum(int(count or 0) for count in counts)

    async def joined(self, proposed_id: str) -> str | None:
        """The job that the caller with this proposed id has joined; None if it has joined none."""
        job_id: bytes | None = await self.redis.get(self.keys.of("alias", proposed_id))
        return None if job_id is None else job_id.decode()

    async def cancel(self, job_id: str, ticket: str | None = None) -> CancelReply:
        """Give a ticket back; the last one ends the job. Without a ticket, end the job at once."""
        reply: bytes = await self._scripts.run("cancel", job_id, ticket or "")
        return reply.decode()  # type: ignore[return-value]  # the script returns no other word


def _outcome(reply: list[Any]) -> EnqueueOutcome:
    match reply[0]:
        case b"full":
            _, waiting, max_waiting, lane, retry_after_ms, when_full = reply
            return Full(waiting, max_waiting, lane.decode() or None, retry_after_ms, when_full.decode())
        case b"conflict":
            return Conflict(reply[1].decode())
        case b"reused":
            _, job_id, hits, age_ms = reply
            return Enqueued(job_id.decode(), deduplicated=True, reuse=Reuse(hits, age_ms))
        case kind:
            return Enqueued(reply[1].decode(), deduplicated=kind == b"joined")
