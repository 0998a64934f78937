"""Operations on a single job."""

from __future__ import annotations

from scheduler.errors import InvalidTransition, JobNotFound, SchedulerError
from scheduler.queue import PromptQueue


async def requeue(queue: PromptQueue, job_id: str, request: bytes = b"") -> None:
    """Run a job that ended without a result again, with its failures reset. May be repeated.

    `request` replaces its stored request, if it is given; see `PromptQueue.requeue`.

    Raises:
        JobNotFound: no job has this id, or its record has expired.
        InvalidTransition: the job has a result, or has not ended.
        SchedulerError: the stored request is gone.
    """
    match await queue.requeue(job_id, request):
        case "waiting" | "held":
            return
        case "not_found":
            joined = await queue.joined(job_id)
            if joined is None:
                raise JobNotFound(
                    f"no job {job_id} in queue {queue.name!r}: unknown, or its record has expired"
                )
            await requeue(queue, joined, request)
        case "payload_lost":
            raise SchedulerError(
                f"job {job_id} cannot run again: its stored request is gone; enqueue it again. Requests of "
                "cancelled, expired and shed jobs are kept up to the setting spare_bytes, the latest first"
            )
        case state:
            raise InvalidTransition(
                f"job {job_id} is {state}; only jobs that ended without a result can run again"
            )
