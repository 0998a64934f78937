"""What operators do with jobs, lanes and dedup keys."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.model import JobState
from scheduler.queue.calls import optional
from scheduler.queue.part import QueuePart

PURGE_AT_ONCE = 50


class Operations(QueuePart):
    """What operators do with jobs, lanes and dedup keys."""

    async def set_priority(self, job_id: str, priority: int) -> JobState | None:
        """Change the priority of a job that has not ended. Returns its state, None without such a job."""
        return _state(await self._scripts.run("reprioritize", job_id, priority))

    async def reschedule(self, job_id: str, delay_ms: int) -> JobState | None:
        """Make a delayed job due in `delay_ms`; 0: now. Returns its state, None without such a job."""
        return _state(await self._scripts.run("reschedule", job_id, delay_ms))

    async def pause(self, lane: str) -> bool:
        """Stop claiming from a lane. Returns whether it was open."""
        return bool(await self._scripts.run("pause", lane))

    async def resume(self, lane: str) -> bool:
        """Claim from a lane again. Returns whether it was paused."""
        return bool(await self._scripts.run("resume", lane))

    async def forgive(self, subject: str) -> bool:
        """Fill the rate limit of `t:<tenant>` or `e:<endpoint>` up again, and notify the worker processes.

        Returns whether any of it was used up.
        """
        return bool(await self._scripts.run("forgive", subject))

    async def requeue(self, job_id: str, request: bytes = b"") -> str:
        """Run a job again that ended without a result; with another request if you give one.

        With another request it gives up its dedup key. Returns "waiting" or "held"; or why it cannot run: its
        state, "not_found" or "payload_lost".
        """
        reply: bytes = await self._scripts.run("requeue", job_id, request)
        return reply.decode()

    async def delete(self, job_id: str) -> str:
        """Delete an ended job with its request and its result.

        Returns "deleted"; or the state of a job that has not ended, or "not_found".
        """
        reply: bytes = await self._scripts.run("delete", job_id)
        return reply.decode()

    async def discard(self, job_ids: Sequence[str]) -> int:
        """Delete dead letters. Returns how many of these jobs were dead letters."""
        return sum(await self._scripts.run("discard", *job_ids)) if job_ids else 0

    async def release(self, tenant: str, dedup_hash: str) -> tuple[str, int] | None:
        """Release a dedup key. Returns its owner and the ms that it had left, -1 if it had no end.

        None: nobody had it.
        """
        reply = await self._scripts.run("release", tenant, dedup_hash)
        return (reply[0].decode("utf-8", "replace"), reply[1]) if reply else None

    async def purge(self, lane: str, priority: int | None = None, *, chunk: int = 500) -> int:
        """Cancel up to `chunk` waiting or held jobs of a lane. Call it until it returns 0."""
        purged, bookmark = 0, b""
        while purged < chunk:
            most = min(PURGE_AT_ONCE, chunk - purged)
            n, bookmark = await self._scripts.run("purge", lane, optional(priority), most, bookmark)
            purged += n
            if not bookmark:
                break
        return purged

    async def purge_delayed(
        self, lane: str, priority: int | None = None, *, start: int = 0, chunk: int = PURGE_AT_ONCE
    ) -> tuple[int | None, int]:
        """Read `chunk` delayed jobs from the `start`-th on, and cancel those of a lane.

        Returns the next `start`, None at the end; and how many were cancelled.
        """
        reply: list[int] = await self._scripts.run("purge_delayed", lane, optional(priority), start, chunk)
        return (None if reply[0] < 0 else reply[0]), reply[1]


def _state(reply: bytes) -> JobState | None:
    return None if reply == b"not_found" else JobState(reply.decode())
