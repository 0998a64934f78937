"""One attempt of one job: from what was claimed, through the stages, to what is written."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import orjson

from scheduler.engine.retry import Retry, RetryPolicy
from scheduler.engine.routes import Route
from scheduler.errors import SchedulerError
from scheduler.queue.records import ClaimedJob
from scheduler.results.writer import JobWriter
from scheduler.stages.base import PromptContext
from scheduler.stages.pipeline import DeadlinePassed
from scheduler.stages.stream import build_result
from workers.errors import WorkerError

logger = logging.getLogger(__name__)


class Stop(Enum):
    """Why the engine stops an attempt from outside."""

    LOST = "lost"  # somebody else owns the job now, or it has ended: nothing is left to write
    EXPIRED = "expired"
    DRAIN = "drain"  # the process ends: the job goes back to its place


@dataclass(slots=True, eq=False)
class Attempt:
    """A claimed job while it is in this process. `stop` says why its task was cancelled, if it was."""

    job: ClaimedJob
    route: Route
    writer: JobWriter
    expires_at: float | None
    claimed_at: float = field(default_factory=time.monotonic)
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    stop: Stop | None = None

    def end_early(self, why: Stop) -> None:
        """Cancel the attempt's task. The first reason counts."""
        if self.task is not None and not self.task.done() and self.stop is None:
            self.stop = why
            self.task.cancel()

    def set_deadline(self, expires_at: float | None) -> None:
        """Let the attempt end at another time than was known so far; None: whenever it is done."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.expires_at = expires_at
        if expires_at is not None:
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(
                max(0.0, expires_at - time.monotonic()), self.end_early, Stop.EXPIRED
            )


async def run_attempt(attempt: Attempt, policy: RetryPolicy, max_attempts: int) -> None:
    """Run a job through its route's stages and hand the outcome to its writer. Raises nothing but bugs."""
    writer, job = attempt.writer, attempt.job
    writer.started()
    try:
        context = make_context(attempt)
        await attempt.route.pipeline.run(context)
    except asyncio.CancelledError:
        _stopped(attempt)
    except DeadlinePassed:
        writer.expired()
    except (WorkerError, SchedulerError) as error:
        _failed(attempt, error, policy, code=error.code, message=str(error), max_attempts=max_attempts)
    except Exception as error:
        # A stage of a user's own, most likely. Its words may hold what the prompt held, so they stay in the log.
        logger.exception("job %s: an unexpected error in the stages of route %s", job.id, job.lane)
        message = f"{type(error).__name__} in a stage; see the worker's log"
        _failed(attempt, error, policy, code="internal_error", message=message, max_attempts=max_attempts)
    else:
        writer.done(build_result(context, queue_ms=job.waited_ms, claimed_at=attempt.claimed_at))
    finally:
        attempt.set_deadline(None)


def make_context(attempt: Attempt) -> PromptContext:
    """Decode what was enqueued.

    Raises:
        SchedulerError: the stored request is not one.
    """
    job = attempt.job
    request = _decode(job)
    return PromptContext(
        job_id=job.id,
        attempt=job.attempt,
        route=job.lane,
        tenant=job.tenant,
        priority=job.priority,
        prompt=request.get("prompt"),
        messages=request.get("messages"),
        params=request.get("params") or {},
        request=request,
        expires_at=attempt.expires_at,
        sink=attempt.writer.piece if request.get("stream", True) else None,
    )


def _decode(job: ClaimedJob) -> Mapping[str, Any]:
    try:
        request = orjson.loads(job.payload)
    except orjson.JSONDecodeError:
        request = None
    if isinstance(request, dict):
        prompt, messages = request.get("prompt"), request.get("messages")
        if isinstance(prompt, str) != isinstance(messages, list) and isinstance(
            request.get("params", {}), dict
        ):
            return request
    raise BadRecordError("the stored request is not one that a client wrote; enqueue it again")


class BadRecordError(SchedulerError):
    """What Redis holds as a job's request cannot be read."""

    code = "bad_record"


def _failed(
    attempt: Attempt, error: Exception, policy: RetryPolicy, *, code: str, message: str, max_attempts: int
) -> None:
    if isinstance(error, SchedulerError) and not error.retryable:
        attempt.writer.failed(code, message)
        return
    decision = policy.decide(attempt.job.failures, max_attempts, error)
    if isinstance(decision, Retry):
        attempt.writer.retry(code, message, delay_ms=round(decision.delay_s * 1000), counts=decision.counts)
    else:
        attempt.writer.failed(code, message)


def _stopped(attempt: Attempt) -> None:
    if attempt.stop is Stop.EXPIRED:
        attempt.writer.expired()
    elif attempt.stop is not Stop.LOST:
        attempt.writer.retry("given_back", "the worker process is stopping", delay_ms=0, counts=False)
