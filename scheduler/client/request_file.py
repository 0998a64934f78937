"""Reads requests from JSON Lines."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

from scheduler.errors import InvalidRequest
from scheduler.model import MAX_REQUEST_BYTES, JobRequest
from scheduler.payload import parse_request

MAX_LINE_BYTES = 8 * MAX_REQUEST_BYTES
"""JSON may write one byte of a request as six."""


@dataclass(frozen=True, slots=True)
class RequestFile:
    """The requests of a file: each line is an object with the fields of a request, or a string, the prompt.

    Iterating reads from the start, a line at a time.
    """

    lines: BinaryIO
    """The open file. It must be seekable."""
    name: str
    """Its name, for errors."""
    defaults: dict[str, Any]
    """Fields for lines that do not have them. `params` and `metadata` are merged."""
    system: str | None
    """A system message for requests without one."""

    def __iter__(self) -> Iterator[JobRequest]:
        self.lines.seek(0)
        number = 0
        while line := self.lines.readline(MAX_LINE_BYTES):
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)  # some editors write one
            if line.strip():
                yield self._request(number, line)

    def check(self) -> int:
        """Check every line, and count the requests.

        Raises:
            InvalidRequest: a line is wrong; the error names it.
        """
        count = sum(1 for _ in self)
        if not count:
            raise InvalidRequest(f"{self.name}: has no requests", field="file")
        return count

    def _request(self, number: int, line: bytes) -> JobRequest:
        try:
            return parse_request(self._completed(_fields(line)))
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"{self.name}, line {number}: is not JSON: {error.msg}") from None
        except InvalidRequest as error:
            raise InvalidRequest(f"{self.name}, line {number}: {error}", field=error.field) from None

    def _completed(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of a line with the defaults and the system message."""
        completed = {**self.defaults, **fields}
        for name in ("params", "metadata"):
            if isinstance(fields.get(name), dict) and name in self.defaults:
                completed[name] = {**self.defaults[name], **fields[name]}
        if self.system is not None:
            add_system(completed, self.system)
        return completed


def _fields(line: bytes) -> dict[str, Any]:
    if len(line) == MAX_LINE_BYTES:
        raise InvalidRequest(f"is longer than {MAX_LINE_BYTES:,} bytes")
    fields = orjson.loads(line)
    if isinstance(fields, str):
        return {"prompt": fields}
    if not isinstance(fields, dict):
        raise InvalidRequest("give an object with the fields of a request, or a string")
    return fields


def add_system(fields: dict[str, Any], system: str) -> None:
    """Put a system message before the prompt of a request, or before messages that have none."""
    message = {"role": "system", "content": system}
    if isinstance(fields.get("prompt"), str):
        fields["messages"] = [message, {"role": "user", "content": fields.pop("prompt")}]
    elif isinstance(fields.get("messages"), list) and not _has_system(fields["messages"]):
        fields["messages"] = [message, *fields["messages"]]


def _has_system(messages: list[Any]) -> bool:
    return any(isinstance(one, dict) and one.get("role") in ("system", "developer") for one in messages)
