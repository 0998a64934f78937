"""What can go wrong between a model worker and its back end.

    WorkerError
    ├── WorkerUnavailable      no connection, still loading, 502          retryable
    │   └── WorkerFailed       500: an error inside the engine            retryable
    ├── WorkerOverloaded       429, 503 queue full, 529                   retryable, may carry retry_after_s
    ├── WorkerTimeout          no answer, or no token, in time            retryable
    ├── WorkerProtocolError    a stream cut in the middle, no JSON        retryable
    ├── ModelNotFound          404: no such model, or no such address     retryable
    ├── WorkerAuthError        401, 403                                   final
    ├── AnswerTooLong          more than is taken of an answer            final
    └── RequestRejected        any other 4xx: the request is at fault     final
        └── ContextOverflow    prompt and answer do not fit the context   final

Not a `WorkerError`, because no call was made: an endpoint that is set up wrongly.

    WorkerConfigError (ValueError)
    └── UnknownBackend         no model worker of that name
"""

from __future__ import annotations

from typing import ClassVar


class WorkerError(Exception):
    """A back end did not answer a prompt.

    `code` is stable and machine-readable; `retryable` says whether another attempt could succeed;
    `retry_after_s` is the wait in seconds that the back end asked for, or None. `log_text` is what a log may
    say of it: the message without words of the back end, which may repeat a prompt. None: the code alone.
    """

    code: ClassVar[str] = "worker_error"
    http_status: ClassVar[int] = 502
    retryable: ClassVar[bool] = True
    log_text: str | None = None

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, log_text: str | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.log_text = log_text


class WorkerUnavailable(WorkerError):
    """The back end cannot be reached, or is loading its model."""

    code = "worker_unavailable"
    http_status = 503


class WorkerFailed(WorkerUnavailable):
    """The back end answered that it failed inside: it may be at fault, or the request."""


class WorkerOverloaded(WorkerError):
    """The back end asked for less: its queue or a rate limit is full."""

    code = "worker_overloaded"
    http_status = 503


class WorkerTimeout(WorkerError):
    """The back end did not answer, or sent no token, within the time allowed."""

    code = "worker_timeout"
    http_status = 504


class WorkerProtocolError(WorkerError):
    """The answer was cut off or is not what the protocol promises."""

    code = "worker_protocol_error"


class ModelNotFound(WorkerError):
    """The back end does not serve the model, or nothing at this address. Another endpoint may."""

    code = "model_not_found"
    http_status = 503


class WorkerAuthError(WorkerError):
    """The back end refused the API key."""

    code = "worker_auth_error"
    retryable = False


class AnswerTooLong(WorkerError):
    """The answer has more bytes than are taken; another attempt would cost as much, and end the same way."""

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


class WorkerConfigError(ValueError):
    """An endpoint is set up wrongly; the message names the field and what to change."""

    code: ClassVar[str] = "worker_config_error"


class UnknownBackend(WorkerConfigError):
    """No model worker has the name that `backend` gives."""

    code = "unknown_backend"
