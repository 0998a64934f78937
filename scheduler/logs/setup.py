"""Makes loggers speak, in a process whose logging nobody else has set up."""

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
"""The loggers that `log_level` is for. All others, httpx for one, are heard from WARNING on."""


class _Handler(logging.StreamHandler[TextIO]):
    """The one through which all speak where logging is ours."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """The stream is gone, and nobody is there to be told."""


def set_up(log_format: LogFormat, log_level: LogLevel, *, stream: TextIO | None = None) -> None:
    """Let all loggers speak in one format on standard error (or `stream`).

    Ours and arq's do so from `log_level` on, others from WARNING on or a level that they have themselves. For
    a process that is the scheduler's own, and whose logging nobody else has set up.
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
    """Whether it was `set_up` that made loggers speak in this process."""
    return _handler() is not None


def _handler() -> _Handler | None:
    return next((one for one in logging.getLogger().handlers if isinstance(one, _Handler)), None)


def change_level(log_level: LogLevel) -> None:
    """Let loggers speak from another level on, where it was `set_up` that made them speak."""
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
