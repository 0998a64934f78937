"""The ids of a log line: of the process, and of the attempt in whose task it is made."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Protocol

IDS = ("queue", "worker", "job", "tenant", "attempt", "trace_id", "span_id")
IDS_OF_A_JOB = IDS[2:]

# Source: W3C Trace Context, 3.2.2.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?"
)


class _Job(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def attempt(self) -> int: ...


class AttemptIds:
    """The ids in the log lines of one attempt. Holds no job: connections would keep it alive."""

    __slots__ = ("attempt", "job", "tenant", "traceparent")

    def __init__(self, job: _Job) -> None:
        self.job = job.id
        self.tenant = job.tenant
        self.attempt = job.attempt
        self.traceparent: object = None

    def fields(self) -> dict[str, object]:
        """The ids by their names in a log line."""
        ids: dict[str, object] = {"job": self.job, "tenant": self.tenant, "attempt": self.attempt}
        return ids | trace_ids(self.traceparent)


_process: ContextVar[Mapping[str, object] | None] = ContextVar("log_process", default=None)
_attempt: ContextVar[AttemptIds | None] = ContextVar("log_attempt", default=None)


def speak_of(job: _Job) -> AttemptIds:
    """Add the ids of this attempt to all that this task, and tasks that it makes, log from now on."""
    ids = AttemptIds(job)
    _attempt.set(ids)
    return ids


def speak_for(ids: AttemptIds | None) -> None:
    """Do the same with existing ids; with None, lines from now on belong to no job."""
    _attempt.set(ids)


def attempt_ids() -> AttemptIds | None:
    """The ids of the attempt that this code runs for; None if it runs for none, or for several."""
    return _attempt.get()


def identify(**ids: str) -> None:
    """Add `queue` and `worker` to all that this task, and tasks that it makes, log from now on."""
    _process.set(ids)


def ids_of(job: _Job) -> dict[str, object]:
    """The `extra` for a line about a job that is logged outside the job's attempt."""
    return {"job": job.id, "tenant": job.tenant, "attempt": job.attempt}


def trace_ids(traceparent: object) -> dict[str, object]:
    """The ids in a W3C `traceparent`; empty if the value is not one."""
    found = _TRACEPARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
    return {"trace_id": found[1], "span_id": found[2]} if found else {}


def ids_in(record: logging.LogRecord) -> dict[str, object]:
    """The ids of a record: its own, else those of the task that made it."""
    own = {name: value for name in IDS if (value := getattr(record, name, None)) not in (None, "")}
    attempt = _attempt.get()
    # A line about another job must not be given the rest of the ids of this one.
    if attempt is None or any(name in own for name in IDS_OF_A_JOB):
        return {**(_process.get() or {}), **own}
    return {**(_process.get() or {}), **attempt.fields(), **own}


class IdFilter(logging.Filter):
    """Sets the ids as attributes of records, so that the format of your own handler can use `%(job)s`.

    Unknown ids are empty. Put it on a `QueueHandler` to keep the ids for the thread that writes.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through."""
        ids = ids_in(record)
        for name in IDS:
            setattr(record, name, ids.get(name, ""))
        return True
