"""The errors that the batcher itself makes, and what it makes of those it gets."""

from __future__ import annotations

import copy
import logging

from workers.errors import WorkerError, WorkerProtocolError, WorkerTimeout, WorkerUnavailable

logger = logging.getLogger(__name__)


def own_copy(error: WorkerError) -> WorkerError:
    """Give a member an error of its own: one raised in several tasks would gather all their tracebacks."""
    try:
        own = copy.copy(error)
    except Exception:  # a class whose constructor wants more than its args
        return error
    own.__cause__ = error.__cause__
    return own


def wrapped(error: Exception) -> WorkerError:
    """Turn what an adapter should not have raised into a retryable error, and log it.

    Names its type and place only: its text may hold what was sent, an API key for one.
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
    """Say that an output names a member that the call does not have."""
    return WorkerProtocolError(f"the model worker answered for member {index} of a call of {size}")


def no_end() -> WorkerProtocolError:
    """Say that the outputs ended before the member did."""
    return WorkerProtocolError("the answer stopped before this prompt had an end")


def beside_a_refused() -> WorkerProtocolError:
    """Say that a member's answer was cut off, perhaps because the engine refused another one of the call.

    To ask for a wait makes the next attempt free of charge: the member is likely to be innocent.
    """
    return WorkerProtocolError(
        "the engine refused a prompt of the same call, and ended the whole call", retry_after_s=0.0
    )


def closed() -> WorkerUnavailable:
    """Say that the batcher takes no more prompts."""
    return WorkerUnavailable("the endpoint is being closed in this process; try again elsewhere")


def overdue() -> WorkerTimeout:
    """Say that a call was silent for longer than its endpoint's limits allow, and did not end by itself."""
    message = (
        "the model worker has kept none of the endpoint's time limits (timeout_s, first_token_timeout_s, "
        "idle_timeout_s, total_timeout_s), and its call was ended"
    )
    return WorkerTimeout(message, log_text=message)


def cancelled() -> WorkerError:
    """Say that a call was cancelled by none of those who wait for it."""
    return WorkerError("the call to the engine was cancelled from outside")
