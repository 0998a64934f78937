"""The batcher's own errors, and how it translates those it gets."""

from __future__ import annotations

import copy
import logging

from workers.errors import WorkerError, WorkerProtocolError, WorkerTimeout, WorkerUnavailable

logger = logging.getLogger(__name__)


def own_copy(error: WorkerError) -> WorkerError:
    """Copy an error for one member: the same error raised in several tasks would collect all tracebacks."""
    try:
        own = copy.copy(error)
    except Exception:  # its constructor needs more than its args
        return error
    own.__cause__ = error.__cause__
    return own


def wrapped(error: Exception) -> WorkerError:
    """Turn an exception that no adapter should raise into a retryable error, and log it.

    Both name only its type and place: its text may repeat the request, including an API key.
    """
    name = type(error).__qualname__
    logger.error("model worker raised %s %s; it should raise a WorkerError", name, _place(error))
    return WorkerError(f"the model worker failed with {name}; see this process's log")


def _place(error: Exception) -> str:
    trace = error.__traceback__
    if trace is None:
        return "somewhere"
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


def no_such_member(index: int, size: int) -> WorkerProtocolError:
    """The error for an output that names a member the call does not have."""
    return WorkerProtocolError(f"the model worker answered for member {index} of a call of {size}")


def no_end() -> WorkerProtocolError:
    """The error for a member without an end when the outputs ended."""
    return WorkerProtocolError("the answer stopped before this prompt had an end")


def beside_a_refused() -> WorkerProtocolError:
    """The error for a member cut off, probably because the engine refused another member of the call.

    It asks for a wait so that the attempt does not count as a failure: this member is likely innocent.
    """
    return WorkerProtocolError(
        "the engine refused a prompt of the same call, and ended the whole call", retry_after_s=0.0
    )


def closed() -> WorkerUnavailable:
    """The error for a prompt given to a closed batcher."""
    return WorkerUnavailable("the endpoint is being closed in this process; try again elsewhere")


def overdue() -> WorkerTimeout:
    """The error for a call that its model worker let run past the endpoint's time limits."""
    message = (
        "the model worker has kept none of the endpoint's time limits (timeout_s, first_token_timeout_s, "
        "idle_timeout_s, total_timeout_s), and its call was ended"
    )
    return WorkerTimeout(message, log_text=message)


def cancelled() -> WorkerError:
    """The error for a call that was cancelled, but not by its callers."""
    return WorkerError("the call to the engine was cancelled from outside")
