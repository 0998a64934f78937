"""Logging of a process that arq starts: arq sets up its own logger, and no other."""

from __future__ import annotations

import logging

from scheduler.host.arq_options import arq_option
from scheduler.logs import OURS, identify, is_ours, set_up, wordless
from scheduler.settings import Settings

CHATTER = ("→", "←", "↻", "⊘", "recording health")
"""Marks of the lines that arq logs for each of its jobs, and every ten seconds."""


def listen_to_arq(settings: Settings) -> None:
    """Set up logging with arq's first line: after arq has set up its own, before it calls this package."""
    log = logging.getLogger("arq.worker")
    for one in [one for one in log.filters if isinstance(one, ArqLines)]:
        log.removeFilter(one)
    log.addFilter(ArqLines(settings))


def show_logs(settings: Settings) -> None:
    """Set up logging, unless the application has. Safe to call twice.

    If you have configured arq's logger and not the ones of this package, they use arq's handlers.
    """
    if logging.getLogger().handlers:
        return
    loggers = [logging.getLogger(name) for name in OURS]
    if not arq_option("custom_log_dict") and not any(log.handlers for log in loggers):
        set_up(settings.log_format, "debug" if arq_option("verbose") else settings.log_level)
        return
    arq = logging.getLogger("arq")
    for log in loggers:
        if not log.handlers:
            log.handlers = list(arq.handlers)
            log.setLevel(arq.level or logging.INFO)


class ArqLines(logging.Filter):
    """Removes the messages of exceptions from arq's lines, and the chatter from the level info."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._begun = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write the line."""
        if not self._begun:
            self._begun = True
            identify(queue=self._settings.queue)
            show_logs(self._settings)
        log = logging.getLogger(record.name)
        if log.isEnabledFor(logging.DEBUG):
            return True
        _remove_messages(record)
        if not is_ours():
            return True
        chatter = record.levelno == logging.INFO and any(mark in str(record.msg) for mark in CHATTER)
        return log.isEnabledFor(record.levelno) and not chatter


def _remove_messages(record: logging.LogRecord) -> None:
    if isinstance(record.args, tuple):
        record.args = tuple(
            getattr(one, "code", type(one).__name__) if isinstance(one, BaseException) else one
            for one in record.args
        )
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        stand_in = wordless(error)
        record.exc_info = (type(stand_in), stand_in, stand_in.__traceback__)
