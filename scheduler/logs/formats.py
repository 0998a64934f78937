"""The two formats of a log line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from scheduler.logs.exceptions import describe_error, error_of, text_of
from scheduler.logs.ids import ids_in
from scheduler.printable import json_text, one_line

PEOPLE_SEE = ("job", "tenant", "attempt", "trace_id")

_DIM, _YELLOW, _RED, _PLAIN = "\x1b[2m", "\x1b[33m", "\x1b[31m", "\x1b[0m"


class JsonFormatter(logging.Formatter):
    """One JSON object a line. Leaves out an `extra` that is not one of the fields.

    With `words`, it shows messages of exceptions, too.
    """

    def __init__(self, *, words: bool = False) -> None:
        super().__init__()
        self.words = words

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, without a line end. Never raises."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        fields |= {name: _json_value(value) for name, value in ids_in(record).items()}
        if (error := error_of(record)) is not None:
            fields["error"] = describe_error(error, words=self.words)
        try:
            line = orjson.dumps(fields)
        except TypeError:
            line = orjson.dumps(_without_surrogates(fields))
        return json_text(line).decode()


class HumanFormatter(logging.Formatter):
    """A short line for people: time, level, message and ids; below it an exception with its stack.

    With `words`, it shows messages of exceptions, too.
    """

    def __init__(self, *, words: bool = False, colour: bool = False) -> None:
        super().__init__()
        self.words = words
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, without a line end. Never raises."""
        time = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
        level = self._in(_level_colour(record.levelno), f"{record.levelname:<7}")
        ids = ids_in(record)
        shown = " ".join(f"{name}={one_line(text_of(ids[name]))}" for name in PEOPLE_SEE if name in ids)
        line = f"{self._in(_DIM, time)} {level} {one_line(_message(record))}"
        if shown:
            line += f"  {self._in(_DIM, shown)}"
        if (error := error_of(record)) is not None:
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
    words = f": {one_line(error['message'])}" if "message" in error else ""
    lines = [f"{before}{error['type']}{words}", *(f"  {one_line(frame)}" for frame in error["frames"])]
    for one in error.get("errors", ()):
        lines += [f"  {line}" for line in _lines_of(one, "with ")]
    return lines + (_lines_of(error["cause"], "caused by ") if "cause" in error else [])


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # an argument's __str__ raises, or arguments do not fit
        return f"{text_of(record.msg)} (its arguments do not fit)"


def _json_value(value: object) -> str | int:
    return value if isinstance(value, int) and abs(value) < 2**63 else text_of(value)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_surrogates(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(one) for one in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
