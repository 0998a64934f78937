"""Exceptions in a log: type and stack, and the message only at the level debug."""

from __future__ import annotations

import logging
from traceback import walk_tb
from typing import Any

MAX_FRAMES = 40
MAX_CAUSES = 8
MAX_GROUPED = 16


def traced(error: BaseException, logger: logging.Logger) -> BaseException:
    """The `exc_info` for an exception of foreign code, safe for any formatter.

    The exception itself if `logger` is at the level debug, else a stand-in without its message.
    """
    return error if logger.isEnabledFor(logging.DEBUG) else wordless(error)


def wordless(error: BaseException, *, _depth: int = 0) -> BaseException:
    """Make a stand-in for an exception: its type name, stack and causes, without messages."""
    made: BaseException
    if isinstance(error, BaseExceptionGroup) and _depth < MAX_CAUSES:
        members = error.exceptions[:MAX_GROUPED]
        made = BaseExceptionGroup("", [wordless(one, _depth=_depth + 1) for one in members])
    else:
        kind = type(error)
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        made = type(kind.__name__, (Exception,), names)()
    made.__traceback__ = error.__traceback__
    cause = _cause(error)
    if cause is not None and _depth < MAX_CAUSES:
        made.__cause__ = wordless(cause, _depth=_depth + 1)
    return made


def describe_error(error: BaseException, *, words: bool = False, _depth: int = 0) -> dict[str, Any]:
    """Describe an exception in JSON values: `type`, `frames` (the last raised it), `cause`, `errors`.

    With `words`, also its `message`.
    """
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    said: dict[str, Any] = {"type": name}
    if words and (message := text_of(error)):
        said["message"] = message
    frames = [
        f"{frame.f_code.co_filename}:{line} {frame.f_code.co_qualname}"
        for frame, line in walk_tb(error.__traceback__)
    ]
    said["frames"] = frames[-MAX_FRAMES:]
    if _depth >= MAX_CAUSES:
        return said
    if (cause := _cause(error)) is not None:
        said["cause"] = describe_error(cause, words=words, _depth=_depth + 1)
    if isinstance(error, BaseExceptionGroup):
        members = error.exceptions[:MAX_GROUPED]
        said["errors"] = [describe_error(one, words=words, _depth=_depth + 1) for one in members]
    return said


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def error_of(record: logging.LogRecord) -> BaseException | None:
    info = record.exc_info
    error = info[1] if isinstance(info, tuple) and len(info) == 3 else info
    return error if isinstance(error, BaseException) else None


def text_of(value: object) -> str:
    """`str(value)`, even if that raises."""
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"
