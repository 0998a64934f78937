"""How spans report errors: by a code or a class, never by a message, which may hold text of the prompt."""

from __future__ import annotations

import asyncio

from opentelemetry.trace import Span, StatusCode

from scheduler.telemetry import conventions as names


def code_of(error: BaseException | None) -> str:
    """The `error.type` of an error: its code, else its class; empty without an error."""
    if error is None:
        return ""
    if isinstance(error, asyncio.CancelledError):
        return names.CANCELLED
    code = getattr(error, "code", None)
    return code if isinstance(code, str) else type(error).__qualname__


def mark_failed(span: Span, code: str) -> None:
    """Mark a span as failed, if there is a code."""
    if code:
        span.set_attribute(names.ERROR_TYPE, code)
        span.set_status(StatusCode.ERROR)
