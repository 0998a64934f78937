"""The errors of model workers.

    WorkerError
    ├── WorkerUnavailable      no connection, still loading, 502          retryable
    │   └── WorkerFailed       500: an error inside the engine            retryable
    ├── WorkerOverloaded       429, 503 queue full, 529                   retryable, may carry retry_after_s
    ├── WorkerTimeout          no answer, or no token, in time            retryable
    ├── WorkerProtocolError    a stream that was cut off, invalid JSON    retryable
    ├── ModelNotFound          404: no such model, or no such address     retryable
    ├── WorkerAuthError        401, 403                                   final
    ├── AnswerTooLong          more bytes than an answer may have         final
    └── RequestRejected        any other 4xx: the request is at fault     final
        ├── ContextOverflow    the prompt does not fit the context        final
        └── UnsupportedParameter   this back end does not have one; another endpoint may   final

A wrong configuration is not a `WorkerError`, because no call was made.

    WorkerConfigError (ValueError)
    └── UnknownBackend         no model worker of that name
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class EngineError:
    """An error in the engine's own words, of which a `WorkerError` is the translation."""

    status: int | None = None
    """The HTTP status, of the response or as the error itself gives it."""
    type: str | None = None
    """The kind of error, such as `invalid_request_error`."""
    param: str | None = None
    """The field of the request that is at fault."""
    code: str | None = None
    """The engine's code, such as `context_length_exceeded`."""


class WorkerError(Exception):
    """A back end did not answer a prompt."""

    code: ClassVar[str] = "worker_error"
    """A stable, machine-readable name."""
    http_status: ClassVar[int] = 502
    """The status for an HTTP response about this error."""
    retryable: ClassVar[bool] = True
    """Whether another attempt could succeed."""
    retry_after_s: float | None
    """The wait in seconds that the back end asked for, or None."""
    log_text: str | None = None
    """The message without the back end's words, which may repeat a prompt. None: log the code alone."""
    engine_error: EngineError | None = None
    """What the engine itself answered; None if it answered with no error."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        log_text: str | None = None,
        engine_error: EngineError | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.log_text = log_text
        self.engine_error = engine_error


class WorkerUnavailable(WorkerError):
    """The back end cannot be reached, or is loading its model."""

    code = "worker_unavailable"
    http_status = 503


class WorkerFailed(WorkerUnavailable):
    """The back end reported an internal error; it or the request may be at fault."""


class WorkerOverloaded(WorkerError):
    """The back end has too much to do: its queue is full, or a rate limit is reached."""

    code = "worker_overloaded"
    http_status = 503


class WorkerTimeout(WorkerError):
    """The back end did not answer, or sent no token, within the time allowed."""

    code = "worker_timeout"
    http_status = 504


class WorkerProtocolError(WorkerError):
    """The answer was cut off or breaks the protocol."""

    code = "worker_protocol_error"


class ModelNotFound(WorkerError):
    """The back end does not serve the model, or serves nothing at this URL. Another endpoint may."""

    code = "model_not_found"
    http_status = 503


class WorkerAuthError(WorkerError):
    """The back end refused the API key."""

    code = "worker_auth_error"
    retryable = False


class AnswerTooLong(WorkerError):
    """The answer has more bytes than allowed; another attempt would end the same way."""

    code = "answer_too_long"
    retryable = False


class RequestRejected(WorkerError):
    """The back end refused the request itself; the same request will be refused again."""

    code = "request_rejected"
    http_status = 422
    retryable = False


class ContextOverflow(RequestRejected):
    """The prompt does not fit the model's context."""

    code = "context_overflow"
    http_status = 413


class UnsupportedParameter(RequestRejected):
    """The back end lacks a parameter of the request, which was not sent. Another endpoint may have it."""

    code = "unsupported_parameter"
    http_status = 400


class WorkerConfigError(ValueError):
    """An endpoint is configured wrongly; the message names the field and what to change."""

    code: ClassVar[str] = "worker_config_error"


class UnknownBackend(WorkerConfigError):
    """No model worker has the name that `backend` gives."""

    code = "unknown_backend"
