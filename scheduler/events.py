"""The entries of a job's stream, as types and as JSON.

On the wire an event is one JSON object: `{"id": "<token>-<seq>", "type": "delta", "job_id": …, "attempt": …}`
and what else its type has.
`token` grows with every claim; `seq` counts from 1 inside a token, without gaps. A reader that sees a new
token starts the text again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import orjson

from scheduler.errors import JobCancelled, JobEnded, JobExpired, JobFailed, JobShed, SchedulerError
from scheduler.model import JobError, JobResult


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseEvent:
    """What every event has: its id, its job, the attempt it belongs to (0 before the first)."""

    type: ClassVar[str]
    terminal: ClassVar[bool] = False
    id: str
    job_id: str
    attempt: int = 0

    @property
    def cursor(self) -> tuple[int, int]:
        """`(token, seq)`: events are ordered by it."""
        return parse_event_id(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued(BaseEvent):
    """The job has been accepted. Always the first event."""

    type = "queued"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(BaseEvent):
    """A worker process has claimed the job and begun an attempt."""

    type = "started"
    worker: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta(BaseEvent):
    """Some more of the answer. `index` is the choice it belongs to, 0 where the request asked for one."""

    type = "delta"
    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying(BaseEvent):
    """The attempt ended without an answer and there will be another: discard what it had streamed."""

    type = "retrying"
    error: JobError
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(BaseEvent):
    """The job is done; `result` is the whole answer."""

    type = "done"
    terminal = True
    result: JobResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(BaseEvent):
    """The job failed for good."""

    type = "failed"
    terminal = True
    error: JobError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled(BaseEvent):
    """The job was cancelled; `reason` is cancelled, replaced or purged."""

    type = "cancelled"
    terminal = True
    reason: str = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired(BaseEvent):
    """The job's deadline passed."""

    type = "expired"
    terminal = True
    reason: str = "deadline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shed(BaseEvent):
    """The job was dropped for more urgent work."""

    type = "shed"
    terminal = True
    reason: str = "queue_full"


Event: TypeAlias = Queued | Started | Delta | Retrying | Done | Failed | Cancelled | Expired | Shed

EVENT_TYPES: dict[str, type[Event]] = {
    cls.type: cls for cls in (Queued, Started, Delta, Retrying, Done, Failed, Cancelled, Expired, Shed)
}


_ID = re.compile(r"(\d{1,19})-(\d{1,19})", re.ASCII)


def parse_event_id(event_id: object) -> tuple[int, int]:
    """Split `"<token>-<seq>"`.

    Raises:
        SchedulerError: it is no event id.
    """
    match = _ID.fullmatch(event_id) if isinstance(event_id, str) else None
    if match is None:
        raise SchedulerError(f"not an event id: {event_id!r}")
    return int(match[1]), int(match[2])


def decode_event(data: bytes | str) -> Event:
    """Make the typed event from its JSON.

    Fields that this version does not know are ignored, so that an older reader can follow a newer worker.

    Raises:
        SchedulerError: it is no event.
    """
    try:
        raw = orjson.loads(data)
        cls = EVENT_TYPES[raw.pop("type")]
        fields = {name: raw[name] for name in cls.__dataclass_fields__ if name in raw}
        if "error" in fields:
            fields["error"] = JobError.model_validate(fields["error"])
        if "result" in fields:
            fields["result"] = JobResult.model_validate(fields["result"])
        return cls(**fields)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise SchedulerError(f"not an event of this version: {error!r}") from error


def ended_error(event: Failed | Cancelled | Expired | Shed) -> JobEnded:
    """The exception that `Job.result()` raises for a terminal event other than `Done`."""
    job_id, attempts = event.job_id, event.attempt
    if isinstance(event, Failed):
        message = f"job {job_id} failed after {attempts} attempt(s): {event.error.message}"
        return JobFailed(message, job_id=job_id, reason=event.error.code, attempts=attempts)
    cls: type[JobEnded] = {"cancelled": JobCancelled, "expired": JobExpired, "shed": JobShed}[event.type]
    return cls(
        f"job {job_id} was {event.type} ({event.reason})",
        job_id=job_id,
        reason=event.reason,
        attempts=attempts,
    )
