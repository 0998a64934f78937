"""The events of a job, as types and as JSON.

In a job's stream and on its channel, an event is one JSON object:
`{"id": "<token>-<seq>", "type": "delta", "job_id": …, "attempt": …}` and the fields of its type.
The token grows with every claim; seq counts from 1 for each token, without gaps. With a new token the text
starts again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeAlias

import orjson

from scheduler.errors import JobCancelled, JobEnded, JobExpired, JobFailed, JobShed, SchedulerError
from scheduler.model import JobError, JobResult, result_of


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseEvent:
    """The fields that every event has."""

    type: ClassVar[str]
    terminal: ClassVar[bool] = False
    """Whether it is the last event of its job."""
    id: str
    """`"<token>-<seq>"`. Pass it as `after` to resume behind this event."""
    job_id: str
    attempt: int = 0
    """The attempt that the event belongs to; 0 before the first."""

    @property
    def cursor(self) -> tuple[int, int]:
        """`(token, seq)`: events are ordered by it."""
        return parse_event_id(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued(BaseEvent):
    """The queue has accepted the job. Always the first event."""

    type = "queued"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(BaseEvent):
    """A worker process has claimed the job and begun an attempt."""

    type = "started"
    worker: str = ""
    """The id of the worker process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta(BaseEvent):
    """The next piece of the answer."""

    type = "delta"
    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """Fragments of tool calls, in OpenAI's shape."""
    index: int = 0
    """The choice that the piece belongs to; 0 if the request asked for one."""
    logprobs: dict[str, Any] | None = None
    """Log probabilities of the tokens since the last delta of this choice, in OpenAI's shape."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More fields of the message, by the engine's names: `refusal` (it repeats `text`), `annotations`, …"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying(BaseEvent):
    """The attempt ended without an answer, and another will follow: discard the text streamed so far."""

    type = "retrying"
    error: JobError
    """Why the attempt failed."""
    delay_s: float = 0.0
    """Seconds until the next attempt may start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(BaseEvent):
    """The job is done."""

    type = "done"
    terminal = True
    result: JobResult
    """The whole answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(BaseEvent):
    """The job has failed for good."""

    type = "failed"
    terminal = True
    error: JobError
    """The error of the last attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled(BaseEvent):
    """The job was cancelled."""

    type = "cancelled"
    terminal = True
    reason: str = "cancelled"
    """`cancelled`, `replaced` or `purged`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired(BaseEvent):
    """The job's deadline passed."""

    type = "expired"
    terminal = True
    reason: str = "deadline"
    """Always `deadline`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shed(BaseEvent):
    """The queue dropped the job to make space for more urgent work."""

    type = "shed"
    terminal = True
    reason: str = "queue_full"
    """Always `queue_full`."""


Event: TypeAlias = Queued | Started | Delta | Retrying | Done | Failed | Cancelled | Expired | Shed

EVENT_TYPES: dict[str, type[Event]] = {
    cls.type: cls for cls in (Queued, Started, Delta, Retrying, Done, Failed, Cancelled, Expired, Shed)
}
TERMINAL_TYPES = frozenset(name for name, cls in EVENT_TYPES.items() if cls.terminal)


class RawEvent(NamedTuple):
    """An event that has not been decoded. Its type may be one that this version does not know."""

    cursor: tuple[int, int]
    """`(token, seq)`: events are ordered by it."""
    type: str
    data: bytes
    """The event as JSON, the same bytes as on the channel."""

    @property
    def id(self) -> str:
        """`"<token>-<seq>"`. Pass it as `after` to resume behind this event."""
        token, seq = self.cursor
        return f"{token}-{seq}"

    @property
    def terminal(self) -> bool:
        """Whether it is the last event of its job."""
        return self.type in TERMINAL_TYPES


_HEAD = re.compile(rb'\{"id":"(\d{1,19})-(\d{1,19})","type":"(\w+)"')
_ID = re.compile(r"(\d{1,19})-(\d{1,19})", re.ASCII)


def raw_event(data: bytes) -> RawEvent:
    """Read the id and the type of an event. Its other fields are not decoded.

    Raises:
        SchedulerError: this is not an event.
    """
    head = _HEAD.match(data)
    if head:  # every writer of this package puts them first
        token, seq, kind = head.groups()
        return RawEvent((int(token), int(seq)), kind.decode(), data)
    try:
        fields = orjson.loads(data)
        return RawEvent(parse_event_id(fields["id"]), str(fields["type"]), data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SchedulerError(f"not an event: {error!r}") from error


def parse_event_id(event_id: object) -> tuple[int, int]:
    """Split `"<token>-<seq>"`.

    Raises:
        SchedulerError: this is not an event id.
    """
    match = _ID.fullmatch(event_id) if isinstance(event_id, str) else None
    if match is None:
        raise SchedulerError(f"not an event id: {event_id!r}")
    return int(match[1]), int(match[2])


def decode_event(data: bytes | str) -> Event:
    """Make the typed event from its JSON.

    Fields that this version does not know are ignored, so that an older reader can follow a newer worker
    process.

    Raises:
        SchedulerError: this is not an event, or its type is unknown.
    """
    try:
        raw = orjson.loads(data)
        cls = EVENT_TYPES[raw.pop("type")]
        known = cls.__dataclass_fields__
        fields = {name: value for name, value in raw.items() if name in known}
        if "error" in fields:
            fields["error"] = JobError.model_validate(fields["error"])
        if "result" in fields:
            fields["result"] = result_of(fields["result"])
        return cls(**fields)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise SchedulerError(f"not an event of this version: {error!r}") from error


def ended_error(event: Failed | Cancelled | Expired | Shed) -> JobEnded:
    """The exception that `Job.result()` raises for a terminal event other than `Done`."""
    job_id, attempts = event.job_id, event.attempt
    if isinstance(event, Failed):
        message = f"job {job_id} failed after {attempts} attempt(s): {event.error.message}"
        failed = JobFailed(message, job_id=job_id, reason=event.error.code, attempts=attempts)
        vars(failed).update(event.error.model_dump(exclude={"code", "message"}, exclude_none=True))
        return failed
    cls: type[JobEnded] = {"cancelled": JobCancelled, "expired": JobExpired, "shed": JobShed}[event.type]
    return cls(
        f"job {job_id} was {event.type} ({event.reason})",
        job_id=job_id,
        reason=event.reason,
        attempts=attempts,
    )
