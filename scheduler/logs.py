"""Log lines: JSON for machines, short lines for people; with the ids of the attempt that they come from.

An exception that foreign code raised is logged by its type and the places that it came through. Its words
stay out: they may repeat a prompt or a key. At the level debug they are there.

    an attempt ── speak_of(job) ──▶ context variable ──▶ formatter or IdFilter ──▶ job, tenant, attempt, trace
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from traceback import walk_tb
from typing import Any, Literal, Protocol, TextIO, TypeAlias

import orjson

LogFormat: TypeAlias = Literal["auto", "json", "human"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

OURS = ("scheduler", "workers")
HOSTED = (*OURS, "arq")
"""The loggers that `log_level` is for. All others, httpx for one, are heard from WARNING on."""

IDS = ("queue", "worker", "job", "tenant", "attempt", "trace_id", "span_id")
IDS_OF_A_JOB = IDS[2:]
PEOPLE_SEE = ("job", "tenant", "attempt", "trace_id")

MAX_FRAMES = 40
MAX_CAUSES = 8
MAX_GROUPED = 16

# Source: W3C Trace Context, 3.2.2.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_DIM, _YELLOW, _RED, _PLAIN = "\x1b[2m", "\x1b[33m", "\x1b[31m", "\x1b[0m"


# Who speaks


class _Job(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def attempt(self) -> int: ...


class AttemptIds:
    """What the log lines of one attempt have in common. Without the job: open connections keep it alive."""

    __slots__ = ("attempt", "job", "tenant", "traceparent")

    def __init__(self, job: _Job) -> None:
        self.job = job.id
        self.tenant = job.tenant
        self.attempt = job.attempt
        self.traceparent: object = None

    def fields(self) -> dict[str, object]:
        """The ids by the names that they have in a log line."""
        ids: dict[str, object] = {"job": self.job, "tenant": self.tenant, "attempt": self.attempt}
        return ids | trace_ids(self.traceparent)


_process: ContextVar[Mapping[str, object] | None] = ContextVar("log_process", default=None)
_attempt: ContextVar[AttemptIds | None] = ContextVar("log_attempt", default=None)


def speak_of(job: _Job) -> AttemptIds:
    """Let what is logged from here on, in this task and those that it makes, have the ids of this attempt."""
    ids = AttemptIds(job)
    _attempt.set(ids)
    return ids


def speak_for(ids: AttemptIds | None) -> None:
    """The same with ids that there are already; None: what is logged from here on is about no one job."""
    _attempt.set(ids)


def attempt_ids() -> AttemptIds | None:
    """The ids of the attempt that this code runs for, if it runs for one alone."""
    return _attempt.get()


def identify(**ids: str) -> None:
    """Let what is logged from here on, in this task and those that it makes, have `queue` and `worker`."""
    _process.set(ids)


def ids_of(job: _Job) -> dict[str, object]:
    """The `extra` of a line about a job, where it is not logged from the job's own attempt."""
    return {"job": job.id, "tenant": job.tenant, "attempt": job.attempt}


def trace_ids(traceparent: object) -> dict[str, object]:
    """The ids in a W3C `traceparent`; empty if it is none."""
    found = _TRACEPARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
    return {"trace_id": found[1], "span_id": found[2]} if found else {}


def _ids(record: logging.LogRecord) -> dict[str, object]:
    """The ids that there are for a record: its own, else those of the task that made it."""
    own = {name: value for name in IDS if (value := getattr(record, name, None)) not in (None, "")}
    attempt = _attempt.get()
    # A line about another job must not be given the rest of the ids of this one.
    if attempt is None or any(name in own for name in IDS_OF_A_JOB):
        return {**(_process.get() or {}), **own}
    return {**(_process.get() or {}), **attempt.fields(), **own}


class IdFilter(logging.Filter):
    """Gives records the ids as attributes: for a handler of your own, so that a format may say `%(job)s`.

    Ids that there are not are empty. On a `QueueHandler` it keeps them for the thread that writes.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through."""
        ids = _ids(record)
        for name in IDS:
            setattr(record, name, ids.get(name, ""))
        return True


# Exceptions


def traced(error: BaseException, logger: logging.Logger) -> BaseException:
    """What may stand as `exc_info` of an exception that foreign code raised, whatever formats it then.

    That is the exception where `logger` speaks at the level debug, else one without its words.
    """
    return error if logger.isEnabledFor(logging.DEBUG) else wordless(error)


def wordless(error: BaseException, *, _depth: int = 0) -> BaseException:
    """A stand-in for an exception: its type's name, where it came through and its causes, and no words."""
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
    """An exception as JSON values: `type`, `frames` (the last is where it was raised), `cause`, `errors`.

    `words` adds its `message`.
    """
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    said: dict[str, Any] = {"type": name}
    if words and (message := _text(error)):
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


def _error_of(record: logging.LogRecord) -> BaseException | None:
    info = record.exc_info
    error = info[1] if isinstance(info, tuple) and len(info) == 3 else info
    return error if isinstance(error, BaseException) else None


# Formats


class JsonFormatter(logging.Formatter):
    """One JSON object a line. What is no field of it, such as an `extra` of another name, is left out.

    `words`: the messages of exceptions are to be there, too.
    """

    def __init__(self, *, words: bool = False) -> None:
        super().__init__()
        self.words = words

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end. Raises nothing, whatever the record is."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        fields |= {name: _json_value(value) for name, value in _ids(record).items()}
        if (error := _error_of(record)) is not None:
            fields["error"] = describe_error(error, words=self.words)
        try:
            return orjson.dumps(fields).decode()
        except TypeError:
            return orjson.dumps(_without_surrogates(fields)).decode()


class HumanFormatter(logging.Formatter):
    """A short line for people: time, level, message, and the ids at the end; below it what an exception says.

    `words`: the messages of exceptions are to be there, too.
    """

    def __init__(self, *, words: bool = False, colour: bool = False) -> None:
        super().__init__()
        self.words = words
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """The line and those below it, without their end. Raises nothing, whatever the record is."""
        time = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
        level = self._in(_level_colour(record.levelno), f"{record.levelname:<7}")
        ids = _ids(record)
        shown = " ".join(f"{name}={_one_line(_text(ids[name]))}" for name in PEOPLE_SEE if name in ids)
        line = f"{self._in(_DIM, time)} {level} {_one_line(_message(record))}"
        if shown:
            line += f"  {self._in(_DIM, shown)}"
        if (error := _error_of(record)) is not None:
            line += "".join(f"\n    {one}" for one in _lines_of(describe_error(error, words=self.words)))
        return line

    def _in(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colour and colour else text


def _level_colour(level: int) -> str:
    if level >= logging.ERROR:
        return _RED
    if level >= logging.WARNING:
        return _YELLOW
    return _DIM if level < logging.INFO else ""


def _lines_of(error: Mapping[str, Any], before: str = "") -> list[str]:
    words = f": {_one_line(error['message'])}" if "message" in error else ""
    lines = [f"{before}{error['type']}{words}", *(f"  {_one_line(frame)}" for frame in error["frames"])]
    for one in error.get("errors", ()):
        lines += [f"  {line}" for line in _lines_of(one, "with ")]
    return lines + (_lines_of(error["cause"], "caused by ") if "cause" in error else [])


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # somebody's __str__, or arguments that do not fit
        return f"{_text(record.msg)} (its arguments do not fit)"


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _json_value(value: object) -> str | int:
    return value if isinstance(value, int) and abs(value) < 2**63 else _text(value)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_surrogates(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(one) for one in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _one_line(text: str) -> str:
    """No line ends and no terminal's commands: what others say must not look like lines of ours."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


# Setting up


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
