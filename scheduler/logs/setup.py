"""Sets up logging in a process where nothing else has."""

from __future__ import annotations

import logging
import os
import sys
from typing import Literal, TextIO, TypeAlias

from scheduler.logs.formats import HumanFormatter, JsonFormatter

LogFormat: TypeAlias = Literal["auto", "json", "human"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

OURS = ("scheduler", "workers")
HOSTED = (*OURS, "arq")
"""The loggers that `log_level` applies to. All others, such as httpx, start at WARNING."""


class _Handler(logging.StreamHandler[TextIO]):
    """The handler of `set_up`, which identifies logging that this package has set up."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Ignore a stream that is gone: there is nowhere to report it."""


def set_up(log_format: LogFormat, log_level: LogLevel, *, stream: TextIO | None = None) -> None:
    """Log in one format to standard error, or to `stream`, for a process of the scheduler's own.

    Loggers of this package and of arq start at `log_level`, others at WARNING or at a level of their own.
    """
    stream = sys.stderr if stream is None else stream
    handler = _Handler(stream)
    at_terminal = stream.isatty()
    words = log_level == "debug"
    if log_format == "human" or (log_format == "auto" and at_terminal):
        handler.setFormatter(HumanFormatter(words=words, colour=at_terminal and _colours_are_wanted()))
    else:
        handler.setFormatter(JsonFormatter(words=words))
    for name in HOSTED:
        logging.getLogger(name).handlers.clear()
    root = logging.getLogger()
    root.handlers = [*(one for one in root.handlers if not isinstance(one, _Handler)), handler]
    change_level(log_level)


def is_ours() -> bool:
    """Whether `set_up` has set up the logging of this process."""
    return _handler() is not None


def _handler() -> _Handler | None:
    return next((one for one in logging.getLogger().handlers if isinstance(one, _Handler)), None)


def change_level(log_level: LogLevel) -> None:
    """Change the level, if `set_up` has set up the logging."""
    handler = _handler()
    if handler is None:
        return
    level = logging.getLevelNamesMapping()[log_level.upper()]
    for name in HOSTED:
        logging.getLogger(name).setLevel(level)
    logging.getLogger().setLevel(max(level, logging.WARNING))
    if isinstance(handler.formatter, JsonFormatter | HumanFormatter):
        handler.formatter.words = log_level == "debug"


def _colours_are_wanted() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
