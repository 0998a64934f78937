"""How spans say that something went wrong: by a code or a class, and never by an error's words.

Those may hold words of the prompt.
"""

from __future__ import annotations

import asyncio

from opentelemetry.trace import Span, StatusCode

from scheduler.telemetry import conventions as names


def code_of(error: BaseException | None) -> str:
    """What `error.type` says of an error: its code, else its class; "" of none."""
    if error is None:
        return ""
    if isinstance(error, asyncio.CancelledError):
        return names.CANCELLED
    code = getattr(error, "code", None)
    return code if isinstance(code, str) else type(error).__qualname__


def mark_failed(span: Span, code: str) -> None:
    """Say of a span what it ended with, if that was an error."""
    if code:
        span.set_attribute(names.ERROR_TYPE, code)
        span.set_status(StatusCode.ERROR)
