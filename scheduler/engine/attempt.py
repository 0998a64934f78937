"""One attempt of one job: from what was claimed, through the stages, to what is written."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum

from scheduler.engine.retry import Bounds, Retry, RetryPolicy
from scheduler.engine.routes import Route
from scheduler.errors import SchedulerError, UnknownKind
from scheduler.logs import ids_of, speak_of, traced
from scheduler.model import JobState, Kind
from scheduler.observations import NOBODY, AttemptBegan, Observers, Outcome
from scheduler.payload import Payload, decode, kind_of
from scheduler.queue.records import ClaimedJob, Ending
from scheduler.results.job_writer import JobWriter
from scheduler.stages.base import PromptContext
from scheduler.stages.pipeline import DeadlinePassed
from scheduler.stages.stream import build_result
from workers.errors import EngineError, WorkerError

logger = logging.getLogger(__name__)


class Stop(Enum):
    """Why the engine stops an attempt from outside."""

    LOST = "lost"  # somebody else owns the job now, or it has ended: nothing is left to write
    EXPIRED = "expired"
    DRAIN = "drain"  # the process ends: the job waits again


GIVEN_BACK = "given_back"
TOO_MANY_WAITS = "too_many_waits"

_OUTCOMES = {
    JobState.DONE: Outcome.DONE,
    JobState.FAILED: Outcome.FAILED,
    JobState.EXPIRED: Outcome.EXPIRED,
}

CONFIRM_S = 2.0
"""How long a deadline that has passed waits for Redis to confirm it."""


@dataclass(slots=True, eq=False)
class Attempt:
    """A claimed job while it is in this process. `stop` says why its task was cancelled, if it was.

    `payload` is the request as it was enqueued, until it is decoded; `payload_bytes` remain what it had.

    `expires_at` is on the clock of `time.monotonic`. `on_deadline(token)` is called when it comes;
    whoever hears it moves the deadline or ends the attempt within `CONFIRM_S`, else the deadline counts.
    `is_held_back(route)`: no job of the route is claimed at this moment.
    """

    job: ClaimedJob
    payload: bytes
    route: Route
    writer: JobWriter
    on_deadline: Callable[[int], None]
    take_permit: Callable[[str], Awaitable[int]] | None = None
    is_held_back: Callable[[Route], bool] = lambda _: False
    observers: Observers = NOBODY
    expires_at: float | None = None
    claimed_at: float = field(default_factory=time.monotonic)
    ended_at: float = 0.0
    context: PromptContext | None = None
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    stop: Stop | None = None
    payload_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.payload_bytes = len(self.payload)

    def end_early(self, why: Stop) -> None:
        """Cancel the attempt's task. The first reason counts."""
        if self.task is not None and not self.task.done() and self.stop is None:
            self.stop = why
            self.task.cancel()

    def set_deadline(self, expires_at: float | None) -> None:
        """Let the attempt end at another time than was known so far; None: whenever it is done."""
        self._cancel_timer()
        self.expires_at = expires_at
        if self.context is not None:
            self.context.expires_at = expires_at
        if expires_at is not None:
            wait_s = max(0.0, expires_at - time.monotonic())
            self.timer = asyncio.get_running_loop().call_later(wait_s, self._deadline)

    def close(self) -> None:
        """The attempt is over: no deadline can come."""
        self.ended_at = time.monotonic()
        self._cancel_timer()

    @property
    def progress(self) -> PromptContext | None:
        """See `scheduler.observations.EndedAttempt`, as for what follows."""
        return self.context

    @property
    def code(self) -> str:
        """The code of the error that it ended with; "" without one."""
        return self.writer.code

    @property
    def outcome(self) -> Outcome:
        """How it has ended, by what was given to the writer."""
        end = self.writer.end
        if self.stop is Stop.LOST or end is None:
            return Outcome.LOST
        if isinstance(end, Ending):
            return _OUTCOMES[end.state]
        return Outcome.GIVEN_BACK if self.writer.code == GIVEN_BACK else Outcome.RETRIED

    def _deadline(self) -> None:
        self.timer = asyncio.get_running_loop().call_later(CONFIRM_S, self.end_early, Stop.EXPIRED)
        self.on_deadline(self.job.token)

    def _cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


async def run_attempt(
    attempt: Attempt, room: Callable[[], Awaitable[None]], policy: RetryPolicy, bounds: Bounds
) -> None:
    """Run a job through its route's stages and hand the outcome to its writer.

    `room` is awaited first: it holds the attempt back while too much is waiting to be written. `bounds` are
    those of the route; the request may have its own.
    """
    writer, job = attempt.writer, attempt.job
    ids = speak_of(job)
    try:
        await room()
        writer.started()
        attempt.context = context = make_context(attempt)
        ids.traceparent = context.request.get("traceparent")
        if (tell := attempt.observers.attempt_began) is not None:
            tell(AttemptBegan(job, context, attempt.claimed_at))
        await attempt.route.pipeline.run(context)
        result = build_result(context, queue_ms=job.waited_ms, claimed_at=attempt.claimed_at)
        writer.used_tokens = _tokens_of(context)
    except asyncio.CancelledError:
        if attempt.stop is not None:
            _stopped(attempt)
            return
        # Nobody asked for it: a stage awaited something that somebody else had cancelled.
        error = RuntimeError("something that a stage awaited was cancelled")
        _unexpected(attempt, error, policy, bounds)
    except DeadlinePassed:
        writer.expired()
    except (WorkerError, SchedulerError) as error:
        _failed(attempt, error, policy, bounds, code=error.code, message=str(error))
    except Exception as error:
        _unexpected(attempt, error, policy, bounds)
    else:
        writer.done(result)


def _tokens_of(context: PromptContext) -> int | None:
    """What the engine says that the attempt cost; None where it does not say."""
    usage = context.completed.usage if context.completed else None
    if usage is None or (usage.input_tokens is None and usage.output_tokens is None):
        return None
    return (usage.input_tokens or 0) + (usage.output_tokens or 0)


def close_attempt(attempt: Attempt, task: asyncio.Task[None]) -> None:
    """The attempt's task has ended, in whatever way: see to it that the job has an end or goes back."""
    attempt.close()
    if attempt.writer.end is not None:
        return
    if task.cancelled():
        _stopped(attempt)
    elif error := task.exception():
        said = ids_of(attempt.job)
        logger.error(
            "job %s: a bug ended its attempt", attempt.job.id, exc_info=traced(error, logger), extra=said
        )
        attempt.writer.failed("internal_error", "an error inside the scheduler; see the worker's log")


def make_context(attempt: Attempt) -> PromptContext:
    """Decode the job's payload.

    Raises:
        BadRecord, UnknownKind: it cannot be run.
    """
    job = attempt.job
    request = decode(attempt.payload)
    attempt.payload = b""
    if "kind" in request or attempt.route.settings.kind is not Kind.GENERATE:
        _check_kind(request, attempt.route)
    prompt = request.get("prompt")
    return PromptContext(
        job_id=job.id,
        attempt=job.attempt,
        route=job.lane,
        tenant=job.tenant,
        priority=job.priority,
        prompt=prompt if isinstance(prompt, str) else None,
        messages=request.get("messages"),
        params=request.get("params") or {},
        request=request,
        token_ids=prompt if isinstance(prompt, list) else None,
        expires_at=attempt.expires_at,
        permit=job.endpoint,
        take_permit=attempt.take_permit,
        sink=attempt.writer.piece if request.get("stream", True) else None,
    )


def _check_kind(request: Payload, route: Route) -> None:
    """The route may have changed since the job was enqueued.

    Raises:
        UnknownKind: the route does another kind of work.
    """
    asked, does = kind_of(request), route.settings.kind
    if asked is not does:
        raise UnknownKind(
            f"the job asks for {asked} work, and route {route.name} does {does} work now; give that route "
            "another name, or enqueue the job again for another route"
        )


def _failed(
    attempt: Attempt, error: Exception, policy: RetryPolicy, bounds: Bounds, *, code: str, message: str
) -> None:
    job, writer = attempt.job, attempt.writer
    if isinstance(error, SchedulerError) and not error.retryable:
        writer.failed(code, message)
        return
    said = error.engine_error if isinstance(error, WorkerError) else None
    bounds = _own_bounds(attempt, bounds)
    decision = policy.decide(
        job.failures, bounds.max_attempts, error, waits=job.waits, max_waits=bounds.max_waits
    )
    if isinstance(decision, Retry):
        _go_back(attempt, decision, code, message, said)
    elif decision.waited_out:
        writer.failed(TOO_MANY_WAITS, _waited_out(bounds.max_waits, message), said)
    else:
        writer.failed(code, message, said)


def _go_back(attempt: Attempt, decision: Retry, code: str, message: str, said: EngineError | None) -> None:
    """Let the job wait: in its lane, if nothing is claimed for its route until the wait is over."""
    wait_ms = round(decision.delay_s * 1000)
    in_place = not decision.counts and attempt.is_held_back(attempt.route)
    delay_ms = 0 if in_place else wait_ms
    attempt.writer.retry(
        code, message, delay_ms=delay_ms, counts=decision.counts, wait_ms=wait_ms, engine_error=said
    )


def _own_bounds(attempt: Attempt, bounds: Bounds) -> Bounds:
    """The job's own bounds, where it has some, before those of its route."""
    max_attempts = attempt.job.max_attempts
    max_waits = attempt.context.request.get("max_waits") if attempt.context is not None else None
    return Bounds(
        bounds.max_attempts if max_attempts is None else max_attempts,
        max_waits if isinstance(max_waits, int) else bounds.max_waits,
    )


def _waited_out(max_waits: int, message: str) -> str:
    return (
        f"the job has waited {max_waits:,} times for its endpoints, as often as max_waits allows; "
        f"the last time: {message}"
    )


def _unexpected(attempt: Attempt, error: Exception, policy: RetryPolicy, bounds: Bounds) -> None:
    """An error in a stage of a user's own, most likely."""
    job = attempt.job
    # Its words may hold what the prompt held: they are in neither the log nor the job's record.
    cause = traced(error, logger)
    logger.error("job %s: an unexpected error in the stages of route %s", job.id, job.lane, exc_info=cause)
    message = f"{type(error).__name__} in a stage; see the worker's log"
    _failed(attempt, error, policy, bounds, code="internal_error", message=message)


def _stopped(attempt: Attempt) -> None:
    if attempt.stop is Stop.EXPIRED:
        attempt.writer.expired()
    elif attempt.stop is not Stop.LOST:
        attempt.writer.retry(GIVEN_BACK, "the worker process is stopping", delay_ms=0, counts=False)
