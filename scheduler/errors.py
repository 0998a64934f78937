"""Errors that callers of the scheduler meet.

    SchedulerError
    ├── InvalidRequest         a field of a request is wrong; `field` names it
    │   └── UnknownModel       no route of that name
    ├── ConfigError            settings, a template or a stage are wrong
    ├── DedupConflict          the dedup key is in use for other content
    ├── QueueFull              the bound is reached; `retry_after_s`
    ├── NoTicket               cancelling needs a ticket of the job, or force=True
    ├── JobNotFound            no job of that id, or its record has expired
    ├── InvalidTransition      the job's state does not allow this
    ├── ResultTimeout          the job had not ended in time; it goes on
    ├── BadRecord              what Redis holds of a job cannot be read
    ├── UnknownKind            the job asks for a kind of work that this version does not do
    ├── RedisError
    │   ├── RedisUnavailable   no server at the URL
    │   ├── RedisAuthError     wrong password, or the ACL forbids a command
    │   ├── RedisTooOld        the server lacks something that is used
    │   ├── RedisOutOfMemory   maxmemory is reached; enqueues are refused
    │   └── NewerData          a newer version of this package has written the queue
    └── JobEnded               the job ended without a result
        ├── JobFailed          attempts used up, or an error that no retry can mend
        ├── JobCancelled
        ├── JobExpired
        └── JobShed

Each class has a stable `code`, the HTTP status a gateway would answer, and whether the same call may
succeed later (`retryable`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class SchedulerError(Exception):
    """Base of all errors of this package."""

    code: ClassVar[str] = "scheduler_error"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False


class InvalidRequest(SchedulerError, ValueError):
    """A request cannot be accepted; `field` names what is wrong with it."""

    code = "invalid_request"
    http_status = 422

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnknownModel(InvalidRequest):
    """No route has the model name that was asked for."""

    code = "unknown_model"
    http_status = 404

    def __init__(self, message: str) -> None:
        super().__init__(message, field="model")


class ConfigError(SchedulerError, ValueError):
    """The configuration is wrong; the message names the setting and what to change."""

    code = "config_error"


class DedupConflict(SchedulerError):
    """The dedup key already names a job with other content."""

    code = "dedup_conflict"
    http_status = 409

    def __init__(self, message: str, *, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class QueueFull(SchedulerError):
    """The queue holds as many jobs as it may; try again after `retry_after_s` seconds."""

    code = "queue_full"
    http_status = 429
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoTicket(SchedulerError):
    """This handle holds no ticket of the job, so it may cancel it only with force=True."""

    code = "no_ticket"
    http_status = 409


class JobNotFound(SchedulerError, LookupError):
    """No job has this id: it never existed here, or its record has expired."""

    code = "job_not_found"
    http_status = 404


class InvalidTransition(SchedulerError):
    """The job's state does not allow what was asked for."""

    code = "invalid_transition"
    http_status = 409


class ResultTimeout(SchedulerError, TimeoutError):
    """The job had not ended in time. It has not been cancelled."""

    code = "result_timeout"
    http_status = 504
    retryable = True


class BadRecord(SchedulerError):
    """What Redis holds of a job cannot be read."""

    code = "bad_record"


class UnknownKind(SchedulerError):
    """The job asks for a kind of work that this version does not do; a newer client has enqueued it."""

    code = "unknown_kind"


class RedisError(SchedulerError):
    """Redis could not do what was asked."""

    code = "redis_error"
    http_status = 503


class RedisUnavailable(RedisError, ConnectionError):
    """Nothing answers at the Redis URL."""

    code = "redis_unavailable"
    retryable = True


class RedisAuthError(RedisError):
    """Redis refused the credentials, or its ACL forbids a command that is needed."""

    code = "redis_auth"


class RedisTooOld(RedisError):
    """The Redis server lacks a feature that is used; 7.0 is the oldest that will do."""

    code = "redis_too_old"


class RedisOutOfMemory(RedisError):
    """Redis has reached its maxmemory and refuses new jobs."""

    code = "redis_out_of_memory"
    retryable = True


class NewerData(RedisError):
    """A newer version of this package has written the queue, in a format that this one does not know."""

    code = "newer_data"


class JobEnded(SchedulerError):
    """The job ended without a result. `reason` is machine-readable, the message is for people."""

    code = "job_ended"
    state: ClassVar[str] = ""

    def __init__(self, message: str, *, job_id: str, reason: str, attempts: int = 0) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.reason = reason
        self.attempts = attempts


class JobFailed(JobEnded):
    """The job failed for good; `reason` is the code of its last error."""

    code = "job_failed"
    http_status = 502
    state = "failed"


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
    """An error as JSON values: `code`, `message`, and what else it says, such as `reason` or `field`."""
    more = vars(error) if isinstance(error, SchedulerError) else {}
    said = {name: value for name, value in more.items() if isinstance(value, str | int | float | None)}
    message = str(error).encode("utf-8", "backslashreplace").decode()
    return {"code": str(getattr(error, "code", type(error).__name__)), "message": message, **said}


def error_from(fields: Mapping[str, Any]) -> SchedulerError:
    """The error that such fields are of. Of a class that is not known here it is a `SchedulerError`."""
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
