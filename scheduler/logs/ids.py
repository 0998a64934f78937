"""Whom a log line is about: the process, and the attempt of a job in whose task it is made."""

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


def ids_in(record: logging.LogRecord) -> dict[str, object]:
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
        ids = ids_in(record)
        for name in IDS:
            setattr(record, name, ids.get(name, ""))
        return True
