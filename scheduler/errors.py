"""Errors of the scheduler's public functions.

    SchedulerError
    ├── InvalidRequest         a field of a request is wrong; `field` names it
    │   └── UnknownModel       no route has that name
    ├── ConfigError            a setting, a template or a stage is wrong
    ├── DedupConflict          the dedup key is in use for other content
    ├── QueueFull              the queue is full; try again after `retry_after_s`
    ├── NoTicket               cancelling needs a ticket of the job, or force=True
    ├── JobNotFound            no job has that id, or its record has expired
    ├── InvalidTransition      the job's state does not allow this
    ├── ResultTimeout          the job did not end in time; it keeps running
    ├── BadRecord              the stored data of a job cannot be read
    ├── UnknownKind            the job asks for a kind of work that its route or this version does not do
    ├── RedisError
    │   ├── RedisUnavailable   no server answers at the URL
    │   ├── RedisAuthError     wrong password, or the ACL forbids a command
    │   ├── RedisTooOld        the server lacks a feature that is needed
    │   ├── RedisOutOfMemory   maxmemory is reached; enqueues are refused
    │   └── NewerData          a newer version of this package has written the queue
    └── JobEnded               the job ended without a result
        ├── JobFailed          attempts used up, or an error that a retry cannot fix
        ├── JobCancelled
        ├── JobExpired
        └── JobShed

Each class has a stable `code`, the HTTP status for a gateway (`http_status`), and whether the same call may
succeed later (`retryable`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class SchedulerError(Exception):
    """Base of all errors of this package."""

    code: ClassVar[str] = "scheduler_error"
    """A stable name of the class."""
    http_status: ClassVar[int] = 500
    """The status with which a gateway answers."""
    retryable: ClassVar[bool] = False
    """Whether the same call may succeed later."""


class InvalidRequest(SchedulerError, ValueError):
    """A request is not valid; `field` names the field, if there is one to name."""

    code = "invalid_request"
    http_status = 422

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnknownModel(InvalidRequest):
    """No route has the requested model name."""

    code = "unknown_model"
    http_status = 404

    def __init__(self, message: str) -> None:
        super().__init__(message, field="model")


class ConfigError(SchedulerError, ValueError):
    """The configuration is wrong; the message names the setting and says what to change."""

    code = "config_error"


class DedupConflict(SchedulerError):
    """The dedup key is in use by job `job_id`, which has other content."""

    code = "dedup_conflict"
    http_status = 409

    def __init__(self, message: str, *, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class QueueFull(SchedulerError):
    """The queue is full; try again after `retry_after_s` seconds."""

    code = "queue_full"
    http_status = 429
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoTicket(SchedulerError):
    """This handle has no ticket of the job, so it can cancel the job only with force=True."""

    code = "no_ticket"
    http_status = 409


class JobNotFound(SchedulerError, LookupError):
    """No job has this id: it never existed here, or its record has expired."""

    code = "job_not_found"
    http_status = 404


class InvalidTransition(SchedulerError):
    """The job's state does not allow this operation."""

    code = "invalid_transition"
    http_status = 409


class ResultTimeout(SchedulerError, TimeoutError):
    """The job did not end in time. It has not been cancelled."""

    code = "result_timeout"
    http_status = 504
    retryable = True

    @classmethod
    def of(cls, job_id: str, timeout_s: float | None) -> ResultTimeout:
        """The error of a job that was waited for that long."""
        return cls(f"job {job_id} had not ended after {timeout_s or 0:g} s; the job is unaffected")


class BadRecord(SchedulerError):
    """The stored data of a job cannot be read."""

    code = "bad_record"


class UnknownKind(SchedulerError):
    """The job asks for a kind of work that this version, or its route, does not do."""

    code = "unknown_kind"


class RedisError(SchedulerError):
    """Redis failed to run a command."""

    code = "redis_error"
    http_status = 503


class RedisUnavailable(RedisError, ConnectionError):
    """No server answers at the Redis URL, or it takes no commands for now."""

    code = "redis_unavailable"
    retryable = True


class RedisAuthError(RedisError):
    """Redis refused the credentials, or its ACL forbids a command that is needed."""

    code = "redis_auth"


class RedisTooOld(RedisError):
    """The Redis server lacks a feature that is needed; use 7.0 or later."""

    code = "redis_too_old"


class RedisOutOfMemory(RedisError):
    """Redis has reached its maxmemory and refuses writes."""

    code = "redis_out_of_memory"
    retryable = True


class NewerData(RedisError):
    """A newer version of this package wrote the queue, in a format that this version does not know."""

    code = "newer_data"


class JobEnded(SchedulerError):
    """Job `job_id` ended without a result, after `attempts` attempts. `reason` is for programs."""

    code = "job_ended"
    state: ClassVar[str] = ""

    def __init__(self, message: str, *, job_id: str, reason: str, attempts: int = 0) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.reason = reason
        self.attempts = attempts


class JobFailed(JobEnded):
    """The job failed for good; `reason` is the code of its last error.

    `status`, `type`, `param` and `engine_code` are the engine's own error, where it answered with one.
    """

    code = "job_failed"
    http_status = 502
    state = "failed"

    status: int | None = None
    type: str | None = None
    param: str | None = None
    engine_code: str | None = None


class JobCancelled(JobEnded):
    """The job was cancelled, replaced or purged."""

    code = "job_cancelled"
    http_status = 409
    state = "cancelled"


class JobExpired(JobEnded):
    """The job's deadline passed before it was done."""

    code = "job_expired"
    http_status = 504
    state = "expired"


class JobShed(JobEnded):
    """The job was dropped to make room for more urgent work."""

    code = "job_shed"
    http_status = 503
    retryable = True
    state = "shed"


def error_fields(error: BaseException) -> dict[str, Any]:
    """Turn an error into JSON values: `code`, `message`, and its attributes, such as `reason` or `field`."""
    more = vars(error) if isinstance(error, SchedulerError) else {}
    said = {name: value for name, value in more.items() if isinstance(value, str | int | float | None)}
    message = str(error).encode("utf-8", "backslashreplace").decode()
    return {"code": str(getattr(error, "code", type(error).__name__)), "message": message, **said}


def error_from(fields: Mapping[str, Any]) -> SchedulerError:
    """Make the error of such fields again; a plain `SchedulerError` if the code is unknown."""
    code, message = str(fields.get("code", "")), str(fields.get("message", ""))
    kind = next((one for one in _kinds(SchedulerError) if one.code == code), None)
    if kind is None:
        return SchedulerError(f"{code}: {message}")
    error = kind.__new__(kind, message)
    error.args = (message,)
    vars(error).update({name: fields[name] for name in fields if name not in ("code", "message")})
    return error


def _kinds(kind: type[SchedulerError]) -> Iterator[type[SchedulerError]]:
    yield kind
    for one in kind.__subclasses__():
        yield from _kinds(one)
